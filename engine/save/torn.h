/* save/torn.h - a debug option: was a tensor changed between submit and its copying?
 *
 * At submit a digest of every piece is taken (the range of one tensor in one chunk) of what the chunk would hold; each chunk
 * is compared when it was copied, before the writer can know of it. That is one more pass over the state in submit, and one
 * more over each copy: for finding the guard that does not guard, not for production. Version counters cost nothing, and see
 * only what their owner counts.
 */
#ifndef SAVE_TORN_H
#define SAVE_TORN_H

#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>

struct torn;
struct tspool_save;

/* Takes the digests, by the calling thread; save->torn is set. 0 or -ENOMEM. */
int torn_record(struct tspool_save *save);
/* What was copied into the slot is what was recorded, or nothing was. Else false, with EBUSY and the tensor. Any thread. */
bool torn_check(const struct tspool_save *save, uint32_t chunk, const uint8_t *slot, struct tspool_failure *failure);
void torn_destroy(struct torn *torn);

#endif
