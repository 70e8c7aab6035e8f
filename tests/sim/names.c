/* sim/names.c - what has the name already, and the ways on which it is replaced: what is in the way is told from what is not,
 * file systems that refuse one way are served on another, and files of others are kept on each.
 */
#include "prepared.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define HIDDEN SCENE_ROOT "/.step-2.????????????????????????????????"

static struct outcome saved(const struct prepared *prepared, const struct sim_fault *fault)
{
    struct scene_settings settings = prepared->settings;
    struct outcome outcome;

    settings.faults = fault;
    settings.fault_count = fault != NULL;
    outcome = save_once(prepared, &settings);
    cr_assert_str_empty(outcome.violation, "%s", outcome.violation);
    return outcome;
}

/* A directory, or a file, of the save's name. */
static void name_take(struct prepared *prepared, bool is_directory)
{
    uint32_t root, inode;

    cr_assert_eq(sim_disk_walk(prepared->disk, SIM_ROOT, SCENE_ROOT, &root), 0);
    cr_assert_eq(sim_disk_make(prepared->disk, root, NAME, is_directory, &inode), 0);
    sim_disk_sync_all(prepared->disk);
}

/* An empty directory is no checkpoint ------------------------------------------------------------------------------------ */

static void empty_one_meets(struct sim_fault fault, int error)
{
    struct prepared prepared;
    struct outcome outcome;

    prepare(&prepared, NEW, SIM_STRICT);
    name_take(&prepared, true);
    outcome = saved(&prepared, &fault);
    if (error == 0)
        cr_expect(committed(&prepared, &outcome), "%s", outcome.save.failure.cause);
    else
        cr_expect(outcome.save.failed == 1 && outcome.save.failure.error == error, "%s", outcome.save.failure.cause);
    cr_expect_eq(names_in_root(outcome.disk), 2, "something is left");
    outcome_end(&outcome);
    prepared_end(&prepared);
}

Test(names, empty_directory_that_goes_before_it_is_opened_is_in_nobodys_way)
{
    empty_one_meets((struct sim_fault){ .on = { "writer", OP_OPEN, PATH }, .action = SIM_FAIL, .error = ENOENT }, 0);
}

Test(names, directory_that_cannot_be_opened_is_taken_for_none_of_ours)
{
    empty_one_meets((struct sim_fault){ .on = { "writer", OP_OPEN, PATH }, .action = SIM_FAIL, .error = EACCES }, EACCES);
}

Test(names, directory_that_cannot_be_listed_is_not_taken_for_empty)
{
    empty_one_meets((struct sim_fault){ .on = { "writer", OP_LIST, PATH }, .action = SIM_FAIL, .error = EIO }, EIO);
}

static void file_is_in_the_way(bool replace, int error)
{
    struct prepared prepared;
    struct outcome outcome;
    struct digest before;

    prepare(&prepared, NEW, SIM_STRICT);
    name_take(&prepared, false);
    before = tree_at(prepared.disk, SCENE_ROOT);
    prepared.before = replace ? REPLACED : NEW;
    outcome = saved(&prepared, NULL);
    cr_expect(outcome.save.failed == 1 && outcome.save.failure.error == error, "%s", outcome.save.failure.cause);
    cr_expect(strstr(outcome.save.failure.cause, "not a directory"), "%s", outcome.save.failure.cause);
    cr_expect(digest_equal(tree_at(outcome.disk, SCENE_ROOT), before), "something was changed");
    outcome_end(&outcome);
    prepared_end(&prepared);
}

Test(names, file_of_that_name_is_refused) { file_is_in_the_way(false, EEXIST); }
Test(names, file_of_that_name_is_not_replaced_either) { file_is_in_the_way(true, ENOTDIR); }

/* Replacing -------------------------------------------------------------------------------------------------------------- */

/* The replaced one's tokenizer stands in the new one, whichever way it came there. */
static void replaces(const struct sim_fault *fault, const char *what)
{
    struct prepared prepared;
    struct outcome outcome;
    uint32_t inode;

    prepare(&prepared, REPLACED, SIM_STRICT);
    outcome = saved(&prepared, fault);
    cr_expect(committed(&prepared, &outcome), "%s: %s", what, outcome.save.failure.cause);
    cr_expect_eq(sim_disk_walk(outcome.disk, SIM_ROOT, PATH "/" FOREIGN, &inode), 0, "%s: the tokenizer is lost", what);
    outcome_end(&outcome);
    prepared_end(&prepared);
}

Test(names, file_systems_without_an_exchange_say_so_in_many_ways)
{
    const int errors[] = { EINVAL, ENOSYS, EXDEV, EOPNOTSUPP };

    for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
        const struct sim_fault fault = { .on = { "writer", OP_RENAME, HIDDEN }, .ordinal = 1, .action = SIM_FAIL,
                                         .error = errors[i] };

        replaces(&fault, strerrorname_np(errors[i]));
    }
}

Test(names, files_of_others_that_cannot_be_linked_are_moved)
{
    const int errors[] = { EPERM, EMLINK, EOPNOTSUPP, ENOSYS, EXDEV };

    for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
        const struct sim_fault fault = { .on = { "writer", OP_LINK }, .action = SIM_FAIL, .error = errors[i] };

        replaces(&fault, strerrorname_np(errors[i]));
    }
}
