/* plan/chunks.h - numbering the chunks of a plan. For this room only. */
#ifndef PLAN_CHUNKS_H
#define PLAN_CHUNKS_H

#include <plan/plan.h>

/* Numbers the chunks of files whose sizes are known, and makes the order of staging. 0, -EOVERFLOW, -ENOMEM. */
int chunks_number(struct plan *plan, struct tspool_failure *failure);

#endif
