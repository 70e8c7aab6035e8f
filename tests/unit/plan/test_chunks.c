/* Chunks and items at their borders: one byte too few is a hole in a file, one too many spoils the neighbour's slot. */
#include "fixture.h"

#include <base/checked.h>
#include <criterion/criterion.h>
#include <plan/items.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Test(items, worked_example_of_the_header_holds)
{
    struct item_rules rules = { 524288, 4096 };
    struct write_item item = item_at(&rules, 0, 1048580, 2);

    cr_assert_eq(item_count(&rules, 1048580), 3);
    cr_assert(item.file_offset == 1048576 && item.chunk_offset == 1048576 && item.size == 4096);
    item = item_at(&rules, 0, 1048580, 1);
    cr_assert(item.file_offset == 524288 && item.size == 524288);
}

Test(items, a_full_chunk_needs_no_padding)
{
    struct item_rules rules = { 524288, 4096 };

    cr_assert_eq(item_count(&rules, CHUNK_BYTES), 32);
    cr_assert_eq(item_at(&rules, CHUNK_BYTES, CHUNK_BYTES, 31).size, 524288);
    cr_assert_eq(item_at(&rules, CHUNK_BYTES, CHUNK_BYTES, 31).file_offset, 2 * CHUNK_BYTES - 524288);
}

static void check_one(uint64_t tensor_bytes, uint32_t chunks, uint64_t last)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "w", TSPOOL_U8, NULL, SHAPE(tensor_bytes));
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->chunk_count, chunks);
    cr_assert_eq(plan_chunk_at(plan, chunks - 1).size, last);
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    plan_destroy(plan);
    state_dict_destroy(dict);
}

Test(chunks, a_tensor_that_ends_at_a_chunk_border_opens_no_other_chunk)
{
    check_one(CHUNK_BYTES - 4096, 1, CHUNK_BYTES);
    check_one(CHUNK_BYTES - 4096 - 1, 1, CHUNK_BYTES - 1);
    check_one(CHUNK_BYTES - 4096 + 1, 2, 1);
    check_one(3 * CHUNK_BYTES - 4096, 3, CHUNK_BYTES);
}

Test(chunks, a_chunk_begins_with_the_tensor_after_the_one_that_ended_at_its_border)
{
    struct state_dict *dict = state_dict_create();
    struct plan_cursor cursor;
    struct plan_piece piece;
    struct plan *plan;

    declare(dict, "first", TSPOOL_U8, NULL, SHAPE(CHUNK_BYTES - 4096));
    declare(dict, "second", TSPOOL_U8, NULL, SHAPE(4096));
    declare(dict, "third", TSPOOL_U8, NULL, SHAPE(1));
    plan = plan_of(dict, &plain_rules);
    plan_cursor_init(&cursor, plan, 1);
    cr_assert(plan_cursor_next(&cursor, plan, &piece));
    cr_assert(piece.kind == PIECE_TENSOR && piece.entry == 1 && piece.source_offset == 0 && piece.size == 4096);
    cr_assert(plan_cursor_next(&cursor, plan, &piece));
    cr_assert(piece.entry == 2 && piece.chunk_offset == 4096 && piece.size == 1);
    cr_assert_not(plan_cursor_next(&cursor, plan, &piece));
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    plan_destroy(plan);
    state_dict_destroy(dict);
}

Test(chunks, one_tensor_of_eight_tebibytes_is_planned_without_touching_it)
{
    check_one((uint64_t)8 << 40, 524289, 4096);
}

Test(chunks, a_header_larger_than_a_chunk_spans_several)
{
    struct state_dict *dict = state_dict_create();
    char name[TSPOOL_TENSOR_NAME_MAX + 1];
    struct plan_cursor cursor;
    struct plan_piece piece;
    struct plan *plan;

    memset(name, 'n', sizeof(name));
    for (int i = 0; i < 4200; i++) {
        char digits[16];

        snprintf(digits, sizeof(digits), "%05d", i);
        memcpy(name + TSPOOL_TENSOR_NAME_MAX - 5, digits, 6);
        declare(dict, name, TSPOOL_U8, NULL, SHAPE(3));
    }
    plan = plan_of(dict, &plain_rules);
    cr_assert_gt(plan->files[0].header_size, CHUNK_BYTES);
    plan_cursor_init(&cursor, plan, 1);
    cr_assert(plan_cursor_next(&cursor, plan, &piece));
    cr_assert(piece.kind == PIECE_HEADER && piece.source_offset == CHUNK_BYTES);
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    plan_destroy(plan);
    state_dict_destroy(dict);
}

Test(chunks, up_to_four_files_take_turns)
{
    struct plan_rules rules = { .shard_bytes = 1, .offset_align = 4096, .world_size = 1 };
    const uint32_t expected[] = { 0, 3, 4, 6, 1, 8, 5, 7, 2, 9 };
    const uint64_t chunks[] = { 3, 1, 2, 2, 1, 1 }; /* files: 0-2, 3, 4-5, 6-7, 8, 9 */
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    char name[16];

    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        declare(dict, name, TSPOOL_U8, NULL, SHAPE((chunks[i] - 1) * CHUNK_BYTES + 4096));
    }
    plan = plan_of(dict, &rules);
    cr_assert_eq(plan->chunk_count, 10);
    cr_assert_eq(memcmp(plan->chunk_order, expected, sizeof(expected)), 0);
    cr_assert_null(judge_structure(dict, plan, &rules));
    plan_destroy(plan);
    state_dict_destroy(dict);
}

/* Real bytes across chunk borders that cut elements: an unaligned contiguous one, a transposed one of three-byte offset. */
Test(chunks, tensors_across_chunk_borders_arrive_whole)
{
    enum { ROWS = 2100, COLUMNS = 2003 };
    struct state_dict *dict = state_dict_create();
    const uint64_t shape[] = { ROWS, COLUMNS };
    const int64_t transposed[] = { 1, ROWS };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    uint8_t *data = malloc((size_t)ROWS * COLUMNS * 8 + 8);
    struct random random = { 7 };
    struct plan *plan;

    for (size_t i = 0; i < (size_t)ROWS * COLUMNS * 8; i += 8) {
        uint64_t value = random_u64(&random);
        memcpy(data + i, &value, 8);
    }
    declare(dict, "contiguous", TSPOOL_F64, data + 1, 2, shape);
    tensor.name = "transposed";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 2;
    tensor.shape = shape;
    tensor.strides = transposed;
    tensor.data = data + 3;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    plan = plan_of(dict, &plain_rules);
    cr_assert_geq(plan->chunk_count, 3);
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    cr_assert_null(judge_bytes(dict, plan));
    plan_destroy(plan);
    state_dict_destroy(dict);
    free(data);
}
