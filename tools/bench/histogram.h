/* bench/histogram.h - how long things took: moments, and a histogram with a relative error below 1/64, in fixed memory.
 *
 * Each octave has 64 bins, as in fio: percentiles of both are comparable to the last digit. A value stands for its bin's
 * middle. Lies in memory that processes share; one process writes it.
 */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_OCTAVES 36u  /* up to 2^41 ns, more than half an hour; what is longer counts as that */
#define HISTOGRAM_BINS (HISTOGRAM_OCTAVES * 64u)

struct moments { uint64_t count, min, max; double mean, squares; }; /* squares: of the distances from the mean */
struct histogram { struct moments moments; uint64_t bins[HISTOGRAM_BINS]; };

void moments_add(struct moments *moments, uint64_t value);
void moments_merge(struct moments *into, const struct moments *from);
double moments_deviation(const struct moments *moments); /* standard deviation of a sample; 0 below two values */

void histogram_add(struct histogram *histogram, uint64_t value);
void histogram_merge(struct histogram *into, const struct histogram *from);
/* The value that `percent` of the values do not exceed; 0 when there is none. */
uint64_t histogram_percentile(const struct histogram *histogram, double percent);
unsigned histogram_bin(uint64_t value);
uint64_t histogram_bin_value(unsigned bin); /* its middle */

/* The percentiles that fio prints unless told otherwise. */
#define PERCENTILES 17u
extern const double percentiles[PERCENTILES];

#endif
