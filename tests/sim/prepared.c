/* sim/prepared.c - see prepared.h. */
#include "prepared.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void foreign_add(struct sim_disk *disk)
{
    uint32_t directory, file;

    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, PATH, &directory), 0);
    cr_assert_eq(sim_disk_make(disk, directory, FOREIGN, false, &file), 0);
    cr_assert_eq(sim_disk_write(disk, file, 0, "{\"vocab\": 256}", 14), 14);
    sim_disk_sync_all(disk);
}

void prepare(struct prepared *prepared, enum before before, enum sim_ordering ordering)
{
    struct sim_disk *after;

    memset(prepared, 0, sizeof(*prepared));
    prepared->before = before;
    prepared->settings.world = (struct sim_settings){ .memory_align = 512, .offset_align = 512 };
    prepared->settings.world.disk.exchange_refused = before == REPLACED_WITHOUT_EXCHANGE;
    prepared->settings.world.disk.ordering = ordering;
    sim_state_init(&prepared->old, 1, 0);
    sim_state_init(&prepared->new, 2, 0);
    prepared->disk = scene_commit(&prepared->settings, NULL, &prepared->old, OTHER_NAME, false);
    cr_assert_not_null(prepared->disk);
    if (before != NEW) {
        prepared->disk = scene_commit(&prepared->settings, prepared->disk, &prepared->old, NAME, false);
        cr_assert_not_null(prepared->disk);
        foreign_add(prepared->disk);
    }
    prepared->old_tree = tree_at(prepared->disk, PATH);
    after = scene_commit(&prepared->settings, sim_disk_clone(prepared->disk), &prepared->new, NAME, before != NEW);
    cr_assert_not_null(after);
    prepared->new_tree = tree_at(after, PATH);
    sim_disk_destroy(after);
}

void prepared_end(struct prepared *prepared)
{
    sim_disk_destroy(prepared->disk);
    sim_state_deinit(&prepared->old);
    sim_state_deinit(&prepared->new);
}

void outcome_end(struct outcome *outcome)
{
    sim_disk_destroy(outcome->disk);
    free(outcome->trace);
}

struct outcome save_once(const struct prepared *prepared, const struct scene_settings *settings)
{
    struct outcome outcome = { .ready = false };
    struct sim_save *save = NULL;
    struct scene scene;
    uint8_t save_id[16];

    scene_save_id(prepared->new.seed, save_id);
    scene_init(&scene, settings, sim_disk_clone(prepared->disk));
    outcome.ready = scene_run_until_ready(&scene);
    outcome.refusal = scene.trainer.ready;
    if (outcome.ready) {
        save = sim_trainer_begin(&scene.trainer, &prepared->new, NAME, prepared->before != NEW, save_id, 0);
        outcome.answered = scene_run_until_answered(&scene, save);
        outcome.save = *save;
    }
    outcome.closed = scene_close(&scene);
    if (save)
        outcome.save = *save; /* what came after the last answer, if anything */
    snprintf(outcome.violation, sizeof(outcome.violation), "%s", scene_violation(&scene) ? scene_violation(&scene) : "");
    outcome.disk = sim_disk_clone(sim_world_disk(scene.world));
    if (settings->world.trace)
        outcome.trace = strdup(sim_world_trace(scene.world));
    scene_deinit(&scene);
    return outcome;
}

bool committed(const struct prepared *prepared, const struct outcome *outcome)
{
    return outcome->closed && !outcome->violation[0] && outcome->save.published == 1
           && digest_equal(tree_at(outcome->disk, PATH), prepared->new_tree)
           && names_in_root(outcome->disk) == 2; /* step-1 and the new one */
}
