/* bench/stats.h - medians, and whether two series of paired rounds differ at all. Pure.
 *
 * The rule. Rounds are interleaved, so those of one number belong together. A difference is claimed only when
 *   - one was faster in so many of the paired rounds that chance alone would do that less than one time in twenty (sign test, two
 *     sided; ties count for neither): all of 6, all of 7, 8 of 9, 10 of 12, ...; fewer than 6 rounds prove nothing, and
 *   - the medians differ by more than 2 %: less is not worth a setting.
 */
#ifndef BENCH_STATS_H
#define BENCH_STATS_H

#include <stddef.h>

#define STATS_ROUNDS_MAX 1000u

double median(const double *values, size_t count);
double least(const double *values, size_t count);
double greatest(const double *values, size_t count);

enum verdict_of_two { SAME_WITHIN_NOISE, FIRST_IS_LESS, SECOND_IS_LESS };
enum verdict_of_two compare_series(const double *first, const double *second, size_t count);
/* The chance that `wins` or more, or as few losses, of `count` fair throws come: two sided. */
double sign_test(size_t wins, size_t count);

#endif
