/* sim/scarce.c - memory runs out for the writer, at each of its allocations in turn, in its loop and on its compute threads: the
 * save is published or fails as any save that fails, the writer comes to its end, and nothing stray is left.
 *
 * Memory is scarce only while the writer's own code runs: between its steps and within the world's operations it is plenty.
 */
#include "../support/scarce.h"
#include "prepared.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Where memory is scarce ---------------------------------------------------------------------------------------------- */

struct detour { int64_t (*compute)(void *argument); void *argument; };

static const struct io_ops *world_ops;  /* the simulated ones */

void __real_writer_step(struct writer *writer, const struct completion *completion);
void __wrap_writer_step(struct writer *writer, const struct completion *completion);
void __wrap_writer_step(struct writer *writer, const struct completion *completion)
{
    scarce_resume();
    __real_writer_step(writer, completion);
    scarce_pause();
}

static int64_t compute_scarcely(void *argument)
{
    struct detour detour = *(struct detour *)argument;
    int64_t result;

    free(argument);
    scarce_resume();
    result = detour.compute(detour.argument);
    scarce_pause();
    return result;
}

static int submit(struct io *io, struct op *op)
{
    struct op given = *op;
    struct detour *detour;
    int error;

    scarce_pause();
    if (op->kind == OP_COMPUTE) {
        *(detour = malloc(sizeof(*detour))) = (struct detour){ op->compute, op->argument };
        op->compute = compute_scarcely;
        op->argument = detour;
    }
    error = world_ops->submit(io, op); /* the world keeps a copy */
    op->compute = given.compute;
    op->argument = given.argument;
    scarce_resume();
    return error;
}

static int cancel(struct io *io, struct op *op)
{
    int error;

    scarce_pause();
    error = world_ops->cancel(io, op);
    scarce_resume();
    return error;
}

static void io_detour(struct io *io)
{
    static struct io_ops ops;

    world_ops = io->ops;
    ops = *world_ops;
    ops.submit = submit;
    ops.cancel = cancel;
    io->ops = &ops;
}

/* The tests ----------------------------------------------------------------------------------------------------------- */

struct ending {
    bool reached;                       /* so many allocations there were */
    bool finished;                      /* the writer came to its end */
    struct sim_save save;
    struct message_ready ready;
    struct sim_disk *disk;
    char violation[300];
};

/* From the writer's first step on until nothing more can happen. */
static struct ending save_scarcely(const struct prepared *prepared, const struct scene_settings *settings, unsigned number)
{
    struct ending ending = { .reached = false };
    struct sim_save *save = NULL;
    struct scene scene;
    uint8_t save_id[16];

    scene_save_id(prepared->new.seed, save_id);
    scene_init(&scene, settings, sim_disk_clone(prepared->disk));
    io_detour(scene.writer_io);
    scarce_begin(number);
    scarce_pause();
    if (scene_run_until_ready(&scene)) {
        save = sim_trainer_begin(&scene.trainer, &prepared->new, NAME, prepared->before != NEW, save_id, 0);
        scene_run_until_answered(&scene, save);
    }
    ending.finished = scene_close(&scene);
    ending.reached = scarce_end();
    ending.ready = scene.trainer.ready;
    if (save)
        ending.save = *save;
    ending.disk = sim_disk_clone(sim_world_disk(scene.world));
    snprintf(ending.violation, sizeof(ending.violation), "%s", scene_violation(&scene) ? scene_violation(&scene) : "");
    scene_deinit(&scene);
    return ending;
}

/* What is there is the whole of the new one or what was there before, as it was said. */
static void ending_is_fair(const struct prepared *prepared, const struct ending *ending, unsigned number)
{
    struct digest tree = tree_at(ending->disk, PATH);
    bool is_new = digest_equal(tree, prepared->new_tree);

    cr_expect(is_new || digest_equal(tree, prepared->old_tree), "allocation %u: something else has the name", number);
    cr_expect(!ending->save.published || is_new, "allocation %u: PUBLISHED was said and it is not there", number);
    cr_expect(!ending->save.failed || !is_new, "allocation %u: FAILED was said and it is there", number);
    cr_expect_leq(names_in_root(ending->disk), 1u + (is_new || prepared->before != NEW), "allocation %u: something is left: %s",
                  number, strerror(ending->save.failure.error));
    cr_expect(!ending->violation[0] || strstr(ending->violation, "handles"), "allocation %u: %s", number, ending->violation);
    cr_expect(ending->finished, "allocation %u: the writer hangs", number);
    cr_expect_eq(ending->save.unknown, 0, "allocation %u: memory is never asked for once the rename began", number);
    cr_expect(!ending->save.failed || ending->save.failure.error == ENOMEM || ending->save.failure.error == ECANCELED,
              "allocation %u: %s is said instead of ENOMEM", number, strerror(ending->save.failure.error));
}

static void each_allocation_fails(enum before before)
{
    struct scene_settings settings;
    struct prepared prepared;
    unsigned number = 0, published = 0, failed = 0;
    bool reached = true;

    prepare(&prepared, before, SIM_STRICT);
    settings = prepared.settings;
    settings.world.channel_messages = 1; /* what cannot be sent at once is queued */
    while (reached) {
        struct ending ending = save_scarcely(&prepared, &settings, ++number);

        ending_is_fair(&prepared, &ending, number);
        cr_expect(ending.ready.error == 0 || ending.ready.error == ENOMEM, "allocation %u: READY says %d", number,
                  ending.ready.error);
        published += ending.save.published;
        failed += ending.save.failed;
        reached = ending.reached;
        sim_disk_destroy(ending.disk);
    }
    cr_expect(published > 10 && failed > 10, "%u of %u published, %u failed", published, number, failed);
    prepared_end(&prepared);
}

Test(scarce, each_allocation_of_a_new_save_fails_once) { each_allocation_fails(NEW); }
Test(scarce, each_allocation_of_a_replacing_save_fails_once) { each_allocation_fails(REPLACED); }
Test(scarce, each_allocation_without_exchange_fails_once) { each_allocation_fails(REPLACED_WITHOUT_EXCHANGE); }
