/* plan/layout.h - the order of stored tensors and where shard files end. For this room only. */
#ifndef PLAN_LAYOUT_H
#define PLAN_LAYOUT_H

#include <plan/identity.h>

struct layout {
    const struct state_dict *dict;
    const struct identity *identity;
    uint64_t shard_bytes;        /* of data in a file, unless one tensor alone is larger */
    uint64_t json_bytes;         /* of header in a file, before padding */
    uint32_t data_align;
    bool sharded;
};

/* Fills plan->entries: which tensors are stored, in file order. 0 or -ENOMEM. */
int layout_order(const struct layout *layout, struct plan *plan, struct tspool_failure *failure);
/* Fills plan->files (entries and data sizes; no headers yet) and, in each entry, its file and its offset from the start
 * of the file's data. 0, -E2BIG, -EOVERFLOW, -ENOMEM. */
int layout_split(const struct layout *layout, struct plan *plan, struct tspool_failure *failure);

#endif
