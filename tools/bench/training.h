/* bench/training.h - a training loop beside the saves: a real computation on one thread, and how much slower saves make it. */
#ifndef BENCH_TRAINING_H
#define BENCH_TRAINING_H

#include "crew.h"

struct training_loop;

/* Finds out how much computing takes `step_ns` on this machine. NULL: no memory. */
struct training_loop *training_create(uint64_t step_ns, uint64_t seed);
void training_destroy(struct training_loop *loop);
/* One step; `during`: a save is in flight. */
void training_step(struct training_loop *loop, bool during);
/* Steps until the next save is due by interval=. -ECANCELED when the run was given up. */
int training_until_save(struct training_loop *loop, struct crew *crew);
/* The step that a save kept waiting. */
void training_stalled(struct training_loop *loop, uint64_t stall_ns);
void training_report(const struct training_loop *loop, struct training *report);

#endif
