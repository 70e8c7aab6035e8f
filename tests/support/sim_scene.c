/* support/sim_scene.c - see sim_scene.h. */
#include "sim_scene.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/version.h>

/* Shared memory of the simulated world: handles name it, nothing is mapped. */
static int memory_attach(void *context, int handle, uint64_t bytes, void **base, struct tspool_failure *failure)
{
    uint64_t size;
    void *found = sim_memory_bytes(context, handle, &size);

    if (!found || size < bytes)
        return -EBADF;
    *base = found;
    return 0;
}

static void memory_detach(void *context, void *base, uint64_t bytes) {}

static int memory_map(void *context, int handle, uint64_t bytes, const void **base, struct tspool_failure *failure)
{
    uint64_t size;
    const void *found = sim_memory_bytes(context, handle, &size);

    if (!found || size != bytes)
        return -EINVAL;
    *base = found;
    return 0;
}

static void memory_unmap(void *context, const void *base, uint64_t bytes) {}

struct sim_disk *scene_disk(const struct sim_disk_settings *settings)
{
    struct sim_disk *disk = sim_disk_create(settings);
    uint32_t root;

    if (sim_disk_make(disk, SIM_ROOT, SCENE_ROOT_NAME, true, &root))
        abort();
    sim_disk_sync_all(disk);
    return disk;
}

static struct message_hello hello_of(const struct scene_settings *settings)
{
    struct message_hello hello = { .version = TSPOOL_VERSION, .chunk_bytes = CHUNK_BYTES, .hash_threads = 2,
                                   .rank = settings->rank, .world_size = settings->world_size ? settings->world_size : 1 };

    hello.arena_bytes = (settings->slots ? settings->slots : 4) * CHUNK_BYTES;
    hello.item_bytes = settings->item_bytes ? settings->item_bytes : 4096;
    hello.depth = settings->depth ? settings->depth : 4;
    hello.buffered = settings->buffered;
    return hello;
}

static void writer_begin(struct scene *scene, const struct scene_settings *settings, int channel)
{
    struct writer_settings writer = { .hello = hello_of(settings), .channel = channel, .term = -1, .pid = 7 };

    scene->memory = (struct writer_memory){ scene->writer_io, memory_attach, memory_detach, memory_map, memory_unmap, NULL };
    writer.memory = &scene->memory;
    writer.arena = sim_share(scene->trainer_io, scene->trainer.arena, scene->writer_io);
    writer.root = sim_open(scene->writer_io, SCENE_ROOT);
    writer.trainer = sim_process(scene->writer_io, scene->trainer_io);
    scene->writer_handles = sim_handles(scene->writer_io);
    if (writer_create(scene->writer_io, &writer, &scene->writer, NULL))
        abort();
}

void scene_init(struct scene *scene, const struct scene_settings *settings, struct sim_disk *disk)
{
    int ends[2];

    memset(scene, 0, sizeof(*scene));
    scene->world = sim_world_create(&settings->world, disk ? disk : scene_disk(&settings->world.disk));
    for (unsigned i = 0; i < settings->fault_count; i++)
        sim_world_fault(scene->world, &settings->faults[i]);
    sim_world_observe(scene->world, settings->look, settings->look_context);
    scene->trainer_io = sim_io_create(scene->world, "trainer", 0);
    scene->writer_io = sim_io_create(scene->world, "writer", (settings->depth ? settings->depth : 4) + PART_WRITES);
    sim_channel(scene->trainer_io, scene->writer_io, ends);
    sim_trainer_init(&scene->trainer, scene->trainer_io, ends[0], settings->slots ? settings->slots : 4, settings->world.seed);
    scene->trainer.keeps_slots = settings->keeps_slots;
    writer_begin(scene, settings, ends[1]);
}

static void writer_forget(struct scene *scene)
{
    io_destroy(scene->writer_io);
    writer_destroy(scene->writer);
    scene->writer = NULL;
}

bool scene_step(struct scene *scene)
{
    bool running = scene->writer && !writer_finished(scene->writer);
    struct completion completion;
    struct io *io;
    int result = sim_world_next(scene->world, running ? writer_deadline(scene->writer) : IO_FOREVER, &io, &completion);

    if (scene->writer && sim_io_is_dead(scene->writer_io))
        writer_forget(scene);
    if (result < 0)
        return false;
    if (result == 0)
        writer_step(scene->writer, NULL);
    else if (io == scene->writer_io && scene->writer)
        writer_step(scene->writer, &completion);
    else if (io == scene->trainer_io)
        sim_trainer_step(&scene->trainer, &completion);
    return true;
}

bool scene_run_until_ready(struct scene *scene)
{
    while (!scene->trainer.is_ready)
        if (!scene_step(scene))
            return false;
    return scene->trainer.ready.error == 0;
}

bool scene_run_until_answered(struct scene *scene, const struct sim_save *save)
{
    while (!sim_save_is_answered(save))
        if (!scene_step(scene))
            return false;
    return true;
}

bool scene_close(struct scene *scene)
{
    sim_trainer_close(&scene->trainer, false);
    while (scene->writer && !writer_finished(scene->writer))
        if (!scene_step(scene))
            return false;
    return scene->writer != NULL;
}

void scene_deinit(struct scene *scene)
{
    if (scene->writer)
        writer_forget(scene);
    io_destroy(scene->trainer_io);
    sim_trainer_deinit(&scene->trainer);
    sim_world_destroy(scene->world);
}

const char *scene_violation(const struct scene *scene)
{
    if (sim_world_violation(scene->world))
        return sim_world_violation(scene->world);
    if (scene->trainer.violation[0])
        return scene->trainer.violation;
    if (scene->writer && writer_finished(scene->writer) && sim_handles(scene->writer_io) > scene->writer_handles)
        return "the finished writer left handles open";
    return NULL;
}

void scene_save_id(uint64_t number, uint8_t save_id[16])
{
    memset(save_id, 0, 16);
    for (unsigned i = 0; i < 8; i++)
        save_id[i] = (uint8_t)(number >> (8 * i));
    save_id[15] = 1;
}

struct sim_disk *scene_commit(const struct scene_settings *settings, struct sim_disk *disk, const struct sim_state *state,
                              const char *name, bool replace)
{
    struct sim_disk *after = NULL;
    struct sim_save *save;
    struct scene scene;
    uint8_t save_id[16];

    scene_save_id(state->seed, save_id);
    scene_init(&scene, settings, disk);
    if (scene_run_until_ready(&scene)) {
        save = sim_trainer_begin(&scene.trainer, state, name, replace, save_id, 0);
        if (scene_run_until_answered(&scene, save) && save->published && scene_close(&scene) && !scene_violation(&scene)) {
            after = sim_disk_clone(sim_world_disk(scene.world));
            sim_disk_sync_all(after);
        }
    }
    scene_deinit(&scene);
    return after;
}

size_t names_in_root(const struct sim_disk *disk)
{
    struct io_list list;
    uint32_t root;
    size_t count;
    int error = sim_disk_walk(disk, SIM_ROOT, SCENE_ROOT, &root);

    if (error == 0)
        error = sim_disk_list(disk, root, &list);
    assert(error == 0);
    count = list.count;
    io_list_free(&list);
    return count;
}
