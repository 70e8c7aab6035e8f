/* support/power_cuts.h - every state that a power cut may leave, or as many of them as a budget allows.
 *
 * With a focus only effects that can show under that name are varied; the others, which cannot matter there, are drawn at
 * random. Up to `exhaustive` effects to vary every subset is visited; beyond, those that bugs hide in (none, all, all but
 * one, only one, each prefix), then `samples` random ones.
 */
#ifndef SUPPORT_POWER_CUTS_H
#define SUPPORT_POWER_CUTS_H

#include "sim_disk.h"

struct power_cuts {
    uint32_t directory;          /* focus: what is under `name` in it; name NULL: no focus */
    const char *name;
    unsigned exhaustive, samples;
    uint64_t seed;
};

/* kept: by effect, possible under the disk's ordering. False stops. */
typedef bool power_cut_visit(const struct sim_disk *disk, const bool *kept, void *context);
/* Returns the number of visits. */
uint64_t power_cuts_each(const struct sim_disk *disk, const struct power_cuts *cuts, power_cut_visit *visit, void *context);

#endif
