/* bench/nearest.c - see nearest.h. Optimal string alignment in three rows. */
#include "nearest.h"

#include <string.h>

static unsigned least(unsigned a, unsigned b) { return a < b ? a : b; }

unsigned edit_distance(const char *a, const char *b)
{
    unsigned rows[3][NEAREST_WORD_MAX + 1], *before = rows[0], *above = rows[1], *row = rows[2], *spare;
    size_t a_size = strnlen(a, NEAREST_WORD_MAX), b_size = strnlen(b, NEAREST_WORD_MAX);

    for (unsigned j = 0; j <= b_size; j++)
        above[j] = j;
    memcpy(before, above, sizeof rows[0]);
    for (unsigned i = 1; i <= a_size; i++) {
        row[0] = i;
        for (unsigned j = 1; j <= b_size; j++) {
            row[j] = least(least(above[j], row[j - 1]) + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], before[j - 2] + 1);
        }
        spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[b_size];
}

const char *nearest_word(const char *word, const char *const *words, size_t count)
{
    unsigned best_distance = (unsigned)strnlen(word, NEAREST_WORD_MAX) / 2 + 1;
    const char *best = NULL;

    for (size_t i = 0; i < count; i++) {
        unsigned distance = words[i] ? edit_distance(word, words[i]) : best_distance;

        if (distance < best_distance) {
            best_distance = distance;
            best = words[i];
        }
    }
    return best;
}
