/* support/sim_io.h - the third backend of io/io.h: one world of virtual time, a simulated disk, and processes in it.
 *
 *   sim_world   clock, disk, event queue, handles, faults, trace: everything follows from the seed
 *   sim_io      what one process of that world sees: a struct io. Writer, supervisor and reader may each have one
 *
 * An op takes effect at one moment, the moment its random duration ends; that order is the scheduler's choice. What it
 * reads from the caller's memory it reads then: memory that changed since submit is a violation. An FSYNC makes durable
 * what had taken effect before it was submitted, no more. COMPUTE runs at its moment. Nothing blocks, nothing sleeps.
 *
 * Every random choice about an op follows from (seed, process, number of the op in that process): leaving one fault out
 * of a run changes what follows from it and nothing else, so that failing runs can be shrunk.
 *
 * Two ways to run: a machine that owns its loop calls io_wait(); a test with several machines calls sim_world_next() and
 * hands each completion to the machine it belongs to.
 */
#ifndef SUPPORT_SIM_IO_H
#define SUPPORT_SIM_IO_H

#include "sim_disk.h"

#include <io/io.h>
#include <stdio.h>

struct sim_world;

struct sim_settings {
    uint64_t seed;
    uint32_t memory_align, offset_align; /* of O_DIRECT; offset_align 0: OPEN_DIRECT is -EINVAL */
    bool allocate_unsupported;           /* ALLOCATE is an ftruncate with result 1, as on NFSv3 */
    const char *filesystem;              /* NULL: "ext4" */
    uint64_t duration_ns;                /* of an op at most; 0: 1 ms */
    unsigned short_writes_per_mille, short_reads_per_mille;
    unsigned channel_messages;           /* that a channel queues per direction; 0: 278, as Linux does */
    bool trace;
    int64_t mtime_ns;                    /* of everything, as STAT tells it: 0 is old */
    struct sim_disk_settings disk;
};

/* Takes over `disk`, or makes an empty one from settings->disk when it is NULL. */
struct sim_world *sim_world_create(const struct sim_settings *settings, struct sim_disk *disk);
/* All io of the world must have been destroyed. */
void sim_world_destroy(struct sim_world *world);
struct sim_disk *sim_world_disk(struct sim_world *world);
uint64_t sim_world_now(const struct sim_world *world);

/* A process. `name` is static. READ and WRITE beyond `depth` in flight are -EBUSY; 0: 16. */
struct io *sim_io_create(struct sim_world *world, const char *name, unsigned depth);
/* SIGKILL: its handles are closed, its locks fall, what watches it wakes. Of its ops in flight each may still take effect: a
 * write even afterwards (the device finishes what it began; it only reads memory), verbs and messages before the death can
 * be seen, as no process is gone while one of its threads is in a system call. The machine may be thrown away at once;
 * io_destroy stays allowed and is all that is. */
void sim_io_kill(struct io *io);
/* Its SIGKILL is under way: whatever its writes in flight find in memory from now on is nobody's concern. */
void sim_io_doom(struct io *io);
bool sim_io_is_dead(const struct io *io);
uint64_t sim_io_ops(const struct io *io); /* submitted so far */

/* The next completion of any process: 1; 0 when now() reached deadline_ns first (IO_FOREVER: never); -1 when nothing is left
 * that could happen, or after a power cut. */
int sim_world_next(struct sim_world *world, uint64_t deadline_ns, struct io **io, struct completion *completion);

/* Called after each op that took effect, before anybody has its completion. */
struct sim_seen {
    const struct io *io;
    enum op_kind kind;
    uint64_t number;              /* of the op in its process, from 1 */
    const char *path, *to_path;   /* from "/"; empty where no file is meant */
    int64_t result;
    const void *bytes;            /* WRITE, SEND */
    size_t size;
};
typedef void sim_look(struct sim_world *world, const struct sim_seen *seen, void *context);
void sim_world_observe(struct sim_world *world, sim_look *look, void *context);

/* A clone of the disk as a power cut would meet it now: ops in flight that change it have begun, so that their effects are
 * pending like others. */
struct sim_disk *sim_world_disk_in_flight(struct sim_world *world);

/* Objects: handles that belong to `owner`. A real descriptor that is sent in a message must be of a sealed memfd: its receiver
 * gets a handle of the same bytes. ------------------------------------------------------------------------------------ */
int sim_open(struct io *owner, const char *path);                 /* a file or directory, for reading */
void sim_close(struct io *owner, int handle);
int sim_share(struct io *from, int handle, struct io *to);        /* as dup() across processes */
void sim_channel(struct io *one, struct io *other, int ends[2]);  /* ends[0] is one's, ends[1] other's */
int sim_event(struct io *owner);
void sim_event_raise(struct io *owner, int handle); /* nothing when the owner is dead */
void sim_event_clear(struct io *owner, int handle);
int sim_process(struct io *owner, const struct io *watched);      /* a pidfd */
int sim_memory(struct io *owner, uint64_t size);                  /* a memfd, zeroed */
int sim_memory_of(struct io *owner, void *bytes, uint64_t size);  /* one whose bytes are the caller's, and outlive the world */
void *sim_memory_bytes(struct io *owner, int handle, uint64_t *size); /* NULL when it is none; lives as long as the world */
/* A test that plays a peer without a machine. Bytes taken: 0 when there is no message; -EAGAIN, -EPIPE when not sent. */
int sim_channel_send(struct io *owner, int handle, const void *bytes, size_t size, const int *fds, unsigned fd_count);
int64_t sim_channel_take(struct io *owner, int handle, void *bytes, size_t size, int *fds, unsigned *fd_count);
unsigned sim_handles(const struct io *owner);                     /* open ones: for finding leaks */

/* Faults -------------------------------------------------------------------------------------------------------------- */
enum sim_action {
    SIM_FAIL = 1,    /* refused: no effect, -error. A failed FSYNC leaves its file half written and clean for ever */
    SIM_FAIL_AFTER,  /* it took effect and reports -error all the same */
    SIM_SHORT,       /* READ, WRITE: only `bytes` */
    SIM_LIE,         /* reports success and does nothing */
    SIM_DEFER,       /* reports success, and does it only when an op that matches `until` has taken effect */
    SIM_DELAY,       /* takes `delay_ns` longer */
    SIM_KILL,        /* once it took effect its process dies: the completion is never seen */
    SIM_POWER_CUT    /* once it took effect nothing happens any more */
};
struct sim_match {
    const char *process; /* NULL: any */
    enum op_kind kind;   /* OP_NONE: any */
    const char *path;    /* fnmatch pattern of the file or directory acted on, from "/" ("*" crosses "/"); NULL: any */
};
struct sim_fault {
    struct sim_match on;
    uint64_t ordinal;    /* only the n-th that matches, from 1; 0: each */
    enum sim_action action;
    int error;
    size_t bytes;
    uint64_t delay_ns;
    struct sim_match until;
};
/* Strings are the caller's and outlive the world. Returns its number, for sim_fault_hits. */
unsigned sim_world_fault(struct sim_world *world, const struct sim_fault *fault);
uint64_t sim_fault_hits(const struct sim_world *world, unsigned fault);

/* What no machine may do, found by the world itself: an unknown handle, memory changed under a write, ...: the first one
 * as text, or NULL. */
const char *sim_world_violation(const struct sim_world *world);
/* One line per op that took effect: time, process, number, kind, path, place -> result. NULL when not traced. */
const char *sim_world_trace(const struct sim_world *world);

#endif
