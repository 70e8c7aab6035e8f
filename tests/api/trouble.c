/* api/trouble.c - the writer dies, hangs or is given up, at each stage of a save; the trainer forks, reaps everything, closes
 * early. No caller hangs, nothing stray stays, what the arena holds is published all the same, and the next save works.
 */
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct rig rig;
static struct state state;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_PROCESS);
    state_init(&state, 3, 2000003, 4);
}

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(trouble, .init = setup, .fini = teardown, .timeout = 60);

/* BEGIN is in the channel: the save is that writer's. One that was not begun would simply get the next writer. */
static void await_begun(struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    while (tspool_save_result(save, &result) == 0 && result.attempts == 0)
        sched_yield();
}

/* The writer is stopped first, so that it is surely in mid-save when it is killed. */
static struct tspool_save *submit_and_kill(struct tspool *spool, const char *name)
{
    int pid = tspool_writer_pid(spool);
    struct tspool_save *save;

    writer_stop(spool);
    save = submit(spool, name, &state);
    await_begun(save);
    cr_assert_eq(kill(pid, SIGKILL), 0);
    return save;
}

static struct tspool_save_result result_of(struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    cr_assert_eq(tspool_save_result(save, &result), 0);
    return result;
}

/* Published by the second writer, whole, with the cause of the first one's end; ends the spool. */
static void assert_replayed(struct tspool *spool, struct tspool_save *save, const char *name, const char *cause,
                            const struct state *saved)
{
    struct tspool_save_result result;

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0, "%s", result_of(save).failure.message);
    result = result_of(save);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result.attempts, 2);
    cr_assert(strstr(result.retry_cause, cause), "%s", result.retry_cause);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, name, saved);
    assert_nothing_but(&rig, &name, 1);
}

/* A writer killed at each stage ---------------------------------------------------------------------------------------- */

Test(trouble, writer_killed_after_staged_is_replaced_and_the_save_published)
{
    struct tspool *spool = rig_open(&rig);
    int first_pid = tspool_writer_pid(spool);
    struct tspool_save *save = submit_and_kill(spool, "killed"), *next;

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(save).replayable, 1);
    cr_assert_neq(tspool_writer_pid(spool), first_pid);
    cr_assert_eq(result_of(save).writer_pid, tspool_writer_pid(spool));
    next = submit(spool, "next", &state);
    cr_assert_eq(tspool_save_wait(next, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(next).attempts, 1);
    cr_assert_str_empty(result_of(next).retry_cause);
    tspool_save_free(next);
    assert_holds(&rig, "next", &state);
    published_remove(&rig, "next");
    assert_replayed(spool, save, "killed", "killed by signal 9", &state);
}

static bool has_hidden(void)
{
    DIR *directory = opendir(rig.root);
    struct dirent *entry;
    bool found = false;

    while ((entry = readdir(directory)))
        found |= entry->d_name[0] == '.' && strlen(entry->d_name) > 2;
    closedir(directory);
    return found;
}

/* Files are open and preallocated, one span is with the caller: it is filled while there is no writer, or another one. */
static void assert_staging_goes_on(int signal, const char *cause)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "half", TSPOOL_STAGING_CALLER);
    int pid = tspool_writer_pid(spool);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    while (!has_hidden()) /* BEGIN is on its way to the writer */
        sched_yield();
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    cr_assert_eq(kill(pid, signal), 0);
    process_await_end(pid);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, 0), -ETIMEDOUT);
    memcpy(span.data, (const char *)state.data[span.tensor] + span.tensor_offset, span.bytes);
    cr_assert_eq(tspool_save_filled(save, &span), 0);
    fill_spans(save, &state);
    assert_replayed(spool, save, "half", cause, &state);
}

Test(trouble, writer_killed_before_staged_does_not_stop_the_staging)
{
    assert_staging_goes_on(SIGKILL, "killed by signal 9");
}

/* It refuses what is not staged, and ends; the next one takes that. */
Test(trouble, writer_terminated_before_staged_hands_the_save_to_the_next)
{
    assert_staging_goes_on(SIGTERM, "SIGTERM");
}

/* The cap keeps the writing going for seconds. */
Test(trouble, writer_killed_in_mid_write)
{
    struct tspool_save *save;
    struct tspool *spool;

    rig.options.bytes_per_second = 20000000;
    spool = rig_open(&rig);
    save = submit(spool, "writing", &state);
    while (result_of(save).written_bytes == 0)
        sched_yield();
    cr_assert_lt(result_of(save).level, TSPOOL_WRITTEN);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    assert_replayed(spool, save, "writing", "killed by signal 9", &state);
}

/* From here on it may have published, whatever it had time to say: both are right, a third thing is not. */
Test(trouble, writer_killed_after_written)
{
    for (unsigned i = 0; i < 12; i++) {
        struct tspool *spool = rig_open(&rig);
        struct tspool_save *save = submit(spool, "written", &state);

        cr_assert_eq(tspool_save_wait(save, TSPOOL_WRITTEN, MINUTE_NS), 0);
        for (volatile unsigned spin = 0; spin < i * 20000; spin++)
            ; /* a little later each time */
        kill(tspool_writer_pid(spool), SIGKILL);
        cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0, "%s", result_of(save).failure.message);
        cr_assert_leq(result_of(save).attempts, 2);
        tspool_save_free(save);
        cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
        assert_holds(&rig, "written", &state);
        assert_nothing_but(&rig, (const char *const[]){ "written" }, 1);
        published_remove(&rig, "written");
    }
}

/* The promise for what is staged: the writer itself finishes it. */
Test(trouble, writer_terminated_after_staged_finishes_the_save)
{
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);
    struct tspool_save *save;

    writer_stop(spool);
    save = submit(spool, "finished", &state);
    cr_assert_eq(kill(pid, SIGTERM), 0);
    writer_continue(pid);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(result_of(save).attempts, 1);
    tspool_save_free(save);
    process_await_end(pid);
    save = submit(spool, "next", &state); /* not the one that is gone */
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "finished", &state);
    assert_holds(&rig, "next", &state);
}

/* A save that can never be whole cannot be published either: each writer is killed in the middle of it. */
Test(trouble, five_killed_writers_in_a_row_fail_the_save_and_training_goes_on)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "doomed", TSPOOL_STAGING_CALLER);
    struct tspool_save_result result;

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    for (uint32_t attempt = 1; attempt <= 5; attempt++) {
        while (result_of(save).attempts < attempt)
            sched_yield();
        cr_assert_eq(kill(result_of(save).writer_pid, SIGKILL), 0);
    }
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), -EPIPE);
    result = result_of(save);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result.attempts, 5);
    cr_assert(strstr(result.failure.message, "5 writers died"), "%s", result.failure.message);
    cr_assert(strstr(result.failure.message, "killed by signal 9"), "%s", result.failure.message);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
    save = submit(spool, "next", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "next" }, 1);
}

/* Larger than the arena ------------------------------------------------------------------------------------------------- */

static struct tspool_save *declare_larger(struct tspool *spool, const struct state *large, enum tspool_staging staging)
{
    struct tspool_save *save = begin(spool, "large", staging);

    state_add(large, save, staging != TSPOOL_STAGING_CALLER);
    return save;
}

static void *kill_once_begun(void *argument)
{
    struct tspool_save *save = argument;

    await_begun(save);
    kill(result_of(save).writer_pid, SIGKILL);
    return NULL;
}

static void assert_restaged(enum tspool_staging staging)
{
    struct tspool_save *save;
    struct tspool *spool;
    struct state large;
    pthread_t killer;

    state_init(&large, 5, 4000037, 2); /* 80 MB through 32 MiB */
    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    writer_stop(spool); /* it cannot release a chunk, so that the save cannot be STAGED */
    save = declare_larger(spool, &large, staging);
    cr_assert_eq(pthread_create(&killer, NULL, kill_once_begun, save), 0);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(pthread_join(killer, NULL), 0);
    cr_assert_eq(result_of(save).replayable, 0);
    assert_replayed(spool, save, "large", "killed by signal 9", &large);
    state_deinit(&large);
}

Test(trouble, larger_than_the_arena_is_restaged_while_submit_waits) { assert_restaged(TSPOOL_STAGING_NOW); }
Test(trouble, larger_than_the_arena_is_restaged_in_the_background) { assert_restaged(TSPOOL_STAGING_BACKGROUND); }

Test(trouble, larger_than_the_arena_fails_after_staged_and_names_the_arena_it_needs)
{
    struct tspool_save *save;
    struct tspool *spool;
    struct state large;

    state_init(&large, 5, 4000037, 2);
    rig.options.arena_bytes = 32 << 20;
    rig.options.bytes_per_second = 40000000; /* the last two chunks take most of a second */
    spool = rig_open(&rig);
    save = declare_larger(spool, &large, TSPOOL_STAGING_NOW);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EPIPE);
    cr_assert(strstr(result_of(save).failure.message, "arena_bytes of at least 83886080"), "%s",
              result_of(save).failure.message);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    state_deinit(&large);
}

Test(trouble, larger_than_the_arena_filled_by_the_caller_fails_and_what_was_left_is_swept)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool_save *save;
    struct tspool *spool;
    struct state large;

    state_init(&large, 5, 4000037, 2);
    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    save = declare_larger(spool, &large, TSPOOL_STAGING_CALLER);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    while (!has_hidden())
        sched_yield();
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), -EPIPE);
    cr_assert(strstr(result_of(save).failure.message, "filled by the caller"), "%s", result_of(save).failure.message);
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), -EPIPE);
    memset(span.data, 1, span.bytes); /* a span that is out stays the caller's memory */
    cr_assert_eq(tspool_save_filled(save, &span), -EPIPE);
    assert_nothing_but(&rig, NULL, 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    state_deinit(&large);
}

/* Torn snapshots ------------------------------------------------------------------------------------------------------ */

/* The writer stands still and the arena is full: what did not fit is not copied yet. `changed` says which is changed then. */
static void assert_torn(size_t changed, const char *tensor)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_save *save;
    struct tspool *spool;
    struct state large;
    int pid;

    state_init(&large, 5, 4000037, 2);
    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    pid = tspool_writer_pid(spool);
    options.staging = TSPOOL_STAGING_BACKGROUND;
    options.guarded = options.check_torn = 1;
    cr_assert_eq(tspool_save_begin(spool, "torn", &options, &save, NULL), 0);
    state_add(&large, save, true);
    writer_stop(spool);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    while (result_of(save).staged_bytes < 30 << 20)
        sched_yield();
    if (tensor)
        large.data[changed][4000036] += 1;
    writer_continue(pid);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), tensor ? -EBUSY : 0);
    if (tensor)
        cr_assert_str_eq(result_of(save).failure.tensor, tensor);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "torn" }, tensor ? 0 : 1);
    state_deinit(&large);
}

Test(trouble, tensor_changed_during_background_staging_is_named) { assert_torn(4, "t4"); }
Test(trouble, tensors_that_stay_pass_the_check) { assert_torn(0, NULL); }

/* Failures and hangs -------------------------------------------------------------------------------------------------- */

/* When the failure comes in is the writer's business; until then saves are taken as ever. */
Test(trouble, failure_that_nobody_looked_at_is_told_to_the_next_submit_once)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *late = begin(spool, "taken", TSPOOL_STAGING_NOW), *save = submit(spool, "taken", &state);
    struct state tiny;
    char name[16];
    int error = 0;

    state_init(&tiny, 1, 4, 1);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    state_add(&state, late, true);
    error = tspool_save_submit(late, &failure); /* refused while it prepares, before or after it was staged */
    cr_assert(error == 0 || error == -EEXIST, "%d: %s", error, failure.message);
    tspool_save_free(late);
    for (unsigned i = 0; error == 0; i++) {
        snprintf(name, sizeof(name), "after-%u", i);
        save = begin(spool, name, TSPOOL_STAGING_NOW);
        state_add(&tiny, save, true);
        error = tspool_save_submit(save, &failure);
        cr_assert(error == 0 || error == -ECANCELED, "%d: %s", error, failure.message);
        if (error == -ECANCELED)
            cr_assert_eq(tspool_save_submit(save, &failure), 0, "%s", failure.message); /* told once */
        cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
        tspool_save_free(save);
    }
    cr_assert_eq(failure.error, EEXIST, "%s", failure.message);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    state_deinit(&tiny);
}

/* The other side of it: a save that no writer knows of yet is not lost with one. */
Test(trouble, save_that_was_not_begun_goes_to_the_next_writer)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save;

    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    while (tspool_writer_pid(spool) != 0)
        sched_yield();
    save = submit(spool, "fresh", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

Test(trouble, hung_writer_is_killed_for_its_silence_and_replaced)
{
    struct tspool_save *save;
    struct tspool *spool;

    rig.options.heartbeat_ns = 200 * MILLISECOND_NS;
    spool = rig_open(&rig);
    writer_stop(spool);
    save = submit(spool, "hung", &state);
    assert_replayed(spool, save, "hung", "silent", &state);
}

/* Stopped with half of it written. */
Test(trouble, writer_that_hangs_in_mid_write_is_replaced)
{
    struct tspool_save *save;
    struct tspool *spool;

    rig.options.bytes_per_second = 20000000;
    rig.options.heartbeat_ns = 400 * MILLISECOND_NS;
    spool = rig_open(&rig);
    save = submit(spool, "hung", &state);
    while (result_of(save).written_bytes == 0)
        sched_yield();
    writer_stop(spool);
    assert_replayed(spool, save, "hung", "silent", &state);
}

/* Only the one that is late is given up with its writer: the other is the next one's. */
Test(trouble, deadline_of_one_save_costs_another_one_attempt)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *late, *other;

    writer_stop(spool);
    options.deadline_ns = 300 * MILLISECOND_NS;
    cr_assert_eq(tspool_save_begin(spool, "late", &options, &late, NULL), 0);
    state_add(&state, late, true);
    cr_assert_eq(tspool_save_submit(late, NULL), 0);
    other = submit(spool, "other", &state);
    cr_assert_eq(tspool_save_wait(late, TSPOOL_PUBLISHED, MINUTE_NS), -ETIME);
    tspool_save_free(late);
    assert_replayed(spool, other, "other", "late", &state);
}

Test(trouble, save_past_its_deadline_fails_although_its_writer_hangs)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_save *save;
    struct tspool *spool;

    rig.options.deadline_ns = 100 * MILLISECOND_NS;
    spool = rig_open(&rig);
    writer_stop(spool);
    save = submit(spool, "late", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_DURABLE, MINUTE_NS), -ETIME);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert(strstr(result.failure.message, "not durable"), "%s", result.failure.message);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
}

Test(trouble, wait_times_out_and_the_save_goes_on)
{
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);
    struct tspool_save *save;

    writer_stop(spool);
    save = submit(spool, "slow", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, 0), -ETIMEDOUT);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MILLISECOND_NS), -ETIMEDOUT);
    writer_continue(pid);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, UINT64_MAX), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

/* The channel queues some 278 messages: what is beyond that, with the writer stopped, must wait and not fail. Saves larger
 * than the arena take no slot before their first span, so many can be begun. */
Test(trouble, full_channel_delays_and_loses_nothing)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    const uint64_t shape[] = { (33 << 20) / 4 };
    struct tspool_save *saves[160], *last;
    struct tspool *spool;
    char name[16];
    int pid;

    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    pid = tspool_writer_pid(spool);
    tensor.name = "t", tensor.dtype = TSPOOL_F32, tensor.rank = 1, tensor.shape = shape;
    writer_stop(spool);
    for (unsigned i = 0; i < 160; i++) {
        snprintf(name, sizeof(name), "many-%u", i);
        saves[i] = begin(spool, name, TSPOOL_STAGING_CALLER);
        cr_assert_eq(tspool_save_add(saves[i], &tensor, NULL), 0);
        cr_assert_eq(tspool_save_submit(saves[i], NULL), 0);
    }
    for (unsigned i = 0; i < 160; i++)
        cr_assert_eq(tspool_save_abort(saves[i]), 0);
    last = begin(spool, "last", TSPOOL_STAGING_BACKGROUND); /* "now" would wait for room in the channel */
    state_add(&state, last, true);
    cr_assert_eq(tspool_save_submit(last, NULL), 0);
    writer_continue(pid);
    cr_assert_eq(tspool_save_wait(last, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    for (unsigned i = 0; i < 160; i++) {
        cr_assert_eq(tspool_save_wait(saves[i], TSPOOL_PUBLISHED, MINUTE_NS), -ECANCELED);
        tspool_save_free(saves[i]);
    }
    tspool_save_free(last);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "last" }, 1);
}

Test(trouble, aborted_save_leaves_nothing)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "aborted", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_abort(save), -EINVAL); /* not submitted */
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_abort(save), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), -ECANCELED);
    cr_assert_eq(tspool_save_abort(save), -EALREADY);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
    save = submit(spool, "aborted", &state); /* the name is free, and nobody is told of what he did himself */
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "aborted", &state);
}

Test(trouble, abort_while_the_writer_does_not_answer)
{
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);
    struct tspool_save *save;

    writer_stop(spool);
    save = submit(spool, "given-up", &state);
    await_begun(save);
    cr_assert_eq(tspool_save_abort(save), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, 0), -ETIMEDOUT); /* the writer has it, and is asked */
    writer_continue(pid);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -ECANCELED);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
}

/* Not the caller's failure but its end: a caller-staged save whose handle is gone can never be filled. */
Test(trouble, caller_staged_save_freed_half_filled_is_given_up)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "half", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
    (void)failure;
}

/* Names raced: what begin could not see, the writer refuses at the rename, and the older checkpoint stays. */
Test(trouble, name_taken_while_the_save_was_in_flight)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *first = begin(spool, "same", TSPOOL_STAGING_NOW), *second = begin(spool, "same", TSPOOL_STAGING_NOW);
    struct state other;

    state_init(&other, 3, 2000003, 5);
    state_add(&state, first, true);
    state_add(&other, second, true);
    cr_assert_eq(tspool_save_submit(first, NULL), 0);
    cr_assert_eq(tspool_save_wait(first, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_submit(second, NULL);
    cr_assert_eq(tspool_save_wait(second, TSPOOL_PUBLISHED, MINUTE_NS), -EEXIST);
    cr_assert_eq(tspool_save_result(second, &result), 0);
    cr_assert(strstr(result.failure.message, "same"), "%s", result.failure.message);
    tspool_save_free(first);
    tspool_save_free(second);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "same", &state);
    assert_nothing_but(&rig, (const char *const[]){ "same" }, 1);
    state_deinit(&other);
}

/* Forks ------------------------------------------------------------------------------------------------------------- */

static int child_uses(struct tspool *spool, struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_save *made = NULL;
    uint8_t id[TSPOOL_SAVE_ID_BYTES];

    return tspool_save_begin(spool, "x", NULL, &made, NULL) == -EPERM
        && tspool_save_again(spool, "x", save, NULL, &made, NULL) == -EPERM && tspool_save_rebind(save, 0, &tensor) == -EPERM
        && tspool_save_add(save, &tensor, NULL) == -EPERM && tspool_save_metadata(save, "a", "b", NULL) == -EPERM
        && tspool_save_add_object(save, "a", "json", "1", 1, NULL) == -EPERM && tspool_save_submit(save, NULL) == -EPERM
        && tspool_save_next_span(save, &span, 0) == -EPERM && tspool_save_filled(save, &span) == -EPERM
        && tspool_save_wait(save, TSPOOL_STAGED, 0) == -EPERM && tspool_save_fd(save) == -EPERM
        && tspool_save_result(save, &result) == -EPERM && tspool_save_abort(save) == -EPERM
        && tspool_save_id(spool, id) == -EPERM && tspool_reserve(spool, 1, NULL) == -EPERM
        && tspool_writer_pid(spool) == -EPERM && tspool_close(spool, 0, NULL) == -EPERM;
}

Test(trouble, forked_child_is_refused_everywhere)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = submit(spool, "forked", &state);
    int status;
    pid_t child = fork();

    if (child == 0) {
        int well = child_uses(spool, save);

        tspool_save_free(save);
        child_end(well ? 0 : 1);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

/* A data loader's worker inherits the channel: the writer's death must be seen all the same. */
Test(trouble, forked_child_that_holds_the_socket_hides_no_death)
{
    struct tspool *spool = rig_open(&rig);
    pid_t child = fork();
    struct tspool_save *save;

    if (child == 0) {
        pause();
        _exit(0);
    }
    save = submit_and_kill(spool, "held");
    assert_replayed(spool, save, "held", "killed by signal 9", &state);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

Test(trouble, application_that_reaps_everything)
{
    struct tspool *spool;
    struct tspool_save *save;

    signal(SIGCHLD, SIG_IGN);
    spool = rig_open(&rig);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGSTOP), 0);
    save = submit(spool, "reaped", &state);
    await_begun(save);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    assert_replayed(spool, save, "reaped", "how is unknown", &state);
}

/* Closing ----------------------------------------------------------------------------------------------------------- */

Test(trouble, close_at_once_leaves_staged_saves_to_the_writer_which_publishes)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);
    struct tspool_save *staged, *unstaged;

    writer_stop(spool);
    staged = submit(spool, "left", &state);
    unstaged = begin(spool, "unstaged", TSPOOL_STAGING_CALLER);
    state_add(&state, unstaged, false);
    cr_assert_eq(tspool_save_submit(unstaged, NULL), 0);
    cr_assert_eq(kill(pid, SIGCONT), 0); /* may be quick; stopped again below */
    cr_assert_eq(tspool_save_wait(staged, TSPOOL_STAGED, 0), 0);
    cr_assert_eq(kill(pid, SIGSTOP), 0);
    cr_assert_eq(tspool_close(spool, 0, &report), -ETIMEDOUT);
    cr_assert_eq(report.aborted, 1);
    cr_assert_eq(report.left + report.published, 1);
    cr_assert_eq(report.writer_pid, report.left ? pid : 0);
    cr_assert_eq(tspool_save_wait(staged, TSPOOL_PUBLISHED, 0), -EINVAL); /* not after close */
    tspool_save_free(staged);
    tspool_save_free(unstaged);
    kill(pid, SIGCONT);
    process_await_end(pid);
    assert_holds(&rig, "left", &state);
    assert_nothing_but(&rig, (const char *const[]){ "left" }, 1);
}

/* Between two writers when the spool is closed: the next one is told of it before we go. */
Test(trouble, close_at_once_after_the_writers_death_leaves_the_save_to_the_next_writer)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);

    tspool_save_free(submit_and_kill(spool, "left"));
    while (tspool_writer_pid(spool) == pid) /* its death is noticed */
        sched_yield();
    cr_assert_eq(tspool_close(spool, 0, &report), -ETIMEDOUT);
    cr_assert_eq(report.aborted + report.failed, 0);
    cr_assert_eq(report.left + report.published, 1);
    cr_assert_neq(report.writer_pid, pid);
    if (report.writer_pid)
        process_await_end(report.writer_pid);
    assert_holds(&rig, "left", &state);
    assert_nothing_but(&rig, (const char *const[]){ "left" }, 1);
}

Test(trouble, close_that_aborts_leaves_nothing)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "unfilled", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    report.mode = TSPOOL_CLOSE_ABORT;
    cr_assert_eq(tspool_close(spool, MILLISECOND_NS, &report), -ETIMEDOUT);
    cr_assert_eq(report.aborted, 1);
    cr_assert_eq(report.left, 0);
    cr_assert_eq(report.writer_pid, 0);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
}

Test(trouble, close_waits_for_saves_and_ends_the_writer)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *spool = rig_open(&rig);
    int pid = tspool_writer_pid(spool);

    tspool_save_free(submit(spool, "one", &state));
    tspool_save_free(submit(spool, "two", &state));
    cr_assert_eq(tspool_close(spool, MINUTE_NS, &report), 0);
    cr_assert_leq(report.published, 2);
    cr_assert_eq(report.left + report.aborted + report.failed, 0);
    cr_assert_eq(kill(pid, 0), -1, "the writer was not reaped");
    assert_holds(&rig, "one", &state);
    assert_holds(&rig, "two", &state);
    cr_assert_eq(tspool_close(NULL, 0, NULL), 0);
}
