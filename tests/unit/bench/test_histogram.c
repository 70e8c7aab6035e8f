/* Histogram: percentiles that people compare with fio's. A bin at the wrong place would make every latency wrong, and nobody
 * sees it. */
#include <bench/histogram.h>

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct histogram histogram, other, both;

static void setup(void)
{
    memset(&histogram, 0, sizeof histogram);
    memset(&other, 0, sizeof other);
    memset(&both, 0, sizeof both);
}

TestSuite(histogram, .init = setup);

Test(histogram, bins_stand_for_the_values_that_fio_prints)
{
    cr_assert_eq(histogram_bin_value(histogram_bin(100)), 100);
    cr_assert_eq(histogram_bin_value(histogram_bin(1031)), 1032);   /* fio 3.33: 1031 is told as 1032 */
    cr_assert_eq(histogram_bin_value(histogram_bin(11237)), 11200); /* and 11237 as 11200 */
    cr_assert_eq(histogram_bin_value(histogram_bin(65698)), 66048);
}

Test(histogram, a_value_is_off_by_less_than_a_sixtyfourth)
{
    for (uint64_t value = 1; value < (uint64_t)1 << 40; value += value / 7 + 1) {
        double error = fabs((double)histogram_bin_value(histogram_bin(value)) - (double)value);

        cr_assert_leq(error, (double)value / 64, "%lu", (unsigned long)value);
    }
}

Test(histogram, bins_follow_each_other)
{
    for (unsigned bin = 1; bin < HISTOGRAM_BINS; bin++) {
        cr_assert_gt(histogram_bin_value(bin), histogram_bin_value(bin - 1));
        cr_assert_eq(histogram_bin(histogram_bin_value(bin)), bin);
    }
}

Test(histogram, what_is_longer_than_all_counts_as_the_longest)
{
    histogram_add(&histogram, UINT64_MAX);
    cr_assert_eq(histogram.bins[HISTOGRAM_BINS - 1], 1);
    cr_assert_eq(histogram.moments.max, UINT64_MAX);
}

Test(histogram, percentiles_are_those_of_the_sorted_values)
{
    for (uint64_t i = 1; i <= 1000; i++)
        histogram_add(&histogram, i * 1000);
    for (unsigned i = 0; i < PERCENTILES; i++) {
        double exact = ceil(percentiles[i] * 10) * 1000, found = (double)histogram_percentile(&histogram, percentiles[i]);

        cr_assert_leq(fabs(found - exact), exact / 64 + 1, "%g: %g for %g", percentiles[i], found, exact);
    }
}

Test(histogram, of_nothing_there_is_no_percentile)
{
    cr_assert_eq(histogram_percentile(&histogram, 50), 0);
    cr_assert_eq(moments_deviation(&histogram.moments), 0);
}

Test(histogram, merged_ranks_are_as_one_that_saw_all)
{
    srand(1);
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t value = (uint64_t)rand() % 1000000;

        histogram_add(i % 3 ? &histogram : &other, value);
        histogram_add(&both, value);
    }
    histogram_merge(&histogram, &other);
    cr_assert_arr_eq(histogram.bins, both.bins, sizeof both.bins);
    cr_assert_eq(histogram.moments.count, both.moments.count);
    cr_assert_eq(histogram.moments.min, both.moments.min);
    cr_assert_eq(histogram.moments.max, both.moments.max);
    cr_assert_float_eq(histogram.moments.mean, both.moments.mean, 1e-3);
    cr_assert_float_eq(moments_deviation(&histogram.moments), moments_deviation(&both.moments), 1e-3);
}
