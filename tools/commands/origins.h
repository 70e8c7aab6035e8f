/* commands/origins.h - the tensors that a copy takes: every entry of its sources, but of what several ranks saved alike only the
 * first, and which of them stand beside which.
 */
#ifndef COMMANDS_ORIGINS_H
#define COMMANDS_ORIGINS_H

#include "command.h"

struct origin {
    struct tspool_checkpoint *checkpoint;
    size_t entry, source;               /* its number there; the checkpoint's number among the sources */
    struct tspool_tensor_info info;
};

struct origins {
    struct origin *items;               /* in the order in which they are declared */
    size_t count;
    const struct origin **by_place;     /* sorted by name, place in the whole, source */
};

/* 0 or -ENOMEM. */
int origins_collect(struct origins *origins, struct tspool_checkpoint **sources, size_t count);
void origins_deinit(struct origins *origins);
/* What `tied` is tied to: the same place of another tensor of its checkpoint. Itself when there is no such. */
const struct origin *origins_stored(const struct origins *origins, const struct origin *tied);
/* How far the shards of that name reach in each dimension, in all sources. */
void origins_reach(const struct origins *origins, const struct origin *shard, uint64_t reach[TSPOOL_RANK_MAX]);

#endif
