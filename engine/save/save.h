/* save/save.h - one save: what was declared, where each chunk is, and how far it came.
 *
 * Whose memory is it: the caller's handle, the roster while it is in flight, and the roster's list of unlooked failures
 * each keep it; whoever lets go last frees it (save_release). Until submit it belongs to the caller's thread; afterwards
 * everything below the line "in flight" is guarded by roster->lock.
 */
#ifndef SAVE_SAVE_H
#define SAVE_SAVE_H

#include <base/names.h>
#include <format/safetensors.h>
#include <save/layout.h>
#include <save/recovery.h>
#include <save/replay.h>
#include <save/roster.h>
#include <save/spans.h>
#include <save/torn.h>
#include <sys/types.h>
#include <tspool/save.h>
#include <wire/message.h>

struct arena;
struct tspool;

enum save_state {
    SAVE_DECLARED,   /* tspool_save_submit moves it to SUBMITTED */
    SAVE_SUBMITTED,  /* no writer knows of this attempt; the supervisor sends BEGIN -> BEGUN, or gives it a verdict */
    SAVE_BEGUN,      /* the writer's messages give the verdict; its death, or what another attempt may mend -> RECOVERING */
    SAVE_RECOVERING, /* the attempt is over: recovery finds out what it left; a verdict, or -> SUBMITTED again */
    SAVE_ENDING,     /* verdict known; some thread still copies: its end lets the supervisor resolve */
    SAVE_RESOLVED    /* for ever */
};

enum chunk_state {
    CHUNK_WAITING = 0, /* not copied */
    CHUNK_STAGED,      /* complete in its slot, queued for STAGED or sent */
    CHUNK_RELEASED     /* written and hashed */
};

/* An object is in the objects file at file_offset. */
struct save_object { char *name, *kind; uint64_t file_offset, size; };

struct tspool_save {
    struct tspool *spool;            /* NULL after tspool_close */
    struct roster *roster;
    struct arena *arena;
    struct stager *stager;
    pid_t owner;
    char name[CHECKPOINT_NAME_MAX + 1];
    enum tspool_staging staging;
    bool replace, check_torn, layout_given; /* layout_given: by save_again; nothing can be added */
    uint64_t deadline_ns;
    uint32_t rank, world_size;

    struct layout *layout;
    const void **data;               /* by declared tensor; NULL: as declared */
    struct save_object *objects;
    size_t object_count, object_capacity;
    void *object_names;              /* tsearch tree of the objects' own names */
    char *object_bytes;              /* the objects file */
    size_t object_size, object_bytes_capacity;
    struct header_pair *metadata;
    size_t metadata_count, metadata_capacity;
    uint64_t *versions;              /* by layout->versioned: what the counters said at submit */
    struct torn *torn;               /* with check_torn: what the tensors held at submit */

    /* in flight */
    enum save_state state;
    struct attempt attempt;
    bool has_handle, is_active, is_unlooked;
    struct tspool_save *next_active, *next_unlooked, *next_in_line;
    struct tspool_save *next_known, **known_link; /* spool's list of saves with a handle */

    bool replayable;                 /* slots are kept until DURABLE */
    bool cancelled;                  /* staging stops; atomic, as the arena reads it under its own lock */
    bool in_line;
    uint32_t *slots;                 /* by chunk; ARENA_NO_SLOT: none */
    uint8_t *chunks;                 /* by chunk: enum chunk_state */
    uint32_t taken;                  /* chunk_order[0..taken) has a thread, or had one */
    uint32_t copying;                /* threads that hold a chunk now; no slot is freed and nothing resolves before 0 */
    uint32_t *staged;                /* chunk numbers in the order in which they were staged */
    uint32_t staged_count;           /* filled by stagers */
    uint32_t staged_sent;            /* told to the writer, by the supervisor; a replay begins again at 0 */
    uint64_t stage_cpu_ns;
    struct spans spans;

    bool abandon_wanted, abandon_sent;
    struct tspool_failure intended;  /* with abandon_wanted: what the save fails with (ECANCELED, or a staging error);
                                      * RECOVERING without it: why the attempt ended */
    enum tspool_outcome verdict;
    struct recovery recovery;
    uint64_t recovery_due_ns;
    enum attempt_end end;            /* how the latest attempt ended, and how the save goes on */
    enum replay_way way;
    unsigned deaths, io_errors;      /* attempts that ended so */
    bool restage_wanted;             /* copied again from the start, as soon as nobody copies for it */
    int appendix_fd;                 /* -1: not composed; kept until DURABLE, as a replay sends it again */
    uint64_t appendix_bytes;
    char *manifest_front;            /* the manifest's first bytes, by which recovery knows it again */
    size_t manifest_front_size;
    uint64_t staged_at_ns;           /* when everything was copied; CLOCK_MONOTONIC; 0: not yet */

    uint64_t submit_ns;              /* CLOCK_MONOTONIC */
    struct tspool_save_result result;
    int fd;                          /* eventfd of tspool_save_fd; -1: none */
    bool has_news, looked;
};

/* Declared tensor `index`, at this save's address. */
void save_tensor(const struct tspool_save *save, size_t index, struct tspool_tensor *tensor);
/* 0 while the save takes declarations; `what` is the argument that must not be NULL. */
int save_declare_check(const struct tspool_save *save, const void *what, const char *operation, struct tspool_failure *failure);
/* Frees a save that nobody else knows of. */
void save_destroy(struct tspool_save *save);
/* For every entry point: -EPERM in a forked child, -EINVAL after tspool_close. */
int save_check(const struct tspool_save *save);
const struct plan *save_plan(const struct tspool_save *save);

/* All of the following with roster->lock held. --------------------------------------------------------------------- */

/* Every chunk is complete; the writer may not have been told yet, which is when STAGED is reached. Lock held. */
bool save_is_copied(const struct tspool_save *save);
/* Given up, failed, or without its writer: nothing is staged any more. */
bool save_is_ending(const struct tspool_save *save);
/* When it is to be durable by its deadline, CLOCK_MONOTONIC; UINT64_MAX: never, or not copied yet. */
uint64_t save_deadline(const struct tspool_save *save);
/* What waits of a failed or ending save return: -errno of the failure, but -ETIME for ETIMEDOUT; -ESTALE for UNKNOWN. */
int save_error(const struct tspool_save *save);
/* Stops the staging: copying threads end their chunk, waiting ones return. */
void save_stop_staging(struct tspool_save *save);

/* Raises the level; lower or equal ones, and those of ending saves, change nothing. at_ns: CLOCK_MONOTONIC. */
void save_reach(struct tspool_save *save, enum tspool_level level, uint64_t at_ns);
/* The first verdict counts. Stops the staging; the save resolves when the last copying thread is out, at once if none.
 * `failure` is NULL unless FAILED or UNKNOWN. The supervisor only. May free the save. */
void save_decide(struct tspool_save *save, enum tspool_outcome outcome, const struct tspool_failure *failure);
/* Resolves an ENDING save that nobody copies for. The supervisor only. May free the save. */
void save_settle(struct tspool_save *save);
/* Asks the supervisor to end the save with this record; the first wish counts. Any thread. */
void save_give_up(struct tspool_save *save, const struct tspool_failure *failure);
/* Whoever is told of the failure calls this; it is then not told again. May free the save. */
void save_look(struct tspool_save *save);
/* Frees the save if nobody holds it. */
void save_release(struct tspool_save *save);
/* Gives the chunk's slot back to the arena, if it has one; all but those that spans pin. */
void save_free_slot(struct tspool_save *save, uint32_t chunk);
void save_free_slots(struct tspool_save *save);
/* A chunk is complete in its slot: queues it, wakes the supervisor; the last one checks the version counters. */
void save_chunk_staged(struct tspool_save *save, uint32_t chunk);
void roster_add(struct roster *roster, struct tspool_save *save);

#endif
