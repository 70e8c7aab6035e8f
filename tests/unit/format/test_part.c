/* Part records: what one process writes for another to judge. A record that is damaged, or of a later version, must say nothing
 * rather than something wrong: whoever believes it waits for a writer that will never come, or does not wait for one that will.
 */
#include <criterion/criterion.h>
#include <format/part.h>
#include <stdio.h>
#include <string.h>

static const struct part_record some = { .writer_pid = 4711, .trainer_pid = 4700, .trainer_start = 123456789012,
                                         .pid_namespace = 4026531836, .boot_id = { 0x0f, 0x1e, 0x2d } };

Test(part, comes_back_as_it_was_written)
{
    const struct part_record largest = { INT32_MAX, INT32_MAX, UINT64_MAX, UINT64_MAX, { 255, 255, 255, 255 } };
    const struct part_record *records[] = { &some, &largest };

    for (unsigned i = 0; i < 2; i++) {
        char text[PART_TEXT_BYTES];
        struct part_record read = { 0 };

        part_emit(records[i], text);
        cr_assert(part_parse(text, sizeof text, &read));
        cr_assert_eq(read.writer_pid, records[i]->writer_pid);
        cr_assert_eq(read.trainer_pid, records[i]->trainer_pid);
        cr_assert_eq(read.trainer_start, records[i]->trainer_start);
        cr_assert_eq(read.pid_namespace, records[i]->pid_namespace);
        cr_assert_arr_eq(read.boot_id, records[i]->boot_id, sizeof read.boot_id);
    }
}

Test(part, is_one_line_that_people_can_read)
{
    char text[PART_TEXT_BYTES];
    const char *front = "tspool-part 1 writer 4711 trainer 4700 start 123456789012 pidns 4026531836 boot 0f1e2d00";

    part_emit(&some, text);
    cr_assert_eq(memcmp(text, front, strlen(front)), 0);
    cr_assert_eq(memchr(text, '\n', sizeof text), text + sizeof text - 1);
}

Test(part, cut_anywhere_says_nothing)
{
    char text[PART_TEXT_BYTES];
    struct part_record read;

    part_emit(&some, text);
    for (size_t size = 0; size < sizeof text; size++)
        cr_assert_not(part_parse(text, size, &read), "%zu bytes", size);
}

Test(part, changed_anywhere_says_nothing_or_something_well_formed)
{
    char text[PART_TEXT_BYTES], again[PART_TEXT_BYTES];

    for (size_t at = 0; at < sizeof text; at++)
        for (int byte = 0; byte < 256; byte++) {
            struct part_record read;

            part_emit(&some, text);
            text[at] = (char)byte;
            if (!part_parse(text, sizeof text, &read))
                continue;
            part_emit(&read, again);
            cr_assert(part_parse(again, sizeof again, &read));
        }
}

static void refuses(const char *line)
{
    char text[PART_TEXT_BYTES];
    struct part_record read = some;

    memset(text, ' ', sizeof text);
    memcpy(text, line, strlen(line));
    text[sizeof text - 1] = '\n';
    cr_expect_not(part_parse(text, sizeof text, &read), "%s", line);
    cr_expect_eq(read.trainer_pid, some.trainer_pid, "changed all the same");
}

#define BOOT " boot 000102030405060708090a0b0c0d0e0f"

Test(part, of_a_later_version_or_with_impossible_numbers_says_nothing)
{
    refuses("tspool-part 2 writer 1 trainer 1 start 1 pidns 1" BOOT);
    refuses("tspool-part 1 writer 2147483648 trainer 1 start 1 pidns 1" BOOT);
    refuses("tspool-part 1 writer 1 trainer -1 start 1 pidns 1" BOOT);
    refuses("tspool-part 1 writer 1 trainer 1 start 18446744073709551616 pidns 1" BOOT);
    refuses("tspool-part 1 writer 1 trainer 1 start 1 pidns 1 boot 00010203");
    refuses("tspool-part 1 writer 1 trainer 1 start 1 pidns 1" BOOT " and more");
    refuses("");
}
