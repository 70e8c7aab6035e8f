/* sim/rules.c - rules of a save that no crash and no single error shows: what others may rely on while it runs. */
#include "prepared.h"
#include "sim_disk_inside.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fnmatch.h>
#include <format/part.h>
#include <inttypes.h>
#include <string.h>

#define HIDDEN SCENE_ROOT "/.step-2.????????????????????????????????"
#define SEEDS 20

struct seen { bool is_locked; unsigned files, names; char broken[400]; };

static void broken(struct seen *seen, const char *what, const char *path)
{
    if (!seen->broken[0])
        snprintf(seen->broken, sizeof(seen->broken), "%s: %s", what, path);
}

static bool is_synced(const struct sim_disk *disk, uint32_t inode)
{
    for (size_t i = 0; i < disk->effect_count; i++)
        if (disk->effects[i].kind != EFFECT_ENTRY && disk->effects[i].inode == inode)
            return false;
    return true;
}

static void seen_look(struct sim_world *world, const struct sim_seen *op, void *context)
{
    struct seen *seen = context;
    uint32_t inode;

    if (op->result < 0)
        return;
    if (op->kind == OP_LOCK && fnmatch(HIDDEN "/tspool.part-00001", op->path, 0) == 0)
        seen->is_locked = true;
    if (op->kind == OP_OPEN && fnmatch(HIDDEN "/*.partial", op->path, 0) == 0) {
        seen->files++;
        if (!seen->is_locked)
            broken(seen, "it is made while nobody holds the part record's lock", op->path);
    }
    if (op->kind == OP_RENAME && fnmatch(HIDDEN "/*.partial", op->path, 0) == 0) {
        seen->names++;
        if (sim_disk_walk(sim_world_disk(world), SIM_ROOT, op->to_path, &inode) || !is_synced(sim_world_disk(world), inode))
            broken(seen, "it has its final name and is not synced", op->to_path);
    }
}

/* Whoever meets a hidden directory goes by these: a lock tells that somebody is at work there, a final name that the file is
 * on the disk. */
Test(rules, nothing_is_made_without_the_lock_or_named_without_a_sync)
{
    for (int before = NEW; before <= REPLACED_WITHOUT_EXCHANGE; before++) {
        struct prepared prepared;

        prepare(&prepared, (enum before)before, SIM_STRICT);
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct scene_settings settings = prepared.settings;
            struct seen seen = { .files = 0 };
            struct outcome outcome;

            settings.world.seed = seed;
            settings.look = seen_look;
            settings.look_context = &seen;
            outcome = save_once(&prepared, &settings);
            cr_assert_str_empty(seen.broken, "seed %" PRIu64 ": %s", seed, seen.broken);
            cr_assert(committed(&prepared, &outcome), "seed %" PRIu64 ": %s", seed, outcome.violation);
            cr_assert(seen.files == seen.names && seen.files > 4, "%u files, %u names", seen.files, seen.names);
            outcome_end(&outcome);
        }
        prepared_end(&prepared);
    }
}

/* Somebody's checkpoint comes under the name while the save is on its way. */
static void intruder_look(struct sim_world *world, const struct sim_seen *op, void *context)
{
    const struct message *message = op->bytes;
    struct sim_disk *disk = sim_world_disk(world);
    uint32_t root, directory, file;

    if (op->kind != OP_SEND || op->result < 0 || message->kind != MESSAGE_PREPARED)
        return;
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, SCENE_ROOT, &root), 0);
    cr_assert_eq(sim_disk_make(disk, root, NAME, true, &directory), 0);
    cr_assert_eq(sim_disk_make(disk, directory, MANIFEST_NAME, false, &file), 0);
    *(struct digest *)context = sim_disk_fingerprint(disk, directory);
}

Test(rules, what_came_under_the_name_meanwhile_stays)
{
    struct prepared prepared;

    prepare(&prepared, NEW, SIM_STRICT);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct scene_settings settings = prepared.settings;
        struct digest theirs = { { 0 } };
        struct outcome outcome;

        settings.world.seed = seed;
        settings.look = intruder_look;
        settings.look_context = &theirs;
        outcome = save_once(&prepared, &settings);
        cr_assert(digest_equal(tree_at(outcome.disk, PATH), theirs), "seed %" PRIu64 ": it was replaced", seed);
        cr_assert_eq(outcome.save.failed, 1);
        cr_assert(outcome.save.failure.error == ENOTEMPTY || outcome.save.failure.error == EEXIST);
        cr_assert_eq(names_in_root(outcome.disk), 2, "something of the failed save is left");
        outcome_end(&outcome);
    }
    prepared_end(&prepared);
}

/* O_DIRECT goes on at a block's beginning: what lies beyond the last whole block is written twice. */
Test(rules, short_write_inside_a_block_goes_on_at_its_beginning)
{
    struct prepared prepared;

    prepare(&prepared, NEW, SIM_STRICT);
    for (uint64_t write = 1; write <= 8; write++) {
        struct sim_fault fault = { .on = { "writer", OP_WRITE, HIDDEN "/model-*" }, .ordinal = write, .action = SIM_SHORT,
                                   .bytes = 1000 };
        struct scene_settings settings = prepared.settings;
        struct outcome outcome;

        settings.faults = &fault;
        settings.fault_count = 1;
        outcome = save_once(&prepared, &settings);
        cr_assert(committed(&prepared, &outcome), "write %" PRIu64 ": %s %s", write, outcome.save.failure.cause,
                  outcome.violation);
        outcome_end(&outcome);
    }
    prepared_end(&prepared);
}

/* A late message of an attempt that has ended names a slot that has other bytes by now. */
Test(rules, chunk_of_another_attempt_is_not_taken)
{
    struct prepared prepared;

    prepare(&prepared, NEW, SIM_STRICT);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct scene_settings settings = prepared.settings;
        struct message late;
        struct sim_save *save;
        struct scene scene;
        uint8_t save_id[16];

        settings.world.seed = seed;
        scene_save_id(prepared.new.seed, save_id);
        scene_init(&scene, &settings, sim_disk_clone(prepared.disk));
        cr_assert(scene_run_until_ready(&scene));
        save = sim_trainer_begin(&scene.trainer, &prepared.new, NAME, false, save_id, 0);
        message_init(&late, MESSAGE_STAGED, &save->attempt);
        late.attempt.number++;
        late.staged.slot = 3;
        sim_trainer_say(&scene.trainer, &late);
        cr_assert(scene_run_until_answered(&scene, save));
        cr_assert_eq(save->published, 1, "seed %" PRIu64 ": %s", seed, save->failure.cause);
        cr_assert(scene_close(&scene));
        cr_assert_null(scene_violation(&scene), "%s", scene_violation(&scene));
        cr_assert(digest_equal(tree_at(sim_world_disk(scene.world), PATH), prepared.new_tree));
        scene_deinit(&scene);
    }
    prepared_end(&prepared);
}

/* Part records are written beside the data, and slowly here: those of many saves that begin at once must neither take the
 * places that another save's writes count on, nor be left out because these are taken. */
#define CROWD 8u

static void record_look(struct sim_world *world, const struct sim_seen *op, void *context)
{
    if (op->kind == OP_WRITE && op->result == PART_TEXT_BYTES && fnmatch("*/tspool.part-00001", op->path, 0) == 0)
        ++*(unsigned *)context;
}

static void crowd_begins(const struct prepared *prepared, uint64_t seed, uint32_t depth)
{
    const struct sim_fault slow[] = {
        { .on = { "writer", OP_WRITE, SCENE_ROOT "/.crowd-*/tspool.part-00001" }, .action = SIM_DELAY, .delay_ns = 50000000 },
        { .on = { "writer", OP_WRITE, HIDDEN "/model-*" }, .action = SIM_DELAY, .delay_ns = 10000000 },
    };
    struct scene_settings settings = prepared->settings;
    struct sim_save *saves[CROWD + 1];
    unsigned records = 0;
    struct scene scene;
    uint8_t save_id[16];
    char name[16];

    settings.world.seed = seed;
    settings.depth = depth;
    settings.slots = 16;
    settings.faults = slow;
    settings.fault_count = 2;
    settings.look = record_look;
    settings.look_context = &records;
    scene_init(&scene, &settings, sim_disk_clone(prepared->disk));
    cr_assert(scene_run_until_ready(&scene));
    for (unsigned i = 0; i <= CROWD; i++) {
        snprintf(name, sizeof(name), i ? "crowd-%u" : NAME, i);
        scene_save_id(100 + i, save_id);
        saves[i] = sim_trainer_begin(&scene.trainer, &prepared->new, name, false, save_id, 0);
    }
    for (unsigned i = 0; i <= CROWD; i++) {
        cr_assert(scene_run_until_answered(&scene, saves[i]));
        cr_assert_eq(saves[i]->published, 1, "depth %u, seed %" PRIu64 ", save %u: %s %s: %s", depth, seed, i,
                     saves[i]->failure.operation, saves[i]->failure.path, strerror(saves[i]->failure.error));
    }
    cr_assert(scene_close(&scene));
    cr_assert_null(scene_violation(&scene), "%s", scene_violation(&scene));
    cr_assert_eq(records, CROWD + 1, "depth %u, seed %" PRIu64 ": %u records were written", depth, seed, records);
    scene_deinit(&scene);
}

Test(rules, many_saves_that_begin_at_once_leave_the_writes_their_places)
{
    struct prepared prepared;

    prepare(&prepared, NEW, SIM_STRICT);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        crowd_begins(&prepared, seed, 1);
        crowd_begins(&prepared, seed, 4);
    }
    prepared_end(&prepared);
}
