/* Layout: which tensor stands where and in which file. A wrong order costs alignment; a wrong split makes files that readers
 * refuse; a name in two places of one file makes them all unreadable. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <format/safetensors.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t bytes[1 << 20];

static void end(struct state_dict *dict, struct plan *plan)
{
    plan_destroy(plan);
    state_dict_destroy(dict);
}

/* Names of stored tensors in file order, files separated by '|'. */
static const char *order_of(const struct state_dict *dict, const struct plan *plan)
{
    static char text[4096];
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < plan->entry_count; i++) {
        const char *separator = i == 0 ? "" : plan->entries[i].file != plan->entries[i - 1].file ? "|" : " ";

        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", separator, stored_name(dict, plan, i));
    }
    return text;
}

static int plan_fails(const struct state_dict *dict, const struct plan_rules *rules, struct tspool_failure *failure)
{
    struct plan *plan = (struct plan *)1;
    int rc = plan_build(dict, rules, &plan, failure);

    cr_assert_eq((uintptr_t)plan, 1, "outputs change only on success");
    return rc;
}

Test(plan, an_empty_state_dict_makes_one_file_without_tensors)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan = plan_of(dict, &plain_rules);

    cr_assert_eq(plan->file_count, 1);
    cr_assert_eq(plan->chunk_count, 1);
    cr_assert_eq(plan->files[0].size, 4096);
    cr_assert_str_eq(plan->files[0].name, "model.safetensors");
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, pages_come_first_then_large_elements_then_small_and_empty_last)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "z_empty", TSPOOL_F64, NULL, SHAPE(3, 0));
    declare(dict, "half", TSPOOL_F16, bytes, SHAPE(3));
    declare(dict, "byte", TSPOOL_U8, bytes, SHAPE(5));
    declare(dict, "pages_u8", TSPOOL_U8, bytes, SHAPE(8192));
    declare(dict, "float", TSPOOL_F32, bytes, SCALAR);
    declare(dict, "nibble", TSPOOL_F4, bytes, SHAPE(6));
    declare(dict, "pages_f64", TSPOOL_F64, bytes, SHAPE(512));
    declare(dict, "six", TSPOOL_F6_E3M2, bytes, SHAPE(4));
    declare(dict, "double", TSPOOL_F64, bytes, SHAPE(3));
    declare(dict, "other_float", TSPOOL_I32, bytes, SHAPE(7));
    declare(dict, "a_empty", TSPOOL_U8, NULL, SHAPE(0));
    plan = plan_of(dict, &plain_rules);
    cr_assert_str_eq(order_of(dict, plan), "pages_u8 pages_f64 double float other_float half byte six nibble a_empty z_empty");
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, data_starts_at_the_alignment_of_the_device)
{
    struct plan_rules rules = { .offset_align = 65536, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "w", TSPOOL_U8, bytes, SHAPE(5));
    plan = plan_of(dict, &rules);
    cr_assert_eq(plan->files[0].header_size, 65536);
    cr_assert_eq(plan->files[0].size, 65541);
    cr_assert_null(judge_structure(dict, plan, &rules));
    end(dict, plan);
}

Test(plan, a_file_ends_before_the_tensor_that_would_exceed_shard_bytes)
{
    struct plan_rules rules = { .shard_bytes = 12288, .offset_align = 4096, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "a", TSPOOL_U8, bytes, SHAPE(4096));
    declare(dict, "b", TSPOOL_U8, bytes, SHAPE(2, 4096));
    declare(dict, "c", TSPOOL_U8, bytes, SHAPE(1, 4096));
    declare(dict, "big", TSPOOL_U8, bytes, SHAPE(40960));
    declare(dict, "d", TSPOOL_U8, bytes, SHAPE(4096, 1));
    declare(dict, "empty", TSPOOL_U8, NULL, SHAPE(0));
    plan = plan_of(dict, &rules);
    cr_assert_str_eq(order_of(dict, plan), "a b|c|big|d empty");
    cr_assert_str_eq(plan->files[0].name, "model-00001-of-00004.safetensors");
    cr_assert_str_eq(plan->files[3].name, "model-00004-of-00004.safetensors");
    cr_assert_null(judge_structure(dict, plan, &rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, the_smallest_shard_bytes_puts_each_tensor_into_a_file_of_its_own)
{
    struct plan_rules rules = { .shard_bytes = 1, .offset_align = 4096, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    char name[16];

    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        declare(dict, name, TSPOOL_U8, bytes, SHAPE(2 + (uint64_t)i));
    }
    plan = plan_of(dict, &rules);
    cr_assert_eq(plan->file_count, 50);
    cr_assert_null(judge_structure(dict, plan, &rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, a_small_header_limit_makes_many_files_and_each_header_obeys_it)
{
    struct plan_rules rules = { .header_bytes = 4088, .offset_align = 512, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    char name[64];

    for (int i = 0; i < 2000; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.\"quoted\\\" weight\x01", i);
        declare(dict, name, TSPOOL_U8, bytes + i, SHAPE(3));
    }
    plan = plan_of(dict, &rules);
    cr_assert_gt(plan->file_count, 40);
    for (uint32_t i = 0; i < plan->file_count; i++)
        cr_assert_eq(plan->files[i].header_size, 4096);
    cr_assert_null(judge_structure(dict, plan, &rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, an_entry_that_no_header_has_room_for_is_named)
{
    struct plan_rules rules = { .header_bytes = 4088, .offset_align = 4096, .world_size = 1 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();
    char name[TSPOOL_TENSOR_NAME_MAX + 1];

    memset(name, 'n', sizeof(name));
    name[TSPOOL_TENSOR_NAME_MAX] = '\0';
    declare(dict, "small", TSPOOL_U8, bytes, SHAPE(3));
    declare(dict, name, TSPOOL_U8, bytes, SHAPE(1));
    cr_assert_eq(plan_fails(dict, &rules, &failure), -E2BIG);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_PLAN);
    cr_assert_eq(strncmp(failure.tensor, "nnnnnnnn", 8), 0);
    cr_assert(strstr(failure.cause, "header_bytes"));
    state_dict_destroy(dict);
}

Test(plan, names_of_full_length_survive)
{
    struct state_dict *dict = state_dict_create();
    char name[TSPOOL_TENSOR_NAME_MAX + 1];
    struct plan *plan;

    memset(name, '\x02', sizeof(name));
    name[TSPOOL_TENSOR_NAME_MAX] = '\0';
    for (int i = 0; i < 20; i++) {
        name[TSPOOL_TENSOR_NAME_MAX - 1] = (char)('a' + i);
        declare(dict, name, TSPOOL_U8, bytes, SHAPE(1 + (uint64_t)i));
    }
    plan = plan_of(dict, &plain_rules);
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, a_name_declared_twice_is_refused_with_both_numbers)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    declare(dict, "a", TSPOOL_U8, bytes, SHAPE(1));
    declare(dict, "w", TSPOOL_U8, bytes, SHAPE(1));
    declare(dict, "b", TSPOOL_U8, bytes, SHAPE(1));
    declare(dict, "w", TSPOOL_U8, bytes, SHAPE(1));
    cr_assert_eq(plan_fails(dict, &plain_rules, &failure), -EEXIST);
    cr_assert_str_eq(failure.tensor, "w");
    cr_assert(strstr(failure.cause, "tensors 1 and 3"), "%s", failure.message);
    state_dict_destroy(dict);
}

Test(plan, a_file_beyond_what_a_file_can_be_is_refused_by_name)
{
    struct plan_rules rules = { .shard_bytes = UINT64_MAX, .offset_align = 4096, .world_size = 1 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    for (int i = 0; i < 5; i++) {
        char name[] = { 't', (char)('0' + i), '\0' };
        declare(dict, name, TSPOOL_U8, NULL, SHAPE((uint64_t)1 << 60));
    }
    declare(dict, "too_much", TSPOOL_U8, NULL, SHAPE(((uint64_t)1 << 61) - 1));
    declare(dict, "t9", TSPOOL_U8, NULL, SHAPE(((uint64_t)1 << 61) - 3));
    cr_assert_eq(plan_fails(dict, &rules, &failure), -EOVERFLOW);
    cr_assert_str_eq(failure.tensor, "t9");
    state_dict_destroy(dict);
}

Test(plan, more_chunks_than_can_be_numbered_are_refused)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    declare(dict, "w", TSPOOL_U8, NULL, SHAPE((uint64_t)1 << 60));
    cr_assert_eq(plan_fails(dict, &plain_rules, &failure), -EOVERFLOW);
    cr_assert(strstr(failure.cause, "64 PiB"));
    state_dict_destroy(dict);
}

/* Ties ------------------------------------------------------------------------------------------------------------ */

Test(plan, tied_tensors_are_stored_once_under_the_first_name)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "z.embedding", TSPOOL_F32, bytes, SHAPE(4, 6));
    declare(dict, "lm_head", TSPOOL_F32, bytes, SHAPE(4, 6));
    declare(dict, "third", TSPOOL_F32, bytes, SHAPE(4, 6));
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->entry_count, 1);
    cr_assert_eq(plan->tensor_bytes, 96);
    cr_assert_eq(plan->alias_count, 2);
    cr_assert(plan->aliases[0].alias == 1 && plan->aliases[0].stored == 0);
    cr_assert(plan->aliases[1].alias == 2 && plan->aliases[1].stored == 0);
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, what_is_declared_untied_is_stored_under_its_own_name)
{
    const uint64_t shape[] = { 4, 6 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT, kept;
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    tensor.name = "lm_head";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 2;
    tensor.shape = shape;
    tensor.data = bytes;
    tensor.untied = 1;
    declare(dict, "embedding", TSPOOL_F32, bytes, 2, shape);
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    declare(dict, "third", TSPOOL_F32, bytes, 2, shape);
    state_dict_tensor(dict, 1, &kept);
    cr_assert_eq(kept.untied, 1);
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->entry_count, 2);
    cr_assert_eq(plan->alias_count, 1);
    cr_assert(plan->aliases[0].alias == 2 && plan->aliases[0].stored == 0);
    cr_assert_null(judge_structure(dict, plan, &plain_rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, ties_stand_in_the_file_that_stores_the_bytes)
{
    struct plan_rules rules = { .shard_bytes = 1, .offset_align = 4096, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "a", TSPOOL_F32, bytes, SHAPE(4));
    declare(dict, "b", TSPOOL_F32, bytes + 16, SHAPE(4));
    declare(dict, "tied_to_b", TSPOOL_F32, bytes + 16, SHAPE(4));
    declare(dict, "tied_to_a", TSPOOL_F32, bytes, SHAPE(4));
    plan = plan_of(dict, &rules);
    cr_assert_str_eq(order_of(dict, plan), "a|b");
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, what_differs_in_anything_but_the_name_is_not_tied)
{
    struct state_dict *dict = state_dict_create();
    const uint64_t shape[] = { 4, 4 }, global[] = { 8, 8 }, offsets[] = { 0, 0 }, other_offsets[] = { 4, 0 };
    const int64_t transposed[] = { 1, 4 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct plan *plan;

    declare(dict, "base", TSPOOL_F32, bytes, 2, shape);
    declare(dict, "address", TSPOOL_F32, bytes + 4, 2, shape);
    declare(dict, "dtype", TSPOOL_I32, bytes, 2, shape);
    declare(dict, "shape", TSPOOL_F32, bytes, SHAPE(2, 8));
    declare(dict, "rank", TSPOOL_F32, bytes, SHAPE(16));
    declare_shard(dict, "shard", TSPOOL_F32, bytes, 2, shape, global, offsets);
    declare_shard(dict, "other shard", TSPOOL_F32, bytes, 2, shape, global, other_offsets);
    tensor.name = "strides";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 2;
    tensor.shape = shape;
    tensor.strides = transposed;
    tensor.data = bytes;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    declare(dict, "empty", TSPOOL_F32, bytes, SHAPE(0));
    declare(dict, "empty too", TSPOOL_F32, bytes, SHAPE(0));
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->alias_count, 0);
    cr_assert_eq(plan->entry_count, 10);
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, strides_of_single_elements_do_not_keep_a_tie_apart)
{
    struct state_dict *dict = state_dict_create();
    const uint64_t shape[] = { 3, 1, 2 };
    const int64_t one[] = { 7, 5, 1 }, other[] = { 7, 1000, 1 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct plan *plan;

    tensor.name = "a";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 3;
    tensor.shape = shape;
    tensor.strides = one;
    tensor.data = bytes;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    tensor.name = "b";
    tensor.strides = other;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->alias_count, 1);
    end(dict, plan);
}

Test(plan, nothing_is_tied_when_the_caller_stages)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "a", TSPOOL_F32, NULL, SHAPE(4));
    declare(dict, "b", TSPOOL_F32, NULL, SHAPE(4));
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->alias_count, 0);
    cr_assert_eq(plan->entry_count, 2);
    end(dict, plan);
}

Test(plan, a_tied_tensor_that_is_called_like_a_metadata_key_is_stored)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare(dict, "w", TSPOOL_F32, bytes, SHAPE(4));
    declare(dict, "format", TSPOOL_F32, bytes, SHAPE(4));
    declare(dict, "DCP_VERSION", TSPOOL_F32, bytes, SHAPE(4));
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->entry_count, 3);
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

/* As aliases both "b" would stand in one header, twice under one key. */
Test(plan, shards_of_a_name_that_has_several_are_never_tied)
{
    const uint64_t global[] = { 8 }, offsets[][1] = { { 0 }, { 4 } };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare_shard(dict, "a", TSPOOL_F32, bytes, SHAPE(4), global, offsets[0]);
    declare_shard(dict, "c", TSPOOL_F32, bytes + 16, SHAPE(4), global, offsets[1]);
    declare_shard(dict, "b", TSPOOL_F32, bytes, SHAPE(4), global, offsets[0]);
    declare_shard(dict, "b", TSPOOL_F32, bytes + 16, SHAPE(4), global, offsets[1]);
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->alias_count, 0);
    cr_assert_str_eq(order_of(dict, plan), "a c b|b");
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, ties_count_for_the_length_of_a_header)
{
    struct plan_rules rules = { .header_bytes = 4088, .offset_align = 4096, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    char name[128];

    for (uint32_t i = 0; i < 300; i++) {
        snprintf(name, sizeof(name), "a rather long name of a tied tensor, so that ties fill the headers, number %u", i);
        declare(dict, name, TSPOOL_U8, bytes + i % 50 * 8, SHAPE(3));
    }
    plan = plan_of(dict, &rules);
    cr_assert_eq(plan->entry_count, 50);
    cr_assert_null(judge_structure(dict, plan, &rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

/* A hundred thousand names for one buffer: half tied, half of ever other shapes. */
Test(plan, many_views_of_one_address_stay_cheap, .timeout = 10)
{
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    char name[32];

    for (uint32_t i = 0; i < 100000; i++) {
        snprintf(name, sizeof(name), "view.%u", i);
        declare(dict, name, TSPOOL_U8, bytes, SHAPE(i % 2 ? 7 : 100 + i));
    }
    plan = plan_of(dict, &plain_rules);
    cr_assert_eq(plan->alias_count, 49999);
    cr_assert_eq(plan->entry_count, 50001);
    end(dict, plan);
}

/* Shards ---------------------------------------------------------------------------------------------------------- */

Test(plan, shards_of_one_name_go_to_different_files)
{
    const uint64_t global[] = { 12 }, offsets[][1] = { { 0 }, { 4 }, { 8 } };
    struct plan_rules rules = { .offset_align = 4096, .rank = 2, .world_size = 4 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;

    declare_shard(dict, "a", TSPOOL_F32, bytes, SHAPE(4), global, offsets[0]);
    declare_shard(dict, "a", TSPOOL_F32, bytes + 16, SHAPE(4), global, offsets[2]);
    declare_shard(dict, "b", TSPOOL_F32, bytes + 32, SHAPE(4), global, offsets[1]);
    declare_shard(dict, "a", TSPOOL_F32, bytes + 48, SHAPE(4), global, offsets[1]);
    declare_shard(dict, "b", TSPOOL_F32, bytes + 64, SHAPE(4), global, offsets[2]);
    declare(dict, "whole", TSPOOL_F32, bytes + 80, SHAPE(4));
    plan = plan_of(dict, &rules);
    cr_assert(plan->sharded);
    cr_assert_str_eq(order_of(dict, plan), "a b whole|a b|a");
    cr_assert_str_eq(plan->files[0].name, "shard-00003-model-00001-of-00003.safetensors");
    cr_assert_null(judge_structure(dict, plan, &rules));
    cr_assert_null(judge_bytes(dict, plan));
    end(dict, plan);
}

Test(plan, several_ranks_shard_even_whole_tensors)
{
    struct plan_rules rules = { .offset_align = 4096, .rank = 0, .world_size = 2 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan;
    const char *header;

    declare(dict, "w", TSPOOL_F32, bytes, SHAPE(2, 2));
    plan = plan_of(dict, &rules);
    cr_assert(plan->sharded);
    cr_assert_str_eq(plan->files[0].name, "shard-00001-model-00001-of-00001.safetensors");
    header = (const char *)plan->files[0].header + 8;
    cr_assert(strstr(header, "DCP_SHARDING_INFO"));
    cr_assert(strstr(header, "saved_offsets"));
    end(dict, plan);
}

Test(plan, shards_at_the_same_place_are_refused)
{
    const uint64_t global[] = { 8 }, offsets[] = { 4 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    declare_shard(dict, "w", TSPOOL_F32, bytes, SHAPE(4), global, offsets);
    declare_shard(dict, "w", TSPOOL_F32, bytes + 16, SHAPE(4), global, offsets);
    cr_assert_eq(plan_fails(dict, &plain_rules, &failure), -EEXIST);
    cr_assert_str_eq(failure.tensor, "w");
    state_dict_destroy(dict);
}

Test(plan, a_shard_and_a_whole_tensor_cannot_share_a_name)
{
    const uint64_t global[] = { 8 }, offsets[] = { 4 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    declare_shard(dict, "w", TSPOOL_F32, bytes, SHAPE(4), global, offsets);
    declare(dict, "w", TSPOOL_F32, bytes, SHAPE(8));
    cr_assert_eq(plan_fails(dict, &plain_rules, &failure), -EEXIST);
    cr_assert(strstr(failure.cause, "tensors 0 and 1"), "%s", failure.message);
    state_dict_destroy(dict);
}

Test(plan, shards_of_one_name_must_agree_about_their_tensor)
{
    const uint64_t global[] = { 8 }, other_global[] = { 9 }, offsets[][1] = { { 0 }, { 4 } };

    for (int i = 0; i < 2; i++) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        struct state_dict *dict = state_dict_create();

        declare_shard(dict, "w", TSPOOL_F32, bytes, SHAPE(4), global, offsets[0]);
        declare_shard(dict, "w", i ? TSPOOL_F32 : TSPOOL_I32, bytes, SHAPE(4), i ? other_global : global, offsets[1]);
        cr_assert_eq(plan_fails(dict, &plain_rules, &failure), -EINVAL);
        cr_assert_str_eq(failure.tensor, "w");
        state_dict_destroy(dict);
    }
}
