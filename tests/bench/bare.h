/* bench/bare.h - what the device gives to nobody but a loop of writes: the ceiling of any save on this machine. */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stddef.h>
#include <stdint.h>

/* Writes `bytes` of `memory` (aligned to 4096) to the new file `path` as the engine would: preallocated, O_DIRECT, 512 KiB items,
 * `depth` in flight through io_uring, one io_uring_enter each, fsync at the end; but nothing is copied, hashed or committed
 * beside. The tail below 512 KiB is left out. Seconds with the fsync; negative: -errno. The file is removed afterwards. */
double bare_write(const char *path, uint8_t *memory, uint64_t bytes, unsigned depth);

#endif
