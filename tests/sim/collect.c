/* sim/collect.c - the collector is cut at each of its operations, by a kill, an error or a power cut in every way, and runs beside
 * another collector and beside saves: what is to be kept stays as it is, no name ever stands for half a checkpoint, and the
 * next run finishes what was begun.
 */
#include "crash_watch.h"
#include "sim_party.h"
#include "sim_world.h"

#include <base/names.h>
#include <collect/collect.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECKPOINTS 4u
#define KEEP 2u
#define NOTES SCENE_ROOT "/notes.txt"

/* Four checkpoints of which two are to go, a dead attempt, and somebody else's file. */
struct fixture {
    struct scene_settings settings;
    struct sim_state states[CHECKPOINTS], later;
    struct sim_disk *disk;                        /* all durable */
    struct digest trees[CHECKPOINTS], notes;
};

static const char *name_of(unsigned number)
{
    static const char *const names[] = { "c1", "c2", "c3", "c4", "c5" };

    return names[number];
}

static struct digest tree_of(const struct sim_disk *disk, const char *name)
{
    char path[300];

    snprintf(path, sizeof(path), SCENE_ROOT "/%s", name);
    return tree_at(disk, path);
}

static bool is_absent(struct digest tree)
{
    struct digest none = { { 0 } };

    return digest_equal(tree, none);
}

/* A save whose writer dies when its files are open. */
static struct sim_disk *dead_attempt_add(const struct fixture *fixture, struct sim_disk *disk)
{
    struct sim_fault death = { .on = { .process = "writer", .kind = OP_WRITE, .path = "*/model-00002-*" }, .ordinal = 1,
                               .action = SIM_KILL };
    struct scene_settings settings = fixture->settings;
    struct sim_disk *after;
    struct scene scene;
    uint8_t save_id[16];

    settings.faults = &death;
    settings.fault_count = 1;
    scene_save_id(77, save_id);
    scene_init(&scene, &settings, disk);
    cr_assert(scene_run_until_ready(&scene));
    sim_trainer_begin(&scene.trainer, &fixture->later, "dead", false, save_id, 0);
    while (scene_step(&scene))
        ;
    after = sim_disk_clone(sim_world_disk(scene.world));
    scene_deinit(&scene);
    return after;
}

static void notes_add(struct sim_disk *disk)
{
    uint32_t root, file;

    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, SCENE_ROOT, &root), 0);
    cr_assert_eq(sim_disk_make(disk, root, "notes.txt", false, &file), 0);
    cr_assert_eq(sim_disk_write(disk, file, 0, "mine", 4), 4);
}

static void fixture_init(struct fixture *fixture, enum sim_ordering ordering)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->settings.world = (struct sim_settings){ .memory_align = 512, .offset_align = 512 };
    fixture->settings.world.disk.ordering = ordering;
    sim_state_init(&fixture->later, CHECKPOINTS + 1, 0);
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        sim_state_init(&fixture->states[i], i + 1, 0);
        fixture->disk = scene_commit(&fixture->settings, fixture->disk, &fixture->states[i], name_of(i), false);
        cr_assert_not_null(fixture->disk);
        fixture->trees[i] = tree_of(fixture->disk, name_of(i));
    }
    fixture->disk = dead_attempt_add(fixture, fixture->disk);
    notes_add(fixture->disk);
    sim_disk_sync_all(fixture->disk);
    fixture->notes = tree_at(fixture->disk, NOTES);
}

static void fixture_deinit(struct fixture *fixture)
{
    sim_disk_destroy(fixture->disk);
    for (unsigned i = 0; i < CHECKPOINTS; i++)
        sim_state_deinit(&fixture->states[i]);
    sim_state_deinit(&fixture->later);
}

/* What must hold at every instant: NULL, or what does not. */
static const char *broken(const struct fixture *fixture, const struct sim_disk *disk)
{
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        struct digest tree = tree_of(disk, name_of(i));
        bool is_whole = digest_equal(tree, fixture->trees[i]);

        if (i >= CHECKPOINTS - KEEP && !is_whole)
            return "one of those that are kept is damaged or gone";
        if (!is_whole && !is_absent(tree))
            return "half a checkpoint stands under a name";
    }
    return digest_equal(tree_at(disk, NOTES), fixture->notes) ? NULL : "somebody else's file was touched";
}

static bool is_collected(const struct fixture *fixture, const struct sim_disk *disk)
{
    return !broken(fixture, disk) && names_in_root(disk) == KEEP + 1;
}

/* One run ---------------------------------------------------------------------------------------------------------------- */

/* What a collection between saves is told by its writer: whether a save runs, and which checkpoint was its last. */
struct told {
    unsigned kept, removed, swept, left, failed;
    bool save_runs;
    uint64_t spared;            /* number of a save id; 0: none */
};

static void tell(void *context, const struct collect_note *note)
{
    struct told *told = context;

    told->kept += note->event == COLLECT_KEPT;
    told->removed += note->event == COLLECT_REMOVED;
    told->swept += note->event == COLLECT_SWEPT;
    told->left += note->event == COLLECT_LEFT;
    told->failed += note->event == COLLECT_FAILED;
}

/* Slices of a sector or a few: every file is cut several times. */
static int collector(struct io *io, void *argument)
{
    const struct collect_settings settings = { .keep = KEEP, .slice_bytes = 2048, .context = argument, .tell = tell };

    return collect_run(io, SCENE_ROOT, &settings, NULL);
}

static enum collect_pace pace(void *context) { return ((struct told *)context)->save_runs ? COLLECT_WAITS : COLLECT_LOOKS; }

static bool is_spared(void *context, const uint8_t save_id[16])
{
    uint8_t spared[16];

    scene_save_id(((struct told *)context)->spared, spared);
    return memcmp(save_id, spared, sizeof(spared)) == 0;
}

static int collector_between_saves(struct io *io, void *argument)
{
    static const struct collect_between between = { .pace = pace, .is_spared = is_spared };
    const struct collect_settings settings = { .keep = KEEP, .slice_bytes = 2048, .context = argument, .tell = tell,
                                               .between = &between };

    return collect_run(io, SCENE_ROOT, &settings, NULL);
}

struct run {
    uint64_t seed;
    const struct sim_fault *fault;
    sim_look *look;
    void *context;
    bool between_saves;
    uint64_t spared;
    struct told told;       /* out */
    uint64_t ops;
    int result;
};

/* On `disk`, which is taken over; the disk afterwards, as programs see it. */
static struct sim_disk *collect_once(const struct fixture *fixture, struct sim_disk *disk, struct run *run)
{
    struct sim_settings settings = fixture->settings.world;
    struct sim_party party;
    struct sim_world *world;

    settings.seed = run->seed;
    world = sim_world_create(&settings, disk);
    if (run->fault)
        sim_world_fault(world, run->fault);
    sim_world_observe(world, run->look, run->context);
    run->told = (struct told){ .spared = run->spared };
    sim_party_start(&party, world, "gc", run->between_saves ? collector_between_saves : collector, &run->told);
    sim_parties_run(world, &party, 1);
    run->ops = sim_io_ops(party.inner);
    run->result = party.done ? party.result : -EINTR;
    disk = sim_disk_clone(sim_world_disk(world));
    cr_expect_null(sim_world_violation(world), "%s", sim_world_violation(world));
    sim_party_end(&party);
    sim_world_destroy(world);
    return disk;
}

Test(collect, keeps_the_newest_and_removes_the_rest_whatever_the_order_of_completions)
{
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct run run = { .seed = seed };
        struct sim_disk *after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);

        cr_assert_eq(run.result, 0);
        cr_assert(is_collected(&fixture, after), "%s", broken(&fixture, after));
        cr_assert_eq(run.told.kept, KEEP);
        cr_assert_eq(run.told.removed, CHECKPOINTS - KEEP);
        cr_assert_eq(run.told.swept, 1);
        cr_assert_eq(run.told.left + run.told.failed, 0);
        sim_disk_destroy(after);
    }
    fixture_deinit(&fixture);
}

/* Files that the manifest does not list: one stays with what it lies in, whatever else is collected. */
Test(collect, checkpoint_with_a_file_of_somebody_else_keeps_it)
{
    struct fixture fixture;
    struct sim_disk *after;
    uint32_t directory, file;
    struct run run = { .seed = 1 };

    fixture_init(&fixture, SIM_STRICT);
    cr_assert_eq(sim_disk_walk(fixture.disk, SIM_ROOT, SCENE_ROOT "/c1", &directory), 0);
    cr_assert_eq(sim_disk_make(fixture.disk, directory, "tokenizer.json", false, &file), 0);
    sim_disk_sync_all(fixture.disk);
    after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_assert_eq(run.result, 0);
    cr_assert(!is_absent(tree_at(after, SCENE_ROOT "/c1/tokenizer.json")), "it was deleted");
    cr_assert_eq(run.told.left, 1);
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
}

/* A save replaces c1 between two looks of the collector: what it then renames is not what it looked at. */
struct replacing { unsigned looks, at; };

static void replacing_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct sim_disk *disk = sim_world_disk(world);
    struct replacing *replacing = context;
    uint32_t root;

    if ((seen->kind != OP_OPEN && seen->kind != OP_LIST && seen->kind != OP_STAT) || replacing->looks++ != replacing->at)
        return;
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, SCENE_ROOT, &root), 0);
    if (sim_disk_rename(disk, root, "c1", root, "replaced", RENAME_PLAIN) == 0)
        cr_assert_eq(sim_disk_rename(disk, root, "c4", root, "c1", RENAME_PLAIN), 0);
}

Test(collect, what_was_published_between_two_looks_stays)
{
    struct replacing replacing = { .at = 0 };
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    do {
        struct run run = { .seed = 1, .look = replacing_look, .context = &replacing };
        struct sim_disk *after;

        replacing.looks = 0;
        after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
        cr_assert(digest_equal(tree_of(after, "c1"), fixture.trees[3]) || digest_equal(tree_of(after, "c4"), fixture.trees[3]),
                  "replaced after look %u: the newest is gone", replacing.at);
        sim_disk_destroy(after);
    } while (++replacing.at < replacing.looks);
    cr_assert_geq(replacing.at, 50, "only %u looks", replacing.at);
    fixture_deinit(&fixture);
}

/* Another rank of a dead attempt begins anew, in the same directory, between two looks: from then on it lives. */
struct reviving { unsigned looks, at; bool lives; char hidden[300]; };

static void reviving_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct reviving *reviving = context;
    char part[400];
    struct io *writer;
    uint32_t inode;

    if ((seen->kind != OP_OPEN && seen->kind != OP_LIST && seen->kind != OP_STAT) || reviving->looks++ != reviving->at)
        return;
    snprintf(part, sizeof(part), "%s/tspool.part-00001", reviving->hidden);
    if (sim_disk_walk(sim_world_disk(world), SIM_ROOT, part, &inode))
        return; /* it has been taken down already */
    writer = sim_io_create(world, "writer", 1);
    handle_object(sim_io_of(writer), sim_open(writer, part))->locked = true;
    io_destroy(writer); /* the handle, and the lock, stay */
    reviving->lives = true;
}

Test(collect, attempt_that_begins_anew_between_two_looks_stays)
{
    struct reviving reviving = { .at = 0 };
    struct fixture fixture;
    uint8_t save_id[16];
    char hidden[HIDDEN_NAME_MAX + 1];
    unsigned lived = 0;

    fixture_init(&fixture, SIM_STRICT);
    scene_save_id(77, save_id);
    hidden_name_make("dead", save_id, hidden);
    snprintf(reviving.hidden, sizeof(reviving.hidden), SCENE_ROOT "/%s", hidden);
    do {
        struct run run = { .seed = 1, .look = reviving_look, .context = &reviving };
        struct sim_disk *after;

        reviving.looks = 0;
        reviving.lives = false;
        after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
        cr_assert(!reviving.lives || digest_equal(tree_at(after, reviving.hidden), tree_at(fixture.disk, reviving.hidden)),
                  "begun after look %u: it was collected", reviving.at);
        lived += reviving.lives;
        reviving.at++;
        sim_disk_destroy(after);
    } while (reviving.lives); /* until it comes too late: it has been taken down */
    cr_assert_geq(lived, 10, "only %u lived", lived);
    fixture_deinit(&fixture);
}

/* Cut at each operation -------------------------------------------------------------------------------------------------- */

static void next_run_finishes(const struct fixture *fixture, struct sim_disk *disk, const char *when, uint64_t ordinal)
{
    struct run run = { .seed = ordinal };
    struct sim_disk *after = collect_once(fixture, disk, &run);

    cr_expect_eq(run.result, 0);
    cr_expect(is_collected(fixture, after), "%s at op %" PRIu64 ": the next run leaves %zu names; %s", when, ordinal,
              names_in_root(after), broken(fixture, after) ? broken(fixture, after) : "");
    sim_disk_destroy(after);
}

static void each_op_is_cut(enum sim_action action, int error, bool between_saves, const char *when)
{
    struct run whole = { .seed = 1, .between_saves = between_saves };
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    sim_disk_destroy(collect_once(&fixture, sim_disk_clone(fixture.disk), &whole));
    cr_assert_geq(whole.ops, 200);
    for (uint64_t ordinal = 1; ordinal <= whole.ops; ordinal++) {
        struct sim_fault fault = { .on = { .process = "gc" }, .ordinal = ordinal, .action = action, .error = error };
        struct run run = { .seed = 1, .fault = &fault, .between_saves = between_saves };
        struct sim_disk *after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);

        cr_expect_null(broken(&fixture, after), "%s at op %" PRIu64 ": %s", when, ordinal, broken(&fixture, after));
        next_run_finishes(&fixture, after, when, ordinal);
    }
    fixture_deinit(&fixture);
}

Test(collect, killed_at_each_operation_is_finished_by_the_next_run) { each_op_is_cut(SIM_KILL, 0, false, "killed"); }
Test(collect, killed_at_each_operation_between_saves_is_finished_too) { each_op_is_cut(SIM_KILL, 0, true, "killed"); }
Test(collect, error_of_each_operation_between_saves_is_mended_too) { each_op_is_cut(SIM_FAIL, EIO, true, "EIO"); }
Test(collect, error_of_each_operation_is_mended_by_the_next_run) { each_op_is_cut(SIM_FAIL, EIO, false, "EIO"); }
Test(collect, late_error_of_each_operation_is_mended_by_the_next_run) { each_op_is_cut(SIM_FAIL_AFTER, EIO, false, "late EIO"); }

/* Power cuts ------------------------------------------------------------------------------------------------------------- */

#define KNOWN_MAX 8192u

struct cuts {
    const struct fixture *fixture;
    struct digest *known;       /* roots that were found, and judged, before */
    size_t known_count;
    uint64_t visits, prefixes;
    const char *wrong;
    char when[600];
};

static bool is_known(struct cuts *cuts, struct digest root)
{
    for (size_t i = 0; i < cuts->known_count; i++)
        if (digest_equal(cuts->known[i], root))
            return true;
    if (cuts->known_count < KNOWN_MAX)
        cuts->known[cuts->known_count++] = root;
    return false;
}

static bool cut_judge(const struct sim_disk *disk, const bool *kept, void *context)
{
    struct cuts *cuts = context;
    struct sim_disk *found = sim_disk_power_cut(disk, kept);

    cuts->visits++;
    if (is_known(cuts, tree_at(found, SCENE_ROOT))) {
        sim_disk_destroy(found);
        return true;
    }
    cuts->wrong = broken(cuts->fixture, found);
    if (cuts->wrong)
        sim_disk_destroy(found);
    else
        next_run_finishes(cuts->fixture, found, "power cut", cuts->prefixes);
    return !cuts->wrong;
}

static void cut_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct power_cuts each = { .exhaustive = 8, .samples = 30, .seed = seen->number };
    struct cuts *cuts = context;
    struct sim_disk *disk;

    if (cuts->wrong || (seen->kind != OP_RENAME && seen->kind != OP_UNLINK && seen->kind != OP_TRUNCATE && seen->kind != OP_FSYNC))
        return;
    cuts->prefixes++;
    disk = sim_world_disk_in_flight(world);
    power_cuts_each(disk, &each, cut_judge, cuts);
    sim_disk_destroy(disk);
    if (cuts->wrong)
        snprintf(cuts->when, sizeof(cuts->when), "after %s %s", op_kind_name(seen->kind), seen->path);
}

static void every_cut_keeps_what_is_kept(enum sim_ordering ordering, bool between_saves)
{
    struct fixture fixture;
    struct cuts cuts = { .fixture = &fixture, .known = calloc(KNOWN_MAX, sizeof(struct digest)) };
    struct run run = { .seed = 3, .look = cut_look, .context = &cuts, .between_saves = between_saves };

    fixture_init(&fixture, ordering);
    sim_disk_destroy(collect_once(&fixture, sim_disk_clone(fixture.disk), &run));
    cr_expect_null(cuts.wrong, "%s: %s", cuts.when, cuts.wrong);
    cr_expect_geq(cuts.prefixes, 50);
    cr_expect_geq(cuts.visits, 15 * cuts.prefixes, "%" PRIu64 " of %" PRIu64, cuts.visits, cuts.prefixes);
    cr_expect_geq(cuts.known_count, 80, "%zu", cuts.known_count); /* each slice is synced: a journal leaves little to lose */
    free(cuts.known);
    fixture_deinit(&fixture);
}

Test(collect, every_power_cut_leaves_what_is_kept_and_nothing_half) { every_cut_keeps_what_is_kept(SIM_STRICT, false); }
Test(collect, every_power_cut_of_a_journal_too) { every_cut_keeps_what_is_kept(SIM_JOURNAL, false); }
Test(collect, every_power_cut_between_saves_too) { every_cut_keeps_what_is_kept(SIM_STRICT, true); }

/* The enumerator must find a collector that deletes before its rename is durable. */
Test(collect, deleting_before_the_root_is_synced_is_caught)
{
    struct sim_fault forgets = { .on = { "gc", OP_FSYNC, SCENE_ROOT }, .action = SIM_LIE };
    struct fixture fixture;
    struct cuts cuts = { .fixture = &fixture, .known = calloc(KNOWN_MAX, sizeof(struct digest)) };
    struct run run = { .seed = 3, .look = cut_look, .context = &cuts, .fault = &forgets };

    fixture_init(&fixture, SIM_STRICT);
    sim_disk_destroy(collect_once(&fixture, sim_disk_clone(fixture.disk), &run));
    cr_expect_not_null(cuts.wrong, "a planted bug survives");
    free(cuts.known);
    fixture_deinit(&fixture);
}

/* Beside others ---------------------------------------------------------------------------------------------------------- */

static void instant_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct cuts *cuts = context;

    if (!cuts->wrong && (seen->kind == OP_RENAME || seen->kind == OP_UNLINK || seen->kind == OP_TRUNCATE))
        cuts->wrong = broken(cuts->fixture, sim_world_disk(world));
}

Test(collect, two_at_once_remove_what_one_would_and_neither_fails)
{
    unsigned shared = 0;
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct sim_settings settings = fixture.settings.world;
        struct cuts cuts = { .fixture = &fixture };
        struct sim_party parties[2];
        struct told told[2] = { { 0 } };
        struct sim_world *world;

        settings.seed = seed;
        world = sim_world_create(&settings, sim_disk_clone(fixture.disk));
        sim_world_observe(world, instant_look, &cuts);
        for (unsigned i = 0; i < 2; i++)
            sim_party_start(&parties[i], world, "gc", collector, &told[i]);
        sim_parties_run(world, parties, 2);
        for (unsigned i = 0; i < 2; i++) {
            cr_expect(parties[i].done && parties[i].result == 0, "seed %" PRIu64 ": collector %u: %d", seed, i, parties[i].result);
            cr_expect_eq(told[i].failed, 0, "seed %" PRIu64, seed);
        }
        cr_expect_null(cuts.wrong, "seed %" PRIu64 ": %s", seed, cuts.wrong);
        cr_expect(is_collected(&fixture, sim_world_disk(world)), "seed %" PRIu64 ": %zu names left", seed,
                  names_in_root(sim_world_disk(world)));
        shared += told[0].removed + told[0].swept > 0 && told[1].removed + told[1].swept > 0;
        for (unsigned i = 0; i < 2; i++)
            sim_party_end(&parties[i]);
        sim_world_destroy(world);
    }
    cr_expect_gt(shared, 10, "the two hardly met: %u of 200", shared);
    fixture_deinit(&fixture);
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A collector comes after some steps of a save. Both must end as if they had been alone. */
struct meeting {
    struct scene scene;
    struct sim_party party;
    struct told told;
    bool started, at_publish, is_publishing; /* at_publish: the collector comes when the part record was dropped */
    uint64_t start_after, steps;
};

static void record_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct meeting *meeting = context;

    meeting->is_publishing |= seen->kind == OP_UNLINK && strstr(seen->path, "/tspool.part-");
}

static bool is_time(struct meeting *meeting)
{
    bool in_line = meeting->at_publish ? meeting->is_publishing : meeting->steps++ >= meeting->start_after;

    return !meeting->started && (in_line || writer_finished(meeting->scene.writer));
}

static bool meeting_step(struct meeting *meeting)
{
    if (is_time(meeting)) {
        meeting->started = true;
        sim_party_start(&meeting->party, meeting->scene.world, "gc", collector, &meeting->told);
    }
    return sim_party_scene_step(&meeting->party, &meeting->scene);
}

struct saved { const char *name; bool replace, at_publish, lockless; struct digest expected; };

static void meet(const struct fixture *fixture, const struct saved *saved, uint64_t seed)
{
    const struct sim_fault lockless = { .on = { "gc", OP_LOCK, NULL }, .action = SIM_FAIL, .error = EBADF };
    const struct sim_fault slow = { .on = { "writer", OP_FSYNC, SCENE_ROOT "/.c?.????????????????????????????????" },
                                    .action = SIM_DELAY, .delay_ns = 300000000000 };
    struct scene_settings settings = fixture->settings;
    struct meeting meeting = { .start_after = seed % 160, .at_publish = saved->at_publish };
    struct scene *scene = &meeting.scene;
    struct sim_disk *disk;
    struct sim_save *save;
    uint8_t save_id[16];

    settings.world.seed = seed;
    /* As on a real disk what is just being begun is young; a publish may be old: a directory's sync can take minutes. */
    settings.world.mtime_ns = saved->at_publish ? 0 : now_ns();
    settings.faults = saved->lockless ? &lockless : &slow;
    settings.fault_count = saved->at_publish || saved->lockless;
    settings.look = record_look;
    settings.look_context = &meeting;
    scene_save_id(fixture->later.seed, save_id);
    scene_init(scene, &settings, sim_disk_clone(fixture->disk));
    cr_assert(scene_run_until_ready(scene));
    save = sim_trainer_begin(&scene->trainer, &fixture->later, saved->name, saved->replace, save_id, 0);
    while (!sim_save_is_answered(save) && meeting_step(&meeting))
        ;
    cr_expect_eq(save->published, 1, "seed %" PRIu64 ": %u failed, %u unknown: %s", seed, save->failed, save->unknown,
                 save->failure.cause);
    sim_trainer_close(&scene->trainer, false);
    while (meeting_step(&meeting))
        ;
    disk = sim_world_disk(scene->world);
    cr_expect(meeting.started && meeting.party.done && meeting.party.result == 0, "seed %" PRIu64, seed);
    cr_expect_eq(meeting.told.failed, 0, "seed %" PRIu64, seed);
    cr_expect(digest_equal(tree_of(disk, saved->name), saved->expected), "seed %" PRIu64 ": what was saved is not there", seed);
    cr_expect(digest_equal(tree_of(disk, "c4"), fixture->trees[3]), "seed %" PRIu64 ": the newest but one is gone", seed);
    cr_expect_null(scene_violation(scene), "seed %" PRIu64 ": %s", seed, scene_violation(scene));
    sim_party_end(&meeting.party);
    scene_deinit(scene);
}

static void meets(struct saved saved, uint64_t seeds)
{
    struct fixture fixture;
    struct sim_disk *after;

    fixture_init(&fixture, SIM_STRICT);
    after = scene_commit(&fixture.settings, sim_disk_clone(fixture.disk), &fixture.later, saved.name, saved.replace);
    cr_assert_not_null(after);
    saved.expected = tree_of(after, saved.name);
    sim_disk_destroy(after);
    for (uint64_t seed = 0; seed < seeds; seed++)
        meet(&fixture, &saved, seed);
    fixture_deinit(&fixture);
}

Test(collect, beside_a_save_loses_nothing_of_it) { meets((struct saved){ "c5" }, 600); }
Test(collect, beside_a_save_that_replaces_what_is_to_go_loses_nothing_of_it) { meets((struct saved){ "c1", true }, 600); }
Test(collect, beside_a_publish_that_takes_minutes_loses_nothing_of_it) { meets((struct saved){ "c5", false, true }, 12); }
Test(collect, beside_a_replacing_publish_that_takes_minutes_loses_nothing_of_it) { meets((struct saved){ "c1", true, true }, 12); }

/* As for a read-only descriptor on NFS: whoever cannot ask for the lock must not take its holder for dead. */
Test(collect, that_cannot_ask_for_locks_loses_nothing_of_a_save) { meets((struct saved){ "c5", .lockless = true }, 200); }

/* The name was looked at, and while it is being taken away a whole save comes and goes: it gets its name back. */
Test(collect, gives_back_a_name_that_was_published_anew_under_its_hands)
{
    const struct sim_fault slow = { .on = { "gc", OP_RENAME, SCENE_ROOT "/c1" }, .action = SIM_DELAY, .delay_ns = 300000000000 };
    struct scene_settings settings;
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    settings = fixture.settings;
    settings.faults = &slow;
    settings.fault_count = 1;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct meeting meeting = { .start_after = 0 };
        struct scene *scene = &meeting.scene;
        struct sim_disk *disk;
        struct sim_save *save;
        uint8_t save_id[16];

        settings.world.seed = seed;
        scene_save_id(fixture.later.seed, save_id);
        scene_init(scene, &settings, sim_disk_clone(fixture.disk));
        cr_assert(scene_run_until_ready(scene));
        while (!sim_fault_hits(scene->world, 0))
            cr_assert(meeting_step(&meeting));
        save = sim_trainer_begin(&scene->trainer, &fixture.later, "c1", true, save_id, 0);
        while (!sim_save_is_answered(save) && meeting_step(&meeting))
            ;
        cr_expect_eq(save->published, 1, "seed %" PRIu64, seed);
        sim_trainer_close(&scene->trainer, false);
        while (meeting_step(&meeting))
            ;
        disk = sim_world_disk(scene->world);
        cr_expect(meeting.party.done && meeting.party.result == 0 && meeting.told.failed == 0, "seed %" PRIu64, seed);
        cr_expect(!is_absent(tree_of(disk, "c1")) && !digest_equal(tree_of(disk, "c1"), fixture.trees[0]),
                  "seed %" PRIu64 ": the new one lost its name", seed);
        cr_expect_eq(names_in_root(disk), KEEP + 2, "seed %" PRIu64 ": the new one, those that are kept, the notes", seed);
        sim_party_end(&meeting.party);
        scene_deinit(scene);
    }
    fixture_deinit(&fixture);
}

/* Between saves ---------------------------------------------------------------------------------------------------------- */

Test(collect, between_saves_leaves_dead_attempts_to_others)
{
    struct run run = { .seed = 1, .between_saves = true };
    struct fixture fixture;
    struct sim_disk *after;

    fixture_init(&fixture, SIM_STRICT);
    after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_expect_eq(run.result, 0);
    cr_expect_null(broken(&fixture, after));
    cr_expect_eq(run.told.removed, CHECKPOINTS - KEEP);
    cr_expect_eq(run.told.swept, 0);
    cr_expect_eq(names_in_root(after), KEEP + 2, "%zu names", names_in_root(after));
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
}

/* A run went back to an earlier step: in the order of latest what it saves is the oldest. */
Test(collect, between_saves_spares_what_was_saved_last_whatever_its_step)
{
    struct run run = { .seed = 1, .between_saves = true };
    struct fixture fixture;
    struct sim_disk *after;
    struct digest tree;

    fixture_init(&fixture, SIM_STRICT);
    strcpy(fixture.later.step, "0");
    fixture.disk = scene_commit(&fixture.settings, fixture.disk, &fixture.later, "back", false);
    cr_assert_not_null(fixture.disk);
    tree = tree_of(fixture.disk, "back");
    after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_expect_eq(run.result, 0);
    cr_expect(digest_equal(tree_of(after, "back"), tree), "what was just saved is gone");
    cr_expect_null(broken(&fixture, after));
    cr_expect_eq(run.told.removed, CHECKPOINTS - KEEP);
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
}

/* A clock that was set back: neither step nor sequence tells that it is the newest, but its writer knows. */
Test(collect, between_saves_spares_what_its_writer_saved)
{
    struct run run = { .seed = 1, .between_saves = true, .spared = 1 };
    struct fixture fixture;
    struct sim_disk *after;

    fixture_init(&fixture, SIM_STRICT);
    after = collect_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_expect_eq(run.result, 0);
    cr_expect(digest_equal(tree_of(after, "c1"), fixture.trees[0]));
    cr_expect(is_absent(tree_of(after, "c2")));
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
}

/* A save begins after some steps of the collection. */
struct interrupted {
    struct scene scene;
    struct sim_party party;
    struct told told;
    unsigned before, during, after; /* what was changed on disk by the collection */
    bool is_over;
};

static void interrupted_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct interrupted *interrupted = context;

    if (seen->io != interrupted->party.inner || (seen->kind != OP_RENAME && seen->kind != OP_UNLINK && seen->kind != OP_TRUNCATE))
        return;
    interrupted->during += interrupted->told.save_runs;
    interrupted->before += !interrupted->told.save_runs && !interrupted->is_over;
    interrupted->after += interrupted->is_over;
}

static void save_run(struct interrupted *interrupted, const struct fixture *fixture)
{
    struct scene *scene = &interrupted->scene;
    struct sim_save *save;
    uint8_t save_id[16];

    scene_save_id(fixture->later.seed, save_id);
    interrupted->told.save_runs = true;
    save = sim_trainer_begin(&scene->trainer, &fixture->later, "c5", false, save_id, 0);
    while (!sim_save_is_answered(save) && sim_party_scene_step(&interrupted->party, scene))
        ;
    cr_expect_eq(save->published, 1);
    interrupted->told.save_runs = false;
    interrupted->is_over = true;
}

Test(collect, save_that_begins_stops_the_deleting_until_it_is_published)
{
    unsigned met = 0;
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT);
    for (uint64_t seed = 0; seed < 150; seed++) {
        struct interrupted interrupted = { .is_over = false };
        struct scene_settings settings = fixture.settings;
        struct scene *scene = &interrupted.scene;

        settings.world.seed = seed;
        settings.look = interrupted_look;
        settings.look_context = &interrupted;
        scene_init(scene, &settings, sim_disk_clone(fixture.disk));
        cr_assert(scene_run_until_ready(scene));
        sim_party_start(&interrupted.party, scene->world, "gc", collector_between_saves, &interrupted.told);
        for (uint64_t step = 0; step < 2 * seed && sim_party_scene_step(&interrupted.party, scene); step++)
            ;
        save_run(&interrupted, &fixture);
        sim_trainer_close(&scene->trainer, false);
        while (sim_party_scene_step(&interrupted.party, scene))
            ;
        cr_expect_leq(interrupted.during, 1, "seed %" PRIu64 ": %u changes beside a save", seed, interrupted.during);
        cr_expect(interrupted.party.done && interrupted.party.result == 0, "seed %" PRIu64, seed);
        cr_expect_eq(interrupted.told.removed, CHECKPOINTS - KEEP, "seed %" PRIu64, seed);
        cr_expect_null(broken(&fixture, sim_world_disk(scene->world)), "seed %" PRIu64, seed);
        cr_expect_null(scene_violation(scene), "seed %" PRIu64 ": %s", seed, scene_violation(scene));
        met += interrupted.before && interrupted.after;
        sim_party_end(&interrupted.party);
        scene_deinit(scene);
    }
    cr_expect_geq(met, 20, "only %u were met in the middle", met);
    fixture_deinit(&fixture);
}
