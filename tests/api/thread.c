/* api/thread.c - the writer's machine on a thread of the trainer: for sandboxes without exec, and for sanitizers, which
 * see both sides of the channel here.
 */
#include "rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct rig rig;
static struct state state;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_THREAD);
    rig.options.io = TSPOOL_IO_THREADS;
    state_init(&state, 4, 1500007, 6);
}

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(thread, .init = setup, .fini = teardown, .timeout = 120);

Test(thread, publishes_now_background_and_spans)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *saves[3];

    cr_assert_eq(tspool_writer_pid(spool), 0);
    saves[0] = submit(spool, "now", &state);
    saves[1] = begin(spool, "background", TSPOOL_STAGING_BACKGROUND);
    state_add(&state, saves[1], true);
    cr_assert_eq(tspool_save_submit(saves[1], NULL), 0);
    saves[2] = begin(spool, "spans", TSPOOL_STAGING_CALLER);
    state_add(&state, saves[2], false);
    cr_assert_eq(tspool_save_submit(saves[2], NULL), 0);
    fill_spans(saves[2], &state);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(tspool_save_wait(saves[i], TSPOOL_PUBLISHED, MINUTE_NS), 0);
        tspool_save_free(saves[i]);
    }
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "now", &state);
    assert_holds(&rig, "background", &state);
    assert_holds(&rig, "spans", &state);
}

Test(thread, passes_a_state_larger_than_the_arena)
{
    struct tspool *spool;
    struct state large;

    state_init(&large, 5, 4000037, 2); /* 80 MB through 32 MiB */
    rig.options.arena_bytes = 32 << 20;
    spool = rig_open(&rig);
    tspool_save_free(submit(spool, "large", &large));
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_holds(&rig, "large", &large);
    state_deinit(&large);
}

Test(thread, aborts_and_saves_again)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "aborted", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_save_abort(save), 0);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -ECANCELED);
    tspool_save_free(save);
    save = submit(spool, "kept", &state);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "kept" }, 1);
}

Test(thread, several_threads_save_at_once)
{
    struct tspool *spool = rig_open(&rig);
    char name[16];

    for (int i = 0; i < 4; i++) {
        struct tspool_save *save;

        snprintf(name, sizeof(name), "step-%d", i);
        save = begin(spool, name, i % 2 ? TSPOOL_STAGING_BACKGROUND : TSPOOL_STAGING_NOW);
        state_add(&state, save, true);
        cr_assert_eq(tspool_save_submit(save, NULL), 0);
        if (i % 2)
            cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS), 0);
        tspool_save_free(save);
    }
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof(name), "step-%d", i);
        assert_holds(&rig, name, &state);
    }
}

Test(thread, close_at_the_timeout_ends_it_too)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "unfilled", TSPOOL_STAGING_CALLER);

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_submit(save, NULL), 0);
    cr_assert_eq(tspool_close(spool, 0, &report), -ETIMEDOUT);
    cr_assert_eq(report.aborted, 1);
    tspool_save_free(save);
    assert_nothing_but(&rig, NULL, 0);
}
