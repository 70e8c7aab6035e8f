/* mutants/criterion/criterion.h - what the suite's tests need of Criterion, for run.c, which runs them against a planted bug
 * and wants them to fail: a test is a function in a list, and the first check that fails ends its process.
 */
#ifndef MUTANTS_CRITERION_H
#define MUTANTS_CRITERION_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct listed_suite {
    const char *suite;
    void (*init)(void), (*fini)(void);
    double timeout;                    /* Criterion's; run.c has its own */
    struct listed_suite *next;
};
struct listed_test {
    const char *suite, *name, *file;
    void (*run)(void), (*init)(void), (*fini)(void);
    double timeout;
    struct listed_test *next;
};
void listed_suite_add(struct listed_suite *suite);
void listed_test_add(struct listed_test *test);

#define TestSuite(suite_, ...) \
    __attribute__((constructor)) static void suite_add_##suite_(void) \
    { \
        static struct listed_suite listed = { .suite = #suite_, __VA_ARGS__ }; \
        listed_suite_add(&listed); \
    } \
    extern int suite_needs_its_semicolon_##suite_

#define Test(suite_, name_, ...) \
    static void test_##suite_##_##name_(void); \
    __attribute__((constructor)) static void test_add_##suite_##_##name_(void) \
    { \
        static struct listed_test listed = { .suite = #suite_, .name = #name_, .file = __FILE__, \
                                             .run = test_##suite_##_##name_, __VA_ARGS__ }; \
        listed_test_add(&listed); \
    } \
    static void test_##suite_##_##name_(void)

extern unsigned long checks_passed;
/* Tells run.c and ends the process. */
void check_failed(const char *file, int line, const char *condition, const char *message, ...) __attribute__((noreturn));
void test_skip(void) __attribute__((noreturn));

#define cr_assert(condition_, ...) \
    do { \
        if (condition_) \
            checks_passed++; \
        else \
            check_failed(__FILE__, __LINE__, #condition_, "" __VA_ARGS__); \
    } while (0)
#define cr_assert_not(condition_, ...) cr_assert(!(condition_), __VA_ARGS__)
#define cr_assert_eq(a_, b_, ...) cr_assert((a_) == (b_), __VA_ARGS__)
#define cr_assert_neq(a_, b_, ...) cr_assert((a_) != (b_), __VA_ARGS__)
#define cr_assert_lt(a_, b_, ...) cr_assert((a_) < (b_), __VA_ARGS__)
#define cr_assert_leq(a_, b_, ...) cr_assert((a_) <= (b_), __VA_ARGS__)
#define cr_assert_gt(a_, b_, ...) cr_assert((a_) > (b_), __VA_ARGS__)
#define cr_assert_geq(a_, b_, ...) cr_assert((a_) >= (b_), __VA_ARGS__)
#define cr_assert_null(a_, ...) cr_assert((a_) == NULL, __VA_ARGS__)
#define cr_assert_not_null(a_, ...) cr_assert((a_) != NULL, __VA_ARGS__)
#define cr_assert_str_eq(a_, b_, ...) cr_assert(strcmp(a_, b_) == 0, __VA_ARGS__)
#define cr_assert_str_empty(a_, ...) cr_assert((a_)[0] == '\0', __VA_ARGS__)
#define cr_assert_arr_eq(a_, b_, size_, ...) cr_assert(memcmp(a_, b_, size_) == 0, __VA_ARGS__)
#define cr_assert_fail(...) check_failed(__FILE__, __LINE__, "this is not reached", "" __VA_ARGS__)
#define cr_skip(...) test_skip()

#define cr_expect cr_assert
#define cr_expect_not cr_assert_not
#define cr_expect_eq cr_assert_eq
#define cr_expect_neq cr_assert_neq
#define cr_expect_lt cr_assert_lt
#define cr_expect_leq cr_assert_leq
#define cr_expect_gt cr_assert_gt
#define cr_expect_geq cr_assert_geq
#define cr_expect_null cr_assert_null
#define cr_expect_not_null cr_assert_not_null
#define cr_expect_str_eq cr_assert_str_eq
#define cr_expect_str_empty cr_assert_str_empty
#define cr_expect_arr_eq cr_assert_arr_eq

#endif
