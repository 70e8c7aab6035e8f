/* api/trouble.c - the writer dies, hangs or is given up; the trainer forks, reaps everything, closes early. No caller
 * hangs, nothing stray stays, and the next save works.
 */
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
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

Test(trouble, killed_writer_fails_the_save_with_a_record_and_the_next_gets_a_fresh_one)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool *spool = rig_open(&rig);
    int first_pid = tspool_writer_pid(spool);
    struct tspool_save *save = submit_and_kill(spool, "killed");

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EPIPE);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result.level, TSPOOL_STAGED);
    cr_assert_eq(result.failure.stage, TSPOOL_STAGE_WRITER);
    cr_assert(strstr(result.failure.message, "killed by signal 9"), "%s", result.failure.message);
    cr_assert(strstr(result.failure.message, "save again"), "%s", result.failure.message);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
    save = submit(spool, "next", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_neq(tspool_writer_pid(spool), first_pid);
    cr_assert_gt(tspool_writer_pid(spool), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "next", &state);
    assert_nothing_but(&rig, (const char *const[]){ "next" }, 1);
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

/* Caller staging holds the save before STAGED, with files open and preallocated: what a dead writer leaves is swept. */
Test(trouble, what_a_killed_writer_left_is_swept)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "half", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    while (!has_hidden()) /* BEGIN is on its way to the writer */
        sched_yield();
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), -EPIPE);
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), -EPIPE);
    memset(span.data, 1, span.bytes); /* a span that is out stays the caller's memory */
    cr_assert_eq(tspool_save_filled(save, &span), -EPIPE);
    assert_nothing_but(&rig, NULL, 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

/* When the failure comes in is the writer's death's business; until then saves are taken as ever, and may fall victim to
 * the same death. */
Test(trouble, failure_that_nobody_looked_at_is_told_to_the_next_submit_once)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save;
    struct state tiny;
    unsigned told = 0;
    char name[16];
    int error = 0;

    state_init(&tiny, 1, 4, 1);
    tspool_save_free(submit_and_kill(spool, "lost"));
    for (unsigned i = 0; error != -ECANCELED; i++) {
        snprintf(name, sizeof(name), "after-%u", i);
        save = begin(spool, name, TSPOOL_STAGING_NOW);
        state_add(&tiny, save, true);
        error = tspool_save_submit(save, &failure);
        cr_assert(error == 0 || error == -EPIPE || error == -ECANCELED, "%d: %s", error, failure.message);
        if (error != -ECANCELED)
            tspool_save_free(save);
    }
    cr_assert_eq(failure.error, EPIPE, "%s", failure.message);
    cr_assert(strstr(failure.message, "signal 9"), "%s", failure.message);
    while ((error = tspool_save_submit(save, &failure)) == -ECANCELED) /* each is told once; other victims may follow */
        cr_assert_lt(told++, 100);
    cr_assert_eq(error, 0, "%s", failure.message);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
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

Test(trouble, hung_writer_is_killed_for_its_silence)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_save *save;
    struct tspool *spool;

    rig.options.heartbeat_ns = 200 * MILLISECOND_NS;
    spool = rig_open(&rig);
    writer_stop(spool);
    save = submit(spool, "hung", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_WRITTEN, MINUTE_NS), -ETIMEDOUT);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert(strstr(result.failure.message, "silent"), "%s", result.failure.message);
    tspool_save_free(save);
    save = submit(spool, "next", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "next" }, 1);
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
    cr_assert_eq(tspool_save_wait(save, TSPOOL_DURABLE, MINUTE_NS), -ETIMEDOUT);
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
    last = submit(spool, "last", &state);
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
        _exit(well ? 0 : 1);
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
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EPIPE);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

Test(trouble, application_that_reaps_everything)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool *spool;
    struct tspool_save *save;

    signal(SIGCHLD, SIG_IGN);
    spool = rig_open(&rig);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGSTOP), 0);
    save = submit(spool, "reaped", &state);
    await_begun(save);
    cr_assert_eq(kill(tspool_writer_pid(spool), SIGKILL), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EPIPE);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert(strstr(result.failure.message, "how is unknown"), "%s", result.failure.message);
    tspool_save_free(save);
    save = submit(spool, "next", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
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
