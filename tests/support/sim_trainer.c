/* support/sim_trainer.c - see sim_trainer.h. */
#include "sim_trainer.h"

#include <base/checked.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* A message on its way out, or the pause before a chunk is staged. */
struct errand {
    struct op op;
    struct errand *next, **link; /* of all that are under way */
    struct sim_save *save;     /* a pause; NULL: a message */
    uint32_t chunk;
    struct message message;
};

static void must(bool done)
{
    if (!done)
        abort();
}

static void broken(struct sim_trainer *trainer, const char *what, ...) __attribute__((format(printf, 2, 3)));
static void broken(struct sim_trainer *trainer, const char *what, ...)
{
    va_list arguments;

    if (trainer->violation[0])
        return;
    va_start(arguments, what);
    vsnprintf(trainer->violation, sizeof(trainer->violation), what, arguments);
    va_end(arguments);
}

static uint64_t draw(struct sim_trainer *trainer, uint64_t bound)
{
    trainer->random = trainer->random * 6364136223846793005u + 1442695040888963407u;
    return bound ? (trainer->random >> 33) % bound : 0;
}

static void listen_on(struct sim_trainer *trainer)
{
    trainer->receive = (struct op){ .kind = OP_RECV, .handle = trainer->channel, .memory = trainer->received,
                                    .size = sizeof(trainer->received) };
    must(io_submit(trainer->io, &trainer->receive) == 0);
}

void sim_trainer_init(struct sim_trainer *trainer, struct io *io, int channel, uint32_t slot_count, uint64_t seed)
{
    uint64_t size;

    must(slot_count <= SIM_SLOTS_MAX);
    memset(trainer, 0, sizeof(*trainer));
    trainer->io = io;
    trainer->channel = channel;
    trainer->slot_count = slot_count;
    trainer->random = seed;
    trainer->pause_ns = 2000000;
    trainer->arena = sim_memory(io, slot_count * CHUNK_BYTES);
    trainer->slots = sim_memory_bytes(io, trainer->arena, &size);
    listen_on(trainer);
}

/* Speaking ---------------------------------------------------------------------------------------------------------- */

static struct errand *errand_make(struct sim_trainer *trainer, struct sim_save *save, uint32_t chunk)
{
    struct errand *errand = calloc(1, sizeof(*errand));

    must(errand != NULL);
    errand->save = save;
    errand->chunk = chunk;
    errand->op.owner = errand;
    errand->link = &trainer->errands;
    if ((errand->next = trainer->errands))
        errand->next->link = &errand->next;
    trainer->errands = errand;
    return errand;
}

static void errand_free(struct errand *errand)
{
    if ((*errand->link = errand->next))
        errand->next->link = errand->link;
    free(errand);
}

void sim_trainer_deinit(struct sim_trainer *trainer)
{
    while (trainer->errands)
        errand_free(trainer->errands);
}

static void say_with(struct sim_trainer *trainer, const struct message *message, const int *fds, unsigned fd_count)
{
    struct errand *errand = errand_make(trainer, NULL, 0);

    errand->message = *message;
    errand->op.kind = OP_SEND;
    errand->op.handle = trainer->channel;
    errand->op.memory = &errand->message;
    errand->op.size = message_size(message->kind);
    for (; errand->op.fd_count < fd_count; errand->op.fd_count++)
        errand->op.fds[errand->op.fd_count] = fds[errand->op.fd_count];
    must(io_submit(trainer->io, &errand->op) == 0);
}

void sim_trainer_say(struct sim_trainer *trainer, const struct message *message) { say_with(trainer, message, NULL, 0); }

void sim_trainer_close(struct sim_trainer *trainer, bool abandon)
{
    struct message message;

    message_init(&message, MESSAGE_CLOSE, NULL);
    message.close.abandon = abandon;
    sim_trainer_say(trainer, &message);
}

static int memory_with(struct sim_trainer *trainer, const void *bytes, uint64_t size)
{
    int handle = sim_memory(trainer->io, size);

    memcpy(sim_memory_bytes(trainer->io, handle, &size), bytes, size);
    return handle;
}

/* Slots ------------------------------------------------------------------------------------------------------------- */

static uint8_t *slot_bytes(const struct sim_trainer *trainer, uint32_t slot) { return trainer->slots + slot * CHUNK_BYTES; }

static void slot_free(struct sim_trainer *trainer, struct sim_save *save, uint32_t chunk)
{
    uint32_t slot = save->slots[chunk];

    if (slot == UINT32_MAX || !trainer->slot_taken[slot])
        return;
    memset(slot_bytes(trainer, slot), 0xdd, align_up(plan_chunk_at(save->state->plan, chunk).size, 4096));
    trainer->slot_taken[slot] = false;
    save->slots[chunk] = UINT32_MAX;
}

static uint32_t slot_take(struct sim_trainer *trainer)
{
    uint32_t first = (uint32_t)draw(trainer, trainer->slot_count);

    for (uint32_t i = 0; i < trainer->slot_count; i++) {
        uint32_t slot = (first + i) % trainer->slot_count;

        if (!trainer->slot_taken[slot]) {
            trainer->slot_taken[slot] = true;
            return slot;
        }
    }
    return UINT32_MAX;
}

/* Staging ----------------------------------------------------------------------------------------------------------- */

bool sim_save_is_answered(const struct sim_save *save)
{
    return (save->durable && save->state->world_size > 1) || save->published || save->failed || save->unknown || save->abandoned;
}

/* Every chunk that can have a slot gets one, in the plan's order, and a pause. */
static void stage_more(struct sim_trainer *trainer, struct sim_save *save)
{
    while (save->next < save->state->plan->chunk_count && !sim_save_is_answered(save)) {
        uint32_t chunk = save->state->plan->chunk_order[save->next], slot = slot_take(trainer);
        struct errand *errand;

        if (slot == UINT32_MAX)
            return;
        save->next++;
        save->slots[chunk] = slot;
        errand = errand_make(trainer, save, chunk);
        errand->op.kind = OP_TIMER;
        errand->op.deadline_ns = io_now(trainer->io) + draw(trainer, trainer->pause_ns);
        must(io_submit(trainer->io, &errand->op) == 0);
    }
}

static void chunk_stage(struct sim_trainer *trainer, struct sim_save *save, uint32_t chunk)
{
    struct message message;

    if (sim_save_is_answered(save))
        return; /* its slots were given back */
    sim_state_stage(save->state, chunk, slot_bytes(trainer, save->slots[chunk]));
    save->staged[chunk] = true;
    save->staged_count++;
    message_init(&message, MESSAGE_STAGED, &save->attempt);
    message.staged.chunk = chunk;
    message.staged.slot = save->slots[chunk];
    sim_trainer_say(trainer, &message);
}

struct sim_save *sim_trainer_begin(struct sim_trainer *trainer, const struct sim_state *state, const char *name, bool replace,
                                   const uint8_t save_id[16], uint64_t deadline_ns)
{
    struct sim_save *save = &trainer->saves[trainer->save_count++];
    struct message message;
    void *appendix;
    int fds[2];

    must(trainer->save_count <= SIM_SAVES_MAX && state->plan->chunk_count <= SIM_CHUNKS_MAX);
    memset(save, 0, sizeof(*save));
    save->state = state;
    memset(save->slots, 0xff, sizeof(save->slots));
    memcpy(save->attempt.save_id, save_id, sizeof(save->attempt.save_id));
    save->attempt.number = 1;
    message_init(&message, MESSAGE_BEGIN, &save->attempt);
    strcpy(message.begin.name, name);
    message.begin.replace = replace;
    message.begin.deadline_ns = deadline_ns;
    message.begin.sheet_bytes = state->sheet_bytes;
    appendix = sim_state_appendix(state, save_id, &message.begin.appendix_bytes);
    fds[0] = memory_with(trainer, state->sheet, state->sheet_bytes);
    fds[1] = memory_with(trainer, appendix, message.begin.appendix_bytes);
    free(appendix);
    say_with(trainer, &message, fds, 2);
    stage_more(trainer, save);
    return save;
}

/* Listening --------------------------------------------------------------------------------------------------------- */

static struct sim_save *save_of(struct sim_trainer *trainer, const struct attempt *attempt)
{
    for (unsigned i = 0; i < trainer->save_count; i++)
        if (memcmp(attempt, &trainer->saves[i].attempt, sizeof(*attempt)) == 0)
            return &trainer->saves[i];
    return NULL;
}

static void save_ended(struct sim_trainer *trainer, struct sim_save *save)
{
    for (uint32_t i = 0; i < save->state->plan->chunk_count; i++)
        slot_free(trainer, save, i);
    for (unsigned i = 0; i < trainer->save_count; i++)
        stage_more(trainer, &trainer->saves[i]); /* whoever waited for a slot */
}

static void released(struct sim_trainer *trainer, struct sim_save *save, const struct message_released *message)
{
    if (message->chunk >= save->state->plan->chunk_count || !save->staged[message->chunk] || save->released[message->chunk]
        || message->slot != save->slots[message->chunk]) {
        broken(trainer, "RELEASED of chunk %u in slot %u makes no sense", message->chunk, message->slot);
        return;
    }
    save->released[message->chunk] = true;
    save->released_count++;
    if (trainer->keeps_slots)
        return;
    slot_free(trainer, save, message->chunk);
    for (unsigned i = 0; i < trainer->save_count; i++)
        stage_more(trainer, &trainer->saves[i]);
}

static void progressed(struct sim_trainer *trainer, struct sim_save *save, const struct message *message)
{
    bool whole = save->released_count == save->state->plan->chunk_count;

    switch (message->kind) {
    case MESSAGE_PREPARED:
        if (save->prepared++)
            broken(trainer, "PREPARED twice");
        break;
    case MESSAGE_WRITTEN:
        if (save->written++ || !save->prepared || !whole)
            broken(trainer, "WRITTEN twice, or before every chunk was released");
        break;
    case MESSAGE_DURABLE:
        if (save->durable++ || !save->written)
            broken(trainer, "DURABLE twice, or before WRITTEN");
        if (save->state->world_size > 1) /* the last that it hears */
            save_ended(trainer, save);
        break;
    default:
        if (save->published++ || !save->durable)
            broken(trainer, "PUBLISHED twice, or before DURABLE");
        save_ended(trainer, save);
    }
}

static void ended(struct sim_trainer *trainer, struct sim_save *save, const struct message *message)
{
    save->failed += message->kind == MESSAGE_FAILED;
    save->unknown += message->kind == MESSAGE_UNKNOWN;
    save->abandoned += message->kind == MESSAGE_ABANDONED;
    if (message->kind != MESSAGE_ABANDONED)
        save->failure = message->failure;
    if (save->durable)
        broken(trainer, "%s after DURABLE", message_kind_name(message->kind));
    save_ended(trainer, save);
}

static void heard(struct sim_trainer *trainer, const struct message *message)
{
    struct sim_save *save = save_of(trainer, &message->attempt);

    if (message->kind == MESSAGE_READY) {
        if (trainer->is_ready)
            broken(trainer, "READY twice");
        trainer->is_ready = true;
        trainer->ready = message->ready;
    } else if (message->kind == MESSAGE_PONG) {
        return;
    } else if (!save) {
        broken(trainer, "%s of a save that was never begun", message_kind_name(message->kind));
    } else if (sim_save_is_answered(save)) {
        broken(trainer, "%s after the last answer", message_kind_name(message->kind));
    } else if (message->kind == MESSAGE_RELEASED) {
        released(trainer, save, &message->released);
    } else if (message->kind == MESSAGE_FAILED || message->kind == MESSAGE_UNKNOWN || message->kind == MESSAGE_ABANDONED) {
        ended(trainer, save, message);
    } else {
        progressed(trainer, save, message);
    }
}

static void receive_done(struct sim_trainer *trainer, int64_t result)
{
    struct message message;

    if (result <= 0) {
        trainer->stream_over = true;
        return;
    }
    if (message_decode(trainer->received, (size_t)result, &message))
        broken(trainer, "a message that cannot be decoded");
    else
        heard(trainer, &message);
    listen_on(trainer);
}

void sim_trainer_step(struct sim_trainer *trainer, const struct completion *completion)
{
    struct errand *errand = completion->op->owner;

    if (completion->op == &trainer->receive) {
        receive_done(trainer, completion->result);
        return;
    }
    if (errand->save && completion->result == 0)
        chunk_stage(trainer, errand->save, errand->chunk);
    for (unsigned i = 0; i < errand->op.fd_count; i++)
        sim_close(trainer->io, errand->op.fds[i]);
    errand_free(errand);
}
