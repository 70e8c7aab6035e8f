/* collect/collect.h - retention: keeps the newest checkpoints of a root, removes the others and what dead attempts left.
 *
 *   published <name>  ------\
 *                            rename -> .<name>.<id>.gone -> root synced -> files cut in slices, unlinked -> directory removed
 *   dead .<name>.<id>  -----/
 *
 * A directory is renamed before anything in it is touched: so no name ever stands for half a checkpoint, nobody else looks at
 * what is on its way out, two collectors cannot take the same one, and a collector that was cut is continued by the next,
 * from its names alone. Liveness is the lock on the part record and on the directory (claim/claim.h).
 *
 * Between the saves of a writer (keeper.h) it does less: dead attempts are left to who looks after them, more is spared, and it
 * waits as long as its owner says.
 *
 * Nothing is removed before as many whole checkpoints as are to be kept were found and are durable; only what tspool wrote is
 * removed. Every effect is an op of struct io: the simulated disk runs this too.
 */
#ifndef COLLECT_COLLECT_H
#define COLLECT_COLLECT_H

#include <io/io.h>
#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>

enum collect_event {
    COLLECT_KEPT,     /* published, and one of the newest */
    COLLECT_REMOVED,  /* a published one, with all its files */
    COLLECT_SWEPT,    /* a dead attempt, or the rest of a collection that was cut */
    COLLECT_LEFT,     /* it stays although it was to go, or does not count: `reason` says why; no failure */
    COLLECT_FAILED    /* it could not be removed: `reason` and `error` */
};
struct collect_note {
    enum collect_event event;
    const char *name;    /* below the root */
    uint64_t bytes;      /* that are free afterwards */
    const char *reason;  /* NULL unless LEFT or FAILED */
    int error;           /* a positive errno; 0 unless FAILED */
};

/* What a collection between saves waits for, before each slice and each checkpoint. */
enum collect_pace {
    COLLECT_LOOKS, /* whether a save runs below the root, anybody's: while one does, it waits */
    COLLECT_WAITS, /* in any case */
    COLLECT_GOES   /* for nothing: the room is needed */
};

/* For a collection between saves. All are called on the collecting thread, with settings.context. */
struct collect_between {
    enum collect_pace (*pace)(void *context);
    bool (*is_spared)(void *context, const uint8_t save_id[16]); /* stays, whatever the order of latest says */
};

struct collect_settings {
    uint64_t keep;                       /* at least 1 */
    bool dry_run;                        /* tells, and removes nothing */
    uint64_t slice_bytes;                /* of a file that go at once; 0: 256 MiB */
    void *context;
    void (*tell)(void *context, const struct collect_note *note);
    bool (*is_stopped)(void *context);   /* NULL: never. Looked at between two steps; the next collection goes on from there */
    const struct collect_between *between; /* NULL: run by itself: sweeps dead attempts too, waits 10 s for a pause at most.
                                          * Else also the `keep` that were saved last stay: after a return to an earlier step
                                          * they are not the newest in the order of latest */
};

/* 0, also when some could not be removed (told as COLLECT_FAILED); -errno when the root cannot be looked over. */
int collect_run(struct io *io, const char *root, const struct collect_settings *settings, struct tspool_failure *failure);
/* The same in a root that was opened, which stays the caller's; `path` is for the record. */
int collect_below(struct io *io, int root, const char *path, const struct collect_settings *settings,
                  struct tspool_failure *failure);

#endif
