/* sim/late.c - a rank among others: the directory that it shares goes away under its feet, since another rank failed and removed
 * it or somebody published it; an earlier attempt's record stands in its way, goes, or is held. It begins again, or says why not.
 */
#include "crash_watch.h"

#include <base/names.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define NAME "c"
#define PART "tspool.part-00002"
#define WORLD 2u

struct mischief {
    enum op_kind on;                    /* done when the writer's op of this kind */
    const char *name;                   /* on a file of this name (NULL: on the directory) */
    int result;                         /* has this result; 0: any success */
    unsigned times;                     /* how often at most */
    void (*act)(struct sim_disk *disk, uint32_t root);
    unsigned done;
};

static struct sim_state state;
static uint8_t save_id[16];
static char hidden[HIDDEN_NAME_MAX + 1];

static void setup(void)
{
    sim_state_init_part(&state, 5, 0, 1, WORLD);
    scene_save_id(7, save_id);
    hidden_name_make(NAME, save_id, hidden);
}

static void teardown(void) { sim_state_deinit(&state); }

TestSuite(late, .init = setup, .fini = teardown);

static const struct scene_settings plain = { .world = { .memory_align = 512, .offset_align = 512 }, .rank = 1,
                                             .world_size = WORLD };

static uint32_t root_of(const struct sim_disk *disk)
{
    uint32_t root;

    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, SCENE_ROOT, &root), 0);
    return root;
}

static uint32_t shared_of(const struct sim_disk *disk, uint32_t root)
{
    uint32_t inode;

    cr_assert_eq(sim_disk_find(disk, root, hidden, &inode), 0);
    return inode;
}

static void mischief_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct mischief *mischief = context;
    const char *slash = strrchr(seen->path, '/'), *name = mischief->name ? mischief->name : hidden;
    bool is_result = mischief->result ? seen->result == mischief->result : seen->result >= 0;

    if (seen->kind != mischief->on || mischief->done == mischief->times || !is_result || !slash || strcmp(slash + 1, name) != 0)
        return;
    mischief->done++;
    mischief->act(sim_world_disk(world), root_of(sim_world_disk(world)));
}

/* What an earlier attempt of this rank left behind, and `more` beside it if it is not NULL. */
static struct sim_disk *disk_with_record(const char *more)
{
    struct sim_disk *disk = scene_disk(&plain.world.disk);
    uint32_t directory, file;

    cr_assert_eq(sim_disk_make(disk, root_of(disk), hidden, true, &directory), 0);
    cr_assert_eq(sim_disk_make(disk, directory, PART, false, &file), 0);
    if (more)
        cr_assert_eq(sim_disk_make(disk, directory, more, false, &file), 0);
    sim_disk_sync_all(disk);
    return disk;
}

/* `disk` is taken over; `fault` may be NULL. What became of the save; DURABLE says no more than what is there. */
static struct sim_save saved(struct sim_disk *disk, struct mischief *mischief, const struct sim_fault *fault)
{
    struct scene_settings settings = plain;
    struct sim_save *save, copy;
    struct scene scene;
    uint32_t found;

    settings.faults = fault;
    settings.fault_count = fault != NULL;
    settings.look = mischief ? mischief_look : NULL;
    settings.look_context = mischief;
    scene_init(&scene, &settings, disk);
    cr_assert(scene_run_until_ready(&scene));
    save = sim_trainer_begin(&scene.trainer, &state, NAME, false, save_id, 0);
    cr_assert(scene_run_until_answered(&scene, save) && scene_close(&scene));
    cr_assert_null(scene_violation(&scene), "%s", scene_violation(&scene));
    disk = sim_world_disk(scene.world);
    if (save->durable)
        cr_expect_eq(sim_disk_find(disk, shared_of(disk, root_of(disk)), PART ".json", &found), 0, "its part is not there");
    copy = *save;
    scene_deinit(&scene);
    return copy;
}

static void survives(struct sim_disk *disk, struct mischief mischief)
{
    struct sim_save save = saved(disk, &mischief, NULL);

    cr_expect_gt(mischief.done, 0, "it never came to that");
    cr_expect_eq(save.durable, 1, "%s %s: %s", save.failure.operation, save.failure.path, save.failure.cause);
}

/* The directory goes -------------------------------------------------------------------------------------------------- */

static void directory_remove(struct sim_disk *disk, uint32_t root) { cr_assert_eq(sim_disk_unlink(disk, root, hidden, true), 0); }

Test(late, directory_that_is_removed_before_it_is_opened_is_made_again)
{
    survives(NULL, (struct mischief){ .on = OP_MKDIR, .times = 3, .act = directory_remove });
}

Test(late, directory_that_is_removed_before_the_record_is_made_is_made_again)
{
    survives(NULL, (struct mischief){ .on = OP_OPEN, .times = 3, .act = directory_remove });
}

static void directory_publish(struct sim_disk *disk, uint32_t root)
{
    static unsigned number;
    char name[16];

    snprintf(name, sizeof(name), "published-%u", number++);
    cr_assert_eq(sim_disk_rename(disk, root, hidden, root, name, RENAME_PLAIN), 0);
}

Test(late, directory_that_is_renamed_before_the_record_is_locked_is_left)
{
    survives(NULL, (struct mischief){ .on = OP_OPEN, .name = PART, .times = 2, .act = directory_publish });
}

static void directory_replace(struct sim_disk *disk, uint32_t root)
{
    uint32_t other;

    directory_publish(disk, root);
    cr_assert_eq(sim_disk_make(disk, root, hidden, true, &other), 0);
}

Test(late, directory_of_that_name_that_is_another_by_now_is_taken_instead)
{
    survives(NULL, (struct mischief){ .on = OP_OPEN, .name = PART, .times = 2, .act = directory_replace });
}

Test(late, directory_that_goes_again_and_again_ends_the_save_with_advice)
{
    struct mischief mischief = { .on = OP_MKDIR, .times = 1000, .act = directory_remove };
    struct sim_save save = saved(NULL, &mischief, NULL);

    cr_expect(save.failed == 1 && save.failure.error == EBUSY, "%s", save.failure.cause);
    cr_expect(strstr(save.failure.cause, "again and again"), "%s", save.failure.cause);
    cr_expect_leq(mischief.done, 20);
}

/* An earlier attempt's record ----------------------------------------------------------------------------------------- */

static void record_remove(struct sim_disk *disk, uint32_t root)
{
    cr_assert_eq(sim_disk_unlink(disk, shared_of(disk, root), PART, false), 0);
}

Test(late, record_that_goes_before_it_is_opened_is_made_again)
{
    survives(disk_with_record(NULL), (struct mischief){ .on = OP_OPEN, .name = PART, .result = -EEXIST, .times = 1,
                                                        .act = record_remove });
}

Test(late, record_that_goes_before_it_is_locked_is_made_again)
{
    survives(disk_with_record(NULL), (struct mischief){ .on = OP_OPEN, .name = PART, .times = 1, .act = record_remove });
}

static void exclusion_remove(struct sim_disk *disk, uint32_t root)
{
    cr_assert_eq(sim_disk_unlink(disk, shared_of(disk, root), PUBLISH_NAME, false), 0);
}

Test(late, lock_file_of_a_publisher_that_died_is_taken)
{
    cr_expect_eq(saved(disk_with_record(PUBLISH_NAME), NULL, NULL).durable, 1);
}

Test(late, lock_file_of_a_publisher_that_goes_just_then_is_made_again)
{
    survives(disk_with_record(PUBLISH_NAME), (struct mischief){ .on = OP_OPEN, .name = PUBLISH_NAME, .result = -EEXIST,
                                                                .times = 1, .act = exclusion_remove });
}

static void is_refused(const struct sim_fault fault, int error, const char *words)
{
    struct sim_save save = saved(disk_with_record(NULL), NULL, &fault);

    cr_expect(save.failed == 1 && save.failure.error == error, "%u failed: %s", save.failed, save.failure.cause);
    cr_expect(strstr(save.failure.cause, words), "%s", save.failure.cause);
}

Test(late, part_that_is_being_published_is_not_written_again)
{
    is_refused((struct sim_fault){ .on = { "writer", OP_LOCK, "*/" PUBLISH_NAME }, .action = SIM_FAIL, .error = EWOULDBLOCK },
               EBUSY, "being published just now");
}

Test(late, part_that_another_attempt_writes_is_left_to_it)
{
    is_refused((struct sim_fault){ .on = { "writer", OP_LOCK, "*/" PART }, .action = SIM_FAIL, .error = EWOULDBLOCK }, EBUSY,
               "another attempt of this rank");
}

Test(late, record_that_cannot_be_opened_is_named)
{
    is_refused((struct sim_fault){ .on = { "writer", OP_OPEN, "*/" PART }, .ordinal = 2, .action = SIM_FAIL, .error = EACCES },
               EACCES, "");
}

/* Locks that outlive their saves -------------------------------------------------------------------------------------- */

static struct sim_save *part_begin(struct scene *scene, const char *name, uint64_t number)
{
    uint8_t id[16];

    scene_save_id(number, id);
    return sim_trainer_begin(&scene->trainer, &state, name, false, id, 0);
}

static void part_save(struct scene *scene, const char *name, uint64_t number)
{
    struct sim_save *save = part_begin(scene, name, number);

    cr_assert(scene_run_until_answered(scene, save));
    cr_assert_eq(save->durable, 1, "%s", save->failure.cause);
}

/* As whoever publishes leaves it. */
static void part_publish(struct scene *scene, const char *name, uint64_t number)
{
    struct sim_disk *disk = sim_world_disk(scene->world);
    char directory[HIDDEN_NAME_MAX + 1];
    uint32_t inode;
    uint8_t id[16];

    scene_save_id(number, id);
    hidden_name_make(name, id, directory);
    cr_assert_eq(sim_disk_rename(disk, root_of(disk), directory, root_of(disk), name, RENAME_PLAIN), 0);
    cr_assert_eq(sim_disk_find(disk, root_of(disk), name, &inode), 0);
    cr_assert_eq(sim_disk_unlink(disk, inode, PART, false), 0);
}

/* That the writer holds beyond those that it was given, once it is quiet. */
static unsigned handles_of(struct scene *scene)
{
    while (scene_step(scene))
        ;
    return sim_handles(scene->writer_io) - scene->writer_handles;
}

/* What is durable and not published stays locked, for gc to see; once it is published the next save lets go of it. */
Test(late, record_stays_locked_until_the_next_save_finds_it_published)
{
    struct scene scene;

    scene_init(&scene, &plain, NULL);
    cr_assert(scene_run_until_ready(&scene));
    part_save(&scene, "first", 1);
    cr_expect_eq(handles_of(&scene), 1);
    part_save(&scene, "second", 2);
    cr_expect_eq(handles_of(&scene), 2, "nothing was published");
    part_publish(&scene, "second", 2);
    part_publish(&scene, "first", 1);
    part_save(&scene, "third", 3);
    cr_expect_eq(handles_of(&scene), 1, "both were published");
    cr_assert(scene_close(&scene));
    cr_expect_eq(handles_of(&scene), 0);
    scene_deinit(&scene);
}

/* The second STAT of a record is the look: `fault` meets it. Two saves begin at once: the second may find it under way. */
static void look_meets(struct sim_fault fault)
{
    struct scene_settings settings = plain;
    struct sim_save *saves[2];
    struct scene scene;

    fault.on = (struct sim_match){ "writer", OP_STAT, "*/" PART };
    fault.ordinal = 2;
    settings.faults = &fault;
    settings.fault_count = 1;
    settings.slots = 16;
    scene_init(&scene, &settings, NULL);
    cr_assert(scene_run_until_ready(&scene));
    part_save(&scene, "first", 1);
    saves[0] = part_begin(&scene, "second", 2);
    saves[1] = part_begin(&scene, "third", 3);
    cr_assert(scene_run_until_answered(&scene, saves[0]) && scene_run_until_answered(&scene, saves[1]));
    cr_expect(saves[0]->durable && saves[1]->durable);
    cr_expect_eq(handles_of(&scene), 3);
    cr_assert(scene_close(&scene));
    cr_expect_eq(handles_of(&scene), 0);
    cr_assert_null(scene_violation(&scene), "%s", scene_violation(&scene));
    scene_deinit(&scene);
}

Test(late, looks_at_locked_records_do_not_overlap)
{
    look_meets((struct sim_fault){ .action = SIM_DELAY, .delay_ns = 30000000 });
}

Test(late, look_at_a_locked_record_that_fails_keeps_the_lock)
{
    look_meets((struct sim_fault){ .action = SIM_FAIL, .error = EIO });
}
