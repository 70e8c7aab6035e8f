/* api/save.c - saves that go well: what was declared stands on disk, whichever way it was staged. */
#include "rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct rig rig;
static struct state state;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_PROCESS);
    state_init(&state, 5, 1000003, 1); /* 20 MB: two chunks, nothing aligned */
}

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(save, .init = setup, .fini = teardown, .timeout = 60);

static struct tspool_save_result result_of(struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    cr_assert_eq(tspool_save_result(save, &result), 0);
    return result;
}

Test(save, publishes_what_was_declared)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = submit(spool, "step-1", &state);
    struct tspool_save_result result;

    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, 0), 0); /* submit returned: STAGED */
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    result = result_of(save);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result.level, TSPOOL_PUBLISHED);
    cr_assert_eq(result.tensor_bytes, 5 * 1000003 * 4 + 4);
    cr_assert_eq(result.staged_bytes, result.file_bytes);
    cr_assert_eq(result.written_bytes, result.file_bytes);
    cr_assert_eq(result.attempts, 1);
    cr_assert_eq(result.replayable, 1);
    cr_assert_eq(result.plan_reused, 0);
    cr_assert_eq(result.writer_pid, tspool_writer_pid(spool));
    cr_assert(result.staged_ns > 0 && result.staged_ns <= result.stall_ns && result.staged_ns <= result.written_ns);
    cr_assert(result.written_ns <= result.synced_ns && result.synced_ns <= result.durable_ns);
    cr_assert(result.durable_ns <= result.published_ns);
    cr_assert(strcmp(result.backend, "uring") == 0 || strcmp(result.backend, "threads") == 0);
    cr_assert_eq(tspool_save_abort(save), -EALREADY);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "step-1", &state);
    assert_nothing_but(&rig, (const char *const[]){ "step-1" }, 1);
}

Test(save, stages_in_the_background)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "background", TSPOOL_STAGING_BACKGROUND);

    state_add(&state, save, true);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), 0);
    for (size_t i = 0; i < state.count; i++)
        memset(state.data[i], 0xff, state.elements * sizeof(float)); /* allowed from here on */
    cr_assert_eq(tspool_save_wait(save, TSPOOL_DURABLE, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    state_deinit(&state);
    state_init(&state, 5, 1000003, 1);
    assert_holds(&rig, "background", &state);
}

Test(save, takes_spans_filled_in_any_order)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "spans", TSPOOL_STAGING_CALLER);
    struct tspool_span spans[64];
    size_t count = 0;

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, 0), -ETIMEDOUT);
    do
        spans[count] = (struct tspool_span)TSPOOL_SPAN_INIT;
    while (tspool_save_next_span(save, &spans[count], MINUTE_NS) == 1 && ++count < 64);
    cr_assert_gt(count, 2);
    while (count-- > 0) {
        const void *source = spans[count].tensor < 5 ? (const void *)state.data[spans[count].tensor] : &state.scalar;

        memcpy(spans[count].data, (const char *)source + spans[count].tensor_offset, spans[count].bytes);
        cr_assert_eq(tspool_save_filled(save, &spans[count]), 0);
        cr_assert_eq(tspool_save_filled(save, &spans[count]), -EINVAL); /* once is enough */
    }
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "spans", &state);
}

Test(save, keeps_several_in_flight_apart)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *saves[3];
    struct state states[3];
    char name[16];

    for (unsigned i = 0; i < 3; i++) {
        state_init(&states[i], 3, 1500001, i + 10);
        snprintf(name, sizeof(name), "step-%u", i);
        saves[i] = submit(spool, name, &states[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(tspool_save_wait(saves[i], TSPOOL_PUBLISHED, MINUTE_NS), 0);
        tspool_save_free(saves[i]);
    }
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "step-%u", i);
        assert_holds(&rig, name, &states[i]);
        state_deinit(&states[i]);
    }
}

/* Two saves whose states fit alone, not together: the second waits for slots of the first, in its submit. */
Test(save, waits_for_slots_of_an_earlier_save)
{
    struct tspool *spool;
    struct tspool_save *first, *second;

    rig.options.arena_bytes = 48 << 20; /* three slots; each state takes two */
    spool = rig_open(&rig);
    first = submit(spool, "first", &state);
    second = submit(spool, "second", &state);
    cr_assert_eq(result_of(second).replayable, 1);
    cr_assert_eq(tspool_save_wait(second, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(tspool_save_wait(first, TSPOOL_PUBLISHED, 0), 0); /* first come, first served */
    tspool_save_free(first);
    tspool_save_free(second);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "first", &state);
    assert_holds(&rig, "second", &state);
}

static void pass_through_small_arena(enum tspool_staging staging)
{
    struct state large;
    struct tspool *spool;
    struct tspool_save *save;

    state_init(&large, 7, 5000011, 3); /* 140 MB through 32 MiB */
    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    save = begin(spool, "large", staging);
    state_add(&large, save, staging != TSPOOL_STAGING_CALLER);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    if (staging == TSPOOL_STAGING_CALLER)
        fill_spans(save, &large);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(save).replayable, 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "large", &large);
    state_deinit(&large);
}

Test(save, passes_a_state_larger_than_the_arena) { pass_through_small_arena(TSPOOL_STAGING_NOW); }
Test(save, passes_spans_of_a_state_larger_than_the_arena) { pass_through_small_arena(TSPOOL_STAGING_CALLER); }

Test(save, again_plans_nothing_and_follows_rebinding)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *first = submit(spool, "one", &state), *second = NULL;
    struct state other;

    state_init(&other, 5, 1000003, 9);
    cr_assert_eq(tspool_save_again(spool, "two", first, NULL, &second, &failure), 0, "%s", failure.message);
    tspool_save_free(first);
    for (size_t i = 0; i < state.count; i++)
        cr_assert_eq(tspool_save_rebind(second, i, other.data[i]), 0);
    cr_assert_eq(tspool_save_rebind(second, 5, &other.scalar), 0);
    cr_assert_eq(tspool_save_rebind(second, 99, &other.scalar), -EINVAL);
    cr_assert_eq(tspool_save_submit(second, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_save_wait(second, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(second).plan_reused, 1);
    tspool_save_free(second);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "one", &state);
    assert_holds(&rig, "two", &other);
    state_deinit(&other);
}

Test(save, declaring_the_same_tensors_again_reuses_the_plan)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *first = submit(spool, "one", &state), *second = submit(spool, "two", &state);

    cr_assert_eq(result_of(first).plan_reused, 0);
    cr_assert_eq(result_of(second).plan_reused, 1);
    tspool_save_free(first);
    tspool_save_free(second);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "two", &state);
}

Test(save, carries_objects_and_metadata)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "objects", TSPOOL_STAGING_NOW);
    struct tspool_checkpoint *checkpoint;
    char path[300];
    void *bytes;
    size_t size;

    state_add(&state, save, true);
    cr_assert_eq(tspool_save_add_object(save, "config", "json", "{\"a\": 1}", 8, &failure), 0);
    cr_assert_eq(tspool_save_add_object(save, "nothing", "bytes", NULL, 0, &failure), 0);
    cr_assert_eq(tspool_save_add_object(save, "config", "json", "{}", 2, &failure), -EEXIST);
    cr_assert_eq(tspool_save_metadata(save, "step", "1", &failure), 0);
    cr_assert_eq(tspool_save_metadata(save, "step", "1000", &failure), 0);
    cr_assert_eq(tspool_save_submit(save, &failure), 0);
    cr_assert_eq(tspool_save_add_object(save, "late", "json", "{}", 2, &failure), -EINVAL);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "objects", &state);
    snprintf(path, sizeof(path), "%s/objects", rig.root);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), 0, "%s", failure.message);
    cr_assert_str_eq(tspool_checkpoint_metadata(checkpoint, "step"), "1000");
    cr_assert_eq(tspool_checkpoint_object_count(checkpoint), 2);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "config", &bytes, &size, &failure), 0, "%s", failure.message);
    cr_assert(size == 8 && memcmp(bytes, "{\"a\": 1}", 8) == 0);
    free(bytes);
    tspool_checkpoint_close(checkpoint);
}

/* One rank that holds several shards of a tensor: the tensor's shape was listed once for each, and nobody could open it. */
Test(save, keeps_several_shards_of_one_tensor)
{
    static const float values[2][4] = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } };
    const uint64_t shape[1] = { 4 }, whole[1] = { 8 }, places[2][1] = { { 0 }, { 4 } };
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "shards", TSPOOL_STAGING_NOW);
    struct tspool_checkpoint *checkpoint;
    char path[512];

    for (unsigned i = 0; i < 2; i++) {
        struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

        tensor.name = "w";
        tensor.dtype = TSPOOL_F32;
        tensor.rank = 1;
        tensor.shape = shape;
        tensor.data = values[i];
        tensor.global_shape = whole;
        tensor.global_offsets = places[i];
        cr_assert_eq(tspool_save_add(save, &tensor, NULL), 0);
    }
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    snprintf(path, sizeof(path), "%s/shards", rig.root);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, NULL), 0);
    cr_assert_eq(tspool_checkpoint_count(checkpoint), 2);
    for (size_t i = 0; i < 2; i++) {
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

        cr_assert_eq(tspool_checkpoint_tensor(checkpoint, i, &info), 0);
        cr_assert_eq(info.global_offsets[0], 4 * i);
        cr_assert_eq(info.global_shape[0], 8);
    }
    tspool_checkpoint_close(checkpoint);
}

Test(save, splits_into_indexed_shards_and_keeps_ties)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tied = TSPOOL_TENSOR_INIT;
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_checkpoint *checkpoint;
    const uint64_t shape[] = { state.elements };
    struct tspool_save *save;
    struct tspool *spool;
    char path[300];
    size_t index;

    rig.options.shard_bytes = 6 << 20;
    spool = rig_open(&rig);
    save = begin(spool, "shards", TSPOOL_STAGING_NOW);
    state_add(&state, save, true);
    tied.name = "tied";
    tied.dtype = TSPOOL_F32;
    tied.rank = 1;
    tied.shape = shape;
    tied.data = state.data[2];
    cr_assert_eq(tspool_save_add(save, &tied, NULL), 0);
    cr_assert_eq(tspool_save_submit(save, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(save).files, 5);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    cr_assert(exists(&rig, "shards/model.safetensors.index.json"));
    cr_assert(exists(&rig, "shards/model-00001-of-00005.safetensors"));
    snprintf(path, sizeof(path), "%s/shards", rig.root);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, "tied", &index), 0);
    cr_assert_eq(tspool_checkpoint_tensor(checkpoint, index, &info), 0);
    cr_assert_str_eq(info.tied_to, "t2");
    cr_assert_eq(tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, &failure), 0, "%s", failure.message);
    tspool_checkpoint_close(checkpoint);
}

Test(save, of_nothing_is_a_checkpoint_too)
{
    struct state none = { .count = 0 };
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "nothing", TSPOOL_STAGING_NOW);

    (void)none;
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    cr_assert(exists(&rig, "nothing/model.safetensors"));
}

Test(save, replaces_only_when_asked)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = submit(spool, "best", &state);
    struct state better;

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    save = NULL;
    cr_assert_eq(tspool_save_begin(spool, "best", NULL, &save, &failure), -EEXIST);
    cr_assert_null(save);
    cr_assert_eq(failure.error, EEXIST);
    cr_assert(strstr(failure.message, "best"));
    state_init(&better, 5, 1000003, 2);
    options.replace = 1;
    cr_assert_eq(tspool_save_begin(spool, "best", &options, &save, &failure), 0);
    state_add(&better, save, true);
    cr_assert_eq(tspool_save_submit(save, &failure), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "best", &better);
    assert_nothing_but(&rig, (const char *const[]){ "best" }, 1);
    state_deinit(&better);
}

Test(save, descriptor_polls_when_there_is_news)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = submit(spool, "polled", &state);
    struct pollfd news = { .fd = tspool_save_fd(save), .events = POLLIN };
    struct tspool_save_result result;
    unsigned rounds = 0;

    cr_assert_geq(news.fd, 0);
    do {
        cr_assert_eq(poll(&news, 1, 30000), 1);
        result = result_of(save);
        cr_assert_lt(++rounds, 10);
    } while (result.outcome == TSPOOL_OUTCOME_PENDING);
    cr_assert_eq(poll(&news, 1, 0), 0); /* looked at: no news */
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}
