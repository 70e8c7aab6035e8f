/* tspool/publish.h - making a checkpoint of what several ranks saved.
 *
 *     rank 0:      tspool_save_id(spool, id), broadcast
 *     every rank:  tspool_save_begin with .save_id = id ... tspool_save_wait(save, TSPOOL_DURABLE, ...)
 *     a barrier
 *     any rank:    tspool_publish(root, name, id, world_size, &failure)
 *
 * Until then the parts stand in a hidden directory that readers and tspool_latest ignore. No barrier is needed for safety:
 * a checkpoint with a part missing is never published, the call then says which rank's it is.
 */
#ifndef TSPOOL_PUBLISH_H
#define TSPOOL_PUBLISH_H

#include <tspool/spool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Publishes the parts that `world_size` ranks saved into `root` as `name` under `save_id`: atomically, and durably when it
 * returns 0. Needs no spool.
 *
 * May be called by anyone, on any machine that sees the root, any number of times, by several at once, and again after whoever
 * called it was killed at any point: it goes on from what stands on disk. When the checkpoint is published already, it returns 0.
 * With world_size 1 there is nothing to do but that: one rank's save publishes itself.
 *
 * Threads: from any thread; it blocks until it is done (a second caller waits for the first, up to a minute).
 *
 * 0, or -errno with the record, which names the rank, the file or the tensor; nothing is published then:
 *   -EAGAIN   a rank is still writing its part, or another caller is at work: try again
 *   -ENOENT   a rank's part is missing, or its writer died before it was complete: that rank must save again, with the same id;
 *             or nothing of this save stands there
 *   -EINVAL   save ids or world sizes are mixed, or ranks disagree about a tensor: its dtype, its global shape, its shards
 *             overlap; or about the step
 *   -EBADMSG  a file of a part is missing, has another size than its part says, or is damaged
 *   -EEXIST   another checkpoint has the name, and not every rank saved with `replace`
 *   ...       whatever the file system refused; calling again is safe */
int tspool_publish(const char *root, const char *name, const uint8_t save_id[TSPOOL_SAVE_ID_BYTES], uint32_t world_size,
                   struct tspool_failure *failure);

#ifdef __cplusplus
}
#endif
#endif
