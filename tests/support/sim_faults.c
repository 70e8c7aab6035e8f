/* support/sim_faults.c - which fault, if any, an op meets: decided at submit, counted per fault. */
#include "sim_world.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

unsigned sim_world_fault(struct sim_world *world, const struct sim_fault *fault)
{
    struct planted *planted = calloc(1, sizeof(*planted));

    if (!planted || world->fault_count == sizeof(world->faults) / sizeof(world->faults[0]))
        abort();
    planted->fault = *fault;
    world->faults[world->fault_count] = planted;
    return world->fault_count++;
}

uint64_t sim_fault_hits(const struct sim_world *world, unsigned fault) { return world->faults[fault]->hits; }

bool fault_matches(const struct sim_match *match, const struct sim_event *event)
{
    if (match->kind != OP_NONE && match->kind != event->request.kind)
        return false;
    if (match->process && strcmp(match->process, event->io->name) != 0)
        return false;
    return !match->path || fnmatch(match->path, event->path, 0) == 0;
}

const struct sim_fault *fault_choose(struct sim_world *world, const struct sim_event *event)
{
    const struct sim_fault *chosen = NULL;

    for (unsigned i = 0; i < world->fault_count; i++) {
        struct planted *planted = world->faults[i];

        if (!fault_matches(&planted->fault.on, event))
            continue;
        planted->seen++;
        if (chosen || (planted->fault.ordinal && planted->fault.ordinal != planted->seen))
            continue;
        planted->hits++;
        chosen = &planted->fault;
    }
    return chosen;
}
