/* bench/histogram.c - see histogram.h.
 *
 *     value 1031 = 100 0000 0111b: octave of bit 10, four bits are dropped, bin 0 of it holds [1024, 1040), middle 1032
 */
#include "histogram.h"

#include <math.h>

const double percentiles[PERCENTILES] = { 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99 };

void moments_add(struct moments *moments, uint64_t value)
{
    double distance = (double)value - moments->mean;

    if (moments->count == 0 || value < moments->min)
        moments->min = value;
    if (value > moments->max)
        moments->max = value;
    moments->count++;
    moments->mean += distance / (double)moments->count;
    moments->squares += distance * ((double)value - moments->mean);
}

void moments_merge(struct moments *into, const struct moments *from)
{
    double total = (double)(into->count + from->count), distance = from->mean - into->mean;

    if (from->count == 0)
        return;
    if (into->count == 0) {
        *into = *from;
        return;
    }
    into->squares += from->squares + distance * distance * (double)into->count * (double)from->count / total;
    into->mean += distance * (double)from->count / total;
    into->count += from->count;
    into->min = from->min < into->min ? from->min : into->min;
    into->max = from->max > into->max ? from->max : into->max;
}

double moments_deviation(const struct moments *moments)
{
    return moments->count < 2 ? 0 : sqrt(moments->squares / (double)(moments->count - 1));
}

unsigned histogram_bin(uint64_t value)
{
    unsigned dropped, bin;

    if (value < 128)
        return (unsigned)value;
    dropped = 63 - (unsigned)__builtin_clzll(value) - 6;
    bin = (dropped + 1) * 64 + (unsigned)(value >> dropped & 63);
    return bin < HISTOGRAM_BINS ? bin : HISTOGRAM_BINS - 1;
}

uint64_t histogram_bin_value(unsigned bin)
{
    unsigned dropped = bin / 64;

    if (bin < 128)
        return bin;
    dropped -= 1;
    return ((uint64_t)(64 + bin % 64) << dropped) + ((uint64_t)1 << dropped) / 2;
}

void histogram_add(struct histogram *histogram, uint64_t value)
{
    moments_add(&histogram->moments, value);
    histogram->bins[histogram_bin(value)]++;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    moments_merge(&into->moments, &from->moments);
    for (unsigned i = 0; i < HISTOGRAM_BINS; i++)
        into->bins[i] += from->bins[i];
}

uint64_t histogram_percentile(const struct histogram *histogram, double percent)
{
    double wanted = percent / 100 * (double)histogram->moments.count, seen = 0;

    if (histogram->moments.count == 0)
        return 0;
    for (unsigned i = 0; i < HISTOGRAM_BINS; i++) {
        seen += (double)histogram->bins[i];
        if (seen > 0 && seen >= wanted)
            return histogram_bin_value(i);
    }
    return histogram->moments.max;
}
