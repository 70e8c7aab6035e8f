/* uring_refusal.c - io_uring is refused in a handful of ways, and errno alone does not tell them apart. */
#include <errno.h>
#include <fcntl.h>
#include <io/uring_refusal.h>
#include <stdio.h>
#include <unistd.h>

/* The value of kernel.io_uring_disabled (kernel 6.6): '0' .. '2', or 0 where there is none. */
static char sysctl_value(void)
{
    int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    char value = 0;

    if (fd < 0)
        return 0;
    if (read(fd, &value, 1) != 1)
        value = 0;
    close(fd);
    return value;
}

static const char *permission_cause(void)
{
    switch (sysctl_value()) {
    case '2':
        return "kernel.io_uring_disabled is 2, which forbids io_uring to everyone: sysctl kernel.io_uring_disabled=0, or use the "
               "threads backend";
    case '1':
        return "kernel.io_uring_disabled is 1, which leaves io_uring to CAP_SYS_ADMIN and the group kernel.io_uring_group: join "
               "it, sysctl kernel.io_uring_disabled=0, or use the threads backend";
    default:
        return "a seccomp profile blocks io_uring, as Docker's default one does: run with a profile that allows it, or use the "
               "threads backend";
    }
}

static const char *refusal_cause(int error)
{
    switch (error) {
    case EPERM:
        return permission_cause();
    case ENOSYS:
        return "the kernel has no io_uring (before 5.1, or built without CONFIG_IO_URING), or a seccomp profile answers for it: "
               "use the threads backend";
    case EOPNOTSUPP:
    case EINVAL:
        return "the kernel's io_uring is too old: 5.11 is needed; use the threads backend";
    case EACCES:
        return "a security module (SELinux, AppArmor) denies io_uring: use the threads backend";
    case ENOMEM:
        return "no memory for the ring; before kernel 5.12 it counts against RLIMIT_MEMLOCK (ulimit -l): raise it, or use the "
               "threads backend";
    case EMFILE:
    case ENFILE:
        return "no file descriptor is left for the ring: raise RLIMIT_NOFILE (ulimit -n)";
    default:
        return "io_uring could not be set up: use the threads backend";
    }
}

void uring_refusal_describe(int error, char *cause, size_t size) { snprintf(cause, size, "%s", refusal_cause(error)); }
