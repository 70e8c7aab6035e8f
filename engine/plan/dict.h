/* plan/dict.h - how a declared tensor is kept, for this room only. Names, shapes and strides lie in big blocks: a million
 * tensors are a few hundred allocations, and none of them moves.
 */
#ifndef PLAN_DICT_H
#define PLAN_DICT_H

#include <plan/plan.h>

struct declared {
    const char *name;
    const uint64_t *extents;   /* shape[rank], then strides[rank] if strided, then global shape and offsets[rank] if a shard */
    const void *data;
    const uint64_t *version;
    uint64_t size;             /* bytes of the contiguous form */
    uint16_t name_size;
    uint8_t dtype, rank;
    bool is_strided, is_shard, is_untied;
};

struct dict_block;
struct state_dict {
    struct declared *tensors;
    size_t count, capacity;
    struct dict_block *blocks; /* the first is the one being filled */
};

static inline const uint64_t *declared_shape(const struct declared *tensor) { return tensor->extents; }
static inline const uint64_t *declared_strides(const struct declared *tensor) /* NULL: contiguous */
{
    return tensor->is_strided ? tensor->extents + tensor->rank : NULL;
}
static inline const uint64_t *declared_global_shape(const struct declared *tensor) /* NULL: whole */
{
    return tensor->is_shard ? tensor->extents + (size_t)tensor->rank * (tensor->is_strided ? 2 : 1) : NULL;
}
static inline const uint64_t *declared_global_offsets(const struct declared *tensor) /* NULL: whole */
{
    return tensor->is_shard ? declared_global_shape(tensor) + tensor->rank : NULL;
}

#endif
