/* api/retention.c - a spool that keeps the newest checkpoints: what goes, what stays, and when.
 *
 * What is to be deleted a writer still deletes before it ends, when that takes no longer than two seconds: so the end of a spool
 * shows what retention did.
 */
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct rig rig;
static struct state state;

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_PROCESS);
    state_init(&state, 3, 300007, 4);
}

TestSuite(retention, .init = setup, .fini = teardown, .timeout = 60);

static void published_wait(struct tspool_save *save)
{
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
}

static struct tspool_save_result save_one(struct tspool *spool, const char *name)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_save *save = submit(spool, name, &state);

    published_wait(save);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    tspool_save_free(save);
    return result;
}

static void saves_run(uint32_t keep, const char *const *names, size_t count)
{
    struct tspool *spool;

    rig.options.keep = keep;
    spool = rig_open(&rig);
    for (size_t i = 0; i < count; i++)
        save_one(spool, names[i]);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

static const char *const five[] = { "a1", "a2", "a3", "a4", "a5" };

static void only_the_last_two_stay(enum tspool_isolation isolation)
{
    rig.options.isolation = isolation;
    saves_run(2, five, 5);
    assert_holds(&rig, "a4", &state);
    assert_holds(&rig, "a5", &state);
    assert_nothing_but(&rig, five + 3, 2);
}

Test(retention, only_the_newest_stay_when_a_writer_process_ends) { only_the_last_two_stay(TSPOOL_ISOLATION_PROCESS); }
Test(retention, only_the_newest_stay_when_a_writer_thread_ends) { only_the_last_two_stay(TSPOOL_ISOLATION_THREAD); }

Test(retention, all_stay_without_it)
{
    saves_run(0, five, 5);
    assert_nothing_but(&rig, five, 5);
}

/* Who opens with the wrong number has lost nothing yet. */
Test(retention, nothing_goes_before_a_save_was_published)
{
    saves_run(0, five, 4);
    saves_run(1, NULL, 0);
    assert_nothing_but(&rig, five, 4);
    saves_run(1, five + 4, 1);
    assert_nothing_but(&rig, five + 4, 1);
}

Test(retention, what_a_dead_collector_left_goes_when_the_next_writer_starts)
{
    char from[100], to[160];

    saves_run(0, five, 2);
    snprintf(from, sizeof(from), "%s/a1", rig.root);
    snprintf(to, sizeof(to), "%s/.a1.00112233445566778899aabbccddeeff.gone", rig.root);
    cr_assert_eq(rename(from, to), 0);
    saves_run(5, NULL, 0);
    assert_nothing_but(&rig, five + 1, 1);
}

Test(retention, checkpoint_with_a_file_of_somebody_else_stays)
{
    char path[100];
    FILE *file;

    saves_run(0, five, 1);
    snprintf(path, sizeof(path), "%s/a1/tokenizer.json", rig.root);
    cr_assert_not_null(file = fopen(path, "w"));
    fclose(file);
    saves_run(1, five + 1, 2);
    cr_assert_eq(unlink(path), 0);
    assert_holds(&rig, "a1", &state);
    assert_holds(&rig, "a3", &state);
    cr_expect_not(exists(&rig, "a2"));
}

/* Names that were taken down stand no more; the next save tells. */
Test(retention, result_of_a_later_save_says_what_has_gone)
{
    struct tspool_save_result result;
    struct tspool *spool;

    rig.options.keep = 1;
    spool = rig_open(&rig);
    cr_assert_eq(save_one(spool, "a1").removed, 0);
    save_one(spool, "a2");
    while (exists(&rig, "a1"))
        sched_yield();
    while (!(result = save_one(spool, "a3")).removed)
        published_remove(&rig, "a3");
    cr_expect_geq(result.removed_bytes, 3 * 300007 * sizeof(float));
    cr_expect_eq(result.keep_error, 0);
    cr_expect_str_empty(result.keep_left);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

/* Two ranks: whoever publishes is not heard of, and so is looked for. */
Test(retention, checkpoints_of_several_ranks_go_too)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool *spools[2];
    uint8_t id[TSPOOL_SAVE_ID_BYTES];

    rig.options.keep = 1;
    rig.options.world_size = 2;
    for (rig.options.rank = 0; rig.options.rank < 2; rig.options.rank++)
        spools[rig.options.rank] = rig_open(&rig);
    options.save_id = id;
    for (unsigned i = 0; i < 3; i++) {
        cr_assert_eq(tspool_save_id(spools[0], id), 0);
        for (unsigned rank = 0; rank < 2; rank++) {
            struct tspool_save *save;

            cr_assert_eq(tspool_save_begin(spools[rank], five[i], &options, &save, NULL), 0);
            state_add(&state, save, true);
            cr_assert_eq(tspool_save_submit(save, NULL), 0);
            cr_assert_eq(tspool_save_wait(save, TSPOOL_DURABLE, MINUTE_NS), 0);
            tspool_save_free(save);
        }
        cr_assert_eq(tspool_publish(rig.root, five[i], id, 2, NULL), 0);
    }
    while (exists(&rig, "a1") || exists(&rig, "a2"))
        sched_yield();
    for (unsigned rank = 0; rank < 2; rank++)
        cr_assert_eq(tspool_close(spools[rank], MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, five + 2, 1);
}

static pid_t thread_find(const char *wanted)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    pid_t found = 0;

    while (!found && (task = readdir(tasks))) {
        char path[300], name[32] = "";
        FILE *file;

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", task->d_name);
        if (!(file = fopen(path, "r")))
            continue;
        if (fscanf(file, "%31s", name) == 1 && strcmp(name, wanted) == 0)
            found = atoi(task->d_name);
        fclose(file);
    }
    closedir(tasks);
    return found;
}

Test(retention, its_thread_keeps_off_excluded_cpus)
{
    struct tspool *spool;
    cpu_set_t allowed;

    if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
        cr_skip_test("there is one CPU only");
    sched_getaffinity(0, sizeof(allowed), &allowed);
    if (!CPU_ISSET(0, &allowed) || CPU_COUNT(&allowed) < 2)
        cr_skip_test("CPU 0 is none of ours, or the only one");
    rig.options.isolation = TSPOOL_ISOLATION_THREAD;
    rig.options.excluded_cpus = "0";
    rig.options.keep = 1;
    spool = rig_open(&rig);
    cr_assert_gt(thread_find("tspool-keeper"), 0);
    cr_assert_eq(sched_getaffinity(thread_find("tspool-keeper"), sizeof(allowed), &allowed), 0);
    cr_expect_not(CPU_ISSET(0, &allowed));
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

Test(retention, more_than_it_can_count_is_refused)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool;

    rig.options.keep = 65537;
    cr_assert_eq(tspool_open(&rig.options, &spool, &failure), -EINVAL);
    cr_expect(strstr(failure.message, "keep is above 65536"), "%s", failure.message);
}
