/* plan/identity.h - which declared tensors are the same thing: names given twice, and tensors tied to one memory. For this
 * room only.
 */
#ifndef PLAN_IDENTITY_H
#define PLAN_IDENTITY_H

#include <plan/dict.h>

struct identity {
    uint32_t *occurrence;       /* per tensor: 0, or among the shards of one name 1, 2, ... in declared order; NULL: all 0 */
    bool *is_alias;             /* per tensor; NULL: none is */
    struct plan_alias *aliases; /* sorted by (stored, alias) */
    size_t alias_count;
};

/* 0; -EEXIST for a name given twice (shards of one tensor may share it when their offsets differ), -EINVAL when shards of
 * one name disagree, -ENOMEM. */
int identity_init(struct identity *identity, const struct state_dict *dict, struct tspool_failure *failure);
void identity_deinit(struct identity *identity);

/* Of the aliases that name `stored`: the first and how many. */
const struct plan_alias *identity_aliases(const struct identity *identity, uint32_t stored, size_t *count);

#endif
