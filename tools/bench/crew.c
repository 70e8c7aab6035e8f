/* bench/crew.c - see crew.h. Waiting is a futex with a time limit, so that a member which was killed costs a tenth of a second
 * and not the run.
 */
#include "crew.h"

#include "../commands/command.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void word_await(_Atomic uint32_t *word, uint32_t while_value)
{
    const struct timespec limit = { .tv_nsec = 100000000 };

    syscall(SYS_futex, word, FUTEX_WAIT, while_value, &limit, NULL, 0);
}

static void word_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }

bool crew_is_given_up(const struct crew *crew) { return atomic_load(&crew->shared->is_given_up) != 0; }

void crew_give_up(struct crew *crew)
{
    atomic_store(&crew->shared->is_given_up, 1);
    word_wake(&crew->shared->generation);
    word_wake(&crew->shared->ordered);
    word_wake(&crew->shared->answered);
}

int crew_meet(struct crew *crew)
{
    struct crew_shared *shared = crew->shared;
    uint32_t generation = atomic_load(&shared->generation);

    if (atomic_fetch_add(&shared->arrived, 1) + 1 == shared->members) {
        atomic_store(&shared->arrived, 0);
        atomic_fetch_add(&shared->generation, 1);
        word_wake(&shared->generation);
        return crew_is_given_up(crew) ? -ECANCELED : 0;
    }
    while (atomic_load(&shared->generation) == generation && !crew_is_given_up(crew))
        word_await(&shared->generation, generation);
    return crew_is_given_up(crew) ? -ECANCELED : 0;
}

/* Starting and ending ------------------------------------------------------------------------------------------------ */

/* Ctrl-C reaches the whole process group; ranks wait for the command to give the run up. They do not outlive it. */
static void member_run(struct crew *crew, unsigned member, crew_work work)
{
    struct outcome *outcome = &crew->shared->outcomes[member];

    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    outcome->pid = getpid();
    work(crew, member);
    if (outcome->error)
        crew_give_up(crew);
    _exit(outcome->error ? EXIT_FAILED : EXIT_DONE);
}

int crew_start(struct crew *crew, const struct job *job, const char *root, crew_work work)
{
    size_t bytes = sizeof(struct crew_shared) + job->numjobs * sizeof(struct outcome);

    *crew = (struct crew){ .job = job, .mapped_bytes = bytes };
    snprintf(crew->root, sizeof crew->root, "%s", root);
    crew->shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (crew->shared == MAP_FAILED) {
        crew->shared = NULL;
        return -errno;
    }
    crew->shared->members = (uint32_t)job->numjobs;
    fflush(NULL);
    for (unsigned i = 0; i < job->numjobs; i++) {
        pid_t pid = fork();

        if (pid == 0)
            member_run(crew, i, work);
        if (pid < 0) {
            int error = errno;

            crew_give_up(crew);
            crew_join(crew);
            crew_destroy(crew);
            return -error;
        }
        crew->pids[i] = pid;
    }
    return 0;
}

static void member_ended(struct crew *crew, unsigned member, int status)
{
    struct outcome *outcome = &crew->shared->outcomes[member];

    crew->pids[member] = 0;
    if (outcome->error == 0 && WIFSIGNALED(status)) {
        outcome->error = EIO;
        snprintf(outcome->message, sizeof outcome->message, "rank %u was killed by signal %d", member, WTERMSIG(status));
    }
    if (outcome->error)
        crew_give_up(crew);
}

bool crew_is_done(struct crew *crew)
{
    bool done = true;
    int status;

    for (unsigned i = 0; i < crew->job->numjobs; i++) {
        if (crew->pids[i] > 0 && waitpid(crew->pids[i], &status, WNOHANG) == crew->pids[i])
            member_ended(crew, i, status);
        done &= crew->pids[i] <= 0;
    }
    return done;
}

void crew_join(struct crew *crew)
{
    int status;

    for (unsigned i = 0; i < crew->job->numjobs; i++)
        if (crew->pids[i] > 0 && TEMP_FAILURE_RETRY(waitpid(crew->pids[i], &status, 0)) == crew->pids[i])
            member_ended(crew, i, status);
}

void crew_destroy(struct crew *crew)
{
    if (crew->shared)
        munmap(crew->shared, crew->mapped_bytes);
    crew->shared = NULL;
}

/* Rounds on command -------------------------------------------------------------------------------------------------- */

int crew_order(struct crew *crew)
{
    struct crew_shared *shared = crew->shared;
    uint32_t answered;

    atomic_store(&shared->answered, 0);
    atomic_fetch_add(&shared->ordered, 1);
    word_wake(&shared->ordered);
    while ((answered = atomic_load(&shared->answered)) < shared->members) {
        if (interrupted() || crew_is_done(crew))
            crew_give_up(crew);
        if (crew_is_given_up(crew))
            return -ECANCELED;
        word_await(&shared->answered, answered);
    }
    return 0;
}

bool crew_await_order(struct crew *crew, uint32_t served)
{
    struct crew_shared *shared = crew->shared;

    while (atomic_load(&shared->ordered) == served && !atomic_load(&shared->is_over) && !crew_is_given_up(crew))
        word_await(&shared->ordered, served);
    return atomic_load(&shared->ordered) != served && !crew_is_given_up(crew);
}

void crew_answer(struct crew *crew)
{
    atomic_fetch_add(&crew->shared->answered, 1);
    word_wake(&crew->shared->answered);
}

void crew_dismiss(struct crew *crew)
{
    atomic_store(&crew->shared->is_over, 1);
    word_wake(&crew->shared->ordered);
}
