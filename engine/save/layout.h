/* save/layout.h - what saves of the same tensors share: the declared state dict, its plan and the sealed sheet.
 *
 * Counted by reference: each save holds one, the spool one of the latest, so that the next save of the same shapes
 * plans nothing. After layout_plan succeeded nothing in it changes, except for the sheet, which the supervisor makes
 * once when it first sends BEGIN.
 */
#ifndef SAVE_LAYOUT_H
#define SAVE_LAYOUT_H

#include <plan/plan.h>

struct layout {
    unsigned references;      /* atomic: held and dropped by callers' threads and by the supervisor */
    struct state_dict *dict;
    struct plan *plan;        /* NULL until layout_plan */
    struct plan_rules rules;  /* those of `plan` */
    uint32_t *versioned;      /* numbers of the declared tensors that have a version counter */
    size_t versioned_count, versioned_capacity;
    int sheet_fd;             /* -1 until layout_sheet */
    uint64_t sheet_bytes;
};

struct layout *layout_create(void); /* one reference; NULL: no memory */
struct layout *layout_hold(struct layout *layout);
void layout_drop(struct layout *layout);

int layout_add(struct layout *layout, const struct tspool_tensor *tensor, bool data_required, struct tspool_failure *failure);
int layout_plan(struct layout *layout, const struct plan_rules *rules, struct tspool_failure *failure);
/* The same tensors at the same addresses: a plan of one serves the other (addresses decide about ties). */
bool layout_equal(const struct layout *a, const struct layout *b);
bool layout_has_rules(const struct layout *layout, const struct plan_rules *rules);
/* Makes the sealed sheet unless it exists. */
int layout_sheet(struct layout *layout, struct tspool_failure *failure);

#endif
