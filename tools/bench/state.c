/* bench/state.c - see state.h. */
#include "state.h"

#include <base/checked.h>
#include <sys/mman.h>

#define HUGE_BYTES MIB(2)

uint8_t *memory_map(uint64_t bytes)
{
    uint64_t size = align_up(bytes + 1, HUGE_BYTES);
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, size, MADV_HUGEPAGE);
    return memory;
}

void memory_unmap(uint8_t *memory, uint64_t bytes)
{
    if (memory)
        munmap(memory, align_up(bytes + 1, HUGE_BYTES));
}

static uint64_t scramble(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void memory_fill(uint8_t *memory, uint64_t bytes, uint64_t seed)
{
    uint64_t *words = (uint64_t *)(void *)memory, from = scramble(seed + 0x9e3779b97f4a7c15u);

    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = scramble(from + i * 0x9e3779b97f4a7c15u);
}

void memory_prime(uint64_t bytes)
{
    uint8_t *memory = bytes ? memory_map(bytes) : NULL;

    for (uint64_t i = 0; memory && i < bytes; i += 4096)
        ((volatile uint8_t *)memory)[i] = 1;
    memory_unmap(memory, bytes);
}

void memory_step(uint8_t *memory, uint64_t bytes)
{
    uint64_t *words = (uint64_t *)(void *)memory;

    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = words[i] * 6364136223846793005u + 1;
}
