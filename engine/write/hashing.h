/* write/hashing.h - digests of leaves, computed on compute threads while the same chunk is written.
 *
 * A leaf is 4 MiB of one tensor, a chunk 16 MiB of one file, so a leaf lies in one chunk or straddles two neighbours:
 *
 *     chunk 0                chunk 1
 *     |hh|leaf 0|leaf 1|lea  |f 2|leaf 3| ...
 *        '-- interior task --'   its stream is kept      '-' leading task of chunk 1: needs chunk 1 staged and the
 *                                                            interior task of chunk 0 done
 *
 * A slot is needed until its chunk's own tasks are done, never longer. Slots are acquired in the plan's order, so whoever
 * waits for a predecessor waits for one that has a slot already.
 */
#ifndef WRITE_HASHING_H
#define WRITE_HASHING_H

#include <base/hash.h>
#include <write/task.h>

struct hash_task;

struct hashing { uint32_t limit, in_flight; }; /* few at the backend, so that an abandoned job ends soon */

struct hash_queue { struct hash_task *first, *last; }; /* of one job */

void hashing_init(struct hashing *hashing, uint32_t threads);
void hashing_pump(struct writer *writer);
/* Queues what this chunk makes possible. */
void hashing_chunk_staged(struct job *job, uint32_t chunk);
void hash_queue_drop(struct job *job);

#endif
