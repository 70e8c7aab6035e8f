/* The rule for what counts as a difference. A tool that sees one in noise sells settings that are worth nothing. */
#include <bench/stats.h>

#include <criterion/criterion.h>
#include <stdlib.h>

Test(stats, median_of_even_and_odd)
{
    cr_assert_eq(median((double[]){ 3, 1, 2 }, 3), 2);
    cr_assert_eq(median((double[]){ 4, 1, 2, 3 }, 4), 2.5);
    cr_assert_eq(median(NULL, 0), 0);
}

Test(stats, chances_are_those_of_the_binomial)
{
    cr_assert_float_eq(sign_test(6, 6), 0.03125, 1e-9);
    cr_assert_float_eq(sign_test(0, 6), 0.03125, 1e-9);
    cr_assert_float_eq(sign_test(6, 7), 0.125, 1e-9);
    cr_assert_float_eq(sign_test(8, 9), 0.0390625, 1e-9);
    cr_assert_float_eq(sign_test(3, 6), 1, 1e-9);
}

Test(stats, faster_in_each_of_seven_rounds_is_a_difference)
{
    double fast[7] = { 1, 1.1, 1, 1.2, 1, 1, 1 }, slow[7] = { 2, 2, 2, 2, 2, 2, 2 };

    cr_assert_eq(compare_series(fast, slow, 7), FIRST_IS_LESS);
    cr_assert_eq(compare_series(slow, fast, 7), SECOND_IS_LESS);
}

Test(stats, once_slower_in_seven_is_noise)
{
    double fast[7] = { 1, 1, 1, 3, 1, 1, 1 }, slow[7] = { 2, 2, 2, 2, 2, 2, 2 };

    cr_assert_eq(compare_series(fast, slow, 7), SAME_WITHIN_NOISE);
}

Test(stats, five_rounds_prove_nothing)
{
    double fast[5] = { 1, 1, 1, 1, 1 }, slow[5] = { 9, 9, 9, 9, 9 };

    cr_assert_eq(compare_series(fast, slow, 5), SAME_WITHIN_NOISE);
}

Test(stats, always_faster_by_a_hundredth_is_not_worth_it)
{
    double fast[7], slow[7];

    for (unsigned i = 0; i < 7; i++) {
        fast[i] = 1;
        slow[i] = 1.01;
    }
    cr_assert_eq(compare_series(fast, slow, 7), SAME_WITHIN_NOISE);
}

Test(stats, equal_contestants_are_told_apart_in_less_than_one_of_twenty)
{
    unsigned claims = 0;

    srand(7);
    for (unsigned trial = 0; trial < 4000; trial++) {
        double a[9], b[9];

        for (unsigned i = 0; i < 9; i++) {
            a[i] = 1 + (double)rand() / RAND_MAX;
            b[i] = 1 + (double)rand() / RAND_MAX;
        }
        claims += compare_series(a, b, 9) != SAME_WITHIN_NOISE;
    }
    cr_assert_lt(claims, 4000 / 20);
    cr_assert_gt(claims, 0, "a rule that never claims anything would pass too");
}
