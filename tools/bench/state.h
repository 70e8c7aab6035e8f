/* bench/state.h - the bytes of a rank's tensors: ordinary trainer memory, full of what no device can compress. */
#ifndef BENCH_STATE_H
#define BENCH_STATE_H

#include <stddef.h>
#include <stdint.h>

/* Anonymous memory, on huge pages where the machine grants them to madvise; NULL with errno. */
uint8_t *memory_map(uint64_t bytes);
void memory_unmap(uint8_t *memory, uint64_t bytes);
/* Random bytes of the seed: another seed, or another place, gives others. `bytes` is a multiple of 8. */
void memory_fill(uint8_t *memory, uint64_t bytes, uint64_t seed);
/* Touches that much memory and gives it back: a virtual machine that gave pages back to its host would otherwise charge their
 * return to whoever is measured next. */
void memory_prime(uint64_t bytes);
/* What an optimizer does right before a save: it reads and writes every word. */
void memory_step(uint8_t *memory, uint64_t bytes);

#endif
