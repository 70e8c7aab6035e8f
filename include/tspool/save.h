/* tspool/save.h - one save, which is also its future.
 *
 *     tspool_save_begin -> tspool_save_add ... -> tspool_save_submit -> tspool_save_wait -> tspool_save_free
 *
 * Levels, in their order:
 *   STAGED     every tensor was copied: the caller may change them
 *   WRITTEN    every byte was written and checked, but a power cut may still lose it
 *   DURABLE    this rank's part survives a power cut
 *   PUBLISHED  the checkpoint stands under its name and survives a power cut (with one rank the same instant as DURABLE)
 * or the save ends as FAILED (nothing of it is left behind, the older checkpoints stand) or UNKNOWN (an error struck
 * after the rename began: the checkpoint may or may not stand; nothing was removed; open it to find out).
 * A save resolves exactly once. Several may be in flight; they are written first come, first served.
 *
 * When the writer dies or hangs another one is started, and each save in flight goes on (`attempts` counts, `retry_cause`
 * says why; levels that were reported stand):
 *   the state fits the arena    it is written anew from there; nothing is asked of the caller, and staging does not stop
 *   it is larger, not STAGED    it is copied anew from the tensors; caller-filled spans cannot be, and fail
 *   it is larger, STAGED        FAILED, naming the arena_bytes that would have kept it
 * The same after EIO of its files, up to three attempts. After five deaths in a row every save in flight FAILS with a record
 * that says so; training goes on, and each later save tries a writer again, once.
 *
 * Threads: add/add_object/metadata/submit on one save from one thread at a time; the rest from any thread.
 */
#ifndef TSPOOL_SAVE_H
#define TSPOOL_SAVE_H

#include <tspool/spool.h>
#include <tspool/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tspool_save;

enum tspool_level { TSPOOL_STAGED = 1, TSPOOL_WRITTEN = 2, TSPOOL_DURABLE = 3, TSPOOL_PUBLISHED = 4 };

enum tspool_staging {
    TSPOOL_STAGING_NOW = 0,    /* submit returns when the save is STAGED */
    TSPOOL_STAGING_BACKGROUND, /* submit returns at once; needs `guarded` */
    TSPOOL_STAGING_CALLER      /* the caller fills spans: tspool_save_next_span, tspool_save_filled */
};

struct tspool_save_options {
    size_t size;                /* sizeof(struct tspool_save_options), set by TSPOOL_SAVE_OPTIONS_INIT */
    enum tspool_staging staging;
    uint8_t guarded;            /* with BACKGROUND: the caller promises to wait for STAGED before it changes a tensor.
                                 * 0 with BACKGROUND is refused with -EINVAL */
    uint8_t replace;            /* nonzero: a published checkpoint of that name is exchanged, atomically; 0: -EEXIST */
    uint64_t deadline_ns;       /* as in tspool_options; 0: the spool's */
    const uint8_t *save_id;     /* 16 bytes, broadcast by rank 0; NULL: a fresh one. NULL with world_size > 1 is -EINVAL */
    uint8_t check_torn;         /* nonzero, for debugging, not with CALLER: digests of all tensors are taken in submit and
                                 * compared as each piece is copied; one that was changed in between fails the save with
                                 * EBUSY, by its name. Costs a pass over the state in submit and one beside the copying */
};
#define TSPOOL_SAVE_OPTIONS_INIT { sizeof(struct tspool_save_options), TSPOOL_STAGING_NOW, 0, 0, 0, NULL, 0 }

/* Begins a save of the checkpoint `name`: one path component, no leading '.', no '/', 1..180 bytes.
 * `options` may be NULL. *save is owned by the caller until tspool_save_free. */
int tspool_save_begin(struct tspool *spool, const char *name, const struct tspool_save_options *options,
                      struct tspool_save **save, struct tspool_failure *failure);

/* Begins a save of the same tensors (same names, shapes and addresses) as `previous`, which must have been submitted:
 * nothing is declared or planned again. Objects and metadata are not taken over. `previous` may be freed afterwards.
 * Tensors are staged from the addresses given to `previous`; tspool_save_rebind changes one. */
int tspool_save_again(struct tspool *spool, const char *name, struct tspool_save *previous,
                      const struct tspool_save_options *options, struct tspool_save **save, struct tspool_failure *failure);
/* Points the tensor declared as number `index` (from 0, in the order of tspool_save_add) at other memory of the same
 * layout. A tied tensor follows the one that it is tied to. */
int tspool_save_rebind(struct tspool_save *save, size_t index, const void *data);

/* Adds a tensor. Two tensors with the same address, dtype, shape and strides are tied: stored once, restored both; unless the
 * second is declared `untied`. */
int tspool_save_add(struct tspool_save *save, const struct tspool_tensor *tensor, struct tspool_failure *failure);
/* Adds a non-tensor object: `bytes` are copied. `kind` says how to read them back: a short word such as "json",
 * "bytes", "pickle"; pickles load only on the reader's explicit consent. */
int tspool_save_add_object(struct tspool_save *save, const char *name, const char *kind, const void *bytes, size_t size,
                           struct tspool_failure *failure);
/* Adds user metadata (UTF-8); a key given again replaces its value. "step" orders checkpoints for tspool_latest. */
int tspool_save_metadata(struct tspool_save *save, const char *key, const char *value, struct tspool_failure *failure);

/* Plans, reserves arena space, starts the writing and stages per the save's options. A failure of an earlier save that
 * nobody looked at is returned here, once, and this save is then not submitted (-ECANCELED with the record; submit again). */
int tspool_save_submit(struct tspool_save *save, struct tspool_failure *failure);

/* Caller staging: a piece of one tensor to be filled, at the place it will have in its shard file. */
struct tspool_span {
    size_t size;            /* sizeof(struct tspool_span), set by TSPOOL_SPAN_INIT */
    void *data;             /* arena memory to fill, `bytes` long */
    uint64_t bytes;
    size_t tensor;          /* index of the declared tensor */
    uint64_t tensor_offset; /* bytes from the start of the tensor in contiguous form */
    uint64_t token;         /* for tspool_save_filled */
};
#define TSPOOL_SPAN_INIT { sizeof(struct tspool_span), NULL, 0, 0, 0, 0 }
/* 1 and a span; 0 when every span was handed out; -ETIMEDOUT while the arena is full; or the save's failure, as
 * tspool_save_wait returns it.
 * Spans come in layout order, may be filled in any order and by any thread. */
int tspool_save_next_span(struct tspool_save *save, struct tspool_span *span, uint64_t timeout_ns);
int tspool_save_filled(struct tspool_save *save, const struct tspool_span *span);

/* Waits for a level. 0, -ETIMEDOUT, -ESTALE for UNKNOWN, or -errno of the failure (see tspool_save_result); a save that failed
 * because something took too long, with ETIMEDOUT in its record, is -ETIME here: asking again would not help.
 * timeout_ns: 0 asks without waiting, UINT64_MAX waits for ever. */
int tspool_save_wait(struct tspool_save *save, enum tspool_level level, uint64_t timeout_ns);
/* A descriptor that polls readable whenever a level was reached or the save resolved since the last
 * tspool_save_result; owned by the save. Or -errno. */
int tspool_save_fd(struct tspool_save *save);

enum tspool_outcome {
    TSPOOL_OUTCOME_PENDING = 0, /* not submitted, or in flight */
    TSPOOL_OUTCOME_PUBLISHED,
    TSPOOL_OUTCOME_DURABLE,     /* this rank's part; the publishing is another's */
    TSPOOL_OUTCOME_FAILED,
    TSPOOL_OUTCOME_UNKNOWN
};

/* Times are nanoseconds since tspool_save_submit was called; 0: not reached. */
struct tspool_save_result {
    size_t size;                 /* sizeof(struct tspool_save_result), set by TSPOOL_SAVE_RESULT_INIT */
    enum tspool_outcome outcome;
    uint32_t level;              /* highest level reached; 0: none */
    uint8_t save_id[TSPOOL_SAVE_ID_BYTES];
    uint64_t tensor_bytes;       /* as declared; tied tensors counted once */
    uint64_t file_bytes;         /* sum of the shard files' sizes */
    uint64_t staged_bytes, written_bytes; /* progress; equal to file_bytes at STAGED and WRITTEN (padding not counted) */
    uint64_t planned_ns, stall_ns, staged_ns, written_ns, synced_ns, durable_ns, published_ns;
                                 /* stall: how long submit kept the caller */
    uint32_t files;
    uint32_t attempts;           /* how many writers, or tries of one, the save took so far */
    uint8_t replayable;          /* said at submit: the state fits the arena and stays there until DURABLE, so that the death
                                  * of any writer costs time and nothing else */
    uint8_t plan_reused;
    uint8_t direct;              /* O_DIRECT was really in force */
    uint8_t registered;          /* buffers were registered with io_uring */
    uint32_t item_bytes, depth, page_bytes; /* page_bytes: what backs the arena, 4096 or 2 MiB */
    uint64_t writes, short_writes;
    uint64_t hash_cpu_ns;        /* CPU time of the writer's hash threads for this save */
    uint64_t stage_cpu_ns;       /* CPU time of the staging threads for this save */
    int writer_pid;
    char backend[16];            /* "uring" or "threads" */
    char io_note[160];           /* why it is not the preferred mode; empty when it is */
    struct tspool_failure failure;
    char retry_cause[256];       /* why the latest earlier attempt ended, one line; empty during the first */
    uint64_t removed, removed_bytes; /* by retention (tspool_options.keep): checkpoints that went and bytes that became free since
                                  * the writer began, and what the last of it failed with, as they stood at the highest level */
    int keep_error;              /* errno; 0: nothing stayed that was to go. No failure of this save */
    char keep_left[181];         /* the checkpoint that could not be removed; empty: the root could not be looked over */
};
#define TSPOOL_SAVE_RESULT_INIT { .size = sizeof(struct tspool_save_result) }

/* A snapshot of the save; never blocks. Marks a failure as looked at. */
int tspool_save_result(struct tspool_save *save, struct tspool_save_result *result);

/* Gives the save up: what is not yet being published is removed and the save resolves as FAILED with ECANCELED.
 * Returns at once; -EALREADY when the save is resolved. */
int tspool_save_abort(struct tspool_save *save);
/* Frees the handle. A save in flight goes on; its failure is then reported by the next submit. NULL is fine. */
void tspool_save_free(struct tspool_save *save);

#ifdef __cplusplus
}
#endif
#endif
