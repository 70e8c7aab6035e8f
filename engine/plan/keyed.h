/* plan/keyed.h - sorting numbers of tensors by a 64-bit key: radix, stable, O(n) whatever the keys are. */
#ifndef PLAN_KEYED_H
#define PLAN_KEYED_H

#include <stddef.h>
#include <stdint.h>

struct keyed { uint64_t key; uint32_t number; };

/* Sorts by key; equal keys keep their order. `scratch` has room for `count` too. */
void keyed_sort(struct keyed *items, struct keyed *scratch, size_t count);
/* The end of the run of equal keys that begins at `first`. */
size_t keyed_run_end(const struct keyed *items, size_t count, size_t first);

#endif
