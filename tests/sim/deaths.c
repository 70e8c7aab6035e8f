/* sim/deaths.c - writer and trainer are killed after each of their operations: a save that was wholly staged is published
 * or can be told from one that was not, what stood before stands, and nobody is in the next one's way.
 */
#include "prepared.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

struct told {
    unsigned staged;
    uint64_t trainer_ops, writer_ops;
    bool acknowledged, finished;       /* finished: the writer came to an end by itself */
    bool trainer_dead;                 /* not when the op never took effect */
};

static void told_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    const struct message *message = seen->bytes; /* of a SEND */
    struct told *told = context;

    if (seen->kind == OP_SEND && seen->result > 0) {
        told->staged += message->kind == MESSAGE_STAGED;
        told->acknowledged |= message->kind == MESSAGE_DURABLE;
    }
}

/* A save during which `process` dies once its op number `ordinal` took effect; runs until nothing more can happen. The disk
 * afterwards. */
static struct sim_disk *save_with_death(const struct prepared *prepared, const char *process, uint64_t ordinal, uint64_t seed,
                                        struct told *told)
{
    struct sim_fault death = { .on = { .process = process }, .ordinal = ordinal, .action = SIM_KILL };
    struct scene_settings settings = prepared->settings;
    struct sim_disk *after;
    struct scene scene;
    uint8_t save_id[16];

    memset(told, 0, sizeof(*told));
    settings.world.seed = seed;
    settings.faults = &death;
    settings.fault_count = ordinal > 0;
    settings.look = told_look;
    settings.look_context = told;
    scene_save_id(prepared->new.seed, save_id);
    scene_init(&scene, &settings, sim_disk_clone(prepared->disk));
    if (scene_run_until_ready(&scene) && !sim_io_is_dead(scene.trainer_io))
        sim_trainer_begin(&scene.trainer, &prepared->new, NAME, prepared->before != NEW, save_id, 0);
    while (scene_step(&scene))
        ;
    cr_expect_null(scene_violation(&scene), "%s dies after op %" PRIu64 ": %s", process, ordinal, scene_violation(&scene));
    told->finished = scene.writer && writer_finished(scene.writer);
    told->trainer_dead = sim_io_is_dead(scene.trainer_io);
    told->trainer_ops = sim_io_ops(scene.trainer_io);
    told->writer_ops = sim_io_ops(scene.writer_io);
    after = sim_disk_clone(sim_world_disk(scene.world));
    scene_deinit(&scene);
    return after;
}

static void writer_death_is_survived(const struct prepared *prepared, const struct sim_state *next, uint64_t ordinal,
                                     uint64_t seed)
{
    struct told told;
    struct sim_disk *after = save_with_death(prepared, "writer", ordinal, seed, &told);
    struct scene_settings later = prepared->settings;
    struct digest tree = tree_at(after, PATH);
    char why[300] = "";

    cr_expect(digest_equal(tree, prepared->new_tree) || (!told.acknowledged && digest_equal(tree, prepared->old_tree)),
              "the writer dies after op %" PRIu64 ": neither old nor new", ordinal);
    cr_expect(digest_equal(tree_at(after, OTHER), tree_at(prepared->disk, OTHER)));
    sim_disk_sync_all(after);
    later.world.seed = seed + 1000; /* a new process draws other names */
    after = scene_commit(&later, after, next, NAME, true);
    cr_assert_not_null(after, "the writer died after op %" PRIu64 ": the next one cannot commit", ordinal);
    cr_expect_eq(disk_load(after, PATH, next, why, sizeof(why)), 0, "%s", why);
    sim_disk_destroy(after);
}

static void each_writer_death(enum before before)
{
    struct prepared prepared;
    struct sim_state next;
    struct told told;

    prepare(&prepared, before, SIM_STRICT);
    sim_state_init(&next, 3, 0);
    for (uint64_t seed = 0; seed < 3; seed++) {
        sim_disk_destroy(save_with_death(&prepared, "writer", 0, seed, &told));
        cr_assert_geq(told.writer_ops, 80);
        for (uint64_t ordinal = 1; ordinal <= told.writer_ops; ordinal++)
            writer_death_is_survived(&prepared, &next, ordinal, seed);
    }
    sim_state_deinit(&next);
    prepared_end(&prepared);
}

Test(deaths, writer_dies_after_each_operation_of_a_new_save) { each_writer_death(NEW); }
Test(deaths, writer_dies_after_each_operation_of_a_replacing_save) { each_writer_death(REPLACED); }

static void trainer_death_is_survived(const struct prepared *prepared, uint64_t ordinal, uint64_t seed, unsigned *ends)
{
    struct told told;
    struct sim_disk *after = save_with_death(prepared, "trainer", ordinal, seed, &told);
    bool staged = told.staged == prepared->new.plan->chunk_count;

    if (!told.trainer_dead) { /* its last receive waits for ever */
        sim_disk_destroy(after);
        return;
    }
    cr_expect(told.finished, "the trainer dies after op %" PRIu64 ": the writer does not end", ordinal);
    if (staged)
        cr_expect(digest_equal(tree_at(after, PATH), prepared->new_tree) && names_in_root(after) == 2,
                  "the trainer dies after op %" PRIu64 ", staged: not published", ordinal);
    else
        cr_expect(digest_equal(tree_at(after, SCENE_ROOT), tree_at(prepared->disk, SCENE_ROOT)),
                  "the trainer dies after op %" PRIu64 ", not staged: not swept", ordinal);
    ends[staged]++;
    sim_disk_destroy(after);
}

static void each_trainer_death(enum before before)
{
    unsigned ends[2] = { 0 };
    struct prepared prepared;
    struct told told;

    prepare(&prepared, before, SIM_STRICT);
    for (uint64_t seed = 0; seed < 50; seed++) {
        sim_disk_destroy(save_with_death(&prepared, "trainer", 0, seed, &told));
        for (uint64_t ordinal = 1; ordinal <= told.trainer_ops; ordinal++)
            trainer_death_is_survived(&prepared, ordinal, seed, ends);
    }
    cr_expect(ends[0] > 100 && ends[1] > 100, "%u swept, %u published", ends[0], ends[1]);
    prepared_end(&prepared);
}

Test(deaths, trainer_dies_and_the_staged_save_is_published_the_other_swept) { each_trainer_death(NEW); }
Test(deaths, trainer_dies_in_a_replacing_save) { each_trainer_death(REPLACED); }
