/* sim/recovery.c - what a dead writer left is looked at and swept while each operation of that fails, or is given up, in turn:
 * what is said then is true of the disk, nothing of others is lost, and whoever looks again comes to the end that the first
 * would have come to.
 */
#include "sim_io.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <save/recovery.h>
#include <string.h>

#define ROOT "/root"
#define NAME "step"
#define RANK 1u

/* How manifests begin. What the ranks' have in common ends before the sequence. */
static const char ours[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0101\",\n\"sequence\":7";
static const char merged[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0101\",\n\"sequence\":9, of all";
static const char other[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0202\",\n\"sequence\":5, older";
static const uint8_t save_id[16] = { 1, 1 };
static char hidden[HIDDEN_NAME_MAX + 1];

#define MODEL "model.safetensors"
#define OURS_OF_RANKS "shard-00002-model-00001-of-00001.safetensors"
#define PART "tspool.part-00002"
#define PART_OF_ANOTHER "tspool.part-00001"

struct put { bool is_hidden; const char *name, *text; }; /* name NULL: the directory alone; text NULL: an empty file */
struct left_behind {
    const char *what;
    uint32_t world;
    enum recovery_mode mode;
    bool name_is_file;
    struct put puts[6];
    enum recovery_outcome outcome;      /* when nothing fails */
    const char *kept;                   /* a text that must stand somewhere at the end, whatever fails */
    bool was_never_begun;               /* no BEGIN was sent: nobody knows how its manifest would begin */
    bool is_unlisted;                   /* nobody says which files it should have */
};

static const struct left_behind scenes[] = {
    { "nothing", 1, 0, false, { }, RECOVERY_ABSENT, NULL },
    { "half a save", 1, 0, false, { { true, MODEL PARTIAL_SUFFIX, "half" }, { true, "tspool.part-00001", NULL } },
      RECOVERY_ABSENT, NULL },
    { "a whole one without its name", 1, 0, false, { { true, MANIFEST_NAME, ours }, { true, MODEL, "bytes" } },
      RECOVERY_PUBLISHED, NULL },
    { "a whole one without its name, of which a file has a short one", 1, 0, false,
      { { true, MANIFEST_NAME, ours }, { true, "a", "bytes" } }, RECOVERY_PUBLISHED, NULL },
    { "one whose record is still there", 1, 0, false,
      { { true, MANIFEST_NAME, ours }, { true, "tspool.part-00001", NULL } }, RECOVERY_ABSENT, NULL },
    { "one of which nobody says what it should have", 1, 0, false, { { true, MANIFEST_NAME, ours }, { true, MODEL, "bytes" } },
      RECOVERY_ABSENT, NULL, false, true },
    { "a whole one, and somebody's directory in its place", 1, 0, false,
      { { true, MANIFEST_NAME, ours }, { true, MODEL, "bytes" }, { false, "notes.txt", "theirs" } }, RECOVERY_ABSENT, "theirs" },
    { "one that was never begun, and another", 1, 0, false, { { false, MANIFEST_NAME, other } }, RECOVERY_ABSENT, other, true },
    { "a published one", 1, 0, false, { { false, MANIFEST_NAME, ours } }, RECOVERY_PUBLISHED, ours },
    { "a published one, and what it replaced", 1, 0, false,
      { { false, MANIFEST_NAME, ours }, { true, MANIFEST_NAME, other }, { true, MODEL, "old" } }, RECOVERY_PUBLISHED, ours },
    { "one that would have replaced another", 1, 0, false,
      { { false, MANIFEST_NAME, other }, { true, MANIFEST_NAME, ours }, { true, MODEL, "bytes" } }, RECOVERY_ABSENT, other },
    { "another that was put aside", 1, 0, false, { { true, MANIFEST_NAME, other } }, RECOVERY_ABSENT, other },
    { "a file of that name", 1, 0, true, { { true, MODEL PARTIAL_SUFFIX, "half" } }, RECOVERY_ABSENT, NULL },
    { "half a save of a writer that may live", 1, RECOVERY_LOOKS, false, { { true, MODEL PARTIAL_SUFFIX, "half" } },
      RECOVERY_HELD, "half" },
    { "half a part", 2, 0, false, { { true, OURS_OF_RANKS PARTIAL_SUFFIX, "half" }, { true, PART, NULL },
                                    { true, PART_OF_ANOTHER ".json", other } }, RECOVERY_ABSENT, other },
    { "half a part alone", 2, 0, false, { { true, OURS_OF_RANKS PARTIAL_SUFFIX, "half" }, { true, PART, NULL } },
      RECOVERY_ABSENT, NULL },
    { "a part that is whole", 2, 0, false,
      { { true, OURS_OF_RANKS, "bytes" }, { true, PART, NULL }, { true, PART ".json", ours } }, RECOVERY_DURABLE, ours },
    { "a part of an earlier trainer", 2, 0, false, { { true, PART, NULL }, { true, PART ".json", other } }, RECOVERY_ABSENT,
      other },
    { "parts that were published", 2, 0, false, { { false, MANIFEST_NAME, merged }, { true, PART_OF_ANOTHER, NULL } },
      RECOVERY_PUBLISHED, merged },
};
#define EACH_SCENE(scene) \
    for (const struct left_behind *scene = scenes; scene < scenes + sizeof(scenes) / sizeof(*scenes); scene++)

/* Disks ----------------------------------------------------------------------------------------------------------------- */

static void put(struct sim_disk *disk, uint32_t root, const struct put *put)
{
    const char *name = put->is_hidden ? hidden : NAME;
    uint32_t directory, file;

    if (sim_disk_find(disk, root, name, &directory))
        cr_assert_eq(sim_disk_make(disk, root, name, true, &directory), 0);
    cr_assert_eq(sim_disk_make(disk, directory, put->name, false, &file), 0);
    if (put->text)
        cr_assert_eq(sim_disk_write(disk, file, 0, put->text, strlen(put->text)), (int64_t)strlen(put->text));
}

static struct sim_disk *disk_of(const struct left_behind *scene)
{
    struct sim_disk *disk = sim_disk_create(&(struct sim_disk_settings){ .ordering = SIM_STRICT });
    uint32_t root, file;

    hidden_name_make(NAME, save_id, hidden);
    cr_assert_eq(sim_disk_make(disk, SIM_ROOT, &ROOT[1], true, &root), 0);
    for (const struct put *each = scene->puts; each->name; each++)
        put(disk, root, each);
    if (scene->name_is_file)
        cr_assert_eq(sim_disk_make(disk, root, NAME, false, &file), 0);
    sim_disk_sync_all(disk);
    return disk;
}

static bool has_text(const struct sim_disk *disk, uint32_t inode, const char *text)
{
    struct io_list list;
    char bytes[100];
    bool has = false;

    if (!sim_disk_is_directory(disk, inode))
        return sim_disk_read(disk, inode, 0, bytes, sizeof(bytes)) == (int64_t)strlen(text) &&
               memcmp(bytes, text, strlen(text)) == 0;
    cr_assert_eq(sim_disk_list(disk, inode, &list), 0);
    for (size_t i = 0; i < list.count && !has; i++) {
        uint32_t below;

        cr_assert_eq(sim_disk_find(disk, inode, list.names[i], &below), 0);
        has = has_text(disk, below, text);
    }
    io_list_free(&list);
    return has;
}

static bool stands(const struct sim_disk *disk, const char *directory, const char *name, const char *text)
{
    char path[HIDDEN_NAME_MAX + 100];
    uint32_t inode;

    snprintf(path, sizeof(path), ROOT "/%s/%s", directory, name);
    return sim_disk_walk(disk, SIM_ROOT, path, &inode) == 0 && (!text || has_text(disk, inode, text));
}

/* Recovering ------------------------------------------------------------------------------------------------------------ */

struct run {
    const struct sim_fault *fault;
    uint64_t stop_before;               /* that operation it is told to stop; 0: never */
    uint64_t ops;                       /* out */
    unsigned handles;                   /* out: left open */
    struct recovery recovery;           /* out */
};

static bool two_files(const void *owner, const struct io_list *names) { return names->count == 2; }

/* On `disk`, which is taken over; the disk afterwards. */
static struct sim_disk *recover(const struct left_behind *scene, struct sim_disk *disk, struct run *run)
{
    struct sim_world *world = sim_world_create(&(struct sim_settings){ .seed = 3, .short_reads_per_mille = 300 }, disk);
    struct io *io = sim_io_create(world, "trainer", 4);
    struct recovery *recovery = &run->recovery;
    struct completion completion;
    int root = sim_open(io, ROOT);
    unsigned handles = sim_handles(io);

    if (run->fault)
        sim_world_fault(world, run->fault);
    *recovery = (struct recovery){ .are_all_there = scene->is_unlisted ? NULL : two_files };
    cr_assert_eq(recovery_start(recovery, io, scene->mode, root, NAME, save_id, scene->world > 1 ? RANK : 0, scene->world,
                                scene->was_never_begun ? NULL : ours, scene->was_never_begun ? 0 : sizeof(ours) - 1), 0);
    while (recovery->in_flight) {
        if (sim_io_ops(io) == run->stop_before) {
            recovery_stop(recovery, io);
            recovery_stop(recovery, io); /* no more than once */
        }
        cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
        recovery_step(recovery, io, completion.result);
    }
    recovery_deinit(recovery);
    run->ops = sim_io_ops(io);
    run->handles = sim_handles(io) - handles;
    cr_assert_null(sim_world_violation(world), "%s", sim_world_violation(world));
    disk = sim_disk_clone(sim_world_disk(world));
    io_destroy(io);
    sim_world_destroy(world);
    return disk;
}

/* NULL when what it says is so. */
static const char *lie(const struct left_behind *scene, const struct sim_disk *disk, const struct recovery *recovery)
{
    const char *published = scene->world > 1 ? merged : ours;

    if (scene->kept) {
        uint32_t root;

        cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, ROOT, &root), 0);
        if (!has_text(disk, root, scene->kept))
            return "what must be kept is gone";
    }
    switch (recovery->outcome) {
    case RECOVERY_PUBLISHED:
        return stands(disk, NAME, MANIFEST_NAME, published) ? NULL : "PUBLISHED, and it does not stand there";
    case RECOVERY_DURABLE:
        return stands(disk, hidden, PART ".json", ours) ? NULL : "DURABLE, and the part does not stand there";
    case RECOVERY_ABSENT:
        if (stands(disk, NAME, MANIFEST_NAME, published))
            return "ABSENT, and it stands there";
        return !recovery->left && scene->world == 1 && stands(disk, hidden, "", NULL) ? "swept, and it is still there" : NULL;
    case RECOVERY_UNCLEAR:
    case RECOVERY_HELD:
        return NULL;
    default:
        return "it says nothing";
    }
}

static void one_fails(const struct left_behind *scene, uint64_t ordinal, enum sim_action action, int error)
{
    struct sim_fault fault = { .ordinal = ordinal, .action = action, .error = error };
    struct run run = { .fault = &fault }, again = { .fault = NULL };
    struct sim_disk *disk = recover(scene, disk_of(scene), &run);
    const char *wrong = lie(scene, disk, &run.recovery);

    cr_expect_null(wrong, "%s, op %" PRIu64 " %s: %s", scene->what, ordinal, strerrorname_np(error), wrong);
    disk = recover(scene, disk, &again);
    wrong = lie(scene, disk, &again.recovery);
    cr_expect_null(wrong, "%s, again after op %" PRIu64 " %s: %s", scene->what, ordinal, strerrorname_np(error), wrong);
    cr_expect(again.recovery.outcome == scene->outcome ||
              (run.recovery.outcome == RECOVERY_ABSENT && again.recovery.outcome == RECOVERY_ABSENT),
              "%s, again after op %" PRIu64 " %s: outcome %d", scene->what, ordinal, strerrorname_np(error),
              again.recovery.outcome);
    sim_disk_destroy(disk);
}

Test(recovering, says_what_is_there)
{
    EACH_SCENE(scene) {
        struct run run = { .fault = NULL };
        struct sim_disk *disk = recover(scene, disk_of(scene), &run);
        const char *wrong = lie(scene, disk, &run.recovery);

        cr_expect_eq(run.recovery.outcome, scene->outcome, "%s: outcome %d", scene->what, run.recovery.outcome);
        cr_expect_null(wrong, "%s: %s", scene->what, wrong);
        cr_expect_eq(run.handles, 0, "%s: handles are left open", scene->what);
        sim_disk_destroy(disk);
    }
}

static void each_fails(enum sim_action action, int error)
{
    EACH_SCENE(scene) {
        struct run whole = { .fault = NULL };

        sim_disk_destroy(recover(scene, disk_of(scene), &whole));
        for (uint64_t ordinal = 1; ordinal <= whole.ops; ordinal++)
            one_fails(scene, ordinal, action, error);
    }
}

Test(recovering, each_operation_may_fail) { each_fails(SIM_FAIL, EIO); }
Test(recovering, each_operation_may_fail_after_its_effect) { each_fails(SIM_FAIL_AFTER, EIO); }
Test(recovering, each_operation_may_be_refused) { each_fails(SIM_FAIL, EWOULDBLOCK); }

Test(recovering, stops_before_each_operation_and_leaves_nothing_open)
{
    EACH_SCENE(scene) {
        struct run whole = { .fault = NULL };

        sim_disk_destroy(recover(scene, disk_of(scene), &whole));
        for (uint64_t ordinal = 1; ordinal <= whole.ops; ordinal++) {
            struct run run = { .stop_before = ordinal }, again = { .fault = NULL };
            struct sim_disk *disk = recover(scene, disk_of(scene), &run);
            const char *wrong;

            cr_expect_eq(run.handles, 0, "%s, op %" PRIu64 ": handles are left open", scene->what, ordinal);
            disk = recover(scene, disk, &again);
            wrong = lie(scene, disk, &again.recovery);
            cr_expect_null(wrong, "%s, again after a stop at op %" PRIu64 ": %s", scene->what, ordinal, wrong);
            sim_disk_destroy(disk);
        }
    }
}
