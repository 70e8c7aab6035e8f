/* Names are looked up among up to millions; those of a hostile file included. */
#include <criterion/criterion.h>
#include <format/name_table.h>
#include <stdio.h>
#include <stdlib.h>

struct thing { const char *name; int payload; };

Test(name_table, finds_each_name_at_its_number)
{
    enum { COUNT = 5000 };
    static char names[COUNT][16];
    static struct thing things[COUNT];
    struct name_table table;

    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "name-%zu", i);
        things[i].name = names[i];
    }
    cr_assert_eq(name_table_build(&table, things, sizeof *things, COUNT), 0);
    for (size_t i = 0; i < COUNT; i++)
        cr_assert_eq(name_table_find(&table, names[i]), i);
    cr_assert_eq(name_table_find(&table, "name-5000"), SIZE_MAX);
    cr_assert_eq(name_table_find(&table, ""), SIZE_MAX);
    name_table_deinit(&table);
}

Test(name_table, sees_a_name_given_twice_wherever_it_stands)
{
    char copy[] = "b";
    const char *names[] = { "a", "b", "c", "d" };

    cr_assert_eq(names_repeat(names, sizeof *names, 4), 0);
    for (size_t i = 0; i < 4; i++) {
        const char *kept = names[i];

        names[i] = copy;
        cr_assert_eq(names_repeat(names, sizeof *names, 4), i == 1 ? 0 : NAME_REPEATED);
        names[i] = kept;
    }
}

Test(name_table, of_nothing_finds_nothing)
{
    struct name_table table;

    cr_assert_eq(name_table_build(&table, NULL, sizeof(char *), 0), 0);
    cr_assert_eq(name_table_find(&table, "a"), SIZE_MAX);
    name_table_deinit(&table);
}
