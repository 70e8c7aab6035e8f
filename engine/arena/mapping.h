/* arena/mapping.h - the arena's memfd and its mappings, without slots: made, backed by memory, attached. */
#ifndef ARENA_MAPPING_H
#define ARENA_MAPPING_H

#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>

#define HUGE_PAGE_BYTES ((uint64_t)2 << 20)

/* Creates the memfd, maps it writable at a multiple of 2 MiB, then seals it: its size for ever, and against any further
 * writable mapping. No memory is taken yet. */
int mapping_create(uint64_t bytes, int *fd, uint8_t **base, struct tspool_failure *failure);
void mapping_destroy(int fd, uint8_t *base, uint64_t bytes);

/* RLIMIT_FSIZE holds for memfds too, and going past it is SIGXFSZ, which kills: ask before. 0 or -EFBIG. */
int file_size_check(uint64_t bytes);

/* Gives [base, base + bytes) memory, with 2 MiB pages where the kernel has them: *huge tells. Both multiples of 2 MiB.
 * 0 or -errno; pages that were had remain. */
int mapping_back(uint8_t *base, uint64_t bytes, bool *huge);

#endif
