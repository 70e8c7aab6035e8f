/* support/sim_scene.h - the writer's machine and a trainer in one simulated world, wired as tspool-writer is.
 *
 * The world has one directory, "/root", in which checkpoints are committed. One thread; scene_step moves the world by one
 * completion.
 */
#ifndef SUPPORT_SIM_SCENE_H
#define SUPPORT_SIM_SCENE_H

#include "sim_io.h"
#include "sim_trainer.h"

#include <write/writer.h>

#define SCENE_ROOT_NAME "root"
#define SCENE_ROOT "/" SCENE_ROOT_NAME

struct scene_settings {
    struct sim_settings world;
    uint32_t item_bytes, depth, slots;   /* 0: 4096, 4, 4 */
    bool buffered, keeps_slots;
    uint32_t rank, world_size;           /* world_size 0: 1 */
    const struct sim_fault *faults;      /* by number as sim_fault_hits wants them */
    unsigned fault_count;
    sim_look *look;
    void *look_context;
};

struct scene {
    struct sim_world *world;
    struct io *writer_io, *trainer_io;
    struct writer *writer;               /* NULL: it was killed */
    struct sim_trainer trainer;
    struct writer_memory memory;
    unsigned writer_handles;             /* that it was given */
};

/* An empty disk with the root on it. */
struct sim_disk *scene_disk(const struct sim_disk_settings *settings);
/* Takes over `disk` (NULL: scene_disk). */
void scene_init(struct scene *scene, const struct scene_settings *settings, struct sim_disk *disk);
/* False when nothing is left that could happen. */
bool scene_step(struct scene *scene);
bool scene_run_until_ready(struct scene *scene);
/* Until the save has its last answer. False: it never got one. */
bool scene_run_until_answered(struct scene *scene, const struct sim_save *save);
/* Says CLOSE and runs until the writer is finished. False: it never was. */
bool scene_close(struct scene *scene);
void scene_deinit(struct scene *scene);

/* A rule that was broken, by the writer on the channel or against the world, or handles that a finished writer left open; or
 * NULL. */
const char *scene_violation(const struct scene *scene);
void scene_save_id(uint64_t number, uint8_t save_id[16]);
size_t names_in_root(const struct sim_disk *disk);

/* One save from beginning to end on `disk` (taken over): the disk afterwards, all of it durable; or NULL when it was not
 * published as it should. For preparing older checkpoints. */
struct sim_disk *scene_commit(const struct scene_settings *settings, struct sim_disk *disk, const struct sim_state *state,
                              const char *name, bool replace);

#endif
