/* support/sim_trainer.h - the other end of the writer's channel, as a small step machine: it begins saves, stages chunks at
 * moments that the seed chooses, listens, and holds the writer to the rules of the channel.
 *
 * It is a hard trainer: a slot that was given back (RELEASED, or at the end of the save) is overwritten at once, so that a
 * writer that still needs it writes garbage, or is caught by the world.
 */
#ifndef SUPPORT_SIM_TRAINER_H
#define SUPPORT_SIM_TRAINER_H

#include "sim_io.h"
#include "sim_state.h"

#include <wire/message.h>

#define SIM_SLOTS_MAX 16u
#define SIM_CHUNKS_MAX 16u
#define SIM_SAVES_MAX 12u

struct errand;
struct sim_save {
    const struct sim_state *state;
    struct attempt attempt;
    uint32_t next;                        /* of plan->chunk_order: not yet given a slot */
    uint32_t slots[SIM_CHUNKS_MAX];       /* by chunk */
    bool staged[SIM_CHUNKS_MAX], released[SIM_CHUNKS_MAX];
    uint32_t staged_count, released_count;
    unsigned prepared, written, durable, published, failed, unknown, abandoned; /* messages of that kind */
    struct message_failure failure;
};

struct sim_trainer {
    struct io *io;
    int channel, arena;
    uint8_t *slots;
    uint32_t slot_count;
    bool slot_taken[SIM_SLOTS_MAX];
    bool keeps_slots;                     /* RELEASED frees nothing before DURABLE (a state that fits) */
    uint64_t pause_ns;                    /* before a chunk is staged, at most */
    uint64_t random;
    struct errand *errands;               /* messages and pauses under way */
    struct op receive;
    uint8_t received[sizeof(struct message) + 1];
    bool is_ready, stream_over;
    struct message_ready ready;
    struct sim_save saves[SIM_SAVES_MAX];
    unsigned save_count;
    char violation[256];                  /* the first rule that the writer broke; empty: none */
};

void sim_trainer_init(struct sim_trainer *trainer, struct io *io, int channel, uint32_t slot_count, uint64_t seed);
/* Sends BEGIN and begins to stage. The state outlives the trainer. */
struct sim_save *sim_trainer_begin(struct sim_trainer *trainer, const struct sim_state *state, const char *name, bool replace,
                                   const uint8_t save_id[16], uint64_t deadline_ns);
void sim_trainer_step(struct sim_trainer *trainer, const struct completion *completion);
void sim_trainer_say(struct sim_trainer *trainer, const struct message *message);
void sim_trainer_close(struct sim_trainer *trainer, bool abandon);
/* One terminal answer was given. */
bool sim_save_is_answered(const struct sim_save *save);
/* Frees what is in flight; its io must have been destroyed or killed. */
void sim_trainer_deinit(struct sim_trainer *trainer);

#endif
