/* bench/contest.h - several ways to do one thing, measured in interleaved rounds: each round runs each of them once, in an order
 * that is shuffled anew, so that what changes on the machine meanwhile strikes all alike.
 */
#ifndef BENCH_CONTEST_H
#define BENCH_CONTEST_H

#include "crew.h"
#include "device.h"
#include "fio_peer.h"
#include "stats.h"

#include <stdio.h>

#define CONTESTANTS_MAX 16u

struct contestant {
    char name[96];
    struct job job;
    bool is_fio;
    enum fio_kind fio_kind;
    char root[4096];
    struct crew crew;
    uint64_t state_bytes;    /* fio: of one process */
    uint64_t bytes;          /* of the last round, all ranks */
    double seconds[STATS_ROUNDS_MAX], stall[STATS_ROUNDS_MAX], pace[STATS_ROUNDS_MAX]; /* pace: seconds per GiB */
    bool is_direct;
    char backend[16];
};

struct contest { struct contestant *contestants; unsigned count; uint64_t rounds,
                rounds_done; bool shows_progress; const char *what;
                 struct device device; double foreign_cpu; uint64_t own_bytes, foreign_bytes; /* what others did meanwhile */ };

/* 0 or -1 (no memory). */
int contest_init(struct contest *contest, uint64_t rounds, const char *what, bool shows_progress);
void contest_deinit(struct contest *contest);
/* A copy of the job under a name of its own; NULL: there are too many, or no memory. */
struct contestant *contest_add(struct contest *contest, const struct job *job, const char *name);
/* One round that does not count, then `rounds`. 0; -1 with the complaint; -EINTR after Ctrl-C. */
int contest_run(struct contest *contest, struct complaint *complaint);
/* A line for each reason not to believe it; nothing when there is none. */
void contest_doubts_put(FILE *out, const struct contest *contest);

#endif
