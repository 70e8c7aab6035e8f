/* Slices as runs of bytes, against picking element by element. */
#include <criterion/criterion.h>
#include <errno.h>
#include <read/slice.h>
#include <stdlib.h>
#include <string.h>

static uint64_t total_of(const uint64_t *shape, uint32_t rank)
{
    uint64_t total = 1;

    for (uint32_t d = 0; d < rank; d++)
        total *= shape[d];
    return total;
}

/* Packs the slice of an I32 tensor whose element n has the value n, one element after the other. */
static uint64_t pick(const uint64_t *shape, const uint64_t *start, const uint64_t *extent, uint32_t rank, uint32_t *out)
{
    uint64_t count = total_of(extent, rank);

    for (uint64_t n = 0; n < count; n++) {
        uint64_t left = n, stride = 1, element = 0;

        for (uint32_t d = rank; d-- > 0;) {
            element += (start[d] + left % extent[d]) * stride;
            left /= extent[d];
            stride *= shape[d];
        }
        out[n] = (uint32_t)element;
    }
    return count;
}

static uint64_t pack_runs(const struct slice *slice, uint32_t *out)
{
    struct slice_run run;
    uint64_t at = 0, bytes = 0;

    while (slice_run_at(slice, at, &run)) {
        for (uint64_t byte = run.begin; byte < run.end; byte += 4)
            out[(run.data_offset + byte - run.begin) / 4] = (uint32_t)(byte / 4);
        bytes += run.end - run.begin;
        at = run.end;
    }
    return bytes;
}

Test(slice, runs_pack_what_picking_elements_packs_for_random_boxes)
{
    uint32_t *picked = malloc(4 * 4096), *packed = malloc(4 * 4096);
    const char *reason;

    srand(7);
    for (unsigned round = 0; round < 3000; round++) {
        uint32_t rank = (uint32_t)rand() % 5;
        uint64_t shape[5], start[5], extent[5], count;
        struct slice slice;

        for (uint32_t d = 0; d < rank; d++) {
            shape[d] = 1 + (uint64_t)rand() % 5;
            start[d] = (uint64_t)rand() % shape[d];
            extent[d] = rand() % 3 ? 1 + (uint64_t)rand() % (shape[d] - start[d]) : (start[d] = 0, shape[d]);
        }
        cr_assert_eq(slice_init(&slice, TSPOOL_I32, rank, shape, start, extent, &reason), 0);
        count = pick(shape, start, extent, rank, picked);
        cr_assert_eq(slice.bytes, 4 * count);
        cr_assert_eq(pack_runs(&slice, packed), 4 * count, "round %u", round);
        cr_assert_eq(memcmp(picked, packed, 4 * count), 0, "round %u", round);
    }
    free(picked);
    free(packed);
}

Test(slice, entered_in_the_middle_continues_where_the_whole_walk_would)
{
    uint64_t shape[] = { 4, 3, 5 }, start[] = { 1, 0, 2 }, extent[] = { 2, 3, 2 };
    struct slice slice;
    const char *reason;

    cr_assert_eq(slice_init(&slice, TSPOOL_U8, 3, shape, start, extent, &reason), 0);
    for (uint64_t at = 0; at <= 70; at++) {
        struct slice_run run = { 0 }, walked;
        uint64_t from = 0;
        bool expected = false, found = slice_run_at(&slice, at, &run);

        while (slice_run_at(&slice, from, &walked) && !(expected = walked.end > at))
            from = walked.end;
        cr_assert_eq(found, expected, "at %lu", at);
        if (!found)
            continue;
        cr_assert_eq(run.begin, at > walked.begin ? at : walked.begin);
        cr_assert_eq(run.end, walked.end);
        cr_assert_eq(run.data_offset, walked.data_offset + run.begin - walked.begin);
    }
}

Test(slice, of_whole_trailing_dimensions_is_one_run)
{
    uint64_t shape[] = { 8, 3, 5 }, start[] = { 2, 0, 0 }, extent[] = { 4, 3, 5 };
    struct slice slice;
    const char *reason;

    cr_assert_eq(slice_init(&slice, TSPOOL_F64, 3, shape, start, extent, &reason), 0);
    cr_assert_eq(slice.loop_count, 0);
    cr_assert_eq(slice.base, 2 * 15 * 8);
    cr_assert_eq(slice.run_bytes, 4 * 15 * 8);
}

Test(slice, outside_the_shape_is_refused_without_overflow)
{
    uint64_t shape[] = { 4 }, start[] = { 2 }, extent[] = { UINT64_MAX };
    struct slice slice = { .bytes = 99 };
    const char *reason = NULL;

    cr_assert_eq(slice_init(&slice, TSPOOL_F32, 1, shape, start, extent, &reason), -EINVAL);
    cr_assert_not_null(reason);
    cr_assert_eq(slice.bytes, 99, "outputs change only on success");
    cr_assert_eq(slice_init(&slice, TSPOOL_F32, 1, shape, start, NULL, &reason), -EINVAL);
}

Test(slice, of_elements_smaller_than_a_byte_must_cut_between_bytes)
{
    uint64_t shape[] = { 4, 6 }, even[] = { 1, 2 }, odd[] = { 1, 1 }, two[] = { 2, 2 }, three[] = { 2, 3 }, row[] = { 1, 0 },
        full[] = { 2, 6 };
    struct slice slice;
    const char *reason;

    cr_assert_eq(slice_init(&slice, TSPOOL_F4, 2, shape, even, two, &reason), 0);
    cr_assert_eq(slice.bytes, 2);
    cr_assert_eq(slice_init(&slice, TSPOOL_F4, 2, shape, odd, two, &reason), -EINVAL);
    cr_assert_eq(slice_init(&slice, TSPOOL_F4, 2, shape, even, three, &reason), -EINVAL);
    cr_assert_eq(slice_init(&slice, TSPOOL_F4, 2, shape, row, full, &reason), 0);
    cr_assert_eq(slice.bytes, 6);
}

Test(slice, that_is_empty_has_no_run)
{
    uint64_t shape[] = { 4, 0, 3 }, start[] = { 0, 0, 0 }, extent[] = { 4, 0, 3 };
    struct slice slice;
    struct slice_run run;
    const char *reason;

    cr_assert_eq(slice_init(&slice, TSPOOL_F32, 3, shape, NULL, NULL, &reason), 0);
    cr_assert_not(slice_run_at(&slice, 0, &run));
    cr_assert_eq(slice_init(&slice, TSPOOL_F32, 3, shape, start, extent, &reason), 0);
    cr_assert_eq(slice.bytes, 0);
    cr_assert_not(slice_run_at(&slice, 0, &run));
}
