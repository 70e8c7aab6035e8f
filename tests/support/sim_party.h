/* support/sim_party.h - a machine that waits inside (the reader, the collector) as one process among others of a simulated world.
 *
 * It runs on a stack of its own, and whenever it waits for a completion the world goes on, until the driver hands it that
 * completion: so several of them, and the writer's machine beside them, interleave at each of their ops as the seed says.
 */
#ifndef SUPPORT_SIM_PARTY_H
#define SUPPORT_SIM_PARTY_H

#include "sim_scene.h"

#include <ucontext.h>

struct sim_party {
    struct io io;                /* what the machine is given */
    struct io *inner;            /* its process in the world */
    int (*run)(struct io *io, void *argument);
    void *argument;
    ucontext_t here, driver;
    void *stack;
    struct completion mail;
    bool has_mail, done, is_ending;
    int result;                  /* of run, once done */
};

/* Starts it; it stops at its first wait. `name` is static. */
void sim_party_start(struct sim_party *party, struct sim_world *world, const char *name, int (*run)(struct io *io, void *argument),
                     void *argument);
/* Hands over a completion of its process, and lets it run to its next wait. */
void sim_party_take(struct sim_party *party, const struct completion *completion);
/* Until nothing is left to come, for any of these. */
void sim_parties_run(struct sim_world *world, struct sim_party *parties, unsigned count);
/* As scene_step, with this party in the scene's world (NULL: none yet). The writer must not be killed. */
bool sim_party_scene_step(struct sim_party *party, struct scene *scene);
/* Also when it was killed in the middle, or is not done: it is killed then. */
void sim_party_end(struct sim_party *party);

#endif
