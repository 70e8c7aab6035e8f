/* tspool/spool.h - the spool: one arena and one writer process that serve one rank's saves into one root directory.
 *
 * Threads: every function may be called from any thread; tspool_close must be the last call on its spool and none of
 * the spool's saves may be used after it, except tspool_save_free.
 * Fork: a forked child may not use the parent's spool or saves; every call there returns -EPERM and touches nothing.
 * The arena is not mapped in children (MADV_DONTFORK).
 * The library installs no signal handlers, prints nothing and reads no environment variables. Its own threads block
 * all signals and are named "tspool-*".
 */
#ifndef TSPOOL_SPOOL_H
#define TSPOOL_SPOOL_H

#include <tspool/failure.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tspool;

enum tspool_io {
    TSPOOL_IO_AUTO = 0, /* io_uring where the kernel allows it, else threads; what ran is in every result */
    TSPOOL_IO_URING,    /* io_uring or fail with the reason */
    TSPOOL_IO_THREADS   /* a pool of pwrite threads */
};

enum tspool_isolation {
    TSPOOL_ISOLATION_PROCESS = 0, /* the writer is a process of its own: a save outlives the trainer */
    TSPOOL_ISOLATION_THREAD       /* the writer is a thread of the caller: outlives nothing; for sandboxes without exec */
};

/* Called by the trainer-side thread that populates an extent of the arena: added = 1 after [base, base+bytes) became
 * usable (pin it for DMA here: cudaHostRegister), added = 0 before it is unmapped. Returning nonzero for added = 1
 * fails the reservation with that -errno. */
typedef int (*tspool_arena_hook)(void *context, void *base, size_t bytes, int added);

struct tspool_options {
    size_t size;                       /* sizeof(struct tspool_options), set by TSPOOL_OPTIONS_INIT */
    const char *root;                  /* directory that holds the checkpoints; must exist and be writable */
    uint64_t arena_bytes;              /* cap of the arena, rounded up to 16 MiB, at least 32 MiB.
                                        * 0: at most half of what cgroup and MemAvailable leave at open, divided by local_ranks */
    uint32_t item_bytes;               /* one write: a multiple of 4096, 4 KiB..16 MiB; 0: 512 KiB */
    uint32_t depth;                    /* writes in flight, 1..1024; 0: 32 */
    enum tspool_io io;
    enum tspool_isolation isolation;
    uint64_t bytes_per_second;         /* cap of the write bandwidth; 0: none */
    uint32_t staging_threads;          /* threads that copy tensors, 1..64; 0: 2, or 1 on a single core */
    uint32_t hash_threads;             /* threads of the writer that hash, 1..64; 0: 2, or 1 on a single core */
    uint64_t deadline_ns;              /* a save that is not durable this long after STAGED fails with ETIMEDOUT; 0: never */
    uint64_t heartbeat_ns;             /* a writer silent for this long is taken as hung; 0: 30 s */
    uint64_t start_timeout_ns;         /* wait for the writer's handshake; 0: 30 s */
    uint64_t shard_bytes;              /* start a new shard file beyond this many tensor bytes; 0: 4 GiB */
    uint32_t rank, world_size;         /* this process among the ranks of the job; world_size 0: 1 */
    uint32_t local_ranks;              /* ranks that share this machine's memory; 0: 1 */
    uint8_t buffered;                  /* nonzero: never O_DIRECT */
    const char *writer_path;           /* tspool-writer's path; NULL: where it was installed */
    const char *excluded_cpus;         /* CPUs that the library's threads and the writer must not use, "0-3,8"; NULL: none */
    tspool_arena_hook on_arena;        /* NULL: none */
    void *on_arena_context;
    uint64_t orphan_wait_ns;           /* how long tspool_open waits for the writers of dead trainers that still finish a save
                                        * below root; 0: 10 s; UINT64_MAX: for ever; 1: not at all (see tspool_open_report) */
    uint32_t submit_batch;             /* io_uring: writes that are handed to the kernel with one call, up to depth; 0: 1, which
                                        * most devices like best: more are merged into fewer, larger requests */
    uint32_t keep;                     /* after each published save only the newest `keep` checkpoints below root stay, 1..65536:
                                        * older ones are deleted between the saves, by the writer of rank 0; 0: all stay */
};

#define TSPOOL_OPTIONS_INIT { sizeof(struct tspool_options), NULL, 0, 0, 0, TSPOOL_IO_AUTO, TSPOOL_ISOLATION_PROCESS, \
                              0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 0, 0, 0 }

/* Puts what a settings file holds into *options, which TSPOOL_OPTIONS_INIT made: the file that `tspool tune` wrote for a
 * directory. Only members that the file has are changed, and none on failure: -ENOENT, -EBADMSG (no JSON object of that kind; the
 * record names the byte), -EPROTO (of another version), -EINVAL. Values are checked by tspool_open. */
int tspool_options_load(const char *path, struct tspool_options *options, struct tspool_failure *failure);

/* Starts the writer, maps the arena and waits for the handshake: whatever is wrong with the root, the memory limits
 * or the writer shows here, before training starts. *spool is owned by the caller until tspool_close. */
int tspool_open(const struct tspool_options *options, struct tspool **spool, struct tspool_failure *failure);

/* What tspool_open waited for: a trainer that died may have left a writer that still finishes what was staged, an orphan.
 * It is waited for, so that the trainer resumes from what that publishes, and so that its memory is free again. One that is
 * left at the timeout harms nothing: it has a save id and files of its own, and of two saves of one name the second to
 * finish fails with EEXIST. A save of a trainer that lives is not waited for. */
struct tspool_open_report {
    size_t size;               /* sizeof(struct tspool_open_report), set by TSPOOL_OPEN_REPORT_INIT */
    uint64_t waited_ns;        /* 0: there was nothing to wait for */
    uint32_t orphans_seen;     /* saves of dead trainers that were under way; seen = finished + left */
    uint32_t orphans_finished; /* published, or given up and swept */
    uint32_t orphans_left;     /* still under way at the timeout */
    char orphan_left[181];     /* checkpoint name of one of those; "": none is left */
};
#define TSPOOL_OPEN_REPORT_INIT { .size = sizeof(struct tspool_open_report) }
int tspool_open_report(struct tspool *spool, struct tspool_open_report *report);

/* Populates the arena for saves of `bytes` now (0.3-1 s per GiB, once) rather than in the first save.
 * -ENOMEM with figures when the machine or the cgroup has no room, -EFBIG beyond arena_bytes. */
int tspool_reserve(struct tspool *spool, uint64_t bytes, struct tspool_failure *failure);

#define TSPOOL_SAVE_ID_BYTES 16
/* A fresh random save id, for rank 0 to broadcast when several ranks save one checkpoint. */
int tspool_save_id(struct tspool *spool, uint8_t id[TSPOOL_SAVE_ID_BYTES]);

enum tspool_close_mode {
    TSPOOL_CLOSE_LEAVE = 0, /* at the timeout the writer is left to finish what is staged, without us */
    TSPOOL_CLOSE_ABORT      /* at the timeout what is not durable is aborted and swept */
};

struct tspool_close_report {
    size_t size;                /* sizeof(struct tspool_close_report), set by TSPOOL_CLOSE_REPORT_INIT */
    enum tspool_close_mode mode;/* in: what to do at the timeout */
    uint32_t published;         /* out: saves that were published while closing */
    uint32_t failed;            /* out: saves that failed while closing */
    uint32_t left;              /* out: staged saves left to the writer */
    uint32_t aborted;           /* out: saves aborted: not staged, or at the timeout with TSPOOL_CLOSE_ABORT */
    int writer_pid;             /* out: the writer that finishes `left`; 0 when none is left */
};
#define TSPOOL_CLOSE_REPORT_INIT { sizeof(struct tspool_close_report), TSPOOL_CLOSE_LEAVE, 0, 0, 0, 0, 0 }

/* Waits up to timeout_ns (UINT64_MAX: for ever) for saves in flight, then ends the spool and frees it, whatever it
 * returns. 0, or -ETIMEDOUT when saves were left or aborted. `report` may be NULL. spool may be NULL. */
int tspool_close(struct tspool *spool, uint64_t timeout_ns, struct tspool_close_report *report);

/* The process id of the writer that serves the spool now; 0 with thread isolation, or while there is none: a dead one is
 * followed by another when a save waits for it. */
int tspool_writer_pid(struct tspool *spool);

#ifdef __cplusplus
}
#endif
#endif
