/* bench/rank.h - what the ranks of all kinds of jobs share: failures, the engine's options, the loop of rounds. */
#ifndef BENCH_RANK_H
#define BENCH_RANK_H

#include "crew.h"
#include "shape.h"

#include <tspool/tspool.h>

/* One kind of job, seen from one rank. `context` is the kind's own. Each returns 0, or -errno after rank_fail. */
struct workload_kind {
    size_t context_bytes;
    int (*open)(struct crew *crew, unsigned member, void *context);
    int (*round)(struct crew *crew, unsigned member, void *context, uint32_t number);
    void (*close)(struct crew *crew, unsigned member, void *context);
};
extern const struct workload_kind save_kind, load_kind, plain_kind;
const struct workload_kind *workload_kind_of(const struct job *job);

static inline struct outcome *outcome_of(struct crew *crew, unsigned member) { return &crew->shared->outcomes[member]; }

/* Notes the failure; the first one stands. Returns -error. */
int rank_fail(struct crew *crew, unsigned member, int error, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Works for crew_start: rounds until loops= or runtime= is reached; or rounds on command. */
void rank_run(struct crew *crew, unsigned member);
void rank_serve(struct crew *crew, unsigned member);

/* Options of the engine, as the job has them; settings= first, then what is given. */
int rank_options(struct crew *crew, unsigned member, const struct shape *shape, struct tspool_options *options);
/* Starts the clocks of a round in which all ranks take part: they meet first. */
int rank_meet(struct crew *crew, unsigned member);

#endif
