/* save/scripted.h - the supervisor against a writer that the test plays by hand, message by message, in one thread. */
#ifndef SAVE_SCRIPTED_H
#define SAVE_SCRIPTED_H

#include <save/save.h>
#include <save/supervisor.h>

struct scripted {
    struct writer_launcher launcher;  /* first: the launcher's functions find their script by it */
    struct roster roster;
    struct arena *arena;
    struct io *io;
    struct supervisor supervisor;
    struct tspool_save *save;
    int peer, death;                  /* the writer's end of the channel; its life */
    unsigned starts, kills;
};
/* A supervisor without a writer, and a submitted save of three chunks, nothing staged. */
void scripted_init(struct scripted *scripted);
void scripted_deinit(struct scripted *scripted);
/* Turns the machine until it waits. */
void scripted_turn(struct scripted *scripted);
void scripted_stage(struct scripted *scripted, uint32_t chunk);
/* The next message to the writer; fails the test when there is none of that kind. */
struct message scripted_told(struct scripted *scripted, enum message_kind kind);
bool scripted_told_nothing(struct scripted *scripted);
/* The writer says something about the save's attempt; it is read at the next turn. */
void scripted_say(struct scripted *scripted, struct message *message);
void scripted_say_kind(struct scripted *scripted, enum message_kind kind);
void scripted_released(struct scripted *scripted, uint32_t chunk, uint32_t slot);
/* HELLO, READY, BEGIN and all three chunks. */
void scripted_stage_all(struct scripted *scripted);
void scripted_die(struct scripted *scripted);

#endif
