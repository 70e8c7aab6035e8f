/* io/pool.h - threads that run blocking ops, and one queue of what they have done, announced by an eventfd.
 *
 * Submitting and taking belong to the loop's thread. Between the two an op belongs to the pool; its result is in op->result.
 */
#ifndef IO_POOL_H
#define IO_POOL_H

#include <io/queue.h>

/* Lanes keep one kind of work from starving another: hashes never wait behind an fsync, a rename never behind writes. */
enum pool_lane { LANE_VERBS, LANE_COMPUTE, LANE_TRANSFERS, LANE_COUNT };

struct pool_settings {
    unsigned threads[LANE_COUNT]; /* 0: the lane must not be used */
    const char *thread_name;      /* prefix of the threads' names */
};

struct pool;

/* All threads are started here, so that a limit on them shows now and not in the middle of a save. */
int pool_create(const struct pool_settings *settings, struct pool **pool, struct tspool_failure *failure);
/* Runs what is still queued, joins the threads and appends what was not taken to *done. NULL is fine. */
void pool_destroy(struct pool *pool, struct op_queue *done);

void pool_submit(struct pool *pool, enum pool_lane lane, struct op *op);
/* Appends the ops done since the last call to *done, in the order in which they ended. */
void pool_take(struct pool *pool, struct op_queue *done);
/* Readable after ops were done; read its 8 bytes before pool_take. A blocking descriptor, owned by the pool. */
int pool_event(const struct pool *pool);

#endif
