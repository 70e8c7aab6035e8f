/* sim/disk.c - the simulated disk itself: what a power cut leaves is what Linux and POSIX allow, and the known traps show. */
#include "power_cuts.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

static struct sim_disk *disk_make(enum sim_ordering ordering)
{
    return sim_disk_create(&(struct sim_disk_settings){ .ordering = ordering });
}

static uint32_t file_make(struct sim_disk *disk, uint32_t directory, const char *name, const char *text)
{
    uint32_t inode = 0;

    cr_assert_eq(sim_disk_make(disk, directory, name, false, &inode), 0);
    cr_assert_eq(sim_disk_write(disk, inode, 0, text, strlen(text)), (int64_t)strlen(text));
    return inode;
}

static uint32_t directory_make(struct sim_disk *disk, uint32_t directory, const char *name)
{
    uint32_t inode = 0;

    cr_assert_eq(sim_disk_make(disk, directory, name, true, &inode), 0);
    return inode;
}

static void sync_now(struct sim_disk *disk, uint32_t inode) { sim_disk_sync(disk, inode, sim_disk_moment(disk)); }

/* The disk after a power cut that keeps nothing unsynced, or all of it. */
static struct sim_disk *cut(const struct sim_disk *disk, bool keep)
{
    bool kept[256];

    cr_assert_leq(sim_disk_pending(disk), sizeof(kept));
    memset(kept, keep, sizeof(kept));
    return sim_disk_power_cut(disk, kept);
}

static bool has(const struct sim_disk *disk, const char *path)
{
    uint32_t inode;

    return sim_disk_walk(disk, SIM_ROOT, path, &inode) == 0;
}

/* Whether `path` holds exactly `text`. */
static bool holds(const struct sim_disk *disk, const char *path, const char *text)
{
    char bytes[8192];
    uint32_t inode;
    int64_t size;

    if (sim_disk_walk(disk, SIM_ROOT, path, &inode))
        return false;
    size = sim_disk_read(disk, inode, 0, bytes, sizeof(bytes));
    return size == (int64_t)strlen(text) && memcmp(bytes, text, (size_t)size) == 0;
}

Test(disk, rename_of_a_directory_without_its_fsync_loses_its_entries)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint32_t hidden = directory_make(disk, SIM_ROOT, "hidden"), file = file_make(disk, hidden, "model", "weights");

    sync_now(disk, file);
    cr_assert_eq(sim_disk_rename(disk, SIM_ROOT, "hidden", SIM_ROOT, "step", RENAME_PLAIN), 0);
    sync_now(disk, SIM_ROOT);
    found = cut(disk, false);
    cr_assert(has(found, "step"));
    cr_assert_not(has(found, "step/model"), "a synced file in a directory that was not synced must be lost");
    sim_disk_destroy(found);

    sync_now(disk, hidden);
    found = cut(disk, false);
    cr_assert(holds(found, "step/model", "weights"));
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, fsync_of_a_file_keeps_data_and_size_but_not_its_name)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint32_t file = file_make(disk, SIM_ROOT, "a", "text");

    sync_now(disk, file);
    found = cut(disk, false);
    cr_assert_not(has(found, "a"));
    sim_disk_destroy(found);
    sync_now(disk, SIM_ROOT);
    found = cut(disk, false);
    cr_assert(holds(found, "a", "text"));
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, name_without_fsync_of_the_file_is_an_empty_file)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;

    file_make(disk, SIM_ROOT, "a", "text");
    sync_now(disk, SIM_ROOT);
    found = cut(disk, false);
    cr_assert(holds(found, "a", ""));
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, unsynced_write_is_torn_at_sectors)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint8_t page[1536], bytes[1536];
    bool kept[16] = { false };
    uint32_t file = 0;

    memset(page, 'x', sizeof(page));
    cr_assert_eq(sim_disk_make(disk, SIM_ROOT, "a", false, &file), 0);
    cr_assert_eq(sim_disk_allocate(disk, file, sizeof(page)), 0);
    sync_now(disk, SIM_ROOT);
    sync_now(disk, file);
    cr_assert_eq(sim_disk_write(disk, file, 0, page, sizeof(page)), (int64_t)sizeof(page));
    cr_assert_eq(sim_disk_pending(disk), 3);
    kept[1] = true;
    found = sim_disk_power_cut(disk, kept);
    cr_assert_eq(sim_disk_walk(found, SIM_ROOT, "a", &file), 0);
    cr_assert_eq(sim_disk_read(found, file, 0, bytes, sizeof(bytes)), (int64_t)sizeof(bytes));
    cr_assert(bytes[511] == 0 && bytes[512] == 'x' && bytes[1023] == 'x' && bytes[1024] == 0);
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, size_without_data_reads_as_zeros)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    bool kept[2] = { false, true };
    char bytes[8];
    uint32_t file;

    sync_now(disk, (file = file_make(disk, SIM_ROOT, "a", "")));
    sync_now(disk, SIM_ROOT);
    cr_assert_eq(sim_disk_write(disk, file, 0, "text", 4), 4);
    cr_assert_eq(sim_disk_pending(disk), 2);
    found = sim_disk_power_cut(disk, kept);
    cr_assert_eq(sim_disk_walk(found, SIM_ROOT, "a", &file), 0);
    cr_assert_eq(sim_disk_read(found, file, 0, bytes, sizeof(bytes)), 4);
    cr_assert_eq(memcmp(bytes, "\0\0\0\0", 4), 0);
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, fsync_covers_nothing_that_came_after_it_was_asked_for)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint32_t file = file_make(disk, SIM_ROOT, "a", "old");
    uint64_t moment = sim_disk_moment(disk);

    sync_now(disk, SIM_ROOT);
    cr_assert_eq(sim_disk_write(disk, file, 0, "new", 3), 3);
    sim_disk_sync(disk, file, moment);
    found = cut(disk, false);
    cr_assert(holds(found, "a", "old"));
    sim_disk_destroy(found);
    found = cut(disk, true);
    cr_assert(holds(found, "a", "new"));
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

static bool never(void *context) { return false; }

Test(disk, fsync_after_a_failed_fsync_succeeds_and_saves_nothing)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint32_t file = file_make(disk, SIM_ROOT, "a", "text");

    sync_now(disk, SIM_ROOT);
    sim_disk_sync_fails(disk, file, sim_disk_moment(disk), never, NULL);
    sync_now(disk, file);
    cr_assert(holds(disk, "a", "text"), "running programs see it");
    found = cut(disk, true);
    cr_assert(holds(found, "a", ""), "the disk never gets it");
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, strict_order_keeps_the_second_of_two_renames_without_the_first)
{
    struct sim_disk *strict = disk_make(SIM_STRICT), *journal = disk_make(SIM_JOURNAL), *found;
    bool second_only[2] = { false, true }, completed[2] = { false, true };

    for (int i = 0; i < 2; i++) {
        struct sim_disk *disk = i ? journal : strict;

        file_make(disk, SIM_ROOT, "a", "");
        file_make(disk, SIM_ROOT, "b", "");
        sim_disk_sync_all(disk);
        cr_assert_eq(sim_disk_rename(disk, SIM_ROOT, "a", SIM_ROOT, "a2", RENAME_PLAIN), 0);
        cr_assert_eq(sim_disk_rename(disk, SIM_ROOT, "b", SIM_ROOT, "b2", RENAME_PLAIN), 0);
        cr_assert_eq(sim_disk_pending(disk), 2);
    }
    sim_disk_complete(strict, completed);
    cr_assert(completed[1] && !completed[0]);
    sim_disk_complete(journal, completed);
    cr_assert(completed[1] && completed[0], "a journal keeps the first with the second");
    found = sim_disk_power_cut(strict, second_only);
    cr_assert(has(found, "a") && has(found, "b2") && !has(found, "b"));
    sim_disk_destroy(found);
    sim_disk_destroy(strict);
    sim_disk_destroy(journal);
}

Test(disk, rename_between_directories_is_one_transaction_only_in_a_journal)
{
    struct sim_disk *strict = disk_make(SIM_STRICT), *journal = disk_make(SIM_JOURNAL), *found;

    for (int i = 0; i < 2; i++) {
        struct sim_disk *disk = i ? journal : strict;
        uint32_t one = directory_make(disk, SIM_ROOT, "one"), two = directory_make(disk, SIM_ROOT, "two");

        file_make(disk, one, "a", "text");
        sim_disk_sync_all(disk);
        cr_assert_eq(sim_disk_rename(disk, one, "a", two, "a", RENAME_PLAIN), 0);
        sync_now(disk, one);
        found = cut(disk, false);
        cr_assert_not(has(found, "one/a"));
        cr_assert_eq(has(found, "two/a"), i == 1, "strict: the half that was not synced may be missing");
        sim_disk_destroy(found);
    }
    sim_disk_destroy(strict);
    sim_disk_destroy(journal);
}

Test(disk, exchange_is_never_half_done)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;
    uint32_t old, new;

    file_make(disk, (old = directory_make(disk, SIM_ROOT, "step")), "m", "old");
    file_make(disk, (new = directory_make(disk, SIM_ROOT, ".step")), "m", "new");
    sim_disk_sync_all(disk);
    cr_assert_eq(sim_disk_rename(disk, SIM_ROOT, ".step", SIM_ROOT, "step", RENAME_OP_EXCHANGE), 0);
    cr_assert_eq(sim_disk_pending(disk), 1);
    cr_assert(holds(disk, "step/m", "new") && holds(disk, ".step/m", "old"));
    for (int keep = 0; keep < 2; keep++) {
        found = cut(disk, keep);
        cr_assert(holds(found, "step/m", keep ? "new" : "old") && holds(found, ".step/m", keep ? "old" : "new"));
        sim_disk_destroy(found);
    }
    sim_disk_destroy(disk);
}

Test(disk, unlinked_name_may_come_back_until_its_directory_is_synced)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *found;

    file_make(disk, SIM_ROOT, "a", "text");
    sim_disk_sync_all(disk);
    cr_assert_eq(sim_disk_unlink(disk, SIM_ROOT, "a", false), 0);
    cr_assert_not(has(disk, "a"));
    found = cut(disk, false);
    cr_assert(holds(found, "a", "text"));
    sim_disk_destroy(found);
    sync_now(disk, SIM_ROOT);
    found = cut(disk, false);
    cr_assert_not(has(found, "a"));
    sim_disk_destroy(found);
    sim_disk_destroy(disk);
}

Test(disk, errors_are_those_of_linux)
{
    struct sim_disk *disk = disk_make(SIM_STRICT);
    uint32_t full = directory_make(disk, SIM_ROOT, "full"), inode;

    file_make(disk, full, "x", "");
    directory_make(disk, SIM_ROOT, "empty");
    file_make(disk, SIM_ROOT, "file", "");
    cr_expect_eq(sim_disk_make(disk, SIM_ROOT, "file", false, &inode), -EEXIST);
    cr_expect_eq(sim_disk_find(disk, SIM_ROOT, "none", &inode), -ENOENT);
    cr_expect_eq(sim_disk_walk(disk, SIM_ROOT, "file/x", &inode), -ENOTDIR);
    cr_expect_eq(sim_disk_unlink(disk, SIM_ROOT, "full", true), -ENOTEMPTY);
    cr_expect_eq(sim_disk_unlink(disk, SIM_ROOT, "full", false), -EISDIR);
    cr_expect_eq(sim_disk_unlink(disk, SIM_ROOT, "file", true), -ENOTDIR);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "empty", SIM_ROOT, "full", RENAME_PLAIN), -ENOTEMPTY);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "empty", SIM_ROOT, "file", RENAME_PLAIN), -ENOTDIR);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "file", SIM_ROOT, "empty", RENAME_PLAIN), -EISDIR);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "file", full, "x", RENAME_OP_NOREPLACE), -EEXIST);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "file", full, "none", RENAME_OP_EXCHANGE), -ENOENT);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "full", full, "y", RENAME_PLAIN), -EINVAL);
    cr_expect_eq(sim_disk_rename(disk, SIM_ROOT, "full", SIM_ROOT, "empty", RENAME_PLAIN), 0, "onto an empty directory");
    sim_disk_destroy(disk);
}

Test(disk, open_file_outlives_its_name)
{
    struct sim_disk *disk = sim_disk_create(&(struct sim_disk_settings){ .capacity = 4096 });
    uint32_t file = file_make(disk, SIM_ROOT, "a", "text"), other;
    uint8_t page[4096] = { 0 };
    char bytes[4];

    sim_disk_hold(disk, file);
    cr_assert_eq(sim_disk_unlink(disk, SIM_ROOT, "a", false), 0);
    cr_assert_eq(sim_disk_read(disk, file, 0, bytes, 4), 4);
    other = file_make(disk, SIM_ROOT, "b", "");
    cr_assert_eq(sim_disk_write(disk, other, 0, page, 4096), 3584, "its sector is still taken: a short write");
    cr_assert_eq(sim_disk_write(disk, other, 3584, page, 512), -ENOSPC);
    sim_disk_release(disk, file);
    cr_assert_eq(sim_disk_write(disk, other, 3584, page, 512), 512);
    sim_disk_destroy(disk);
}

Test(disk, fingerprint_tells_names_sizes_and_bytes_apart)
{
    struct sim_disk *disk = disk_make(SIM_STRICT), *clone;
    uint32_t directory = directory_make(disk, SIM_ROOT, "d"), file = file_make(disk, directory, "a", "text");
    struct digest before = sim_disk_fingerprint(disk, directory);

    clone = sim_disk_clone(disk);
    cr_assert(digest_equal(before, sim_disk_fingerprint(clone, directory)));
    sim_disk_destroy(clone);
    cr_assert_eq(sim_disk_write(disk, file, 3, "T", 1), 1);
    cr_assert_not(digest_equal(before, sim_disk_fingerprint(disk, directory)));
    cr_assert_eq(sim_disk_write(disk, file, 3, "t", 1), 1);
    cr_assert(digest_equal(before, sim_disk_fingerprint(disk, directory)));
    cr_assert_eq(sim_disk_resize(disk, file, 5), 0);
    cr_assert_not(digest_equal(before, sim_disk_fingerprint(disk, directory)));
    cr_assert_eq(sim_disk_resize(disk, file, 4), 0);
    cr_assert_eq(sim_disk_rename(disk, directory, "a", directory, "b", RENAME_PLAIN), 0);
    cr_assert_not(digest_equal(before, sim_disk_fingerprint(disk, directory)));
    sim_disk_destroy(disk);
}

/* Power cuts ---------------------------------------------------------------------------------------------------------- */

static bool count_states(const struct sim_disk *disk, const bool *kept, void *context)
{
    struct digest (*seen)[64] = context;
    struct sim_disk *found = sim_disk_power_cut(disk, kept);
    struct digest state = sim_disk_fingerprint(found, SIM_ROOT), none = { { 0 } };
    size_t i = 0;

    sim_disk_destroy(found);
    while (i < 63 && !digest_equal((*seen)[i], none) && !digest_equal((*seen)[i], state))
        i++;
    (*seen)[i] = state;
    return true;
}

static size_t distinct_states(const struct sim_disk *disk, const struct power_cuts *cuts, uint64_t *visits)
{
    struct digest seen[64], none = { { 0 } };
    size_t count = 0;

    memset(seen, 0, sizeof(seen));
    *visits = power_cuts_each(disk, cuts, count_states, seen);
    while (count < 64 && !digest_equal(seen[count], none))
        count++;
    return count;
}

Test(power_cuts, every_subset_is_visited_once_and_journals_allow_fewer)
{
    struct power_cuts cuts = { .exhaustive = 12 };
    uint64_t visits;

    for (int ordering = SIM_STRICT; ordering <= SIM_JOURNAL; ordering++) {
        struct sim_disk *disk = disk_make((enum sim_ordering)ordering);

        file_make(disk, SIM_ROOT, "a", "");
        file_make(disk, SIM_ROOT, "b", "");
        file_make(disk, SIM_ROOT, "c", "");
        cr_expect_eq(distinct_states(disk, &cuts, &visits), ordering == SIM_STRICT ? 8 : 4);
        cr_expect_eq(visits, ordering == SIM_STRICT ? 8 : 4);
        sim_disk_destroy(disk);
    }
}

Test(power_cuts, focus_varies_only_what_can_show_under_the_name)
{
    struct sim_disk *disk = disk_make(SIM_STRICT);
    struct power_cuts cuts = { .directory = SIM_ROOT, .name = "step", .exhaustive = 12 };
    uint32_t hidden = directory_make(disk, SIM_ROOT, "hidden");
    uint64_t visits;

    file_make(disk, SIM_ROOT, "other", "text");
    file_make(disk, hidden, "model", "weights");
    distinct_states(disk, &cuts, &visits);
    cr_expect_eq(visits, 1, "nothing can be under that name yet");
    cr_assert_eq(sim_disk_rename(disk, SIM_ROOT, "hidden", SIM_ROOT, "step", RENAME_PLAIN), 0);
    distinct_states(disk, &cuts, &visits);
    cr_expect_eq(visits, 16, "the rename, the entry of model, its sector and its size");
    sim_disk_destroy(disk);
}

Test(power_cuts, beyond_the_bound_each_single_loss_is_visited)
{
    struct sim_disk *disk = disk_make(SIM_STRICT);
    struct power_cuts cuts = { .exhaustive = 4, .samples = 100, .seed = 1 };
    uint64_t visits;

    file_make(disk, SIM_ROOT, "a", "1");
    file_make(disk, SIM_ROOT, "b", "2");
    cr_assert_eq(sim_disk_pending(disk), 6);
    distinct_states(disk, &cuts, &visits);
    cr_expect_eq(visits, 2 * 6 + 7 + 100);
    sim_disk_destroy(disk);
}
