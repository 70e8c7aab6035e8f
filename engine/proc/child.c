/* proc/child.c - a child known by its pidfd: asked, signalled and reaped without ever waiting for it.
 *
 * A pid may belong to a stranger as soon as somebody reaped the child, and applications do reap everything; a pidfd means
 * this child for ever. A process in D state does not even die of SIGKILL: it is left alone, never joined.
 */
#include <proc/proc.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>


void child_signal(const struct child *child, int signal)
{
    if (child->pidfd >= 0)
        syscall(SYS_pidfd_send_signal, child->pidfd, signal, NULL, 0);
}

void child_kill(const struct child *child)
{
    child_signal(child, SIGKILL);
}

bool child_is_dead(const struct child *child)
{
    struct pollfd death = { .fd = child->pidfd, .events = POLLIN };
    int ready;

    do
        ready = poll(&death, 1, 0);
    while (ready < 0 && errno == EINTR);
    return child->pidfd < 0 || ready > 0;
}

static int status_of(const siginfo_t *info)
{
    if (info->si_pid == 0)
        return -1; /* alive, or ECHILD: the application was faster */
    if (info->si_code == CLD_EXITED)
        return (info->si_status & 0xff) << 8;
    return (info->si_status & 0x7f) | (info->si_code == CLD_DUMPED ? 0x80 : 0);
}

void child_release(struct child *child, int *status)
{
    siginfo_t info;
    int result;

    memset(&info, 0, sizeof info);
    do
        result = waitid((idtype_t)P_PIDFD, (id_t)child->pidfd, &info, WEXITED | WNOHANG);
    while (result < 0 && errno == EINTR);
    if (child->pidfd >= 0)
        close(child->pidfd);
    *child = (struct child){ -1, -1 };
    *status = status_of(&info);
}

void child_describe(int status, char *text, size_t size)
{
    if (status == -1)
        snprintf(text, size, "ended, how is unknown (the application reaps children)");
    else if (WIFEXITED(status))
        snprintf(text, size, "exited with status %d", WEXITSTATUS(status));
    else
        snprintf(text, size, "was killed by signal %d (%s)%s", WTERMSIG(status), strsignal(WTERMSIG(status)),
                 WCOREDUMP(status) ? ", core dumped" : "");
}
