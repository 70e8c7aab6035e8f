/* claim/orphans.h - waiting, bounded, for the writers of dead trainers that still finish what was staged.
 *
 * A restarted trainer that does not wait resumes from the step before and then meets a name that is published under its
 * hands. A living trainer's save is not waited for: what is published is the answer then.
 */
#ifndef CLAIM_ORPHANS_H
#define CLAIM_ORPHANS_H

#include <base/names.h>
#include <io/io.h>
#include <stdint.h>

#define ORPHANS_WAIT_NS UINT64_C(10000000000) /* what callers wait that did not say how long */

struct orphan_report {
    uint64_t waited_ns;                 /* 0: there was nobody to wait for */
    uint32_t seen, finished, left;      /* attempts: seen = finished + left. Finished: published, or swept */
    char left_name[CHECKPOINT_NAME_MAX + 1]; /* the checkpoint that one of those left writes; "": none is left */
};

/* Until no orphan works below the root any more, or timeout_ns is up (UINT64_MAX: never; 0: one look). 0, or -ENOMEM; a
 * root that cannot be listed has none. */
int orphans_wait(struct io *io, int root, uint64_t timeout_ns, struct orphan_report *report);

#endif
