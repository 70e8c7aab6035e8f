/* support/sim_state.h - a small state dict with everything that makes files: several shards, ties, odd sizes, objects, an
 * index; its plan, its sheet, its appendix, and whether a checkpoint that was loaded is it.
 *
 * Contents follow from the seed alone, so that two runs of one state write the same bytes.
 */
#ifndef SUPPORT_SIM_STATE_H
#define SUPPORT_SIM_STATE_H

#include <io/io.h>
#include <plan/plan.h>

#define SIM_TENSORS 9u

struct sim_state {
    uint32_t rank, world_size; /* of several ranks each saves all of it: replicas */
    bool replace;              /* says its part record */
    uint64_t seed;
    size_t bulk;
    struct state_dict *dict;
    struct plan *plan;
    uint8_t *tensors[SIM_TENSORS];
    size_t tensor_bytes[SIM_TENSORS];
    void *sheet;
    uint64_t sheet_bytes;
    char objects[700];
    char step[21];
};

/* Shards of about 6 KiB of tensors; a multiple of 4096 more of it with `bulk` bytes. */
void sim_state_init(struct sim_state *state, uint64_t seed, size_t bulk);
void sim_state_init_part(struct sim_state *state, uint64_t seed, size_t bulk, uint32_t rank, uint32_t world_size);
void sim_state_deinit(struct sim_state *state);
/* What goes with BEGIN besides the sheet; malloc'ed. */
void *sim_state_appendix(const struct sim_state *state, const uint8_t save_id[16], uint64_t *size);
/* Fills one chunk, with zeros up to the next multiple of 4096. */
void sim_state_stage(const struct sim_state *state, uint32_t chunk, uint8_t *to);

/* The same through the public API: tensors, object and metadata of a save that was begun. */
struct tspool_save;
int sim_state_declare(const struct sim_state *state, struct tspool_save *save, struct tspool_failure *failure);
/* Bytes of the tensor that was declared as number `index`. */
const uint8_t *sim_state_tensor(const struct sim_state *state, size_t index);

/* Opens the checkpoint at `path` with the real reader and compares everything with the state: tensors, ties, objects,
 * metadata, and a full verify. 0; the reader's -errno; -ENODATA when it opens as
 * a folder without a manifest; -EILSEQ when it loads and is something else. `why` gets the
 * reason (at least 256 bytes). */
int sim_state_check(const struct sim_state *state, struct io *io, const char *path, char *why, size_t why_size);

#endif
