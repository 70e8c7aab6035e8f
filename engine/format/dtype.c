/* format/dtype.c - the dtypes of safetensors 0.8.0, their names in files and their sizes in bits. */
#include <tspool/tensor.h>

#include <string.h>

static const struct { const char *name; unsigned bits; } dtypes[TSPOOL_DTYPE_COUNT] = {
    [TSPOOL_BOOL] = { "BOOL", 8 },
    [TSPOOL_U8] = { "U8", 8 },
    [TSPOOL_I8] = { "I8", 8 },
    [TSPOOL_U16] = { "U16", 16 },
    [TSPOOL_I16] = { "I16", 16 },
    [TSPOOL_U32] = { "U32", 32 },
    [TSPOOL_I32] = { "I32", 32 },
    [TSPOOL_U64] = { "U64", 64 },
    [TSPOOL_I64] = { "I64", 64 },
    [TSPOOL_F16] = { "F16", 16 },
    [TSPOOL_BF16] = { "BF16", 16 },
    [TSPOOL_F32] = { "F32", 32 },
    [TSPOOL_F64] = { "F64", 64 },
    [TSPOOL_C64] = { "C64", 64 }, /* two F32 */
    [TSPOOL_F8_E4M3] = { "F8_E4M3", 8 },
    [TSPOOL_F8_E5M2] = { "F8_E5M2", 8 },
    [TSPOOL_F8_E8M0] = { "F8_E8M0", 8 },
    [TSPOOL_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8 },
    [TSPOOL_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8 },
    [TSPOOL_F4] = { "F4", 4 },
    [TSPOOL_F6_E2M3] = { "F6_E2M3", 6 },
    [TSPOOL_F6_E3M2] = { "F6_E3M2", 6 },
};

static int dtype_is(enum tspool_dtype dtype)
{
    return (int)dtype > TSPOOL_DTYPE_INVALID && (int)dtype < TSPOOL_DTYPE_COUNT;
}

const char *tspool_dtype_name(enum tspool_dtype dtype) { return dtype_is(dtype) ? dtypes[dtype].name : NULL; }

unsigned tspool_dtype_bits(enum tspool_dtype dtype) { return dtype_is(dtype) ? dtypes[dtype].bits : 0; }

enum tspool_dtype tspool_dtype_parse(const char *name)
{
    for (int dtype = TSPOOL_DTYPE_INVALID + 1; dtype < TSPOOL_DTYPE_COUNT; dtype++)
        if (!strcmp(dtypes[dtype].name, name))
            return (enum tspool_dtype)dtype;
    return TSPOOL_DTYPE_INVALID;
}
