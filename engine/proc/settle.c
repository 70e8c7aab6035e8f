/* proc/settle.c - what the executed writer throws away of what it inherited from the trainer.
 *
 * It must outlive the trainer, its terminal and its working directory, and must hold nothing open that is not its own.
 */
#include <proc/proc.h>

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LAST_KEPT_FD 3 /* the channel */

static void signals_settle(void)
{
    struct sigaction by_default = { .sa_handler = SIG_DFL }, ignore = { .sa_handler = SIG_IGN };
    sigset_t none;

    for (int signal = 1; signal < NSIG; signal++)
        sigaction(signal, &by_default, NULL);
    sigaction(SIGXFSZ, &ignore, NULL); /* then RLIMIT_FSIZE is EFBIG, which can be reported */
    sigaction(SIGPIPE, &ignore, NULL); /* then a dead trainer is EPIPE */
    sigaction(SIGHUP, &ignore, NULL);  /* then it outlives the terminal */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void descriptors_settle(void)
{
    struct rlimit limit;
    rlim_t count;

    if (syscall(SYS_close_range, LAST_KEPT_FD + 1, ~0u, 0) == 0)
        return;
    count = getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1 << 20 ? limit.rlim_cur : 1 << 20;
    for (rlim_t fd = LAST_KEPT_FD + 1; fd < count; fd++)
        close((int)fd);
}

/* A process group of its own keeps Ctrl-C away. Not a session of its own: where the kernel groups sessions for scheduling
 * (sched_autogroup, on by default outside of CPU cgroups) the writer's hashing would get as much CPU as the whole trainer, whatever
 * its nice value, and the trainer's copying would wait for it. */
int process_settle(void)
{
    signals_settle();
    descriptors_settle();
    if (setpgid(0, 0) < 0 && errno != EPERM) /* EPERM: it leads a session already */
        return -errno;
    if (chdir("/") < 0)
        return -errno;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return -errno;
    return 0;
}

int process_term_fd(void)
{
    sigset_t term;
    int fd, error;

    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    fd = signalfd(-1, &term, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    error = pthread_sigmask(SIG_BLOCK, &term, NULL); /* threads started from now on inherit it */
    if (error) {
        close(fd);
        return -error;
    }
    return fd;
}
