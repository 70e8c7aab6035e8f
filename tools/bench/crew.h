/* bench/crew.h - the processes of one job: its ranks. They meet in shared memory, hold no locks, and so survive each other's
 * deaths: whoever waits looks every so often whether the run was given up.
 */
#ifndef BENCH_CREW_H
#define BENCH_CREW_H

#include "job.h"
#include "outcome.h"

struct crew_shared {
    _Atomic uint32_t arrived, generation, is_given_up;
    _Atomic uint32_t ordered, answered;  /* rounds asked for by, and told to, the command (crew_order) */
    _Atomic uint32_t is_over;            /* no more orders */
    uint32_t members;
    uint8_t save_id[16];                 /* rank 0's, for the round that comes */
    uint64_t published_ns;
    _Atomic uint32_t verdict;            /* of rank 0: nonzero ends the loop for all */
    struct outcome outcomes[];
};

struct crew {
    const struct job *job;
    struct crew_shared *shared;
    size_t mapped_bytes;
    pid_t pids[NUMJOBS_MAX];
    char root[4096];         /* the job's own directory, made for it */
};

/* In every rank, and in nobody else: waits until all have come here. -ECANCELED when the run was given up. */
int crew_meet(struct crew *crew);
bool crew_is_given_up(const struct crew *crew);
void crew_give_up(struct crew *crew);

/* What a rank's process does; its error and message stand in its outcome. */
typedef void (*crew_work)(struct crew *crew, unsigned member);

/* Forks the ranks. 0 or -errno; then none is left. */
int crew_start(struct crew *crew, const struct job *job, const char *root, crew_work work);
/* Reaps what has ended; true when all have. One that dies gives the run up. */
bool crew_is_done(struct crew *crew);
/* Waits for all of them. */
void crew_join(struct crew *crew);
void crew_destroy(struct crew *crew);

/* Rounds on command, for comparisons: asks for one more and waits until every rank has answered. 0, or -errno. */
int crew_order(struct crew *crew);
/* In a rank: waits for the next order; false when there are no more. */
bool crew_await_order(struct crew *crew, uint32_t served);
void crew_answer(struct crew *crew);
void crew_dismiss(struct crew *crew);

#endif
