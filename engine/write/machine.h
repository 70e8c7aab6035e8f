/* write/machine.h - the parts of one writer and how they hang together. For the files of this room only.
 *
 *   writer.c      the states of the writer itself: serve, drain, end; probe.c what comes before
 *   connection.c  messages in and out, the trainer's death
 *   job.c         the states of one attempt of a save; prepare.c, part.c, chunks.c, seal.c, commit.c, replace.c, sweep.c do
 *                 what a state asks for; shared.c what is different with several ranks
 *   transfer.c    write items, depth in flight over all jobs
 *   hashing.c     leaves on compute threads, beside the writing
 */
#ifndef WRITE_MACHINE_H
#define WRITE_MACHINE_H

#include <base/mutant.h>
#include <write/connection.h>
#include <write/hashing.h>
#include <write/job.h>
#include <write/task.h>
#include <write/transfer.h>
#include <write/writer.h>

enum writer_state {
    WRITER_PROBING,  /* a probe file shows what the root can do; the last of its ops moves on */
    WRITER_SERVING,  /* messages come in; CLOSE, SIGTERM, the trainer's death or a bad message move on */
    WRITER_DRAINING, /* what is queued on the channel is read out before anything is decided; its end moves on */
    WRITER_ENDING,   /* no new saves; staged ones are finished, the others swept; the last job and message move on */
    WRITER_LEAVING,  /* standing ops were cancelled; the last completion moves on */
    WRITER_FINISHED
};

/* What the root really offers, found out by the probe file. */
struct root_mode {
    bool direct;             /* O_DIRECT is accepted and its alignment is known */
    uint32_t memory_align, offset_align; /* 1 when buffered */
    char filesystem[16];
    char note[160];
};

struct probe {
    struct task task;
    struct io_stat stat;
    char name[HIDDEN_NAME_MAX + 1];
    int handle;
    bool made, direct;
    int error;               /* positive; what READY will say */
    const char *operation;
};

/* A part record that stays locked although its job is over: until its checkpoint is published, or the writer ends. */
struct held_part {
    struct held_part *next;
    struct task look;                    /* is it still linked?; in flight while `looking` */
    struct io_stat stat;
    int handle;
    bool looking;
};

struct writer {
    struct io *io;
    struct writer_settings settings;
    enum writer_state state;
    bool trainer_dead;
    struct tasks tasks;
    struct probe probe;
    struct root_mode mode;
    void *arena;             /* base of the read-only mapping */
    uint32_t arena_buffer;   /* number of the attached buffer; IO_NO_BUFFER: addressed by pointer */
    struct connection connection;
    struct transfer transfer;
    struct hashing hashing;
    uint64_t turns;          /* jobs that were staged so far */
    struct job *first_job, *last_job; /* in the order of BEGIN */
    struct held_part *held;
    unsigned part_writes;    /* of part records, in flight: PART_WRITES at most */
};

/* Events that the connection reports. */
void writer_message(struct writer *writer, const struct message *message, const int *fds, unsigned fd_count); /* takes the fds */
void writer_drained(struct writer *writer);
void writer_trainer_gone(struct writer *writer);  /* dead, or can never say anything again */
void writer_terminated(struct writer *writer);    /* SIGTERM */
/* Answers a BEGIN that no job can be made of. */
void writer_cannot_begin(struct writer *writer, const struct attempt *attempt, int error);
void writer_broken(struct writer *writer);        /* a message that makes no sense, or no memory to answer */

/* True once saves that are not staged have no future. */
bool writer_is_ending(const struct writer *writer);
/* Begins the probe; it ends in READY and the state SERVING, or ENDING when it was refused. */
void probe_start(struct writer *writer);
void probe_refuse(struct writer *writer, int error, const char *operation); /* error > 0; the first counts */
/* Adds a reason why this is not the preferred mode to READY's note. */
void writer_note(struct writer *writer, const char *text);
/* Lets go of part records whose checkpoint was published: at each BEGIN. */
void held_parts_look(struct writer *writer);
/* Lets go of all; true when there was one. */
bool held_parts_drop(struct writer *writer);
void held_parts_free(struct writer *writer); /* their memory */
/* Closes a handle that nobody needs any more; its result matters to nobody. */
void writer_close_handle(struct writer *writer, int handle);

#endif
