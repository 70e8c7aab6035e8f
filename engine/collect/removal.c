/* collect/removal.c - see removal.h. */
#include <base/checked.h>
#include <base/mutant.h>
#include <base/names.h>
#include <claim/claim.h>
#include <collect/contents.h>
#include <collect/removal.h>
#include <errno.h>
#include <io/calls.h>
#include <stdlib.h>
#include <string.h>

#define QUIET_WAIT_NS 10000000000u
#define QUIET_LOOK_NS 50000000u
#define TURN_LOOK_NS 10000000u /* for one's own saves: asking costs nothing, and the pause between two may be short */

static bool is_stopped(const struct removal *removal)
{
    return removal->is_stopped && removal->is_stopped(removal->context);
}

/* Taking down ---------------------------------------------------------------------------------------------------------- */

static bool noreplace_is_refused(int error) { return error == -EINVAL || error == -ENOSYS || error == -EOPNOTSUPP; }

/* A plain rename refuses every name that is taken, but for an empty directory's, which is nothing. */
static int rename_to_free(struct removal *removal, const char *name, const char *to_name)
{
    int error = file_rename(removal->io, removal->root, name, to_name, RENAME_OP_NOREPLACE);

    if (noreplace_is_refused(error))
        error = file_rename(removal->io, removal->root, name, to_name, RENAME_PLAIN);
    return error == -ENOTEMPTY ? -EEXIST : error;
}

static bool is_same(struct io *io, int root, const char *name, int directory)
{
    struct io_stat named = { 0 }, opened = { 0 };

    return file_stat(io, root, name, &named) == 0 && file_stat(io, directory, NULL, &opened) == 0 &&
           named.inode == opened.inode && named.device == opened.device;
}

int removal_put_back(struct removal *removal, const char *gone, const char *name)
{
    int error = rename_to_free(removal, gone, name);

    return error < 0 ? error : file_fsync(removal->io, removal->root);
}

/* The name that a former collection left behind may be taken: then another one does. */
static int gone_choose(struct removal *removal, const char *name, const char *hidden, char *gone)
{
    char base[CHECKPOINT_NAME_MAX + 1], other[HIDDEN_NAME_MAX + 1];
    uint8_t id[16];
    int error;

    gone_name_make(hidden, gone);
    error = rename_to_free(removal, name, gone);
    if (error != -EEXIST || !hidden_name_parse(hidden, base, id))
        return error;
    io_random(removal->io, id, sizeof id);
    hidden_name_make(base, id, other);
    gone_name_make(other, gone);
    return rename_to_free(removal, name, gone);
}

int removal_take_down(struct removal *removal, const char *name, int directory, const char *hidden, char *gone)
{
    int error = gone_choose(removal, name, hidden, gone);

    if (error < 0)
        return error;
    if (!MUTANT(TAKEN_DOWN_UNSEEN) && !is_same(removal->io, removal->root, gone, directory)) { /* somebody published under this name in between */
        error = removal_put_back(removal, gone, name);
        return error < 0 ? error : -ENOENT;
    }
    return MUTANT(TAKEN_DOWN_UNSYNCED) ? 0 : file_fsync(removal->io, removal->root);
}

/* Deleting ------------------------------------------------------------------------------------------------------------- */

static bool is_disturbing(const struct removal *removal)
{
    enum collect_pace pace = removal->pace ? removal->pace(removal->context) : COLLECT_LOOKS;

    if (pace == COLLECT_LOOKS)
        return any_attempt_is_alive(removal->io, removal->root, 0);
    return pace == COLLECT_WAITS && !MUTANT(DELETED_BESIDE_SAVES);
}

/* A trainer that saves without a pause must not fill its own disk: after a while it goes on. */
static void quiet_await(struct removal *removal)
{
    uint64_t deadline_ns = removal->pace ? IO_FOREVER : io_now(removal->io) + QUIET_WAIT_NS;

    while (!is_stopped(removal) && io_now(removal->io) < deadline_ns && is_disturbing(removal))
        pause_for(removal->io, removal->pace ? TURN_LOOK_NS : QUIET_LOOK_NS);
    removal->freed_bytes = 0;
}

void removal_await_turn(struct removal *removal)
{
    if (removal->pace)
        quiet_await(removal);
}

/* Asking for a save of one's own costs nothing, and so is done for little files too. */
static void quiet_look(struct removal *removal, uint64_t bytes)
{
    bool waits = removal->pace && removal->pace(removal->context) == COLLECT_WAITS;

    if (waits || removal->freed_bytes + bytes > removal->slice_bytes)
        quiet_await(removal);
    removal->freed_bytes += bytes;
}

/* From the end, so that a collection that is cut goes on where this one was. Errors change nothing: it is unlinked then.
 * Synced at once: else the journal frees, and discards, all of it in the next save's sync. */
static void file_cut(struct removal *removal, int handle, uint64_t size)
{
    int error = file_lock(removal->io, handle, LOCK_OP_SOLE);

    while (error == 0 && size > removal->slice_bytes && !is_stopped(removal)) {
        size = align_down(size - 1, removal->slice_bytes);
        quiet_look(removal, removal->slice_bytes);
        error = file_truncate(removal->io, handle, size);
        file_fsync(removal->io, handle);
    }
}

static int file_remove(struct removal *removal, int directory, const struct owned *owned)
{
    int handle = -1, error;

    if (owned->links == 1 && owned->size > removal->slice_bytes)
        handle = file_open(removal->io, directory, owned->name, OPEN_READ | OPEN_WRITE);
    if (handle >= 0)
        file_cut(removal, handle, owned->size);
    file_close(removal->io, handle);
    if (is_stopped(removal))
        return 0;
    quiet_look(removal, owned->links == 1 ? min_u64(owned->size, removal->slice_bytes) : 0);
    error = file_unlink(removal->io, directory, owned->name, 0);
    return error == -ENOENT ? 0 : error;
}

static int files_remove(struct removal *removal, int directory, const struct contents *contents)
{
    int error = 0;

    for (size_t i = 0; i < contents->count && error == 0 && !is_stopped(removal); i++)
        error = file_remove(removal, directory, &contents->files[i]);
    return error == 0 && is_stopped(removal) ? REMOVAL_STOPPED : error;
}

static int directory_remove(struct removal *removal, const char *gone)
{
    int error;

    quiet_look(removal, 0);
    error = file_unlink(removal->io, removal->root, gone, UNLINK_DIRECTORY);
    if (error < 0 && error != -ENOENT)
        return error;
    return file_fsync(removal->io, removal->root);
}

static int opened_delete(struct removal *removal, const char *gone, int directory, uint64_t *bytes, char **foreign)
{
    struct contents contents = { 0 };
    int error = file_lock(removal->io, directory, 0);

    if (error == -EWOULDBLOCK) /* other errors: no locks on directories there; two may delete the same, and both succeed */
        return REMOVAL_BUSY;
    error = contents_look(removal->io, directory, true, &contents);
    if (error == 0) {
        *bytes = contents.bytes;
        error = files_remove(removal, directory, &contents);
    }
    if (error == 0 && contents.foreign) {
        *foreign = contents.foreign;
        contents.foreign = NULL;
        error = REMOVAL_FOREIGN;
    }
    contents_deinit(&contents);
    return error == 0 ? directory_remove(removal, gone) : error;
}

int removal_delete(struct removal *removal, const char *gone, uint64_t *bytes, char **foreign)
{
    int directory = file_open(removal->io, removal->root, gone, OPEN_READ | OPEN_DIRECTORY), error;

    if (directory < 0)
        return directory == -ENOENT ? REMOVAL_BUSY : directory;
    error = opened_delete(removal, gone, directory, bytes, foreign);
    file_close(removal->io, directory);
    return error;
}
