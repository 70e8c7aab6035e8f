/* support/sim_stage.c - what is the same in every story and costs time to make, made once: states, the disk before, arenas. */
#include "sim_pair_inside.h"

#include "sim_scene.h"

#include <stdlib.h>
#include <string.h>

#define STATES (STORY_SAVES_MAX + 1)

static void must(bool done)
{
    if (!done)
        abort();
}

const struct sim_state *stage_state(unsigned number)
{
    static struct sim_state states[STATES];
    static bool made[STATES];
    static const size_t bulks[STATES] = { 0, 0, 8192, 0, 20480 };

    must(number < STATES);
    if (!made[number])
        sim_state_init(&states[number], 100 + number, bulks[number]);
    made[number] = true;
    return &states[number];
}

/* The spool destroys its arena with whatever saves still have in it: slots of the last run may be taken. */
static void slots_free(struct arena *arena)
{
    uint32_t slot;

    while (arena_acquire(arena, 0, NULL, &slot, NULL) == 0)
        ;
    for (slot = 0; slot < arena_slot_count(arena); slot++)
        arena_release(arena, slot);
}

/* Its memory is populated in full: later runs find it as the first one did. */
struct arena *stage_arena(unsigned slots)
{
    static struct arena *arenas[STORY_SLOTS_MAX + 1];
    struct arena_settings settings = { .bytes = slots * ARENA_SLOT_BYTES };

    must(slots <= STORY_SLOTS_MAX);
    if (!arenas[slots]) {
        must(arena_create(&settings, &arenas[slots], NULL) == 0);
        must(arena_populate(arenas[slots], settings.bytes, NULL) == 0);
    }
    slots_free(arenas[slots]);
    return arenas[slots];
}

/* A file of somebody else in the checkpoint that gets replaced. */
static void foreign_add(struct sim_disk *disk)
{
    uint32_t directory, file;
    char path[64];

    snprintf(path, sizeof(path), PAIR_ROOT "/%s", story_names[STORY_OLD]);
    must(sim_disk_walk(disk, SIM_ROOT, path, &directory) == 0);
    must(sim_disk_make(disk, directory, STORY_FOREIGN, false, &file) == 0);
    must(sim_disk_write(disk, file, 0, "{\"vocab\": 256}", 14) == 14);
    sim_disk_sync_all(disk);
}

static struct sim_disk *disk_make(const struct sim_disk_settings *settings)
{
    struct scene_settings scene = { .world = { .memory_align = 512, .offset_align = 512, .disk = *settings } };
    struct sim_disk *disk = scene_commit(&scene, NULL, stage_state(0), story_names[STORY_OTHER], false);

    must(disk && (disk = scene_commit(&scene, disk, stage_state(0), story_names[STORY_OLD], false)));
    foreign_add(disk);
    return disk;
}

struct sim_disk *stage_disk(const struct sim_disk_settings *settings)
{
    static struct sim_disk *disks[2][2];
    struct sim_disk **disk = &disks[settings->ordering == SIM_JOURNAL][settings->exchange_refused];

    if (!*disk)
        *disk = disk_make(settings);
    return sim_disk_clone(*disk);
}
