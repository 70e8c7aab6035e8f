/* bench/nearest.h - what somebody may have meant: the known word at the smallest edit distance. Pure. */
#ifndef BENCH_NEAREST_H
#define BENCH_NEAREST_H

#include <stddef.h>

#define NEAREST_WORD_MAX 63

/* How many letters must be put in, left out, changed, or swapped with their neighbour. Words are cut at NEAREST_WORD_MAX. */
unsigned edit_distance(const char *a, const char *b);
/* The nearest of `count` words (NULL entries are passed over), or NULL when none is near: then a guess would only mislead. */
const char *nearest_word(const char *word, const char *const *words, size_t count);

#endif
