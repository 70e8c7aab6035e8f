/* sim/ranks.c - several ranks in the simulated world: parts that are durable when their writer says so, and a publisher that is
 * cut at each of its operations, by a kill, an error or a power cut in every way, and runs beside another. Whatever happened, the
 * name is as it was or has the whole of the new checkpoint, and to publish again succeeds and leaves nothing else behind.
 */
#include "crash_watch.h"
#include "sim_party.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <publish/publish.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 2u
#define NAME "c"
#define PATH SCENE_ROOT "/" NAME
#define SEED 9u
#define OLD_SEED 8u
#define NOTES "notes.txt"
#define GOOD_MAX 64u

struct fixture {
    struct scene_settings settings;
    struct sim_state parts[RANKS], old;
    bool replaces;
    uint8_t save_id[16];
    struct sim_disk *disk;              /* all parts on it, all of it durable */
    struct digest old_tree, notes;
    struct digest good[GOOD_MAX];       /* trees that the reader has found to be the new one: it takes its time */
    unsigned good_count;
};

static void settings_init(struct scene_settings *settings, enum sim_ordering ordering, bool exchange_refused)
{
    memset(settings, 0, sizeof(*settings));
    settings->world = (struct sim_settings){ .memory_align = 512, .offset_align = 512 };
    settings->world.disk = (struct sim_disk_settings){ .ordering = ordering, .exchange_refused = exchange_refused };
}

/* Lets one rank save, on `disk`, which is taken over; the disk afterwards, or NULL when its part did not become durable. */
static struct sim_disk *part_save(const struct fixture *fixture, struct sim_disk *disk, uint32_t rank, sim_look *look,
                                  void *context)
{
    struct scene_settings settings = fixture->settings;
    struct sim_disk *after = NULL;
    struct sim_save *save;
    struct scene scene;

    settings.rank = rank;
    settings.world_size = RANKS;
    settings.look = look;
    settings.look_context = context;
    scene_init(&scene, &settings, disk);
    cr_assert(scene_run_until_ready(&scene));
    save = sim_trainer_begin(&scene.trainer, &fixture->parts[rank], NAME, fixture->replaces, fixture->save_id, 0);
    if (scene_run_until_answered(&scene, save) && save->durable && scene_close(&scene))
        after = sim_disk_clone(sim_world_disk(scene.world));
    cr_expect_null(scene_violation(&scene), "%s", scene_violation(&scene));
    scene_deinit(&scene);
    return after;
}

static void notes_add(struct fixture *fixture)
{
    uint32_t directory, file;

    cr_assert_eq(sim_disk_walk(fixture->disk, SIM_ROOT, PATH, &directory), 0);
    cr_assert_eq(sim_disk_make(fixture->disk, directory, NOTES, false, &file), 0);
    cr_assert_eq(sim_disk_write(fixture->disk, file, 0, "mine", 4), 4);
    sim_disk_sync_all(fixture->disk);
    fixture->notes = tree_at(fixture->disk, PATH "/" NOTES);
}

/* With `replaces`, an older checkpoint has the name, and somebody's file lies in it. */
static void fixture_init(struct fixture *fixture, enum sim_ordering ordering, bool replaces, bool exchange_refused,
                         uint32_t ranks)
{
    memset(fixture, 0, sizeof(*fixture));
    settings_init(&fixture->settings, ordering, exchange_refused);
    fixture->replaces = replaces;
    scene_save_id(SEED, fixture->save_id);
    sim_state_init(&fixture->old, OLD_SEED, 0);
    if (replaces) {
        cr_assert_not_null(fixture->disk = scene_commit(&fixture->settings, NULL, &fixture->old, NAME, false));
        notes_add(fixture);
        fixture->old_tree = tree_at(fixture->disk, PATH);
    } else {
        fixture->disk = scene_disk(&fixture->settings.world.disk);
    }
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        sim_state_init_part(&fixture->parts[rank], SEED, 0, rank, RANKS);
        fixture->parts[rank].replace = replaces;
        if (rank < ranks)
            cr_assert_not_null(fixture->disk = part_save(fixture, fixture->disk, rank, NULL, NULL));
    }
    sim_disk_sync_all(fixture->disk);
}

static void fixture_deinit(struct fixture *fixture)
{
    sim_disk_destroy(fixture->disk);
    for (uint32_t rank = 0; rank < RANKS; rank++)
        sim_state_deinit(&fixture->parts[rank]);
    sim_state_deinit(&fixture->old);
}

/* Publishing ----------------------------------------------------------------------------------------------------------------- */

struct run {
    uint64_t seed;
    const struct sim_fault *fault;
    sim_look *look;
    void *context;
    uint64_t ops;                       /* out */
    int result;
    struct tspool_failure failure;
};

struct order { const struct fixture *fixture; struct tspool_failure *failure; };

static int publisher(struct io *io, void *argument)
{
    const struct order *order = argument;

    return publish_on(io, SCENE_ROOT, NAME, order->fixture->save_id, RANKS, order->failure);
}

/* On `disk`, which is taken over; the disk afterwards, as programs see it. */
static struct sim_disk *publish_once(const struct fixture *fixture, struct sim_disk *disk, struct run *run)
{
    struct sim_settings settings = fixture->settings.world;
    struct order order = { fixture, &run->failure };
    struct sim_party party;
    struct sim_world *world;

    run->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    settings.seed = run->seed;
    world = sim_world_create(&settings, disk);
    if (run->fault)
        sim_world_fault(world, run->fault);
    sim_world_observe(world, run->look, run->context);
    sim_party_start(&party, world, "publisher", publisher, &order);
    sim_parties_run(world, &party, 1);
    run->ops = sim_io_ops(party.inner);
    run->result = party.done ? party.result : -EINTR;
    disk = sim_disk_clone(sim_world_disk(world));
    cr_expect_null(sim_world_violation(world), "%s", sim_world_violation(world));
    sim_party_end(&party);
    sim_world_destroy(world);
    return disk;
}

static bool is_absent(struct digest tree)
{
    struct digest none = { { 0 } };

    return digest_equal(tree, none);
}

static bool is_known_good(const struct fixture *fixture, struct digest tree)
{
    for (unsigned i = 0; i < fixture->good_count; i++)
        if (digest_equal(fixture->good[i], tree))
            return true;
    return false;
}

/* The new one, whole; `why` says what is wrong with it. */
static bool is_new(struct fixture *fixture, const struct sim_disk *disk, char *why, size_t why_size)
{
    struct digest tree = tree_at(disk, PATH);

    if (is_known_good(fixture, tree))
        return true;
    if (disk_load(disk, PATH, &fixture->parts[0], why, why_size) != 0)
        return false;
    snprintf(why, why_size, "somebody else's file is lost");
    if (fixture->replaces && !digest_equal(tree_at(disk, PATH "/" NOTES), fixture->notes))
        return false;
    if (fixture->good_count < GOOD_MAX)
        fixture->good[fixture->good_count++] = tree;
    return true;
}

/* Where directories cannot be exchanged the name is missing for a moment, and whoever opens next puts it back. */
static bool may_be_absent(const struct fixture *fixture)
{
    return !fixture->replaces || fixture->settings.world.disk.exchange_refused;
}

/* NULL when the name is as it was or has the new one; once that was acknowledged, only the new one. */
static const char *broken(struct fixture *fixture, const struct sim_disk *disk, bool acknowledged)
{
    static char why[300];
    struct digest tree = tree_at(disk, PATH);

    if (is_absent(tree))
        return acknowledged ? "success was said, and nothing is there" : may_be_absent(fixture) ? NULL : "the old one is gone";
    if (fixture->replaces && digest_equal(tree, fixture->old_tree))
        return acknowledged ? "success was said, and the old one is there" : NULL;
    return is_new(fixture, disk, why, sizeof(why)) ? NULL : why;
}

/* `disk` is taken over. What was moved aside for want of an exchange is left to gc when its mover was cut. */
static const char *again_fails(struct fixture *fixture, struct sim_disk *disk, uint64_t seed)
{
    static char why[600];
    struct run run = { .seed = seed };
    size_t most = fixture->settings.world.disk.exchange_refused ? 2 : 1;

    disk = publish_once(fixture, disk, &run);
    why[0] = '\0';
    if (run.result != 0)
        snprintf(why, sizeof(why), "to publish again fails: %.500s", run.failure.message);
    else if (is_new(fixture, disk, why, sizeof(why)))
        why[0] = '\0';
    if (!why[0] && names_in_root(disk) > most)
        snprintf(why, sizeof(why), "%zu names are left in the root", names_in_root(disk));
    sim_disk_destroy(disk);
    return why[0] ? why : NULL;
}

Test(ranks, parts_are_published_whatever_the_order_of_completions)
{
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT, false, false, RANKS);
    cr_assert(is_absent(tree_at(fixture.disk, PATH)));
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct run run = { .seed = seed };
        struct sim_disk *after = publish_once(&fixture, sim_disk_clone(fixture.disk), &run);

        cr_assert_eq(run.result, 0, "%s", run.failure.message);
        cr_assert_null(broken(&fixture, after, true), "%s", broken(&fixture, after, true));
        cr_assert_eq(names_in_root(after), 1);
        cr_assert_null(again_fails(&fixture, after, seed));
    }
    fixture_deinit(&fixture);
}

Test(ranks, a_part_that_is_missing_is_named_and_nothing_is_changed)
{
    struct fixture fixture;
    struct run run = { .seed = 1 };
    struct sim_disk *after;
    struct digest before;

    fixture_init(&fixture, SIM_STRICT, false, false, RANKS - 1);
    before = tree_at(fixture.disk, SCENE_ROOT);
    after = publish_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_assert_eq(run.result, -ENOENT);
    cr_assert(strstr(run.failure.cause, "rank 1 of 2"), "%s", run.failure.message);
    cr_assert(digest_equal(tree_at(after, SCENE_ROOT), before));
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
}

/* Parts that do not fit ------------------------------------------------------------------------------------------------------ */

#define MODEL_OF_LAST "shard-00002-model-00001-of-00003.safetensors"
#define PART_OF_LAST "tspool.part-00002.json"

/* Of the hidden directory of the save with that id. */
static uint32_t inode_in(const struct sim_disk *disk, const uint8_t save_id[16], const char *name)
{
    char hidden[HIDDEN_NAME_MAX + 1], path[HIDDEN_NAME_MAX + 100];
    uint32_t inode;

    hidden_name_make(NAME, save_id, hidden);
    snprintf(path, sizeof(path), SCENE_ROOT "/%s/%s", hidden, name);
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, path, &inode), 0, "%s", path);
    return inode;
}

/* What `spoil` did to the disk is found by whoever publishes; nothing is changed by that. */
static struct run publish_spoilt(void (*spoil)(struct fixture *fixture))
{
    struct fixture fixture;
    struct run run = { .seed = 1 };
    struct sim_disk *after;
    struct digest before;

    fixture_init(&fixture, SIM_STRICT, false, false, RANKS);
    spoil(&fixture);
    before = tree_at(fixture.disk, SCENE_ROOT);
    after = publish_once(&fixture, sim_disk_clone(fixture.disk), &run);
    cr_assert(digest_equal(tree_at(after, SCENE_ROOT), before), "something was changed");
    sim_disk_destroy(after);
    fixture_deinit(&fixture);
    return run;
}

/* Rank 1 saved under another id too, and its part of that lies where the first should: of the same sizes, digests and all. */
static void part_of_another_save(struct fixture *fixture)
{
    uint8_t ours[16];
    uint32_t directory, other, theirs;

    memcpy(ours, fixture->save_id, sizeof(ours));
    scene_save_id(SEED + 1, fixture->save_id);
    fixture->disk = part_save(fixture, fixture->disk, RANKS - 1, NULL, NULL);
    cr_assert_not_null(fixture->disk);
    directory = inode_in(fixture->disk, ours, "");
    other = inode_in(fixture->disk, fixture->save_id, "");
    theirs = inode_in(fixture->disk, fixture->save_id, PART_OF_LAST);
    cr_assert_eq(sim_disk_unlink(fixture->disk, directory, PART_OF_LAST, false), 0);
    cr_assert_eq(sim_disk_link(fixture->disk, theirs, directory, PART_OF_LAST), 0);
    cr_assert_eq(sim_disk_unlink(fixture->disk, other, PART_OF_LAST, false), 0);
    memcpy(fixture->save_id, ours, sizeof(ours));
}

Test(ranks, part_of_another_save_is_refused)
{
    struct run run = publish_spoilt(part_of_another_save);

    cr_expect_eq(run.result, -EINVAL);
    cr_expect(strstr(run.failure.message, "two save ids are mixed") && strstr(run.failure.message, PART_OF_LAST), "%s",
              run.failure.message);
}

static void model_cut(struct fixture *fixture)
{
    uint32_t inode = inode_in(fixture->disk, fixture->save_id, MODEL_OF_LAST);
    struct io_stat stat;

    sim_disk_stat(fixture->disk, inode, &stat);
    cr_assert_eq(sim_disk_resize(fixture->disk, inode, stat.size - 1), 0);
}

Test(ranks, file_of_another_size_than_its_part_says_is_refused)
{
    struct run run = publish_spoilt(model_cut);

    cr_expect_eq(run.result, -EBADMSG);
    cr_expect(strstr(run.failure.message, MODEL_OF_LAST) && strstr(run.failure.message, "rank 1 says"), "%s",
              run.failure.message);
}

/* One letter of a name: what stands there is a header all the same. */
static void header_changed(struct fixture *fixture)
{
    uint32_t inode = inode_in(fixture->disk, fixture->save_id, MODEL_OF_LAST);
    char header[400], *name;

    cr_assert_gt(sim_disk_read(fixture->disk, inode, 8, header, sizeof(header) - 1), 0);
    header[sizeof(header) - 1] = '\0';
    cr_assert_not_null(name = strstr(header, "{\"dtype\""));
    name -= 3; /* the last letter of what comes before ":{ */
    *name = *name == 'z' ? 'y' : 'z';
    cr_assert_eq(sim_disk_write(fixture->disk, inode, 8 + (uint64_t)(name - header), name, 1), 1);
}

Test(ranks, header_that_is_not_the_one_of_its_part_is_refused)
{
    struct run run = publish_spoilt(header_changed);

    cr_expect_eq(run.result, -EBADMSG);
    cr_expect(strstr(run.failure.message, MODEL_OF_LAST) && strstr(run.failure.message, "digest"), "%s", run.failure.message);
}

/* Rank 1 saved once more, something else of the same shapes. */
static void objects_differ(struct fixture *fixture)
{
    sim_state_deinit(&fixture->parts[RANKS - 1]);
    sim_state_init_part(&fixture->parts[RANKS - 1], SEED + 1, 0, RANKS - 1, RANKS);
    memcpy(fixture->parts[RANKS - 1].step, fixture->parts[0].step, sizeof(fixture->parts[0].step));
    cr_assert_not_null(fixture->disk = part_save(fixture, fixture->disk, RANKS - 1, NULL, NULL));
}

Test(ranks, different_objects_of_one_name_are_refused)
{
    struct run run = publish_spoilt(objects_differ);

    cr_expect_eq(run.result, -EINVAL);
    cr_expect(strstr(run.failure.message, "ranks 0 and 1 saved different objects as"), "%s", run.failure.message);
}

/* Ranks that are saved again ------------------------------------------------------------------------------------------------- */

struct attempt_seen {
    uint64_t ops_ready, ops;            /* of its writer: until READY, and in all */
    struct sim_save save;
};

/* The last rank's writer meets one fault, on `disk`, which is taken over; the disk afterwards, locks gone. */
static struct sim_disk *part_disturbed(const struct fixture *fixture, struct sim_disk *disk, const struct sim_fault *fault,
                                       struct attempt_seen *seen)
{
    struct scene_settings settings = fixture->settings;
    struct sim_save *save;
    struct scene scene;

    settings.rank = RANKS - 1;
    settings.world_size = RANKS;
    settings.faults = fault;
    settings.fault_count = fault != NULL;
    scene_init(&scene, &settings, disk);
    cr_assert(scene_run_until_ready(&scene));
    seen->ops_ready = sim_io_ops(scene.writer_io);
    save = sim_trainer_begin(&scene.trainer, &fixture->parts[RANKS - 1], NAME, fixture->replaces, fixture->save_id, 0);
    if (scene_run_until_answered(&scene, save))
        scene_close(&scene);
    while (scene_step(&scene))
        ;
    seen->save = *save;
    seen->ops = scene.writer ? sim_io_ops(scene.writer_io) : 0;
    cr_expect_null(sim_world_violation(scene.world), "%s", sim_world_violation(scene.world));
    cr_expect_str_empty(scene.trainer.violation, "%s", scene.trainer.violation);
    disk = sim_disk_clone(sim_world_disk(scene.world));
    scene_deinit(&scene);
    return disk;
}

/* NULL when the last rank saves on `disk`, which is taken over, and then all is published. */
static const char *whole_after(struct fixture *fixture, struct sim_disk *disk, uint64_t seed)
{
    struct run run = { .seed = seed };
    const char *wrong;

    fixture->settings.world.seed = seed; /* what the first attempt drew names its files */
    if (!(disk = part_save(fixture, disk, RANKS - 1, NULL, NULL)))
        return "the rank cannot save again";
    disk = publish_once(fixture, disk, &run);
    wrong = run.result == 0 ? broken(fixture, disk, true) : "to publish fails";
    if (!wrong && names_in_root(disk) != 1)
        wrong = "something is left in the root";
    sim_disk_destroy(disk);
    return wrong;
}

/* What the first attempt left, whole or in pieces, is no obstacle to the second, and neither touches the other rank's files.
 * Before it: nothing of this rank, or (`again`) a part that is durable already. */
static void each_op_of_a_part(bool again, enum sim_action action, int error)
{
    struct attempt_seen whole, seen;
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT, false, false, again ? RANKS : RANKS - 1);
    sim_disk_destroy(part_disturbed(&fixture, sim_disk_clone(fixture.disk), NULL, &whole));
    cr_assert_eq(whole.save.durable, 1, "%s: %s", whole.save.failure.path, whole.save.failure.cause);
    cr_assert_geq(whole.ops - whole.ops_ready, 60);
    for (uint64_t ordinal = whole.ops_ready + 1; ordinal <= whole.ops; ordinal++) {
        struct sim_fault fault = { .on = { .process = "writer" }, .ordinal = ordinal, .action = action, .error = error };
        struct sim_disk *after;
        const char *wrong;

        fixture.settings.world.seed = 0;
        after = part_disturbed(&fixture, sim_disk_clone(fixture.disk), &fault, &seen);
        wrong = whole_after(&fixture, after, ordinal);
        cr_expect_null(wrong, "op %" PRIu64 ": %s (%u durable; %s %s: %s)", ordinal, wrong, seen.save.durable,
                       seen.save.failure.operation, seen.save.failure.path, seen.save.failure.cause);
    }
    fixture_deinit(&fixture);
}

Test(ranks, rank_whose_writer_is_killed_at_each_operation_is_saved_again) { each_op_of_a_part(false, SIM_KILL, 0); }
Test(ranks, rank_that_saves_over_its_part_and_is_killed_is_saved_again) { each_op_of_a_part(true, SIM_KILL, 0); }
Test(ranks, rank_of_which_each_operation_fails_is_saved_again) { each_op_of_a_part(false, SIM_FAIL, EIO); }
Test(ranks, rank_of_which_each_operation_fails_late_is_saved_again) { each_op_of_a_part(true, SIM_FAIL_AFTER, EIO); }
Test(ranks, rank_that_saves_over_its_part_and_fails_is_saved_again) { each_op_of_a_part(true, SIM_FAIL, EIO); }

/* Cut at each operation ------------------------------------------------------------------------------------------------------ */

static void each_op_is_cut(bool replaces, bool exchange_refused, enum sim_action action, int error)
{
    struct run whole = { .seed = 1 };
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT, replaces, exchange_refused, RANKS);
    sim_disk_destroy(publish_once(&fixture, sim_disk_clone(fixture.disk), &whole));
    cr_assert_geq(whole.ops, 60);
    for (uint64_t ordinal = 1; ordinal <= whole.ops; ordinal++) {
        struct sim_fault fault = { .on = { .process = "publisher" }, .ordinal = ordinal, .action = action, .error = error };
        struct run run = { .seed = 1, .fault = &fault };
        struct sim_disk *after = publish_once(&fixture, sim_disk_clone(fixture.disk), &run);
        const char *wrong = broken(&fixture, after, run.result == 0);

        cr_expect_null(wrong, "op %" PRIu64 ": %s (%s)", ordinal, wrong, run.failure.message);
        wrong = again_fails(&fixture, after, ordinal);
        cr_expect_null(wrong, "op %" PRIu64 ": %s (before: %s)", ordinal, wrong, run.failure.message);
    }
    fixture_deinit(&fixture);
}

Test(ranks, publisher_killed_at_each_operation_is_followed_by_one_that_succeeds) { each_op_is_cut(false, false, SIM_KILL, 0); }
Test(ranks, replacing_publisher_killed_at_each_operation_too) { each_op_is_cut(true, false, SIM_KILL, 0); }
Test(ranks, replacing_publisher_without_exchange_killed_at_each_operation_too) { each_op_is_cut(true, true, SIM_KILL, 0); }
Test(ranks, error_of_each_operation_is_mended_by_publishing_again) { each_op_is_cut(false, false, SIM_FAIL, EIO); }
Test(ranks, late_error_of_each_operation_is_mended_by_publishing_again) { each_op_is_cut(true, false, SIM_FAIL_AFTER, EIO); }

/* Power cuts ----------------------------------------------------------------------------------------------------------------- */

#define KNOWN_MAX 8192u

struct cuts {
    struct fixture *fixture;
    struct digest *known;               /* roots that were found, and judged, before */
    size_t known_count;
    uint64_t visits, prefixes;
    bool acknowledged, part_only;       /* part_only: a rank is still saving, and the last one's part is not there yet */
    bool first_saves;                   /* and it is the first */
    const char *wrong;
    char when[900];
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

/* While a part is being written: what was cut is refused with the rank's name, or it is whole. */
static const char *part_judge(const struct cuts *cuts, struct sim_disk *found)
{
    static char why[600];
    struct run run = { .seed = cuts->prefixes };
    struct sim_disk *after = publish_once(cuts->fixture, found, &run);
    bool is_last_missing = run.result == -ENOENT && strstr(run.failure.cause, "rank 1 of 2");
    bool is_refused = cuts->first_saves ? run.result == -ENOENT : is_last_missing;

    why[0] = '\0';
    if (run.result == 0 && is_new(cuts->fixture, after, why, sizeof(why)))
        why[0] = '\0';
    else if (cuts->first_saves && cuts->acknowledged && is_last_missing)
        why[0] = '\0'; /* the first one's is there */
    else if (run.result != 0 && (cuts->acknowledged || !is_refused))
        snprintf(why, sizeof(why), "%s: %.500s", cuts->acknowledged ? "DURABLE was said" : "half a part", run.failure.message);
    sim_disk_destroy(after);
    return why[0] ? why : NULL;
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
    if (cuts->part_only) {
        cuts->wrong = part_judge(cuts, found);
        return !cuts->wrong;
    }
    cuts->wrong = broken(cuts->fixture, found, cuts->acknowledged);
    if (cuts->wrong)
        sim_disk_destroy(found);
    else
        cuts->wrong = again_fails(cuts->fixture, found, cuts->prefixes);
    return !cuts->wrong;
}

static void cut_here(struct cuts *cuts, const struct sim_disk *disk, uint64_t seed)
{
    struct power_cuts each = { .exhaustive = 8, .samples = 40, .seed = seed };

    cuts->prefixes++;
    power_cuts_each(disk, &each, cut_judge, cuts);
}

static void cut_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct cuts *cuts = context;
    bool is_said = cuts->part_only && seen->kind == OP_SEND;
    struct sim_disk *disk;

    if (cuts->wrong || (seen->kind != OP_RENAME && seen->kind != OP_UNLINK && seen->kind != OP_FSYNC && !is_said))
        return;
    if (is_said) { /* what was acknowledged: judged anew, with what is known forgotten */
        struct message message;

        if (message_decode(seen->bytes, seen->size, &message) || message.kind != MESSAGE_DURABLE)
            return;
        cuts->acknowledged = true;
        cuts->known_count = 0;
    }
    disk = sim_world_disk_in_flight(world);
    cut_here(cuts, disk, seen->number);
    sim_disk_destroy(disk);
    if (cuts->wrong)
        snprintf(cuts->when, sizeof(cuts->when), "after %s %s", op_kind_name(seen->kind), seen->path);
}

static void cuts_init(struct cuts *cuts, struct fixture *fixture)
{
    *cuts = (struct cuts){ .fixture = fixture, .known = calloc(KNOWN_MAX, sizeof(struct digest)) };
}

/* Publishes under the eyes of the judge, and asks it once more when success was said. */
static void publish_watched(struct cuts *cuts, const struct sim_fault *fault)
{
    struct run run = { .seed = 3, .look = cut_look, .context = cuts, .fault = fault };
    struct sim_disk *after = publish_once(cuts->fixture, sim_disk_clone(cuts->fixture->disk), &run);

    cr_expect_eq(run.result, 0, "%s", run.failure.message);
    cuts->acknowledged = true;
    cuts->known_count = 0;
    if (!cuts->wrong)
        cut_here(cuts, after, 77);
    sim_disk_destroy(after);
}

static void every_cut_is_survived(enum sim_ordering ordering, bool replaces, bool exchange_refused)
{
    struct fixture fixture;
    struct cuts cuts;

    fixture_init(&fixture, ordering, replaces, exchange_refused, RANKS);
    cuts_init(&cuts, &fixture);
    publish_watched(&cuts, NULL);
    cr_expect_null(cuts.wrong, "%s: %s", cuts.when, cuts.wrong);
    cr_expect_geq(cuts.prefixes, 10);
    cr_expect_geq(cuts.visits, 2 * cuts.prefixes, "%" PRIu64 " of %" PRIu64, cuts.visits, cuts.prefixes);
    free(cuts.known);
    fixture_deinit(&fixture);
}

Test(ranks, every_power_cut_of_a_publish_leaves_nothing_or_the_whole) { every_cut_is_survived(SIM_STRICT, false, false); }
Test(ranks, every_power_cut_of_a_publish_on_a_journal_too) { every_cut_is_survived(SIM_JOURNAL, false, false); }
Test(ranks, every_power_cut_of_a_replace_leaves_the_old_or_the_new) { every_cut_is_survived(SIM_STRICT, true, false); }
Test(ranks, every_power_cut_of_a_replace_on_a_journal_too) { every_cut_is_survived(SIM_JOURNAL, true, false); }

/* The judge must find a publisher that forgets a sync. */
Test(ranks, a_publisher_that_forgets_a_sync_is_caught)
{
    const struct sim_fault planted[] = {
        { .on = { "publisher", OP_FSYNC, SCENE_ROOT }, .action = SIM_LIE },
        { .on = { "publisher", OP_FSYNC, SCENE_ROOT "/." NAME ".*/tspool.manifest.json*" }, .action = SIM_LIE },
        { .on = { "publisher", OP_FSYNC, SCENE_ROOT "/." NAME ".*" }, .action = SIM_LIE },
    };

    for (size_t i = 0; i < sizeof(planted) / sizeof(*planted); i++) {
        struct fixture fixture;
        struct cuts cuts;

        fixture_init(&fixture, SIM_STRICT, false, false, RANKS);
        cuts_init(&cuts, &fixture);
        publish_watched(&cuts, &planted[i]);
        cr_expect_not_null(cuts.wrong, "planted bug %zu survives", i);
        free(cuts.known);
        fixture_deinit(&fixture);
    }
}

/* One rank's writer, the ranks before it done, watched by the same judge: DURABLE means that after any power cut its part is
 * there, and that to publish succeeds when it was the last. */
static const char *part_watched(enum sim_ordering ordering, uint32_t rank, const struct sim_fault *fault, struct cuts *cuts)
{
    struct fixture fixture;
    struct sim_disk *after;

    fixture_init(&fixture, ordering, false, false, rank);
    cuts_init(cuts, &fixture);
    cuts->part_only = true;
    cuts->first_saves = rank == 0;
    fixture.settings.faults = fault;
    fixture.settings.fault_count = fault ? 1 : 0;
    after = part_save(&fixture, sim_disk_clone(fixture.disk), rank, cut_look, cuts);
    cr_expect(cuts->wrong || after, "the part did not become durable");
    sim_disk_destroy(after);
    free(cuts->known);
    fixture_deinit(&fixture);
    return cuts->wrong;
}

static void a_part_survives(enum sim_ordering ordering, uint32_t rank)
{
    struct cuts cuts;
    const char *wrong = part_watched(ordering, rank, NULL, &cuts);

    cr_expect_null(wrong, "%s: %s", cuts.when, wrong);
    cr_expect(cuts.acknowledged, "the judge never saw DURABLE");
    cr_expect_geq(cuts.prefixes, 15);
}

Test(ranks, a_part_is_whole_on_the_disk_when_its_writer_says_so) { a_part_survives(SIM_STRICT, RANKS - 1); }
Test(ranks, a_part_is_whole_on_a_journal_too) { a_part_survives(SIM_JOURNAL, RANKS - 1); }
Test(ranks, the_first_part_is_there_with_its_directory_when_its_writer_says_so) { a_part_survives(SIM_STRICT, 0); }

Test(ranks, a_writer_of_a_part_that_forgets_a_sync_is_caught)
{
    const struct { uint32_t rank; struct sim_fault fault; } planted[] = {
        { 0, { .on = { "writer", OP_FSYNC, SCENE_ROOT }, .action = SIM_LIE } }, /* for the ranks after it that is durable */
        { 1, { .on = { "writer", OP_FSYNC, SCENE_ROOT "/." NAME ".*" }, .ordinal = 0, .action = SIM_LIE } },
        { 1, { .on = { "writer", OP_FSYNC, SCENE_ROOT "/." NAME ".*/shard-00002-*" }, .action = SIM_LIE } },
    };
    struct cuts cuts;

    for (size_t i = 0; i < sizeof(planted) / sizeof(*planted); i++)
        cr_expect_not_null(part_watched(SIM_STRICT, planted[i].rank, &planted[i].fault, &cuts), "planted bug %zu survives", i);
}

/* Beside others -------------------------------------------------------------------------------------------------------------- */

static void instant_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct cuts *cuts = context;

    if (!cuts->wrong && (seen->kind == OP_RENAME || seen->kind == OP_UNLINK))
        cuts->wrong = broken(cuts->fixture, sim_world_disk(world), cuts->acknowledged);
}

static void several_at_once(bool replaces)
{
    enum { PUBLISHERS = 3 };
    struct fixture fixture;

    fixture_init(&fixture, SIM_STRICT, replaces, false, RANKS);
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct sim_settings settings = fixture.settings.world;
        struct tspool_failure failures[PUBLISHERS] = { TSPOOL_FAILURE_INIT, TSPOOL_FAILURE_INIT, TSPOOL_FAILURE_INIT };
        struct sim_party parties[PUBLISHERS];
        struct order orders[PUBLISHERS];
        struct cuts cuts = { .fixture = &fixture };
        struct sim_world *world;

        settings.seed = seed;
        world = sim_world_create(&settings, sim_disk_clone(fixture.disk));
        sim_world_observe(world, instant_look, &cuts);
        for (unsigned i = 0; i < PUBLISHERS; i++) {
            orders[i] = (struct order){ &fixture, &failures[i] };
            sim_party_start(&parties[i], world, "publisher", publisher, &orders[i]);
        }
        sim_parties_run(world, parties, PUBLISHERS);
        for (unsigned i = 0; i < PUBLISHERS; i++)
            cr_expect(parties[i].done && parties[i].result == 0, "seed %" PRIu64 ": %s", seed, failures[i].message);
        cr_expect_null(cuts.wrong, "seed %" PRIu64 ": %s", seed, cuts.wrong);
        cr_expect_null(broken(&fixture, sim_world_disk(world), true), "seed %" PRIu64, seed);
        cr_expect_eq(names_in_root(sim_world_disk(world)), 1, "seed %" PRIu64, seed);
        for (unsigned i = 0; i < PUBLISHERS; i++)
            sim_party_end(&parties[i]);
        sim_world_destroy(world);
    }
    fixture_deinit(&fixture);
}

Test(ranks, several_publishers_at_once_all_succeed) { several_at_once(false); }
Test(ranks, several_replacing_publishers_do_not_exchange_back) { several_at_once(true); }

/* One publisher sleeps after each of its operations in turn, while another does all of it; where the first sleeps with the lock
 * the other gives up. */
static bool slow_one_succeeds(struct fixture *fixture, unsigned awake_for, struct tspool_failure failures[2])
{
    struct order orders[2] = { { fixture, &failures[0] }, { fixture, &failures[1] } };
    struct sim_world *world = sim_world_create(&fixture->settings.world, sim_disk_clone(fixture->disk));
    struct completion completion, kept = { 0 };
    struct sim_party parties[2];
    bool slept, whole;
    struct io *io;

    for (unsigned i = 0; i < 2; i++)
        sim_party_start(&parties[i], world, "publisher", publisher, &orders[i]);
    while (!kept.op && !parties[0].done && sim_world_next(world, IO_FOREVER, &io, &completion) > 0) {
        if (io != parties[0].inner)
            sim_party_take(&parties[1], &completion);
        else if (awake_for-- > 0)
            sim_party_take(&parties[0], &completion);
        else
            kept = completion;
    }
    slept = kept.op != NULL;
    sim_parties_run(world, &parties[1], 1);
    if (slept)
        sim_party_take(&parties[0], &kept);
    sim_parties_run(world, parties, 2);
    whole = parties[0].result == 0 && (parties[1].result == 0 || parties[1].result == -EAGAIN) &&
            !broken(fixture, sim_world_disk(world), true) && names_in_root(sim_world_disk(world)) == 1;
    cr_expect(whole, "%s %s", failures[0].message, failures[1].message);
    for (unsigned i = 0; i < 2; i++)
        sim_party_end(&parties[i]);
    sim_world_destroy(world);
    return slept;
}

static void one_sleeps(bool replaces, bool exchange_refused)
{
    struct fixture fixture;
    bool slept = true;

    fixture_init(&fixture, SIM_STRICT, replaces, exchange_refused, RANKS);
    for (unsigned awake_for = 0; slept; awake_for++) {
        struct tspool_failure failures[2] = { TSPOOL_FAILURE_INIT, TSPOOL_FAILURE_INIT };

        slept = slow_one_succeeds(&fixture, awake_for, failures);
        cr_assert(slept || awake_for > 10);
    }
    fixture_deinit(&fixture);
}

Test(ranks, a_publisher_that_sleeps_while_another_publishes_succeeds_too) { one_sleeps(false, false); }
Test(ranks, one_that_sleeps_while_another_replaces_does_not_take_the_old_one_for_the_parts) { one_sleeps(true, false); }
Test(ranks, one_that_sleeps_while_another_replaces_without_exchange_too) { one_sleeps(true, true); }
