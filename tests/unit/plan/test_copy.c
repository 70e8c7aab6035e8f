/* Copying: every byte range of every layout, at every alignment, and not one byte beside it. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64 };

static uint8_t source[1 << 16];

static void source_fill(void)
{
    struct random random = { 3 };

    for (size_t i = 0; i < sizeof(source); i++)
        source[i] = (uint8_t)random_u64(&random);
}

/* Copies [offset, offset + size) to a place with guards at that misalignment, and looks at all of it. */
static bool copies(const struct tspool_tensor *tensor, const uint8_t *whole, uint64_t offset, uint64_t size, size_t misalign)
{
    size_t room = size + 2 * GUARD + misalign;
    uint8_t *memory = malloc(room), *to = memory + GUARD + misalign;
    bool good;

    memset(memory, 0xc3, room);
    tensor_copy(tensor, offset, size, to);
    good = memcmp(to, whole + offset, size) == 0;
    for (uint8_t *at = memory; at < memory + room; at++)
        if ((at < to || at >= to + size) && *at != 0xc3)
            good = false;
    free(memory);
    return good;
}

Test(tensor_copy, contiguous_ranges_at_every_alignment)
{
    const uint64_t shape[] = { 40000 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct random random = { 11 };

    source_fill();
    tensor.dtype = TSPOOL_U8;
    tensor.rank = 1;
    tensor.shape = shape;
    for (size_t misalign = 0; misalign < 64; misalign++) {
        tensor.data = source + random_below(&random, 64);
        for (int i = 0; i < 12; i++) {
            uint64_t size = random_below(&random, i % 2 ? 40000 : 5000), offset = random_below(&random, 40000 - size);

            cr_assert(copies(&tensor, tensor.data, offset, size, misalign), "%lu+%lu at %zu", offset, size, misalign);
        }
    }
}

static void check_all_ranges(enum tspool_dtype dtype, uint32_t rank, const uint64_t *shape, const int64_t *strides)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    uint64_t size = tspool_dtype_bits(dtype) / 8;
    uint8_t *whole;

    source_fill();
    tensor.dtype = dtype;
    tensor.rank = rank;
    tensor.shape = shape;
    tensor.strides = strides;
    tensor.data = source + 5;
    for (uint32_t i = 0; i < rank; i++)
        size *= shape[i];
    whole = naive_copy(&tensor, size);
    for (uint64_t offset = 0; offset <= size; offset++)
        for (uint64_t count = 0; count <= size - offset; count += 1 + count / 16)
            cr_assert(copies(&tensor, whole, offset, count, 0), "[%lu, +%lu)", offset, count);
    free(whole);
}

Test(tensor_copy, every_range_of_a_transposed_matrix)
{
    check_all_ranges(TSPOOL_F32, SHAPE(5, 7), (int64_t[]){ 1, 5 });
}

Test(tensor_copy, every_range_of_a_permuted_slice_with_single_and_merged_dimensions)
{
    check_all_ranges(TSPOOL_BF16, SHAPE(2, 1, 3, 4, 2), (int64_t[]){ 1000, 99, 8, 2, 1 });
    check_all_ranges(TSPOOL_U8, SHAPE(3, 4, 5), (int64_t[]){ 1, 100, 7 });
    check_all_ranges(TSPOOL_F64, SHAPE(2, 3, 2), (int64_t[]){ 50, 4, 3 });
}

Test(tensor_copy, every_range_of_an_expanded_tensor)
{
    check_all_ranges(TSPOOL_F32, SHAPE(3, 9), (int64_t[]){ 0, 1 });
    check_all_ranges(TSPOOL_F32, SHAPE(9, 3), (int64_t[]){ 1, 0 });
    check_all_ranges(TSPOOL_C64, SHAPE(4, 2), (int64_t[]){ 0, 0 });
}

Test(tensor_copy, every_range_of_rows_long_enough_to_go_past_the_caches)
{
    const uint64_t shape[] = { 3, 9000 };
    const int64_t strides[] = { 12001, 1 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct random random = { 5 };
    uint8_t *whole;

    source_fill();
    tensor.dtype = TSPOOL_U8;
    tensor.rank = 2;
    tensor.shape = shape;
    tensor.strides = strides;
    tensor.data = source + 1;
    whole = naive_copy(&tensor, 27000);
    for (int i = 0; i < 300; i++) {
        uint64_t offset = random_below(&random, 27000);

        cr_assert(copies(&tensor, whole, offset, random_below(&random, 27000 - offset), random_below(&random, 64)));
    }
    free(whole);
}

/* Bands of several rows, wider and higher than a tile, of every element size; ranges begin and end inside rows. */
Test(tensor_copy, bands_of_a_transposed_matrix_of_every_element_size)
{
    const enum tspool_dtype dtypes[] = { TSPOOL_U8, TSPOOL_BF16, TSPOOL_F32, TSPOOL_F64 };
    const uint64_t shape[] = { 2, 49, 71 };
    const int64_t strides[] = { 49, 1, 49 * 2 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct random random = { 9 };

    source_fill();
    tensor.rank = 3;
    tensor.shape = shape;
    tensor.strides = strides;
    tensor.data = source + 1;
    for (int kind = 0; kind < 4; kind++) {
        uint64_t size = 2 * 49 * 71 * (1u << kind);
        uint8_t *whole;

        tensor.dtype = dtypes[kind];
        whole = naive_copy(&tensor, size);
        cr_assert(copies(&tensor, whole, 0, size, 0));
        for (int i = 0; i < 200; i++) {
            uint64_t offset = random_below(&random, size);

            cr_assert(copies(&tensor, whole, offset, random_below(&random, size - offset + 1), 3));
        }
        free(whole);
    }
}
