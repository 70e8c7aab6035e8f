/* save/scripted.h - the supervisor against a writer that the test plays by hand, message by message, in one thread. */
#ifndef SAVE_SCRIPTED_H
#define SAVE_SCRIPTED_H

#include <save/save.h>
#include <save/stager.h>
#include <save/supervisor.h>

struct scripted {
    struct writer_launcher launcher;  /* first: the launcher's functions find their script by it */
    struct roster roster;
    struct arena *arena;
    struct io *io;
    struct supervisor supervisor;
    struct stager stager;             /* without threads: the test copies, chunk by chunk, where it wants to */
    struct tspool_save *save, *another;
    char root[64];
    int peer, death;                  /* the writer's end of the channel; its life */
    unsigned starts, kills, refusals; /* refusals: so many starts fail */
    bool unkillable;
    uint64_t version;                 /* the counter of the saves' tensor */
};
extern char scripted_tensor[33 << 20]; /* its memory */
/* A supervisor with its first writer starting, and a submitted save of three chunks that fits the arena, nothing staged. */
void scripted_init(struct scripted *scripted);
/* The same with an arena of two chunks. */
void scripted_init_larger(struct scripted *scripted, enum tspool_staging staging);
void scripted_deinit(struct scripted *scripted);
/* Submits one more save, of another id, as `another`. */
void scripted_submit_another(struct scripted *scripted, const char *name);
void scripted_another_says(struct scripted *scripted, enum message_kind kind);
/* Turns the machine until it waits. */
void scripted_turn(struct scripted *scripted);
/* Turns it, and waits for its timers, until so many writers were started in all. */
void scripted_turn_until_starts(struct scripted *scripted, unsigned starts);
/* Lets it look, whatever it is about. */
void scripted_poke(struct scripted *scripted);
void scripted_stage(struct scripted *scripted, uint32_t chunk);
/* The next message to the writer; fails the test when there is none of that kind. */
struct message scripted_told(struct scripted *scripted, enum message_kind kind);
bool scripted_told_nothing(struct scripted *scripted);
/* The writer says something about the save's attempt; it is read at the next turn. */
void scripted_say(struct scripted *scripted, struct message *message);
void scripted_say_kind(struct scripted *scripted, enum message_kind kind);
void scripted_say_failed(struct scripted *scripted, int error, enum tspool_stage stage);
void scripted_released(struct scripted *scripted, uint32_t chunk, uint32_t slot);
/* HELLO, READY and BEGIN, which is returned. */
struct message scripted_begin(struct scripted *scripted);
/* BEGIN and all three chunks. */
void scripted_stage_all(struct scripted *scripted);
void scripted_die(struct scripted *scripted);
/* WRITTEN, DURABLE and PUBLISHED of the current attempt. */
void scripted_publish(struct scripted *scripted);

#endif
