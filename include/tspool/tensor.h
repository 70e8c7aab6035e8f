/* tspool/tensor.h - how a tensor is described, for saving.
 *
 * The dtypes are those of the safetensors format (safetensors 0.8.0, `Dtype` in its README and tensor.rs);
 * names in files are the strings that tspool_dtype_name gives.
 */
#ifndef TSPOOL_TENSOR_H
#define TSPOOL_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum tspool_dtype {
    TSPOOL_DTYPE_INVALID = 0,
    TSPOOL_BOOL, TSPOOL_U8, TSPOOL_I8, TSPOOL_U16, TSPOOL_I16, TSPOOL_U32, TSPOOL_I32, TSPOOL_U64, TSPOOL_I64,
    TSPOOL_F16, TSPOOL_BF16, TSPOOL_F32, TSPOOL_F64, TSPOOL_C64,
    TSPOOL_F8_E4M3, TSPOOL_F8_E5M2, TSPOOL_F8_E8M0, TSPOOL_F8_E4M3FNUZ, TSPOOL_F8_E5M2FNUZ,
    TSPOOL_F4, TSPOOL_F6_E2M3, TSPOOL_F6_E3M2,
    TSPOOL_DTYPE_COUNT /* one past the last; not a dtype */
};

#define TSPOOL_RANK_MAX 64u          /* dimensions of one tensor */
#define TSPOOL_TENSOR_NAME_MAX 4096u /* bytes of UTF-8, without the terminating NUL */

/* "F32", "BF16", ...: the name in safetensors files. Static; NULL for what is not a dtype. */
const char *tspool_dtype_name(enum tspool_dtype dtype);
/* The dtype of that name, or TSPOOL_DTYPE_INVALID. */
enum tspool_dtype tspool_dtype_parse(const char *name);
/* Bits of one element: 32 for F32, 4 for F4; 0 for what is not a dtype. */
unsigned tspool_dtype_bits(enum tspool_dtype dtype);

/* One tensor of a state dict. The struct, its arrays and its strings are copied by tspool_save_add; `data` is not:
 * it must stay valid and unchanged until the save is STAGED (or resolved).
 *
 * A shard of a distributed tensor gives `global_shape` and `global_offsets` too (both, `rank` elements each, in
 * elements): `shape` is then the local part. That is DCP's ChunkStorageMetadata. */
struct tspool_tensor {
    size_t size;                    /* sizeof(struct tspool_tensor), set by TSPOOL_TENSOR_INIT */
    const char *name;               /* UTF-8, unique in its save, 1..TSPOOL_TENSOR_NAME_MAX bytes */
    enum tspool_dtype dtype;
    uint32_t rank;                  /* number of dimensions, 0..TSPOOL_RANK_MAX; 0 is a scalar */
    const uint64_t *shape;          /* `rank` extents in elements; an extent of 0 makes an empty tensor; NULL when rank is 0 */
    const int64_t *strides;         /* `rank` strides in elements, each >= 0; NULL: contiguous, last dimension fastest */
    const void *data;               /* first element, host memory; NULL only for empty tensors and for caller staging */
    const uint64_t *global_shape;   /* NULL: the tensor is whole */
    const uint64_t *global_offsets; /* NULL: the tensor is whole */
    const uint64_t *version;        /* NULL, or a counter that the caller raises whenever it changes the data: a change
                                     * between submit and STAGED then fails the save and names the tensor */
    uint8_t untied;                 /* nonzero: stored under its own name even if it is tied to another tensor, for readers
                                     * that know nothing of ties */
};

#define TSPOOL_TENSOR_INIT { sizeof(struct tspool_tensor), NULL, TSPOOL_DTYPE_INVALID, 0, NULL, NULL, NULL, NULL, NULL, NULL, 0 }

#ifdef __cplusplus
}
#endif
#endif
