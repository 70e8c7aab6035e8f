/* save/supervisor.h - the trainer's step machine: the only sender and receiver on the channel, and the only one that
 * resolves saves.
 *
 * It stands on one struct io and does no I/O of its own; starting, killing and reaping the writer go through a launcher.
 * supervisor_step takes one completion, acts on it, and then does all that is due: so no wish is ever forgotten, whatever
 * woke the machine. On the real backends it runs on the thread "tspool-super".
 */
#ifndef SAVE_SUPERVISOR_H
#define SAVE_SUPERVISOR_H

#include <io/io.h>
#include <save/roster.h>
#include <save/writer_link.h>

struct supervisor_settings {
    uint64_t start_timeout_ns, heartbeat_ns;
    struct message_hello hello;         /* sent to each writer */
    int arena_fd, root_fd, trainer_pidfd;
    bool cpus_are_few;                  /* copying and hashing at once would take turns on the same CPUs */
};

struct supervisor {
    struct io *io;
    struct roster *roster;
    struct supervisor_settings settings;
    struct writer_link link;
    struct op wake_op, timer_op;
    bool watching, timing, timer_cancelled;
    uint64_t timer_due_ns;
    uint64_t tick_due_ns;               /* the next heartbeat; 0: no save in flight */
    unsigned silent_ticks;              /* heartbeats since the writer was last heard */
    uint64_t ping_sequence;
    bool ping_wanted;
    uint64_t sequence;                  /* commit sequence of the latest manifest */
    unsigned deaths;                    /* of writers in a row, since a save succeeded */
    uint64_t restart_due_ns;            /* no writer is started before */
    bool done;                          /* want_stop was seen: the thread ends */
};

void supervisor_init(struct supervisor *supervisor, struct io *io, struct roster *roster,
                     struct writer_launcher *launcher, const struct supervisor_settings *settings);
/* NULL starts it. */
void supervisor_step(struct supervisor *supervisor, const struct completion *completion);
/* Lets go of the writer and frees what the machine holds; the io is destroyed before. */
void supervisor_deinit(struct supervisor *supervisor);

/* Parts of the machine ---------------------------------------------------------------------------------------------- */

/* answers.c: what the writer says. 0, or -EPROTO, -EBADMSG when it makes no sense. Lock held. */
int supervisor_answer(struct supervisor *supervisor, const struct message *message);
/* answers.c: a message was sent. The last STAGED of a save makes it STAGED for its caller too. Lock held. */
void supervisor_told(struct supervisor *supervisor);
/* outbox.c: composes the next message that is due into link.outgoing; false when there is none. Lock held, given away
 * while texts are composed. */
bool supervisor_compose(struct supervisor *supervisor, int fds[OP_FDS_MAX], unsigned *fd_count);

#endif
