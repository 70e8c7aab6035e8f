/* Which process: a pid alone is another's after a while, in another container, or after a boot. Whoever takes a stranger for the
 * trainer waits for nothing, or does not wait for its orphan.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <proc/identity.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static struct process_identity own(void)
{
    struct process_identity self = { 0 };

    cr_assert_eq(process_identify(&self), 0);
    return self;
}

/* A child that waits until it is killed, and who it is. */
static pid_t child_make(struct process_identity *identity)
{
    int ends[2];
    pid_t child;

    cr_assert_eq(pipe(ends), 0);
    child = fork();
    if (child == 0) {
        struct process_identity self = { 0 };
        ssize_t written;

        process_identify(&self);
        written = write(ends[1], &self, sizeof self);
        (void)written;
        for (;;)
            pause();
    }
    cr_assert_eq(read(ends[0], identity, sizeof *identity), sizeof *identity);
    close(ends[0]);
    close(ends[1]);
    return child;
}

Test(identity, of_oneself_lives)
{
    struct process_identity self = own();

    cr_assert_eq(self.pid, (uint32_t)getpid());
    cr_assert_gt(self.start, 0);
    cr_assert_gt(self.pid_namespace, 0);
    cr_assert_eq(process_look(&self), PROCESS_LIVES);
}

Test(identity, of_a_child_lives_and_is_gone_as_a_zombie_and_after_it)
{
    struct process_identity child;
    pid_t pid = child_make(&child);
    siginfo_t info;

    cr_assert_eq(process_look(&child), PROCESS_LIVES);
    kill(pid, SIGKILL);
    cr_assert_eq(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    cr_expect_eq(process_look(&child), PROCESS_GONE, "nobody reaped it yet");
    cr_assert_eq(waitpid(pid, NULL, 0), pid);
    cr_expect_eq(process_look(&child), PROCESS_GONE);
}

Test(identity, stopped_process_lives)
{
    struct process_identity child;
    pid_t pid = child_make(&child);

    kill(pid, SIGSTOP);
    cr_assert_eq(waitpid(pid, NULL, WUNTRACED), pid);
    cr_expect_eq(process_look(&child), PROCESS_LIVES);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

Test(identity, with_another_start_time_is_gone)
{
    struct process_identity other = own();

    other.start++;
    cr_assert_eq(process_look(&other), PROCESS_GONE);
}

Test(identity, of_another_boot_namespace_or_none_is_unseen)
{
    struct process_identity boot = own(), space = own(), nobody = own();

    boot.boot_id[3] ^= 1;
    space.pid_namespace++;
    nobody.pid = 0;
    cr_expect_eq(process_look(&boot), PROCESS_UNSEEN);
    cr_expect_eq(process_look(&space), PROCESS_UNSEEN);
    cr_expect_eq(process_look(&nobody), PROCESS_UNSEEN);
}
