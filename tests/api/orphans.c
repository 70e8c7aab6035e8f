/* api/orphans.c - a trainer is killed after it staged, and its writer, an orphan, still finishes while the restarted trainer
 * opens the same root: that waits for it, and where it does not, neither damages the other.
 */
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct rig rig;
static struct state first, second;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_PROCESS);
    rig.options.bytes_per_second = 8000000; /* the save takes seconds: whatever happens meanwhile happens in the middle */
    state_init(&first, 3, 2000003, 4);
    state_init(&second, 3, 2000003, 5);
}

static void teardown(void)
{
    state_deinit(&first);
    state_deinit(&second);
    rig_deinit(&rig);
}

TestSuite(orphans, .init = setup, .fini = teardown, .timeout = 60);

/* Saves whose part record says whose they are. */
static unsigned records(void)
{
    DIR *directory = opendir(rig.root);
    struct dirent *entry;
    struct stat stat;
    unsigned count = 0;
    char path[600];

    while ((entry = readdir(directory))) {
        snprintf(path, sizeof(path), "%s/%s/tspool.part-00001", rig.root, entry->d_name);
        count += entry->d_name[0] == '.' && lstat(path, &stat) == 0 && stat.st_size > 0;
    }
    closedir(directory);
    return count;
}

struct other { pid_t trainer, writer; };

static void trainer_run(int ready)
{
    struct tspool *spool = rig_open(&rig);
    int writer = tspool_writer_pid(spool);

    submit(spool, "step", &first);
    while (!records())
        sched_yield();
    if (write(ready, &writer, sizeof(writer)) != sizeof(writer))
        _exit(1);
    for (;;)
        pause();
}

/* Another trainer, which staged a save that its writer is in the middle of. */
static struct other other_start(void)
{
    struct other other;
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    other.trainer = fork();
    if (other.trainer == 0)
        trainer_run(ends[1]);
    cr_assert_eq(read(ends[0], &other.writer, sizeof(other.writer)), sizeof(other.writer));
    close(ends[0]);
    close(ends[1]);
    return other;
}

static void trainer_kill(const struct other *other)
{
    cr_assert_eq(kill(other->trainer, SIGKILL), 0);
    cr_assert_eq(waitpid(other->trainer, NULL, 0), other->trainer);
}

static struct tspool_open_report report_of(struct tspool *spool)
{
    struct tspool_open_report report = TSPOOL_OPEN_REPORT_INIT;

    cr_assert_eq(tspool_open_report(spool, &report), 0);
    return report;
}

Test(orphans, open_waits_until_the_orphan_has_published)
{
    struct other other = other_start();
    struct tspool_open_report report;
    struct tspool *spool;

    trainer_kill(&other);
    cr_assert_not(exists(&rig, "step"), "published already: the kill came too late to show anything");
    rig.options.orphan_wait_ns = UINT64_MAX;
    spool = rig_open(&rig);
    cr_assert(exists(&rig, "step"), "the open did not wait");
    report = report_of(spool);
    cr_expect_eq(report.orphans_seen, 1);
    cr_expect_eq(report.orphans_finished, 1);
    cr_expect_eq(report.orphans_left, 0);
    cr_expect_str_eq(report.orphan_left, "");
    cr_expect_gt(report.waited_ns, 0);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "step", &first);
    assert_nothing_but(&rig, (const char *const[]){ "step" }, 1);
}

Test(orphans, open_does_not_wait_for_a_living_trainers_save)
{
    struct other other = other_start();
    struct tspool *spool;

    rig.options.orphan_wait_ns = UINT64_MAX;
    spool = rig_open(&rig);
    cr_expect_eq(report_of(spool).orphans_seen, 0);
    cr_expect_not(exists(&rig, "step"), "it waited");
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    trainer_kill(&other);
    process_await_end(other.writer);
}

/* Opens although the orphan, which is held still, works on. */
static struct tspool *open_beside(const struct other *other)
{
    struct tspool_open_report report;
    struct tspool *spool;

    trainer_kill(other);
    cr_assert_eq(kill(other->writer, SIGSTOP), 0); /* afterwards: a stopped process group that loses its parent is continued */
    rig.options.orphan_wait_ns = 50 * MILLISECOND_NS;
    spool = rig_open(&rig);
    report = report_of(spool);
    cr_assert_eq(report.orphans_seen, 1);
    cr_assert_eq(report.orphans_left, 1);
    cr_assert_str_eq(report.orphan_left, "step");
    cr_assert_geq(report.waited_ns, 50 * MILLISECOND_NS);
    return spool;
}

Test(orphans, restarted_trainer_that_publishes_first_keeps_the_name)
{
    struct other other = other_start();
    struct tspool *spool = open_beside(&other);
    struct tspool_save *save = submit(spool, "step", &second);

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    writer_continue(other.writer);
    process_await_end(other.writer);
    assert_holds(&rig, "step", &second);
    assert_nothing_but(&rig, (const char *const[]){ "step" }, 1);
}

Test(orphans, orphan_that_publishes_first_keeps_the_name_and_the_other_is_told)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct other other = other_start();
    struct tspool *spool = open_beside(&other);
    struct tspool_save *save = submit(spool, "step", &second);
    int writer = tspool_writer_pid(spool);

    while (records() < 2)
        sched_yield();
    writer_stop(spool);
    writer_continue(other.writer);
    process_await_end(other.writer);
    assert_holds(&rig, "step", &first);
    writer_continue(writer);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EEXIST);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_expect_eq(result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_expect(strstr(result.failure.message, "another save published a checkpoint of that name"), "%s", result.failure.message);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "step", &first);
    assert_nothing_but(&rig, (const char *const[]){ "step" }, 1);
}

/* Nobody need wait for the dead: the lock fell with its writer. */
Test(orphans, open_does_not_wait_for_an_orphan_that_was_killed)
{
    struct other other = other_start();
    struct tspool *spool;

    cr_assert_eq(kill(other.writer, SIGSTOP), 0);
    trainer_kill(&other);
    cr_assert_eq(kill(other.writer, SIGKILL), 0);
    process_await_end(other.writer);
    rig.options.orphan_wait_ns = UINT64_MAX;
    spool = rig_open(&rig);
    cr_expect_eq(report_of(spool).orphans_seen, 0);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

Test(orphans, report_is_refused_where_it_makes_no_sense)
{
    struct tspool_open_report report = TSPOOL_OPEN_REPORT_INIT, unset = { 0 };
    struct tspool *spool = rig_open(&rig);

    cr_expect_eq(tspool_open_report(NULL, &report), -EINVAL);
    cr_expect_eq(tspool_open_report(spool, NULL), -EINVAL);
    cr_expect_eq(tspool_open_report(spool, &unset), -EINVAL);
    cr_expect_eq(tspool_open_report(spool, &report), 0);
    cr_expect_eq(report.waited_ns, 0);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}
