/* support/sim_world.h - inside of the simulated world: what its parts share.
 *
 *   sim_world.c    the world itself, randomness        sim_verbs.c    what each op does
 *   sim_io.c       submit, wait, cancel, kill          sim_objects.c  handles, channels, memory
 *   sim_events.c   ops in flight, their moments        sim_faults.c   which op meets which fault
 */
#ifndef SUPPORT_SIM_WORLD_H
#define SUPPORT_SIM_WORLD_H

#include "sim_io.h"

#define SIM_HANDLE_FIRST 1000       /* so that a real descriptor that strays in is no handle */
#define SIM_PATH_MAX 512
#define SIM_PARKED UINT64_MAX       /* event.due: until its object changes */
#define SIM_AGAIN INT64_MIN         /* a verb's result: not yet, park it */

struct sim_random { uint64_t state; };
uint64_t sim_mix(uint64_t value);
uint64_t sim_random_next(struct sim_random *random);
uint64_t sim_random_below(struct sim_random *random, uint64_t bound); /* [0, bound) */

enum object_kind { OBJECT_NODE, OBJECT_CHANNEL, OBJECT_EVENT, OBJECT_PROCESS, OBJECT_MEMORY };

struct sim_message {
    struct sim_message *next;
    uint64_t visible_ns;
    size_t size;
    unsigned fd_count;
    struct sim_object *fds[OP_FDS_MAX];
    uint8_t bytes[];
};
struct sim_object {
    enum object_kind kind;
    unsigned references;            /* handles, messages in flight, ops in flight */
    struct sim_object *next;        /* of all */
    uint32_t inode, flags;          /* OBJECT_NODE: an open file description */
    bool locked;
    struct sim_object *peer;        /* OBJECT_CHANNEL; NULL: the other end is closed */
    struct sim_message *first, **last;
    unsigned queued;
    uint64_t raised;                /* OBJECT_EVENT */
    struct sim_io *process;         /* OBJECT_PROCESS */
    uint8_t *bytes;                 /* OBJECT_MEMORY */
    uint64_t size;
    bool borrowed;                  /* the bytes are not ours to unmap */
};
struct sim_handle { struct sim_object *object; struct sim_io *owner; }; /* object NULL: closed */

struct sim_event {
    struct sim_event *next;         /* in submission order */
    struct sim_io *io;
    struct op *op;                  /* NULL: nobody waits for it any more (its process was killed) */
    struct op request;              /* as submitted; names and bytes are copies once op is NULL */
    void *kept[3];                  /* those copies: name, to_name, bytes */
    struct sim_object *object, *to_object; /* what the handles meant at submit */
    uint64_t number, due, moment;   /* moment: of the disk, at submit */
    struct sim_random random;
    const struct sim_fault *fault;
    struct digest memory;           /* WRITE, SEND: what it was at submit */
    bool cancelled;
    char path[SIM_PATH_MAX], to_path[SIM_PATH_MAX];
};

struct sim_ready { struct sim_ready *next; struct sim_io *io; struct completion completion; };

struct sim_io {
    struct io io;
    struct sim_world *world;
    struct sim_io *next;
    const char *name;
    uint64_t stream, ops;
    struct sim_random random;       /* of io_random */
    unsigned depth, transfers;      /* READ and WRITE submitted and not yet returned */
    struct { void *base; size_t size; } *buffers;
    size_t buffer_count, buffer_capacity;
    bool dead, doomed, destroyed;
};

struct sim_world {
    struct sim_settings settings;
    struct sim_disk *disk;
    uint64_t now;
    bool power_cut;
    struct sim_io *processes;
    struct sim_event *events;
    struct sim_event *deferred;     /* SIM_DEFER: reported, not done */
    struct sim_ready *ready, **ready_last;
    struct sim_handle *handles;
    size_t handle_count, handle_capacity;
    struct sim_object *objects;
    struct planted { struct sim_fault fault; uint64_t seen, hits; } *faults[64];
    unsigned fault_count;
    sim_look *look;
    void *look_context;
    char violation[512];
    char *trace;
    size_t trace_size;
    FILE *trace_file;
};

static inline struct sim_io *sim_io_of(const struct io *io) { return (struct sim_io *)(uintptr_t)io; }

void world_violation(struct sim_world *world, const char *what, ...) __attribute__((format(printf, 2, 3)));
/* Something changed: parked events are tried again. */
void world_wake(struct sim_world *world);
void world_wake_at(struct sim_world *world, uint64_t due);

static inline bool is_transfer(enum op_kind kind) { return kind == OP_READ || kind == OP_WRITE; }
static inline bool reads_memory(enum op_kind kind) { return kind == OP_WRITE || kind == OP_SEND; }
void event_append(struct sim_event **list, struct sim_event *event);
void event_unlink(struct sim_event **list, struct sim_event *event);
void event_destroy(struct sim_world *world, struct sim_event *event);
/* Its submitter is gone, or has its answer. */
void event_orphan(struct sim_event *event);
struct sim_event *event_next(struct sim_world *world); /* NULL: none will ever come due */
void event_run(struct sim_event *event);
void event_trace(const struct sim_event *event, int64_t result);
void world_observed(struct sim_world *world, const struct sim_event *event, int64_t result);
unsigned ready_take(struct sim_io *io, struct completion *completions, unsigned capacity);

struct sim_object *object_create(struct sim_world *world, enum object_kind kind);
struct sim_object *object_hold(struct sim_object *object);
/* Of a real, sealed memfd; NULL when it is none. */
struct sim_object *object_of_descriptor(struct sim_world *world, int fd);
void object_release(struct sim_world *world, struct sim_object *object);
struct sim_object *handle_object(const struct sim_io *io, int handle); /* NULL: no handle of this process */
int handle_create(struct sim_io *io, struct sim_object *object);       /* takes over one reference */
int handle_close(struct sim_io *io, int handle);
bool channel_has_room(const struct sim_world *world, const struct sim_object *end);
int64_t channel_send(struct sim_world *world, struct sim_object *end, const void *bytes, size_t size,
                     struct sim_object *const *fds, unsigned fd_count, uint64_t delay_ns);
/* all: also what is still under way (the sender is dead, so all of it is there). */
int64_t channel_take(struct sim_io *io, struct sim_object *end, bool all, void *bytes, size_t size, int *fds, unsigned *fd_count);

/* Does what the op says; a result, or SIM_AGAIN. */
int64_t verb_execute(struct sim_event *event);
/* Only what it does to a disk (the world's, or a clone): for FSYNC nothing. *opened: inode of an OPEN. */
int64_t verb_on_disk(struct sim_event *event, struct sim_disk *disk, uint32_t *opened);
bool verb_changes_disk(enum op_kind kind);
void verb_sync_fails(struct sim_event *event);
void verb_paths(struct sim_event *event); /* fills path, to_path */
void *verb_memory(const struct sim_event *event);

const struct sim_fault *fault_choose(struct sim_world *world, const struct sim_event *event);
bool fault_matches(const struct sim_match *match, const struct sim_event *event);

#endif
