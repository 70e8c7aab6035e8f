/* Machines that refuse: containers without io_uring, limits on threads. The record must name the true reason, for the
 * remedy differs, and nothing may be left behind. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct io_settings defaults = { 0 };

typedef int io_create(const struct io_settings *settings, struct io **io, struct tspool_failure *failure);

static struct tspool_failure refused(io_create *create, int error)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io *io = (struct io *)&failure;
    unsigned before = open_descriptors();

    cr_assert_eq(create(&defaults, &io, &failure), -error);
    cr_assert_eq((void *)io, (void *)&failure, "outputs change only on success");
    cr_assert_eq(failure.error, error);
    cr_assert_eq(open_descriptors(), before);
    return failure;
}

Test(refusal, by_a_seccomp_profile_is_named)
{
    struct tspool_failure failure;

    if (!system_call_forbid(SYS_io_uring_setup, EPERM))
        cr_skip("no seccomp filter here");
    failure = refused(io_create_uring, EPERM);
    cr_assert_str_eq(failure.operation, "io_uring_setup");
    cr_assert(strstr(failure.cause, "seccomp") || strstr(failure.cause, "io_uring_disabled"), "%s", failure.message);
}

Test(refusal, with_ENOSYS_names_the_kernel_and_seccomp)
{
    struct tspool_failure failure;

    if (!system_call_forbid(SYS_io_uring_setup, ENOSYS))
        cr_skip("no seccomp filter here");
    failure = refused(io_create_uring, ENOSYS);
    cr_assert(strstr(failure.cause, "CONFIG_IO_URING") && strstr(failure.cause, "seccomp"), "%s", failure.message);
}

/* The sysctl is played by a file that only this process sees in its place. */
static void sysctl_pretend(const char *value)
{
    char path[] = "/var/tmp/tspool-sysctl-XXXXXX";
    int fd = mkstemp(path);
    bool pretended = fd >= 0 && write(fd, value, strlen(value)) > 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
                     mount(path, "/proc/sys/kernel/io_uring_disabled", NULL, MS_BIND, NULL) == 0;

    close(fd);
    unlink(path);
    if (!pretended || !system_call_forbid(SYS_io_uring_setup, EPERM))
        cr_skip("putting a file in the sysctl's place needs CAP_SYS_ADMIN and kernel 6.6");
}

Test(refusal, by_the_sysctl_is_named)
{
    sysctl_pretend("2\n");
    cr_assert(strstr(refused(io_create_uring, EPERM).message, "kernel.io_uring_disabled is 2"));
}

Test(refusal, of_the_unprivileged_by_the_sysctl_names_the_group)
{
    sysctl_pretend("1\n");
    cr_assert(strstr(refused(io_create_uring, EPERM).message, "kernel.io_uring_group"));
}

#ifdef __SANITIZE_ADDRESS__
#define LEAKS_ARE_CHECKED 1
#else
#define LEAKS_ARE_CHECKED 0
#endif

Test(refusal, of_threads_names_the_limits)
{
    if (LEAKS_ARE_CHECKED)
        cr_skip("the leak check at exit needs clone(), which this test forbids");
    if (!system_call_forbid(SYS_clone3, EAGAIN) || !system_call_forbid(SYS_clone, EAGAIN))
        cr_skip("no seccomp filter here");
    cr_assert(strstr(refused(io_create_threads, EAGAIN).cause, "RLIMIT_NPROC"));
    cr_assert_str_eq(refused(io_create_uring, EAGAIN).operation, "pthread_create");
}

Test(refusal, of_io_uring_leaves_the_threads_backend)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct op op = { .kind = OP_TIMER };
    struct io *io;

    if (!system_call_forbid(SYS_io_uring_setup, EPERM))
        cr_skip("no seccomp filter here");
    refused(io_create_uring, EPERM);
    cr_assert_eq(io_create_threads(&defaults, &io, &failure), 0, "%s", failure.message);
    cr_assert_eq(io_call(io, &op), 0);
    cr_assert_str_eq(io->backend, "threads");
    io_destroy(io);
}
