/* mutants/criterion/parameterized.h - a test with parameters is one test here, which takes them in turn. */
#ifndef MUTANTS_CRITERION_PARAMETERIZED_H
#define MUTANTS_CRITERION_PARAMETERIZED_H

#include <criterion/criterion.h>

struct listed_parameters { size_t size, count; void *items; };

#define cr_make_param_array(type_, items_, count_, ...) ((struct listed_parameters){ sizeof(type_), (count_), (items_) })

#define ParameterizedTestParameters(suite_, name_) static struct listed_parameters parameters_##suite_##_##name_(void)

#define ParameterizedTest(parameter_, suite_, name_, ...) \
    static void test_with_##suite_##_##name_(parameter_); \
    Test(suite_, name_, __VA_ARGS__) \
    { \
        struct listed_parameters given = parameters_##suite_##_##name_(); \
\
        for (size_t i = 0; i < given.count; i++) \
            test_with_##suite_##_##name_((void *)((char *)given.items + i * given.size)); \
    } \
    static void test_with_##suite_##_##name_(parameter_)

#endif
