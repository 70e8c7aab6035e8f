/* Spawn: whatever leaks into the writer outlives the trainer; an exec that fails must say so at once and in full. */
#include "spawned.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

Test(spawn, child_has_the_channel_and_nothing_else_open)
{
    struct spawned spawned;
    int leaky = open("/dev/zero", O_RDONLY); /* not close-on-exec */

    cr_assert_geq(dup2(leaky, 500), 0);
    spawned_start(&spawned, NULL);
    cr_expect_str_eq(report_line(&spawned, "fds:"), "fds: 0 1 2 3");
    cr_expect_str_eq(report_line(&spawned, "fd0:"), "fd0: /dev/null");
    cr_expect_str_eq(report_line(&spawned, "fd1:"), "fd1: /dev/null");
    spawned_end(&spawned);
}

Test(spawn, stderr_is_inherited)
{
    struct spawned spawned;
    struct stat status;
    char expected[64];
    int ends[2];

    cr_assert_eq(pipe(ends), 0);
    cr_assert_eq(dup2(ends[1], 2), 2);
    fstat(ends[1], &status);
    snprintf(expected, sizeof expected, "fd2: pipe:[%lu]", (unsigned long)status.st_ino);
    spawned_start(&spawned, NULL);
    cr_expect_str_eq(report_line(&spawned, "fd2:"), expected);
    spawned_end(&spawned);
}

/* A daemon may have closed 0..2, and then the channel itself gets such a number. */
Test(spawn, works_when_the_standard_descriptors_are_closed)
{
    struct spawned spawned;

    close(0);
    close(1);
    close(2);
    spawned_start(&spawned, NULL);
    cr_expect_str_eq(report_line(&spawned, "fds:"), "fds: 0 1 2 3");
    cr_expect_str_eq(report_line(&spawned, "fd0:"), "fd0: /dev/null");
    cr_expect_str_eq(report_line(&spawned, "fd2:"), "fd2: /dev/null");
    spawned_end(&spawned);
}

static void never(int signal) { (void)signal; }

Test(spawn, child_inherits_no_signal_state_and_no_environment)
{
    struct spawned spawned;
    sigset_t all, before, after;

    signal(SIGUSR1, never);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigprocmask(SIG_SETMASK, NULL, &before);
    setenv("LD_BIND_NOW", "1", 1);
    spawned_start(&spawned, NULL);
    cr_expect_str_eq(report_line(&spawned, "SigBlk:"), "SigBlk:\t0000000000000000");
    cr_expect_str_eq(report_line(&spawned, "SigIgn:"), "SigIgn:\t0000000000000000");
    cr_expect_str_eq(report_line(&spawned, "environ:"), "environ: 0");
    cr_expect_str_eq(report_line(&spawned, "argv0:"), "argv0: tspool-writer");
    cr_expect_str_eq(report_line(&spawned, "leader:"), "leader: 1");
    sigprocmask(SIG_SETMASK, NULL, &after);
    cr_expect_eq(memcmp(&before, &after, sizeof after), 0, "the caller's mask is as before");
    spawned_end(&spawned);
}

/* Failures --------------------------------------------------------------------------------------------------------- */
static int open_descriptors(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void expect_refused(const char *path, int error, const char *cause)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct child child = { -7, -7 };
    int ends[2], before, status;

    cr_assert_eq(channel_create(ends, NULL), 0);
    before = open_descriptors();
    cr_expect_eq(child_spawn(path, ends[1], NULL, &child, &failure), -error);
    cr_expect_eq(failure.error, error);
    cr_expect_eq(failure.stage, TSPOOL_STAGE_WRITER);
    cr_expect(strstr(failure.message, path) && strstr(failure.message, cause), "%s", failure.message);
    cr_expect_eq(child.pid, -7, "an output changes on success only");
    cr_expect_eq(open_descriptors(), before, "no descriptor is left behind");
    cr_expect_eq(waitpid(-1, &status, WNOHANG), -1);
    cr_expect_eq(errno, ECHILD, "no zombie is left behind");
}

Test(spawn, missing_program_is_reported_at_once)
{
    expect_refused("/nonexistent/tspool-writer", ENOENT, "no such program");
}

static char folder[] = "/tmp/tspool-spawn-XXXXXX";

static void folder_make(void) { cr_assert(mkdtemp(folder)); }

static void folder_remove(void)
{
    char path[PATH_MAX];

    snprintf(path, sizeof path, "%s/program", folder);
    unlink(path);
    rmdir(folder);
}

static void program_make(char *path, mode_t mode)
{
    int fd;

    snprintf(path, PATH_MAX, "%s/program", folder);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, mode);
    cr_assert_eq(write(fd, "no program\n", 11), 11);
    close(fd);
}

Test(spawn, file_without_execute_permission_is_reported, .init = folder_make, .fini = folder_remove)
{
    char path[PATH_MAX];

    program_make(path, 0644);
    expect_refused(path, EACCES, "executable");
}

Test(spawn, file_that_is_no_program_is_reported, .init = folder_make, .fini = folder_remove)
{
    char path[PATH_MAX];

    program_make(path, 0755);
    expect_refused(path, ENOEXEC, "not a program");
}

Test(spawn, program_on_a_noexec_mount_is_reported, .init = folder_make, .fini = folder_remove)
{
    char path[PATH_MAX];

    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", folder, "tmpfs", MS_NOEXEC, NULL) < 0)
        cr_skip_test("mounting is not allowed here");
    program_make(path, 0755);
    expect_refused(path, EACCES, "noexec");
    umount(folder);
}

/* CPUs ------------------------------------------------------------------------------------------------------------- */
static int usable_cpus(void)
{
    cpu_set_t set;

    sched_getaffinity(0, sizeof set, &set);
    return CPU_ISSET(0, &set) && CPU_ISSET(1, &set) ? CPU_COUNT(&set) : 0;
}

Test(spawn, excluded_cpu_is_not_used)
{
    struct spawned spawned;

    if (usable_cpus() != 2)
        cr_skip_test("needs exactly CPUs 0 and 1");
    spawned_start(&spawned, "0");
    cr_expect_str_eq(report_line(&spawned, "Cpus_allowed_list:"), "Cpus_allowed_list:\t1");
    spawned_end(&spawned);
}

static void *spawn_pinned(void *argument)
{
    cpu_set_t first;

    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    spawned_start(argument, NULL);
    return NULL;
}

Test(spawn, pinned_thread_does_not_pin_the_writer)
{
    struct spawned spawned;
    pthread_t thread;

    if (usable_cpus() != 2)
        cr_skip_test("needs exactly CPUs 0 and 1");
    cr_assert_eq(pthread_create(&thread, NULL, spawn_pinned, &spawned), 0);
    pthread_join(thread, NULL);
    cr_expect_str_eq(report_line(&spawned, "Cpus_allowed_list:"), "Cpus_allowed_list:\t0-1");
    spawned_end(&spawned);
}

Test(spawn, excluding_every_cpu_is_refused)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct child child;

    cr_expect_eq(child_spawn("/bin/true", 0, "0-8191", &child, &failure), -EINVAL);
    cr_expect(strstr(failure.message, "0-8191"), "%s", failure.message);
    cr_expect_eq(child_spawn("/bin/true", 0, "zero", &child, &failure), -EINVAL);
}

/* Death ------------------------------------------------------------------------------------------------------------ */
Test(child, killed_child_is_seen_through_the_pidfd)
{
    struct spawned spawned;
    char text[80];
    int status = 77;

    spawned_start(&spawned, NULL);
    cr_expect_not(child_is_dead(&spawned.child));
    child_kill(&spawned.child);
    child_await_death(&spawned.child);
    cr_expect(child_is_dead(&spawned.child));
    child_kill(&spawned.child); /* fine when it is gone */
    child_release(&spawned.child, &status);
    child_describe(status, text, sizeof text);
    cr_expect_str_eq(text, "was killed by signal 9 (Killed)");
    cr_expect_eq(spawned.child.pidfd, -1);
    cr_expect(child_is_dead(&spawned.child));
}

Test(child, exit_status_is_told)
{
    struct spawned spawned;
    char text[80];
    int status = 77;

    spawned_start(&spawned, NULL);
    spawned_tell(&spawned, "exit");
    child_await_death(&spawned.child);
    child_release(&spawned.child, &status);
    child_describe(status, text, sizeof text);
    cr_expect_str_eq(text, "exited with status 3");
}

Test(child, releasing_a_living_child_does_not_wait)
{
    struct spawned spawned;
    pid_t pid;
    int status = 77;

    spawned_start(&spawned, NULL);
    pid = spawned.child.pid;
    child_release(&spawned.child, &status);
    cr_expect_eq(status, -1);
    cr_expect_eq(kill(pid, 0), 0, "it lives on");
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

Test(child, ignored_sigchld_leaves_only_the_status_unknown)
{
    struct spawned spawned;
    char text[80];
    int status = 77;

    signal(SIGCHLD, SIG_IGN);
    spawned_start(&spawned, NULL);
    child_kill(&spawned.child);
    child_await_death(&spawned.child);
    child_release(&spawned.child, &status);
    cr_expect_eq(status, -1);
    child_describe(status, text, sizeof text);
    cr_expect(strstr(text, "unknown"), "%s", text);
}

Test(child, application_that_reaps_everything_is_no_trouble)
{
    struct spawned spawned;
    int status = 77, reaped;

    spawned_start(&spawned, NULL);
    child_kill(&spawned.child);
    cr_assert_eq(waitpid(-1, &reaped, 0), spawned.child.pid);
    cr_expect(child_is_dead(&spawned.child));
    child_kill(&spawned.child);
    child_release(&spawned.child, &status);
    cr_expect_eq(status, -1);
}

/* A forked DataLoader worker keeps our end of the socket open: end of stream would never come. */
Test(child, forked_process_with_the_socket_does_not_hide_death)
{
    struct spawned spawned;
    int status;
    pid_t holder;

    spawned_start(&spawned, NULL);
    holder = fork();
    if (holder == 0) {
        pause();
        _exit(0);
    }
    close(spawned.channel);
    spawned.channel = -1;
    cr_expect_not(child_is_dead(&spawned.child), "it has not even seen an end of stream");
    spawned_end(&spawned);
    kill(holder, SIGKILL);
    waitpid(holder, &status, 0);
}
