/* support/sim_pair.h - both real machines in one simulated world: the trainer's library, whole (public API, stagers, spans,
 * supervisor, recovery), and writers, as many as the supervisor starts.
 *
 * What happens is a story (sim_story.h) drawn from one seed. One thread of this process, virtual time, nothing real but the
 * arena's memory. What must hold whatever happens is in sim_judge.c.
 */
#ifndef SUPPORT_SIM_PAIR_H
#define SUPPORT_SIM_PAIR_H

#include "sim_story.h"

struct sim_pair_report {
    unsigned saves, published, failed, unknown, unsubmitted, acknowledged; /* acknowledged: DURABLE was told to the caller */
    unsigned replayed;        /* published by a later attempt than the first */
    unsigned writers;         /* started */
    unsigned loads;           /* checkpoints read and compared by the real reader */
    bool trainer_died, power_cut;
    uint64_t virtual_ns, steps, writer_ops;
    char *trace;              /* with options.trace; free() it */
};

struct sim_pair_options {
    uint32_t left_out;        /* faults of the story that do not strike, a bit each */
    bool trace;
    struct sim_pair_report *report; /* filled; NULL: not wanted */
};

/* Runs the seed's story. NULL, or the rule that was broken, as text that stays until the next run. `options` may be NULL. */
const char *sim_pair_run(uint64_t seed, const struct sim_pair_options *options);
/* After a failing run: leaves out, one by one, every fault without which it still fails. Returns the left_out of what is
 * needed. */
uint32_t sim_pair_shrink(uint64_t seed);

#endif
