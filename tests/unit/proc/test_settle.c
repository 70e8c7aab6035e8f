/* Settling: what the executed writer must not keep of its inheritance; and how our threads behave as guests. */
#include "spawned.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

Test(settle, writer_stands_alone)
{
    struct spawned spawned;

    spawned_start(&spawned, NULL);
    spawned_tell(&spawned, "settle");
    spawned_listen(&spawned);
    cr_expect_str_eq(report_line(&spawned, "fds:"), "fds: 0 1 2 3");
    cr_expect_str_eq(report_line(&spawned, "cwd:"), "cwd: /");
    cr_expect_str_eq(report_line(&spawned, "leader:"), "leader: 1");
    cr_expect_str_eq(report_line(&spawned, "no_new_privs:"), "no_new_privs: 1");
    cr_expect_str_eq(report_line(&spawned, "dumpable:"), "dumpable: 0");
    cr_expect_str_eq(report_line(&spawned, "SigBlk:"), "SigBlk:\t0000000000000000");
    cr_expect_str_eq(report_line(&spawned, "SigIgn:"), "SigIgn:\t0000000001001001"); /* SIGHUP 1, SIGPIPE 13, SIGXFSZ 25 */
    spawned_end(&spawned);
}

Test(settle, term_signal_becomes_a_readable_descriptor)
{
    struct pollfd term = { .fd = process_term_fd(), .events = POLLIN };

    cr_assert_geq(term.fd, 0);
    cr_expect_eq(poll(&term, 1, 0), 0);
    kill(getpid(), SIGTERM); /* would end this test if it were not blocked */
    cr_expect_eq(poll(&term, 1, 1000), 1);
    close(term.fd);
}

Test(channel, keeps_message_borders_and_closes_on_exec)
{
    char text[16];
    int ends[2];

    cr_assert_eq(channel_create(ends, NULL), 0);
    cr_assert_eq(send(ends[0], "one", 3, 0), 3);
    cr_assert_eq(send(ends[0], "three", 5, 0), 5);
    cr_expect_eq(recv(ends[1], text, sizeof text, 0), 3);
    cr_expect_eq(recv(ends[1], text, sizeof text, 0), 5);
    close(ends[0]);
    close(ends[1]);
}

Test(writer_path, given_path_is_made_absolute)
{
    char path[PATH_MAX], found[PATH_MAX] = "", relative[PATH_MAX];

    reporter_path(path);
    *strrchr(path, '/') = '\0';
    cr_assert_eq(chdir(path), 0);
    snprintf(relative, sizeof relative, "./child-reporter");
    cr_expect_eq(writer_path_find(relative, found, NULL), 0);
    reporter_path(path);
    cr_expect_str_eq(found, realpath(path, relative));
}

Test(writer_path, path_that_is_not_there_is_named)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char found[PATH_MAX] = "untouched";

    cr_expect_eq(writer_path_find("/nonexistent/writer", found, &failure), -ENOENT);
    cr_expect(strstr(failure.message, "/nonexistent/writer"), "%s", failure.message);
    cr_expect_eq(writer_path_find("/etc/passwd", found, &failure), -EACCES);
    cr_expect_str_eq(found, "untouched");
}

/* Threads ---------------------------------------------------------------------------------------------------------- */
struct glimpse { char name[16]; sigset_t blocked; cpu_set_t cpus; int done; };

static void *look_around(void *argument)
{
    struct glimpse *glimpse = argument;

    pthread_sigmask(SIG_SETMASK, NULL, &glimpse->blocked);
    sched_getaffinity(0, sizeof glimpse->cpus, &glimpse->cpus);
    glimpse->done = 1;
    return NULL;
}

Test(thread, blocks_all_signals_and_leaves_the_callers_mask)
{
    struct glimpse glimpse = { .done = 0 };
    sigset_t mask;
    pthread_t thread;

    cr_assert_eq(thread_start(&thread, "tspool-test", NULL, look_around, &glimpse), 0);
    pthread_join(thread, NULL);
    cr_expect_eq(glimpse.done, 1);
    cr_expect_eq(sigismember(&glimpse.blocked, SIGTERM), 1);
    cr_expect_eq(sigismember(&glimpse.blocked, SIGCHLD), 1);
    cr_expect_eq(sigismember(&glimpse.blocked, SIGUSR1), 1);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    cr_expect_eq(sigismember(&mask, SIGTERM), 0);
}

static void *wait_for_end(void *argument)
{
    char byte;

    while (read(*(int *)argument, &byte, 1) > 0)
        ;
    return NULL;
}

Test(thread, bears_its_name)
{
    char name[16] = "";
    int ends[2];
    pthread_t thread;

    cr_assert_eq(pipe(ends), 0);
    cr_assert_eq(thread_start(&thread, "tspool-fifteen.", NULL, wait_for_end, &ends[0]), 0);
    pthread_getname_np(thread, name, sizeof name);
    cr_expect_str_eq(name, "tspool-fifteen.");
    close(ends[1]);
    pthread_join(thread, NULL);
}

Test(thread, stays_off_excluded_cpus)
{
    struct glimpse glimpse = { .done = 0 };
    cpu_set_t own;
    pthread_t thread;

    sched_getaffinity(0, sizeof own, &own);
    if (!CPU_ISSET(0, &own) || CPU_COUNT(&own) < 2)
        cr_skip_test("needs CPU 0 and another one");
    cr_assert_eq(thread_start(&thread, "tspool-test", "0", look_around, &glimpse), 0);
    pthread_join(thread, NULL);
    cr_expect_not(CPU_ISSET(0, &glimpse.cpus));
    cr_expect_eq(CPU_COUNT(&glimpse.cpus), CPU_COUNT(&own) - 1);
    cr_expect_eq(thread_start(&thread, "tspool-test", "0-8191", look_around, &glimpse), -EINVAL);
}

Test(cpu_list, good_lists_pass_and_bad_ones_do_not)
{
    static const char *const good[] = { "0", "0-3", "0-3,8", "8,0-3,5-5", "8191" };
    static const char *const bad[] = { "", ",", "1,", ",1", "3-1", "1-", "-1", "a", "1 2", "0x1", "8192", "1-99999999999999" };

    cr_expect_eq(cpu_list_check(NULL), 0);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        cr_expect_eq(cpu_list_check(good[i]), 0, "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_expect_eq(cpu_list_check(bad[i]), -EINVAL, "%s", bad[i]);
}
