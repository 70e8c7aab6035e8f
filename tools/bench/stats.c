/* bench/stats.c - see stats.h. */
#include "stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHANCE 0.05
#define WORTH 0.02

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double median(const double *values, size_t count)
{
    double sorted[STATS_ROUNDS_MAX];

    if (count == 0 || count > STATS_ROUNDS_MAX)
        return 0;
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_size);
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

double least(const double *values, size_t count)
{
    double found = count ? values[0] : 0;

    for (size_t i = 1; i < count; i++)
        found = values[i] < found ? values[i] : found;
    return found;
}

double greatest(const double *values, size_t count)
{
    double found = count ? values[0] : 0;

    for (size_t i = 1; i < count; i++)
        found = values[i] > found ? values[i] : found;
    return found;
}

double sign_test(size_t wins, size_t count)
{
    size_t more = wins > count - wins ? wins : count - wins;
    double tail = 0;

    for (size_t k = more; k <= count; k++)
        tail += exp(lgamma((double)count + 1) - lgamma((double)k + 1) - lgamma((double)(count - k) + 1) - (double)count * M_LN2);
    return tail * 2 < 1 ? tail * 2 : 1;
}

enum verdict_of_two compare_series(const double *first, const double *second, size_t count)
{
    double first_median = median(first, count), second_median = median(second, count);
    size_t wins = 0, losses = 0;

    for (size_t i = 0; i < count; i++) {
        wins += first[i] < second[i];
        losses += second[i] < first[i];
    }
    if (wins + losses == 0 || sign_test(wins, wins + losses) >= CHANCE)
        return SAME_WITHIN_NOISE;
    if (wins > losses && first_median < second_median * (1 - WORTH))
        return FIRST_IS_LESS;
    if (losses > wins && second_median < first_median * (1 - WORTH))
        return SECOND_IS_LESS;
    return SAME_WITHIN_NOISE;
}
