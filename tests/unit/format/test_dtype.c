/* A dtype under another name or size makes files that nobody else can read. The list is that of safetensors 0.8.0. */
#include <criterion/criterion.h>
#include <tspool/tensor.h>

static const struct { const char *name; unsigned bits; } expected[] = {
    { "BOOL", 8 },    { "F4", 4 },          { "F6_E2M3", 6 },     { "F6_E3M2", 6 }, { "U8", 8 },   { "I8", 8 },
    { "F8_E5M2", 8 }, { "F8_E4M3", 8 },     { "F8_E8M0", 8 },     { "F8_E4M3FNUZ", 8 }, { "F8_E5M2FNUZ", 8 },
    { "I16", 16 },    { "U16", 16 },        { "F16", 16 },        { "BF16", 16 },   { "I32", 32 }, { "U32", 32 },
    { "F32", 32 },    { "C64", 64 },        { "F64", 64 },        { "I64", 64 },    { "U64", 64 },
};

Test(dtype, every_dtype_of_safetensors_has_its_name_and_size)
{
    cr_assert_eq(sizeof expected / sizeof *expected, TSPOOL_DTYPE_COUNT - 1);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        enum tspool_dtype dtype = tspool_dtype_parse(expected[i].name);

        cr_assert_neq(dtype, TSPOOL_DTYPE_INVALID, "%s", expected[i].name);
        cr_assert_str_eq(tspool_dtype_name(dtype), expected[i].name);
        cr_assert_eq(tspool_dtype_bits(dtype), expected[i].bits, "%s", expected[i].name);
    }
}

Test(dtype, what_is_no_dtype_is_said_so)
{
    const int wrong[] = { -1, TSPOOL_DTYPE_INVALID, TSPOOL_DTYPE_COUNT, 1000 };

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_assert_null(tspool_dtype_name((enum tspool_dtype)wrong[i]));
        cr_assert_eq(tspool_dtype_bits((enum tspool_dtype)wrong[i]), 0);
    }
    cr_assert_eq(tspool_dtype_parse(""), TSPOOL_DTYPE_INVALID);
    cr_assert_eq(tspool_dtype_parse("f32"), TSPOOL_DTYPE_INVALID);
    cr_assert_eq(tspool_dtype_parse("F32 "), TSPOOL_DTYPE_INVALID);
}
