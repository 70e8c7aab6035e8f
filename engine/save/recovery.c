/* save/recovery.c - see recovery.h.
 *
 *   look at <name>:   ours -> sync the root: PUBLISHED; then sweep the hidden directory, which holds the exchanged old one
 *                     absent, and all of ours stands under its final names in the hidden directory -> renamed onto the name:
 *                     where exchange is refused the old one was put aside before, and sweeping would leave neither
 *                     not ours or absent -> look at the hidden directory: another's manifest there is an old checkpoint
 *                     that was put aside and must stay; else sweep it: ABSENT
 *                     cannot be looked at -> UNCLEAR, nothing is removed
 *   sweep: only while the part record's lock can be had; a writer that is stuck in the kernel still holds it. A dead one's is
 *   given back by the kernel, at times a little after its death is seen (I/O in flight holds on to what it uses), and gc
 *   tries locks too: one that is refused is asked for again, for about a second.
 *
 *   With several ranks: ours at the name is known by the save id, and nothing is swept then; at the hidden directory it is this
 *   rank's part record: directory and root synced, DURABLE. What is swept else are this rank's files. Another's record of this
 *   rank (its trainer was started again) is left to the next attempt, which keeps publishers out while it removes it.
 *
 * A writer that may be alive (RECOVERY_LOOKS) may publish at any moment: then only the name is looked at.
 */
#include <save/recovery.h>

#include <base/mutant.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAUSE_NS ((uint64_t)5000000) /* before the lock is asked for again; each time twice as long */
#define BUSY_NS ((uint64_t)1000000)
#define PAUSES_MAX 8u                /* together 1.3 s */

static void look_begin(struct recovery *recovery, bool at_hidden)
{
    recovery->at_hidden = at_hidden;
    recovery->sight = SIGHT_NONE;
    recovery->seen_size = 0;
    recovery->step = LOOK_OPEN;
}

/* What both looks together say. */
static void look_end(struct recovery *recovery)
{
    if (!recovery->at_hidden) {
        recovery->name_sight = recovery->sight;
        if (recovery->sight == SIGHT_ERROR) {
            recovery->outcome = RECOVERY_UNCLEAR;
            recovery->step = RECOVERY_DONE;
        } else if (recovery->sight == SIGHT_OURS)
            recovery->step = SYNC_ROOT;
        else if (recovery->mode == RECOVERY_LOOKS) {
            recovery->outcome = RECOVERY_HELD;
            recovery->step = RECOVERY_DONE;
        } else
            look_begin(recovery, true);
        return;
    }
    recovery->hidden_sight = recovery->sight;
    if (recovery->is_part && recovery->sight != SIGHT_NONE) {
        recovery->outcome = recovery->sight == SIGHT_ERROR ? RECOVERY_UNCLEAR : RECOVERY_ABSENT;
        recovery->step = recovery->sight == SIGHT_OURS ? SYNC_ROOT : RECOVERY_DONE;
        return;
    }
    recovery->outcome = RECOVERY_ABSENT;
    if (recovery->sight == SIGHT_OURS && recovery->name_sight == SIGHT_NONE && recovery->name_is_free) {
        recovery->step = FINISH_OPEN;
        return;
    }
    recovery->left = recovery->sight == SIGHT_OTHER || recovery->sight == SIGHT_ERROR;
    recovery->left_error = recovery->sight == SIGHT_ERROR ? EIO : 0;
    recovery->step = recovery->left ? RECOVERY_DONE : SWEEP_OPEN;
}

static bool front_is_ours(const struct recovery *recovery)
{
    bool by_id = recovery->is_part && !recovery->at_hidden && !MUTANT(PUBLISHED_PARTS_NOT_KNOWN);
    size_t compared = by_id ? recovery->id_size : recovery->front_size;

    return compared > 0 && recovery->seen_size == recovery->front_size && memcmp(recovery->seen, recovery->front, compared) == 0;
}

/* A read may bring less than was asked for: only the end of the file says that there is no more. */
static void advance_read(struct recovery *recovery, int64_t result)
{
    if (result > 0)
        recovery->seen_size += (size_t)result;
    if (result > 0 && recovery->seen_size < recovery->front_size)
        return; /* reads on */
    recovery->sight = result < 0 ? SIGHT_ERROR : front_is_ours(recovery) ? SIGHT_OURS : SIGHT_OTHER;
    recovery->step = LOOK_CLOSE_MANIFEST;
}

/* Files lose their ".partial" together, and only once all of them were synced: then none has it any more. */
static bool is_whole(const struct recovery *recovery)
{
    const struct io_list *list = &recovery->list;

    for (size_t i = 0; i < list->count; i++) {
        size_t length = strlen(list->names[i]), suffix = strlen(PARTIAL_SUFFIX);

        if (part_name_is(list->names[i]) || (length > suffix && strcmp(list->names[i] + length - suffix, PARTIAL_SUFFIX) == 0))
            return false;
    }
    return recovery->are_all_there && recovery->are_all_there(recovery->op.owner, list);
}

static void advance_look(struct recovery *recovery, int64_t result)
{
    switch (recovery->step) {
    case LOOK_OPEN:
        recovery->directory = (int)result;
        recovery->step = LOOK_OPEN_MANIFEST;
        if (result < 0) {
            /* ENOTDIR, ELOOP: somebody's file of that name; not ours. */
            recovery->name_is_free |= result == -ENOENT && !recovery->at_hidden;
            recovery->sight = result == -ENOENT ? SIGHT_NONE
                            : result == -ENOTDIR || result == -ELOOP ? SIGHT_OTHER : SIGHT_ERROR;
            look_end(recovery);
        }
        return;
    case LOOK_OPEN_MANIFEST:
        recovery->file = (int)result;
        recovery->sight = result >= 0 || result == -ENOENT ? SIGHT_NONE : SIGHT_ERROR;
        recovery->step = result >= 0 ? LOOK_READ : LOOK_CLOSE;
        return;
    case LOOK_READ:
        advance_read(recovery, result);
        return;
    case LOOK_WAIT:
        recovery->sight = SIGHT_ERROR; /* unless the read says better */
        recovery->step = result == 0 ? LOOK_READ : LOOK_CLOSE_MANIFEST;
        return;
    case LOOK_CLOSE_MANIFEST:
        recovery->file = -1;
        recovery->step = recovery->is_part && recovery->at_hidden && recovery->sight == SIGHT_OURS ? LOOK_SYNC : LOOK_CLOSE;
        return;
    case LOOK_SYNC: /* its writer may have died before its own */
        recovery->sight = result < 0 ? SIGHT_ERROR : SIGHT_OURS;
        recovery->step = LOOK_CLOSE;
        return;
    case LOOK_CLOSE:
        recovery->directory = -1;
        look_end(recovery);
        return;
    case FINISH_OPEN:
        recovery->directory = (int)result;
        recovery->step = result < 0 ? SWEEP_OPEN : FINISH_LIST;
        return;
    case FINISH_LIST:
        recovery->is_whole = result >= 0 && is_whole(recovery);
        recovery->step = recovery->is_whole ? FINISH_SYNC : FINISH_CLOSE;
        return;
    case FINISH_SYNC:
        if (result < 0)
            recovery->outcome = RECOVERY_UNCLEAR; /* whoever opens it next may still put it there */
        recovery->step = FINISH_CLOSE;
        return;
    case FINISH_CLOSE:
        recovery->directory = -1;
        io_list_free(&recovery->list);
        recovery->step = recovery->outcome == RECOVERY_UNCLEAR ? RECOVERY_DONE : recovery->is_whole ? FINISH_RENAME : SWEEP_OPEN;
        return;
    case FINISH_RENAME:
        recovery->outcome = result < 0 ? RECOVERY_UNCLEAR : recovery->outcome;
        recovery->step = result < 0 ? RECOVERY_DONE : SYNC_ROOT;
        return;
    case SYNC_ROOT:
        recovery->outcome = result < 0 ? RECOVERY_UNCLEAR
                          : recovery->is_part && recovery->at_hidden ? RECOVERY_DURABLE : RECOVERY_PUBLISHED;
        recovery->step = result < 0 || recovery->is_part || recovery->mode == RECOVERY_LOOKS ? RECOVERY_DONE : SWEEP_OPEN;
        return;
    default:
        return;
    }
}

/* In a directory that ranks share only what this one wrote. The record goes with the files: it is listed last of them. */
static bool is_swept(const struct recovery *recovery, const char *name)
{
    return !recovery->is_part || MUTANT(RECOVERY_SWEEPS_OTHER_RANKS) || file_name_is_of_rank(name, recovery->rank) ||
           strcmp(name, recovery->part) == 0;
}

/* Goes to the first name from list_position on that is to be swept. */
static void sweep_next(struct recovery *recovery)
{
    while (recovery->list_position < recovery->list.count && !is_swept(recovery, recovery->list.names[recovery->list_position]))
        recovery->list_position++;
    recovery->step = recovery->list_position < recovery->list.count ? SWEEP_UNLINK : SWEEP_CLOSE_PART;
}

/* The first reason counts. */
static void leave(struct recovery *recovery, int64_t result)
{
    if (!recovery->left)
        recovery->left_error = (int)-result;
    recovery->left = true;
}

static void lock_tried(struct recovery *recovery, int64_t result)
{
    if (MUTANT(RECOVERY_SWEEPS_UNDER_LOCK))
        result = 0;
    if (result == -EWOULDBLOCK && recovery->pauses < PAUSES_MAX) {
        recovery->pauses++;
        recovery->step = SWEEP_PAUSE;
        return;
    }
    if (result < 0)
        leave(recovery, result);
    recovery->step = result < 0 ? SWEEP_CLOSE_PART : SWEEP_LIST;
}

static void advance_sweep(struct recovery *recovery, int64_t result)
{
    switch (recovery->step) {
    case SWEEP_OPEN:
        recovery->directory = (int)result;
        if (result < 0 && result != -ENOENT)
            leave(recovery, result);
        recovery->step = result < 0 ? RECOVERY_DONE : SWEEP_OPEN_PART;
        return;
    case SWEEP_OPEN_PART:
        recovery->file = (int)result;
        recovery->step = result < 0 ? SWEEP_LIST : SWEEP_LOCK;
        return;
    case SWEEP_LOCK:
        lock_tried(recovery, result);
        return;
    case SWEEP_PAUSE:
        recovery->step = SWEEP_LOCK;
        return;
    case SWEEP_LIST:
        if (result < 0)
            leave(recovery, result);
        recovery->step = SWEEP_CLOSE_PART;
        if (result >= 0)
            sweep_next(recovery);
        return;
    case SWEEP_UNLINK:
        if (result < 0 && result != -ENOENT)
            leave(recovery, result);
        recovery->list_position++;
        sweep_next(recovery);
        return;
    case SWEEP_CLOSE_PART:
        recovery->file = -1;
        recovery->step = SWEEP_CLOSE;
        return;
    case SWEEP_CLOSE:
        recovery->directory = -1;
        recovery->step = recovery->left ? RECOVERY_DONE : SWEEP_REMOVE;
        return;
    case STOP_CLOSE_FILE:
        recovery->file = -1;
        recovery->step = STOP_CLOSE;
        return;
    case STOP_CLOSE:
        recovery->directory = -1;
        recovery->step = RECOVERY_DONE;
        return;
    case SWEEP_REMOVE:
        if (result < 0 && result != -ENOENT && !(recovery->is_part && (result == -ENOTEMPTY || result == -EEXIST)))
            leave(recovery, result);
        recovery->step = RECOVERY_DONE;
        return;
    default:
        return;
    }
}

/* Takes the result of the step that just ended and names the next one. */
static void advance(struct recovery *recovery, int64_t result)
{
    if (recovery->step < SWEEP_OPEN)
        advance_look(recovery, result);
    else
        advance_sweep(recovery, result);
}

static void compose(struct recovery *recovery, struct io *io, struct op *op)
{
    const char *name = recovery->at_hidden ? recovery->hidden : recovery->name;

    *op = (struct op){ .owner = op->owner };
    switch (recovery->step) {
    case LOOK_OPEN:
        op->kind = OP_OPEN, op->handle = recovery->root, op->name = name, op->flags = OPEN_READ | OPEN_DIRECTORY;
        return;
    case LOOK_OPEN_MANIFEST:
        op->kind = OP_OPEN, op->handle = recovery->directory, op->flags = OPEN_READ;
        op->name = recovery->is_part && recovery->at_hidden ? recovery->part_manifest : MANIFEST_NAME;
        return;
    case LOOK_READ:
        op->kind = OP_READ, op->handle = recovery->file, op->file_offset = recovery->seen_size;
        op->memory = recovery->seen + recovery->seen_size, op->size = recovery->front_size - recovery->seen_size;
        return;
    case LOOK_WAIT:
        op->kind = OP_TIMER, op->deadline_ns = io_now(io) + BUSY_NS;
        return;
    case LOOK_CLOSE_MANIFEST:
    case SWEEP_CLOSE_PART:
    case STOP_CLOSE_FILE:
        op->kind = OP_CLOSE, op->handle = recovery->file;
        return;
    case LOOK_CLOSE:
    case FINISH_CLOSE:
    case SWEEP_CLOSE:
    case STOP_CLOSE:
        op->kind = OP_CLOSE, op->handle = recovery->directory;
        return;
    case FINISH_OPEN:
        op->kind = OP_OPEN, op->handle = recovery->root, op->name = recovery->hidden, op->flags = OPEN_READ | OPEN_DIRECTORY;
        return;
    case FINISH_LIST:
        op->kind = OP_LIST, op->handle = recovery->directory, op->list = &recovery->list;
        return;
    case FINISH_SYNC:
        op->kind = OP_FSYNC, op->handle = recovery->directory;
        return;
    case FINISH_RENAME:
        op->kind = OP_RENAME, op->handle = op->to_handle = recovery->root, op->name = recovery->hidden;
        op->to_name = recovery->name;
        return;
    case LOOK_SYNC:
        op->kind = OP_FSYNC, op->handle = recovery->directory;
        return;
    case SYNC_ROOT:
        op->kind = OP_FSYNC, op->handle = recovery->root;
        return;
    case SWEEP_OPEN:
        op->kind = OP_OPEN, op->handle = recovery->root, op->name = recovery->hidden, op->flags = OPEN_READ | OPEN_DIRECTORY;
        return;
    case SWEEP_OPEN_PART:
        op->kind = OP_OPEN, op->handle = recovery->directory, op->name = recovery->part, op->flags = OPEN_READ;
        return;
    case SWEEP_LOCK:
        op->kind = OP_LOCK, op->handle = recovery->file;
        return;
    case SWEEP_PAUSE:
        op->kind = OP_TIMER, op->deadline_ns = io_now(io) + (PAUSE_NS << (recovery->pauses - 1));
        return;
    case SWEEP_LIST:
        op->kind = OP_LIST, op->handle = recovery->directory, op->list = &recovery->list;
        return;
    case SWEEP_UNLINK:
        op->kind = OP_UNLINK, op->handle = recovery->directory, op->name = recovery->list.names[recovery->list_position];
        return;
    case SWEEP_REMOVE:
        op->kind = OP_UNLINK, op->handle = recovery->root, op->name = recovery->hidden, op->flags = UNLINK_DIRECTORY;
        return;
    case RECOVERY_DONE:
        return;
    }
}

static bool is_needless(const struct recovery *recovery)
{
    if ((MUTANT(RECOVERY_DOES_NOT_SYNC) && recovery->step == SYNC_ROOT) ||
        (MUTANT(FOUND_PART_NOT_SYNCED) && recovery->step == LOOK_SYNC))
        return true;
    return ((recovery->step == SWEEP_CLOSE_PART || recovery->step == STOP_CLOSE_FILE) && recovery->file < 0)
        || (recovery->step == STOP_CLOSE && recovery->directory < 0);
}

/* Submits the op of the current step; one that is refused counts as failed. But the backend takes only so many reads at a time,
 * and a writer's death has every save look at once: one too many waits. To take it for an error would leave its save UNKNOWN. */
static void run(struct recovery *recovery, struct io *io)
{
    while (recovery->step != RECOVERY_DONE) {
        int error = 0;

        if (recovery->stopping && recovery->step < STOP_CLOSE_FILE)
            recovery->step = STOP_CLOSE_FILE;
        if (!is_needless(recovery)) {
            compose(recovery, io, &recovery->op);
            error = io_submit(io, &recovery->op);
            recovery->in_flight = error == 0;
            if (error == 0)
                return;
        }
        if (error == -EBUSY && recovery->step == LOOK_READ)
            recovery->step = LOOK_WAIT;
        else
            advance(recovery, error);
    }
}

/* "..."save_id":"<hex>"": what comes after, sequence and time, each rank has its own of. */
static size_t id_size_of(const char *front, size_t front_size)
{
    const char *end = front_size ? memmem(front, front_size, "\"sequence\"", strlen("\"sequence\"")) : NULL;

    return end ? (size_t)(end - front) : 0;
}

int recovery_start(struct recovery *recovery, struct io *io, enum recovery_mode mode, int root, const char *name,
                   const uint8_t save_id[16], uint32_t rank, uint32_t world_size, const char *front, size_t front_size)
{
    const struct recovery given = *recovery;
    char *seen = malloc(front_size ? front_size : 1);

    if (!seen)
        return -ENOMEM;
    *recovery = (struct recovery){ .op.owner = given.op.owner, .are_all_there = given.are_all_there, .mode = mode, .root = root,
                                   .directory = -1, .file = -1, .name = name, .front = front, .front_size = front_size,
                                   .seen = seen, .is_part = world_size > 1, .rank = rank,
                                   .id_size = id_size_of(front, front_size) };
    part_manifest_name_make(rank, recovery->part_manifest);
    hidden_name_make(name, save_id, recovery->hidden);
    part_name_make(rank, recovery->part);
    look_begin(recovery, MUTANT(RECOVERY_DOES_NOT_LOOK));
    run(recovery, io);
    return 0;
}

void recovery_step(struct recovery *recovery, struct io *io, int64_t result)
{
    recovery->in_flight = false;
    advance(recovery, result);
    run(recovery, io);
}

void recovery_stop(struct recovery *recovery, struct io *io)
{
    if (!recovery->in_flight || recovery->stopping)
        return;
    recovery->stopping = true;
    if (recovery->op.kind == OP_TIMER)
        io_cancel(io, &recovery->op);
}

void recovery_deinit(struct recovery *recovery)
{
    io_list_free(&recovery->list);
    free(recovery->seen);
    recovery->seen = NULL;
    recovery->list = (struct io_list){ 0 };
}
