/* save/writer_link.h - the connection to one writer: its process or thread, the channel, and the three operations that
 * are always in flight on them.
 *
 * Death is the readable pidfd. Then what the writer had sent is read out, and no more is waited for: the end of the stream
 * may never come, as a forked child can hold the socket open.
 */
#ifndef SAVE_WRITER_LINK_H
#define SAVE_WRITER_LINK_H

#include <io/io.h>
#include <pthread.h>
#include <proc/proc.h>
#include <stdbool.h>
#include <tspool/failure.h>
#include <wire/message.h>

/* A running writer, as the supervisor sees it. */
struct writer_handle {
    int channel;         /* our end */
    int death;           /* becomes readable when it is dead */
    int pid;             /* 0: a thread */
    struct child child;  /* process isolation */
    pthread_t thread;    /* thread isolation */
};

/* How writers come and go; processes, threads, or the simulator's. Nothing here blocks for long. */
struct writer_launcher {
    int (*start)(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure);
    void (*kill)(struct writer_launcher *launcher, struct writer_handle *handle);
    /* Closes and reaps what is dead; what is not is left to itself. `how` gets "was killed by signal 9 (Killed)". */
    void (*release)(struct writer_launcher *launcher, struct writer_handle *handle, char *how, size_t how_size);
    const char *path, *excluded_cpus;    /* process */
    int (*writer_run)(int channel);      /* thread */
};
void launcher_init_process(struct writer_launcher *launcher, const char *path, const char *excluded_cpus);
void launcher_init_thread(struct writer_launcher *launcher, int (*writer_run)(int channel), const char *excluded_cpus);

enum link_state {
    LINK_DOWN,      /* no writer; the supervisor starts one when one is wanted */
    LINK_GREETING,  /* HELLO goes out; READY -> UP, a refusal, death or the start timeout -> ENDING */
    LINK_UP,        /* serves; CLOSE, silence, a broken message or the stream's end -> ENDING, death -> DRAINING */
    LINK_ENDING,    /* killed or leaving; its death, or the end of our patience -> DRAINING */
    LINK_DRAINING   /* dead; when all three operations are back -> DOWN */
};

struct writer_link {
    enum link_state state;
    struct writer_launcher *launcher;
    struct writer_handle handle;
    struct op recv_op, death_op, send_op;
    bool receiving, watching, sending;
    bool only_queued;                   /* the RECV in flight reads a dead writer out */
    struct message incoming, outgoing;
    struct message_ready ready;
    bool was_up, refused;               /* refused: READY was an error, or of another version */
    bool is_leaving;                    /* CLOSE was sent, so its end is no failure */
    bool is_retiring;                   /* it got SIGTERM: it finishes what it has, and is told of no new attempt */
    bool killed;
    bool dead;                          /* its death was seen; false at the burial: it hangs in the kernel */
    uint64_t due_ns;                    /* GREETING: start timeout; ENDING: end of patience */
    struct tspool_failure reason;       /* why we ended it; error 0: it died by itself */
    char last_seen[320];                /* from PONG: what it was busy with */
};

void link_init(struct writer_link *link, struct writer_launcher *launcher);
/* Starts a writer and arms the operations. -errno with the record: the link stays DOWN. */
int link_start(struct writer_link *link, struct io *io, uint64_t start_deadline_ns, struct tspool_failure *failure);
/* Sends link->outgoing with its descriptors; !sending. */
void link_send(struct writer_link *link, struct io *io, const int *fds, unsigned fd_count);
/* Kills it, and remembers why; the first reason counts. */
void link_end(struct writer_link *link, struct io *io, const struct tspool_failure *reason);
/* Its death was seen, or is not waited for any longer. */
void link_drain(struct writer_link *link, struct io *io);
/* Dead and drained: nothing of it is in flight. */
bool link_is_over(const struct writer_link *link);
/* Closes and reaps; -> DOWN. */
void link_bury(struct writer_link *link, char *how, size_t how_size);
/* Takes the message that RECV brought: 0; -EAGAIN when nothing more will come; -ECANCELED; -EBADMSG, -EPROTO. RECV is armed
 * again by link_receive, after the message was used. */
int link_take(struct writer_link *link, int64_t result, struct message *message);
void link_receive(struct writer_link *link, struct io *io);

#endif
