/* save/test_texts.c - what is composed once for a save, and what lets the next one do without: texts, sheet, the plan that two
 * saves share. Memory runs out at each allocation in turn, each name may be missing, each thing declared may differ.
 */
#include "../../support/scarce.h"
#include "scripted.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <io/io.h>
#include <save/layout.h>
#include <save/texts.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TENSOR_BYTES 8192u

static char memory[2 * TENSOR_BYTES];
static char object_name[] = "state", object_kind[] = "json", object_bytes[] = "{}", another[] = "another";
static struct save_object objects[] = { { object_name, object_kind, 0, 2 } };

static struct tspool_tensor tensor_of(const char *name, const void *data)
{
    static const uint64_t shape[] = { 2, TENSOR_BYTES / 2 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

    tensor.name = name, tensor.dtype = TSPOOL_U8, tensor.rank = 2, tensor.shape = shape, tensor.data = data;
    return tensor;
}

static void declare(struct layout *layout, struct tspool_tensor tensor)
{
    cr_assert_eq(layout_add(layout, &tensor, true, NULL), 0);
}

/* Two tensors, in two files, and one that is tied to the first; with `shards` two places of one tensor. */
static void save_init(struct tspool_save *save, bool shards)
{
    static const uint64_t whole[] = { 4, TENSOR_BYTES / 2 }, places[2][2] = { { 0, 0 }, { 2, 0 } };
    const struct plan_rules rules = { .shard_bytes = TENSOR_BYTES + 1, .offset_align = 4096, .world_size = 1 };

    *save = (struct tspool_save){ .layout = layout_create(), .world_size = 1, .attempt = { { 7 }, 1 }, .appendix_fd = -1,
                                  .objects = objects, .object_count = 1, .object_bytes = object_bytes, .object_size = 2 };
    for (unsigned i = 0; i < 2; i++) {
        struct tspool_tensor tensor = tensor_of(shards ? "w" : i ? "b" : "a", memory + i * TENSOR_BYTES);

        if (shards)
            tensor.global_shape = whole, tensor.global_offsets = places[i];
        declare(save->layout, tensor);
    }
    if (!shards)
        declare(save->layout, tensor_of("tied", memory));
    cr_assert_eq(layout_plan(save->layout, &rules, NULL), 0);
    cr_assert_eq(save_plan(save)->file_count, 2);
}

static void save_deinit(struct tspool_save *save)
{
    if (save->appendix_fd >= 0)
        close(save->appendix_fd);
    free(save->manifest_front);
    layout_drop(save->layout);
}

/* Memory ------------------------------------------------------------------------------------------------------------------ */

static int compose(struct tspool_save *save, struct tspool_failure *failure)
{
    int error = layout_sheet(save->layout, failure);

    return error ? error : texts_compose(save, 1795314300000000000u, 1795314300u, failure);
}

static void each_allocation_is_told(bool shards)
{
    bool reached = true;
    unsigned number = 0, told = 0;

    while (reached) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        struct tspool_save save;
        int error;

        save_init(&save, shards);
        scarce_begin(++number);
        error = compose(&save, &failure);
        reached = scarce_end();
        cr_assert(error == 0 || (reached && error == -ENOMEM), "allocation %u: %d", number, error);
        cr_assert_eq(failure.error, -error);
        cr_assert_eq(save.appendix_fd >= 0, error == 0, "allocation %u", number);
        told += error < 0;
        if (error < 0) /* nothing of it is in the way later */
            cr_assert_eq(compose(&save, &failure), 0, "allocation %u: %s", number, failure.message);
        cr_assert(save.appendix_bytes > 0 && save.manifest_front_size > 0);
        save_deinit(&save);
    }
    cr_assert_gt(told, 8); /* a text that cannot be cut to its size is as good as one that can */
}

Test(texts, memory_that_runs_out_is_told_and_asked_for_again) { each_allocation_is_told(false); }
Test(texts, memory_that_runs_out_for_shards_is_told_and_asked_for_again) { each_allocation_is_told(true); }

/* The supervisor composes them when the save is begun: without memory that save fails, and the writer is not told of it. */
Test(texts, save_whose_texts_find_no_memory_fails)
{
    bool reached = true;
    unsigned number = 0, failed = 0;

    while (reached) {
        struct scripted scripted;

        scripted_init(&scripted);
        scripted_told(&scripted, MESSAGE_HELLO);
        scripted_say_kind(&scripted, MESSAGE_READY);
        scarce_begin(++number);
        scripted_turn(&scripted);
        reached = scarce_end();
        if (scripted.save->state == SAVE_RESOLVED) {
            failed++;
            cr_assert_eq(scripted.save->result.outcome, TSPOOL_OUTCOME_FAILED);
            cr_assert_eq(scripted.save->result.failure.error, ENOMEM, "allocation %u", number);
            cr_assert(scripted_told_nothing(&scripted));
        } else {
            scripted_told(&scripted, MESSAGE_BEGIN);
        }
        scripted_deinit(&scripted);
    }
    cr_assert_gt(failed, 4);
}

/* Names ------------------------------------------------------------------------------------------------------------------- */

Test(texts, are_all_there_when_none_is_missing)
{
    static char spelt[][40] = { "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "objects-00001.bin",
                                "model.safetensors.index.json", "tspool.digests", "tspool.manifest.json", "somebody's" };
    char *names[sizeof(spelt) / sizeof(*spelt)];
    struct io_list list = { names, sizeof(names) / sizeof(*names) };
    struct tspool_save save;

    for (size_t i = 0; i < list.count; i++)
        names[i] = spelt[i];
    save_init(&save, false);
    cr_assert(texts_are_all_there(&save, &list));
    for (size_t i = 0; i < list.count; i++) {
        names[i] = another;
        cr_expect_eq(texts_are_all_there(&save, &list), i == list.count - 1, "without %s", spelt[i]);
        names[i] = spelt[i];
    }
    save.object_size = 0;
    names[2] = another;
    cr_assert(texts_are_all_there(&save, &list), "without objects there is no file of them");
    save_deinit(&save);
}

/* Plans that are shared ----------------------------------------------------------------------------------------------------- */

static const int64_t strides[] = { TENSOR_BYTES / 2, 1 }, wide_strides[] = { TENSOR_BYTES, 1 };
static const uint64_t other_shape[] = { 4, TENSOR_BYTES / 4 }, one_shape[] = { TENSOR_BYTES };
static const uint64_t global[] = { 8, TENSOR_BYTES / 2 }, other_global[] = { 16, TENSOR_BYTES / 2 };
static const uint64_t place[] = { 2, 0 }, other_place[] = { 4, 0 };
static const uint64_t version;

static bool is_equal(struct tspool_tensor first, struct tspool_tensor second)
{
    struct layout *a = layout_create(), *b = layout_create();
    bool equal;

    declare(a, first);
    declare(b, second);
    equal = layout_equal(a, b);
    cr_assert_eq(layout_equal(b, a), equal, "either way");
    cr_assert(layout_equal(a, a) && layout_equal(b, b));
    layout_drop(a);
    layout_drop(b);
    return equal;
}

Test(layouts, are_equal_when_nothing_that_is_declared_differs)
{
    const struct tspool_tensor plain = tensor_of("w", memory);
    struct tspool_tensor strided = plain, shard = plain, changed;

    strided.strides = strides;
    shard.global_shape = global, shard.global_offsets = place;
    cr_assert(is_equal(plain, plain) && is_equal(strided, strided) && is_equal(shard, shard));
    changed = plain, changed.name = "v";
    cr_expect_not(is_equal(plain, changed), "name");
    changed = plain, changed.data = memory + 1;
    cr_expect_not(is_equal(plain, changed), "data");
    changed = plain, changed.version = &version;
    cr_expect_not(is_equal(plain, changed), "version");
    changed = plain, changed.dtype = TSPOOL_I8;
    cr_expect_not(is_equal(plain, changed), "dtype");
    changed = plain, changed.rank = 1, changed.shape = one_shape;
    cr_expect_not(is_equal(plain, changed), "rank");
    changed = plain, changed.shape = other_shape;
    cr_expect_not(is_equal(plain, changed), "shape");
    changed = strided, changed.strides = wide_strides;
    cr_expect_not(is_equal(strided, changed), "strides");
    cr_expect_not(is_equal(plain, changed), "strides or none");
    cr_expect_not(is_equal(plain, shard), "a shard or none");
    changed = shard, changed.global_shape = other_global;
    cr_expect_not(is_equal(shard, changed), "global shape");
    changed = shard, changed.global_offsets = other_place;
    cr_expect_not(is_equal(shard, changed), "global offsets");
}

Test(layouts, of_another_count_of_tensors_are_not_equal)
{
    struct layout *one = layout_create(), *two = layout_create();

    declare(one, tensor_of("a", memory));
    declare(two, tensor_of("a", memory));
    declare(two, tensor_of("b", memory));
    cr_assert_not(layout_equal(one, two) || layout_equal(two, one));
    layout_drop(one);
    layout_drop(two);
}

Test(layouts, have_the_rules_of_their_plan_and_no_others)
{
    const struct plan_rules rules = { .shard_bytes = 1 << 20, .header_bytes = 1 << 16, .offset_align = 4096, .rank = 1,
                                      .world_size = 2 };
    struct plan_rules others[5] = { rules, rules, rules, rules, rules };
    struct layout *layout = layout_create();

    declare(layout, tensor_of("a", memory));
    cr_assert_not(layout_has_rules(layout, &rules), "it has no plan yet");
    cr_assert_eq(layout_plan(layout, &rules, NULL), 0);
    cr_assert(layout_has_rules(layout, &rules));
    others[0].shard_bytes++, others[1].header_bytes++, others[2].offset_align *= 2, others[3].rank--, others[4].world_size++;
    for (unsigned i = 0; i < 5; i++)
        cr_expect_not(layout_has_rules(layout, &others[i]), "rule %u", i);
    layout_drop(layout);
}
