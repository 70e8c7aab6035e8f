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

struct collect_settings {
    uint64_t keep;                       /* at least 1 */
    bool dry_run;                        /* tells, and removes nothing */
    uint64_t slice_bytes;                /* of a file that go at once; 0: 256 MiB */
    void *context;
    void (*tell)(void *context, const struct collect_note *note);
    bool (*is_stopped)(void *context);   /* NULL: never. Looked at between two steps; the next collection goes on from there */
};

/* 0, also when some could not be removed (told as COLLECT_FAILED); -errno when the root cannot be looked over. */
int collect_run(struct io *io, const char *root, const struct collect_settings *settings, struct tspool_failure *failure);

#endif
