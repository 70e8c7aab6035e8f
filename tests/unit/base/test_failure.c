/* Failure records: what a user reads when a save went wrong. A record that runs over, lies about the place, or lets a
 * tensor's name write to the terminal is worse than none. */
#include <base/failure.h>
#include <base/names.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

Test(failure, says_stage_operation_path_offset_tensor_errno_and_cause)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = failure_set(&failure, TSPOOL_STAGE_WRITE, EIO,
                            FAILURE_AT_BYTE(4096, .operation = "pwrite", .tensor = "w.1", .path = "step-1/model.safetensors"),
                            "disk %d is %s", 7, "gone");

    cr_assert_eq(error, -EIO);
    cr_assert_eq(failure.error, EIO);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_WRITE);
    cr_assert_eq(failure.file_offset, 4096);
    cr_assert_str_eq(failure.operation, "pwrite");
    cr_assert_str_eq(failure.tensor, "w.1");
    cr_assert_str_eq(failure.path, "step-1/model.safetensors");
    cr_assert_str_eq(failure.cause, "disk 7 is gone");
    cr_assert_str_eq(failure.message, "write: pwrite \"step-1/model.safetensors\" at byte 4096, tensor \"w.1\": "
                                      "Input/output error (EIO): disk 7 is gone");
}

Test(failure, leaves_out_what_is_not_concerned)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure_set(&failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_NOWHERE, "no tensors");
    cr_assert_str_eq(failure.message, "plan: Invalid argument (EINVAL): no tensors");
    cr_assert_eq(failure.file_offset, TSPOOL_NO_OFFSET);
    failure_set(&failure, TSPOOL_STAGE_DECLARE, EINVAL, FAILURE_AT(.tensor = "w"), "a negative stride");
    cr_assert_str_eq(failure.message, "declare: tensor \"w\": Invalid argument (EINVAL): a negative stride");
}

Test(failure, without_a_cause_names_the_likely_one)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure_set(&failure, TSPOOL_STAGE_PREPARE, ENOSPC, FAILURE_NOWHERE, NULL);
    cr_assert_str_eq(failure.cause, failure_likely_cause(ENOSPC));
    cr_assert(strstr(failure.message, "full"));
    failure_set(&failure, TSPOOL_STAGE_PREPARE, EXFULL, FAILURE_NOWHERE, NULL);
    cr_assert_str_empty(failure.cause);
}

Test(failure, knows_a_cause_for_the_usual_errnos)
{
    const int usual[] = { ENOSPC, EDQUOT, EIO, EROFS, EMFILE, ENOMEM, EACCES, EEXIST, ETIMEDOUT, EBADMSG, EPROTO, EFBIG };

    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        cr_assert_str_not_empty(failure_likely_cause(usual[i]), "errno %d", usual[i]);
}

Test(failure, a_missing_record_is_fine)
{
    cr_assert_eq(failure_set(NULL, TSPOOL_STAGE_OPEN, EACCES, FAILURE_NOWHERE, "x"), -EACCES);
}

Test(failure, cuts_long_names_on_a_character_boundary)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char name[1000];

    for (size_t shift = 0; shift < 4; shift++) {
        size_t at = 0;

        memset(name, 'a', sizeof name);
        for (at = shift; at + 4 < sizeof name; at += 4)
            memcpy(name + at, "\xf0\x9f\x98\x80", 4);
        name[at] = 0;
        failure_set(&failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_AT(.tensor = name), NULL);
        cr_assert_lt(strlen(failure.tensor), sizeof failure.tensor);
        cr_assert_gt(strlen(failure.tensor), sizeof failure.tensor - 8);
        cr_assert_str_eq(failure.tensor + strlen(failure.tensor) - 3, "...");
        cr_assert(utf8_is_valid(failure.tensor, strlen(failure.tensor)));
    }
}

Test(failure, names_of_exactly_the_room_are_kept_whole)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char name[sizeof failure.tensor];

    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    failure_set(&failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_AT(.tensor = name), NULL);
    cr_assert_str_eq(failure.tensor, name);
}

Test(failure, control_bytes_become_question_marks)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure_set(&failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_AT(.tensor = "a\x1b[31m\nb\x7f", .path = "p\tq"), "why\r");
    cr_assert_str_eq(failure.tensor, "a?[31m?b?");
    cr_assert_str_eq(failure.path, "p?q");
    cr_assert_str_eq(failure.cause, "why?");
    cr_assert_not(strpbrk(failure.message, "\x1b\n\r\t\x7f"));
}

Test(failure, may_be_filled_from_its_own_fields)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure_set(&failure, TSPOOL_STAGE_SYNC, EIO, FAILURE_AT(.operation = "fsync", .path = "a", .tensor = "t"), "c");
    failure_set(&failure, TSPOOL_STAGE_SYNC, EIO, FAILURE_AT(.operation = failure.operation, .path = failure.path), "after %s",
                failure.cause);
    cr_assert_str_eq(failure.message, "sync: fsync \"a\": Input/output error (EIO): after c");
}

Test(failure, composes_again_after_a_field_was_changed)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure_set(&failure, TSPOOL_STAGE_SYNC, EIO, FAILURE_AT(.operation = "fsync", .path = "a"), "c");
    strcpy(failure.path, "root/a");
    failure_compose(&failure);
    cr_assert_str_eq(failure.message, "sync: fsync \"root/a\": Input/output error (EIO): c");
}

Test(failure, the_longest_record_fits)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char longest[4096];

    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    failure_set(&failure, TSPOOL_STAGE_PUBLISH, ENOSPC,
                FAILURE_AT_BYTE(UINT64_MAX - 1, .operation = longest, .tensor = longest, .path = longest), "%s", longest);
    cr_assert_lt(strlen(failure.message), sizeof failure.message);
    cr_assert(strstr(failure.message, "18446744073709551614"));
    cr_assert(strstr(failure.message, "ENOSPC"));
}

Test(failure, every_stage_has_a_name_of_its_own)
{
    for (int stage = TSPOOL_STAGE_NONE; stage <= TSPOOL_STAGE_WRITER; stage++)
        for (int other = TSPOOL_STAGE_NONE; other < stage; other++)
            cr_assert_str_neq(tspool_stage_name((enum tspool_stage)stage), tspool_stage_name((enum tspool_stage)other));
    cr_assert_str_eq(tspool_stage_name((enum tspool_stage)99), "unknown");
    cr_assert_str_eq(tspool_stage_name((enum tspool_stage)-1), "unknown");
}
