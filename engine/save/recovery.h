/* save/recovery.h - after a writer's death: did the save get published, and what did it leave behind?
 *
 * Looking comes first: death between the rename and its report leaves a published checkpoint. It is known by the front of
 * its manifest (save id, sequence and time are in it), which the trainer composed itself and which is the same in every
 * attempt. What is not published is swept, so that the next attempt finds its hidden directory's name free.
 * With several ranks the hidden directory is everybody's: there this rank's part record is looked for, which means that the part
 * is durable but for the last syncs, and only this rank's files are swept.
 * One operation at a time over the supervisor's io; it never blocks the supervisor.
 */
#ifndef SAVE_RECOVERY_H
#define SAVE_RECOVERY_H

#include <base/names.h>
#include <io/io.h>

enum recovery_outcome {
    RECOVERY_RUNNING = 0,
    RECOVERY_PUBLISHED,  /* it stands under its name, and the root was synced */
    RECOVERY_DURABLE,    /* several ranks: this one's part stands, and hidden directory and root were synced */
    RECOVERY_ABSENT,     /* it does not stand; what was left of it is removed, as far as it could be: see `left` */
    RECOVERY_UNCLEAR,    /* the name could not be looked at; nothing was removed */
    RECOVERY_HELD        /* it does not stand yet, but its writer may be alive (RECOVERY_LOOKS); nothing was removed */
};

enum recovery_mode {
    RECOVERY_SWEEPS = 0,
    RECOVERY_LOOKS       /* the writer was killed but hangs in the kernel: what is its own is not touched */
};

enum recovery_step {
    LOOK_OPEN, LOOK_OPEN_MANIFEST, LOOK_READ, LOOK_WAIT, LOOK_CLOSE_MANIFEST, LOOK_SYNC, LOOK_CLOSE, /* name, then hidden */
    FINISH_OPEN, FINISH_LIST, FINISH_SYNC, FINISH_CLOSE, FINISH_RENAME, /* ours is whole, and nothing has the name */
    SYNC_ROOT,
    SWEEP_OPEN, SWEEP_OPEN_PART, SWEEP_LOCK, SWEEP_PAUSE, SWEEP_LIST, SWEEP_UNLINK, SWEEP_CLOSE_PART, SWEEP_CLOSE,
    SWEEP_REMOVE,
    STOP_CLOSE_FILE, STOP_CLOSE,   /* recovery_stop: what is open is closed, and nothing else is begun */
    RECOVERY_DONE
};

enum recovery_sight { SIGHT_NONE, SIGHT_OURS, SIGHT_OTHER, SIGHT_ERROR };

struct recovery {
    struct op op;                  /* its owner, and are_all_there, are set before recovery_start */
    /* Is every file of the save among these names? A sweep of its writer's may have been cut short. NULL: never. */
    bool (*are_all_there)(const void *owner, const struct io_list *names);
    bool in_flight;
    enum recovery_mode mode;
    enum recovery_step step;
    enum recovery_outcome outcome;
    enum recovery_sight name_sight, hidden_sight, sight;
    bool at_hidden, stopping, is_part;
    uint32_t rank;
    bool name_is_free, is_whole;   /* free: nothing has the name, not even an empty directory */
    int root, directory, file;     /* the latter two -1 while they are not open */
    const char *name;              /* the save's; outlives the recovery */
    char hidden[HIDDEN_NAME_MAX + 1], part[SHARD_FILE_NAME_MAX + 1], part_manifest[SHARD_FILE_NAME_MAX + 1];
    const char *front;             /* how our manifest begins; NULL: none was sent */
    size_t front_size, id_size;    /* of it the format version and the save id alone: all that the ranks' manifests share */
    char *seen;                    /* front_size bytes, of which seen_size were read */
    size_t seen_size;
    struct io_list list;
    size_t list_position;
    unsigned pauses;               /* since the lock was refused first */
    bool left;                     /* something of it could not be removed */
    int left_error;                /* positive: why; 0: it is not ours to remove */
};

/* -ENOMEM: then nothing was started. */
int recovery_start(struct recovery *recovery, struct io *io, enum recovery_mode mode, int root, const char *name,
                   const uint8_t save_id[16], uint32_t rank, uint32_t world_size, const char *front, size_t front_size);
/* The recovery's op completed. Submits the next, or sets `outcome`. */
void recovery_step(struct recovery *recovery, struct io *io, int64_t result);
/* Nobody waits for it any more: it ends with the op in flight, which is cut short where it only waits. */
void recovery_stop(struct recovery *recovery, struct io *io);
void recovery_deinit(struct recovery *recovery);

#endif
