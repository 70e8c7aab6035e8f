/* sim/crash.c - the power is cut after every operation of a real commit, in every way that an unsynced disk allows: the old
 * checkpoint or the new one is found, whole. And the same enumerator is shown bugs, which it must find: each sync lost,
 * each order broken.
 */
#include "prepared.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define HIDDEN SCENE_ROOT "/.step-2.????????????????????????????????" /* the directory itself */

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static bool changes_names(enum op_kind kind)
{
    return kind == OP_OPEN || kind == OP_MKDIR || kind == OP_RENAME || kind == OP_UNLINK || kind == OP_LINK || kind == OP_FSYNC;
}

static void watch_init(struct crash_watch *watch, const struct prepared *prepared)
{
    crash_watch_init(watch, NAME, prepared->before == NEW ? NULL : &prepared->old, prepared->old_tree, &prepared->new,
                     prepared->new_tree);
    watch->other = OTHER;
    watch->other_tree = tree_at(prepared->disk, OTHER);
    watch->repairs = prepared->before == REPLACED_WITHOUT_EXCHANGE;
    watch->foreign = prepared->before == NEW ? NULL : FOREIGN;
    watch->foreign_tree = tree_at(prepared->disk, PATH "/" FOREIGN);
}

static struct outcome watched_save(const struct prepared *prepared, struct crash_watch *watch, const struct sim_fault *fault,
                                   uint64_t seed)
{
    struct scene_settings settings = prepared->settings;

    settings.world.seed = seed;
    settings.look = crash_watch_look;
    settings.look_context = watch;
    settings.faults = fault;
    settings.fault_count = fault != NULL;
    return save_once(prepared, &settings);
}

/* wide: every unsynced effect is varied, also those that cannot show under the name. */
static void every_cut_is_whole(enum before before, enum sim_ordering ordering, bool wide, uint64_t seeds)
{
    struct prepared prepared;

    prepare(&prepared, before, ordering);
    for (uint64_t seed = 0; seed < seeds; seed++) {
        struct crash_watch watch;
        struct outcome outcome;

        watch_init(&watch, &prepared);
        watch.wide |= wide;
        outcome = watched_save(&prepared, &watch, NULL, seed);
        cr_assert(committed(&prepared, &outcome), "seed %" PRIu64 ": %s", seed, outcome.violation);
        cr_assert(watch.acknowledged);
        cr_assert_eq(watch.wrong, 0, "seed %" PRIu64 ": %s", seed, watch.first);
        cr_assert_geq(watch.prefixes, 50);
        cr_assert_geq(watch.states, wide ? 20 * watch.prefixes : watch.prefixes + 1);
        crash_watch_deinit(&watch);
        outcome_end(&outcome);
    }
    prepared_end(&prepared);
}

Test(crash, every_cut_of_a_new_save_leaves_nothing_or_all)
{
    every_cut_is_whole(NEW, SIM_STRICT, false, 50);
    every_cut_is_whole(NEW, SIM_STRICT, true, 4);
}

Test(crash, every_cut_of_a_replacing_save_leaves_old_or_new)
{
    every_cut_is_whole(REPLACED, SIM_STRICT, false, 50);
    every_cut_is_whole(REPLACED, SIM_STRICT, true, 4);
}

Test(crash, every_cut_of_a_journal_leaves_old_or_new)
{
    every_cut_is_whole(NEW, SIM_JOURNAL, true, 2);
    every_cut_is_whole(REPLACED, SIM_JOURNAL, true, 2);
}

Test(crash, every_cut_without_exchange_leaves_what_a_reader_can_repair)
{
    every_cut_is_whole(REPLACED_WITHOUT_EXCHANGE, SIM_JOURNAL, true, 2);
}

/* The hidden directory's own entry must be durable before the old one is moved aside: else a file system that keeps no order may
 * show the old one under its hidden name, alone, which no reader repairs. */
Test(crash, every_cut_without_exchange_and_without_a_journal_can_be_repaired)
{
    every_cut_is_whole(REPLACED_WITHOUT_EXCHANGE, SIM_STRICT, true, 4);
}

/* What a dead attempt left behind is in nobody's way. */
struct leftovers { struct sim_disk *disks[128]; size_t count; };

static bool leftover_keep(const struct sim_disk *disk, const bool *kept, void *context)
{
    struct leftovers *leftovers = context;

    cr_assert_lt(leftovers->count, COUNT(leftovers->disks));
    leftovers->disks[leftovers->count++] = sim_disk_power_cut(disk, kept);
    return false;
}

static void leftover_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct power_cuts cuts = { .exhaustive = 63, .samples = 0, .seed = seen->number, .directory = SIM_ROOT, .name = "none" };
    struct sim_disk *disk;

    if (seen->kind != OP_WRITE && !changes_names(seen->kind))
        return;
    disk = sim_world_disk_in_flight(world);
    power_cuts_each(disk, &cuts, leftover_keep, context); /* nothing is in focus: one choice, all of it random */
    sim_disk_destroy(disk);
}

Test(crash, next_save_after_any_cut_commits)
{
    for (int before = NEW; before <= REPLACED; before++) {
        struct leftovers leftovers = { .count = 0 };
        struct scene_settings settings, later;
        struct prepared prepared;
        struct sim_state next;
        struct outcome outcome;

        prepare(&prepared, (enum before)before, SIM_STRICT);
        sim_state_init(&next, 3, 0);
        settings = prepared.settings;
        settings.look = leftover_look;
        settings.look_context = &leftovers;
        outcome = save_once(&prepared, &settings);
        outcome_end(&outcome);
        later = prepared.settings;
        later.world.seed = 1; /* a new process draws other names */
        cr_assert_geq(leftovers.count, 30);
        for (size_t i = 0; i < leftovers.count; i++) {
            struct sim_disk *after = scene_commit(&later, leftovers.disks[i], &next, NAME, true);
            char why[300] = "";

            cr_assert_not_null(after, "cut %zu: the next save does not commit", i);
            cr_expect_eq(disk_load(after, PATH, &next, why, sizeof(why)), 0, "cut %zu: %s", i, why);
            sim_disk_destroy(after);
        }
        sim_state_deinit(&next);
        prepared_end(&prepared);
    }
}

/* Planted bugs -------------------------------------------------------------------------------------------------------- */

struct planted { const char *bug; struct sim_fault fault; };

#define FORGETS(operation, what) { .on = { "writer", operation, what }, .action = SIM_LIE }
#define DELAYS(operation, what, later, where) \
    { .on = { "writer", operation, what }, .action = SIM_DEFER, .until = { "writer", later, where } }

static const struct planted planted_in_every_save[] = {
    { "the first shard is not synced", FORGETS(OP_FSYNC, HIDDEN "/model-00001-*") },
    { "the second shard is not synced", FORGETS(OP_FSYNC, HIDDEN "/model-00002-*") },
    { "the last shard is not synced", FORGETS(OP_FSYNC, HIDDEN "/model-00003-*") },
    { "the objects are not synced", FORGETS(OP_FSYNC, HIDDEN "/objects-*") },
    { "the index is not synced", FORGETS(OP_FSYNC, HIDDEN "/model.safetensors.index.json*") },
    { "the digests are not synced", FORGETS(OP_FSYNC, HIDDEN "/tspool.digests*") },
    { "the manifest is not synced", FORGETS(OP_FSYNC, HIDDEN "/tspool.manifest.json*") },
    { "the hidden directory is not synced", FORGETS(OP_FSYNC, HIDDEN) },
    { "the root is not synced", FORGETS(OP_FSYNC, SCENE_ROOT) },
    { "the hidden directory is synced after the rename", DELAYS(OP_FSYNC, HIDDEN, OP_RENAME, HIDDEN) },
    { "a shard is synced after the rename", DELAYS(OP_FSYNC, HIDDEN "/model-00002-*", OP_RENAME, HIDDEN) },
    { "the manifest is synced after the rename", DELAYS(OP_FSYNC, HIDDEN "/tspool.manifest.json*", OP_RENAME, HIDDEN) },
    { "the manifest gets its name after the directory sync",
      DELAYS(OP_RENAME, HIDDEN "/tspool.manifest.json*", OP_FSYNC, HIDDEN) },
    { "a shard gets its name after the directory sync", DELAYS(OP_RENAME, HIDDEN "/model-00001-*", OP_FSYNC, HIDDEN) },
    { "a tail is cut after the sync", DELAYS(OP_TRUNCATE, HIDDEN "/model-00003-*", OP_FSYNC, HIDDEN "/model-00003-*") },
    { "a shard's writes are lost", FORGETS(OP_WRITE, HIDDEN "/model-00002-*") },
    { "a padded tail is never cut", FORGETS(OP_TRUNCATE, HIDDEN "/model-00003-*") },
    { "DURABLE is said before the root is synced", DELAYS(OP_FSYNC, SCENE_ROOT, OP_SEND, NULL) },
};

static const struct planted planted_in_replacing_saves[] = {
    { "the root is not synced", FORGETS(OP_FSYNC, SCENE_ROOT) },
    { "the hidden directory is not synced", FORGETS(OP_FSYNC, HIDDEN) },
    { "the manifest is not synced", FORGETS(OP_FSYNC, HIDDEN "/tspool.manifest.json*") },
    { "files of others get their link after the directory sync", DELAYS(OP_LINK, PATH "/" FOREIGN, OP_FSYNC, HIDDEN) },
    { "the old one is removed before the root is synced",
      DELAYS(OP_FSYNC, SCENE_ROOT, OP_UNLINK, HIDDEN "/tspool.manifest.json") },
};

/* In how many of the seeds the enumerator notices. */
static unsigned noticed(const struct prepared *prepared, const struct planted *planted, unsigned seeds)
{
    unsigned count = 0;

    for (unsigned seed = 0; seed < seeds; seed++) {
        struct crash_watch watch;
        struct outcome outcome;

        watch_init(&watch, prepared);
        outcome = watched_save(prepared, &watch, &planted->fault, seed);
        cr_expect_not(watch.fooled, "%s: %s", planted->bug, watch.first);
        count += watch.wrong > 0;
        crash_watch_deinit(&watch);
        outcome_end(&outcome);
    }
    return count;
}

static void each_is_caught(enum before before, enum sim_ordering ordering, const struct planted *planted, size_t count)
{
    struct prepared prepared;

    prepare(&prepared, before, ordering);
    for (size_t i = 0; i < count; i++) {
        unsigned seeds = noticed(&prepared, &planted[i], 3);

        cr_expect_eq(seeds, 3, "a planted bug survives: %s (caught with %u of 3 seeds)", planted[i].bug, seeds);
    }
    prepared_end(&prepared);
}

Test(planted, each_lost_sync_and_wrong_order_is_caught)
{
    each_is_caught(NEW, SIM_STRICT, planted_in_every_save, COUNT(planted_in_every_save));
}

Test(planted, each_is_caught_on_a_journal_too)
{
    each_is_caught(NEW, SIM_JOURNAL, planted_in_every_save, COUNT(planted_in_every_save));
}

Test(planted, each_is_caught_in_a_replacing_save)
{
    each_is_caught(REPLACED, SIM_STRICT, planted_in_replacing_saves, COUNT(planted_in_replacing_saves));
}
