/* publish/publish.c - the order in which parts become a checkpoint.
 *
 *   look: published already? | lock | parts read and checked | manifest of all written, synced, named | directory synced |
 *   renamed onto the name (in exchange with the old one, when every rank allowed it) | root synced | parts removed
 *
 * Everything before the rename can be done again by anyone; after it "published already?" is the answer. The parts are removed
 * only after the rename is durable: as long as a hidden directory holds them, gc knows it for an unpublished save.
 *
 * The lock keeps a second publisher from exchanging the two directories back. It is a file, not the directory, because network
 * file systems lock only what can be opened for writing; whoever got it looks again whether the directory is still the hidden
 * one. A publisher that dies gives it up.
 */
#include <publish/publication.h>

#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <publish/disk.h>
#include <publish/publish.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AGAIN 1                      /* the directory is another's by now: look again */
#define LOOKS_MAX 64
#define LOCK_WAIT_NS 60000000000u    /* a publisher reads every header: of thousands of ranks that takes a while */
#define LOCK_LOOK_NS 20000000u

/* Records --------------------------------------------------------------------------------------------------------------- */

static char *shown_path(const struct publication *publication, const char *path)
{
    char *shown = NULL;

    return asprintf(&shown, "%s/%s", publication->root_path, path) < 0 ? NULL : shown;
}

int publish_refuse(const struct publication *publication, int error, const char *operation, const char *path,
                   const char *cause, ...)
{
    char *shown = shown_path(publication, path ? path : publication->hidden), text[512];
    va_list arguments;

    va_start(arguments, cause);
    vsnprintf(text, sizeof(text), cause, arguments);
    va_end(arguments);
    failure_set(publication->failure, TSPOOL_STAGE_PUBLISH, error, FAILURE_AT(.operation = operation, .path = shown), "%s", text);
    free(shown);
    return -error;
}

int publish_fail(const struct publication *publication, int error, const char *operation, const char *path)
{
    return publish_refuse(publication, error, operation, path, "%s", failure_likely_cause(error));
}

char *publication_path(const struct publication *publication, const char *name)
{
    char *path = NULL;

    return asprintf(&path, "%s/%s", publication->hidden, name) < 0 ? NULL : path;
}

/* Published already? ----------------------------------------------------------------------------------------------------- */

static bool is_leftover(const char *name)
{
    uint32_t number;

    return part_name_is(name) || part_manifest_name_parse(name, &number) || strcmp(name, PUBLISH_NAME) == 0 ||
           strcmp(name, MANIFEST_NAME PARTIAL_SUFFIX) == 0;
}

/* The parts have done their work. Writers that still hold a record's lock notice that it has no name any more. */
static int parts_remove(const struct publication *publication)
{
    struct io_list list = { 0 };
    int error = directory_list(publication->io, publication->directory, &list);
    bool any = false;

    for (size_t i = 0; i < list.count && error == 0; i++)
        if (is_leftover(list.names[i])) {
            any = true;
            error = file_unlink(publication->io, publication->directory, list.names[i], 0);
            error = error == -ENOENT ? 0 : error;
        }
    io_list_free(&list);
    if (error == 0 && any)
        error = file_fsync(publication->io, publication->directory);
    return error < 0 ? publish_fail(publication, -error, "unlink", publication->name) : 0;
}

static bool has_parts(struct io *io, int directory)
{
    struct io_list list = { 0 };
    uint32_t number;
    bool has = directory_list(io, directory, &list) < 0;

    for (size_t i = 0; i < list.count && !has; i++)
        has = part_name_is(list.names[i]) || part_manifest_name_parse(list.names[i], &number);
    io_list_free(&list);
    return has;
}

static bool is_of_another_save(const struct publication *publication, int directory)
{
    struct manifest manifest = { 0 };
    const char *reason;
    bool is_other = manifest_in(publication->io, directory, MANIFEST_NAME, &manifest, &reason) == 0 &&
                    memcmp(manifest.save_id, publication->save_id, sizeof(manifest.save_id)) != 0;

    manifest_deinit(&manifest);
    return is_other;
}

/* Under the hidden name stands what was exchanged, or what is left of it; or what a rank begins that came too late: that one
 * has a part record, and is not ours to touch. */
static void replaced_remove(const struct publication *publication)
{
    int hidden = disk_open_directory(publication->io, publication->root, publication->hidden);

    if (hidden < 0)
        return;
    if (is_of_another_save(publication, hidden) || !has_parts(publication->io, hidden))
        retire_old(publication, publication->hidden);
    disk_close(publication->io, &hidden);
}

/* Whoever published may have died before the last step: each is done again. `directory` has the name. */
static int finish(const struct publication *publication)
{
    int error = file_fsync(publication->io, publication->root);

    if (error < 0)
        return publish_fail(publication, -error, "fsync", ".");
    replaced_remove(publication);
    return parts_remove(publication);
}

static int published_check(const struct publication *publication, const struct manifest *manifest)
{
    if (manifest->world_size == publication->world_size)
        return finish(publication);
    return publish_refuse(publication, EINVAL, "publish", publication->name, "it is published as the work of %u ranks, not of %u",
                          manifest->world_size, publication->world_size);
}

/* Opens what has the name into `directory`, and reads its manifest: is it this save's? */
static bool name_is_ours(const struct publication *publication, int *directory, struct manifest *manifest)
{
    const char *reason;

    *directory = disk_open_directory(publication->io, publication->root, publication->name);
    return *directory >= 0 && manifest_in(publication->io, *directory, MANIFEST_NAME, manifest, &reason) == 0 &&
           memcmp(manifest->save_id, publication->save_id, sizeof(manifest->save_id)) == 0;
}

/* 0: it is published; AGAIN: it is not, `directory` stays closed; or -errno. */
static int published_look(struct publication *publication)
{
    struct manifest manifest = { 0 };
    int error = AGAIN;

    if (name_is_ours(publication, &publication->directory, &manifest))
        error = published_check(publication, &manifest);
    manifest_deinit(&manifest);
    disk_close(publication->io, &publication->directory);
    return error;
}

/* Has the name this save, since we looked? Then nothing stands under the hidden name, or the checkpoint that it was exchanged with.
 * While we hold the lock of the parts' directory nobody else can publish it. */
static bool was_published(const struct publication *publication)
{
    struct manifest manifest = { 0 };
    int directory;
    bool was = name_is_ours(publication, &directory, &manifest);

    manifest_deinit(&manifest);
    disk_close(publication->io, &directory);
    return was;
}

/* The lock ------------------------------------------------------------------------------------------------------------------ */

/* 0; AGAIN when the directory went away. */
static int lock_open(struct publication *publication)
{
    struct io *io = publication->io;

    publication->lock = file_open(io, publication->directory, PUBLISH_NAME, OPEN_WRITE | OPEN_CREATE);
    if (publication->lock == -EEXIST)
        publication->lock = file_open(io, publication->directory, PUBLISH_NAME, OPEN_WRITE);
    if (publication->lock >= 0)
        return 0;
    if (publication->lock == -ENOENT)
        return AGAIN;
    return publish_fail(publication, -publication->lock, "lock", publication->hidden);
}

static int lock_wait(struct publication *publication)
{
    uint64_t deadline = io_now(publication->io) + LOCK_WAIT_NS;
    int error;

    while ((error = file_lock(publication->io, publication->lock, 0)) == -EWOULDBLOCK && io_now(publication->io) < deadline)
        pause_for(publication->io, LOCK_LOOK_NS);
    publication->locked = error == 0;
    if (error == -EWOULDBLOCK)
        return publish_refuse(publication, EAGAIN, "lock", publication->hidden,
                              "another process is publishing this save and does not come to an end; try again");
    return error < 0 ? publish_fail(publication, -error, "lock", publication->hidden) : 0;
}

/* Is what we have opened and locked still the hidden directory of this save? */
static int lock_check(const struct publication *publication)
{
    struct io_stat opened = { 0 }, named = { 0 }, lock = { 0 };

    if (file_stat(publication->io, publication->lock, NULL, &lock) < 0 || lock.links == 0 ||
        file_stat(publication->io, publication->directory, NULL, &opened) < 0 ||
        file_stat(publication->io, publication->root, publication->hidden, &named) < 0)
        return AGAIN;
    return opened.inode == named.inode && opened.device == named.device ? 0 : AGAIN;
}

static int hidden_lock(struct publication *publication)
{
    int error = lock_open(publication);

    if (error == 0)
        error = lock_wait(publication);
    if (error == 0)
        error = lock_check(publication);
    return error == 0 && was_published(publication) ? AGAIN : error;
}

static int no_such_save(const struct publication *publication)
{
    struct io_stat stat = { 0 };

    if (file_stat(publication->io, publication->root, publication->name, &stat) == 0)
        return publish_refuse(publication, EEXIST, "publish", publication->name, "the name holds another checkpoint, and nothing "
                              "of this save stands here; was it the right save id?");
    return publish_refuse(publication, ENOENT, "publish", publication->hidden,
                          "nothing of this save stands here; check name and save id, and that every rank has saved");
}

static int hidden_open(struct publication *publication)
{
    int error = disk_open_directory(publication->io, publication->root, publication->hidden);

    if (error == -ENOENT)
        return was_published(publication) ? AGAIN : no_such_save(publication);
    if (error < 0)
        return publish_fail(publication, -error, "open", publication->hidden);
    publication->directory = error;
    return hidden_lock(publication);
}

/* The manifest of all ------------------------------------------------------------------------------------------------------- */

static int manifest_put(const struct publication *publication, const char *json, size_t size)
{
    static const char partial[] = MANIFEST_NAME PARTIAL_SUFFIX;
    struct io *io = publication->io;
    int directory = publication->directory, handle, error;

    error = file_unlink(io, directory, partial, 0); /* of a publisher that died */
    if (error < 0 && error != -ENOENT)
        return error;
    handle = file_open(io, directory, partial, OPEN_WRITE | OPEN_CREATE);
    if (handle < 0)
        return handle;
    error = disk_write(io, handle, json, size);
    if (error == 0 && !MUTANT(MERGED_MANIFEST_UNSYNCED))
        error = file_fsync(io, handle);
    disk_close(io, &handle);
    if (error == 0)
        error = disk_rename(io, directory, partial, directory, MANIFEST_NAME, RENAME_PLAIN);
    return error < 0 || MUTANT(MERGED_DIRECTORY_UNSYNCED) ? error : file_fsync(io, directory);
}

static int manifest_write(const struct publication *publication)
{
    char *json = NULL, *path;
    size_t size = 0;
    int error = merge(publication, &json, &size);

    if (error < 0)
        return error;
    error = manifest_put(publication, json, size);
    free(json);
    if (error == 0)
        return 0;
    path = publication_path(publication, MANIFEST_NAME);
    error = publish_fail(publication, -error, "write", path);
    free(path);
    return error;
}

/* The name ------------------------------------------------------------------------------------------------------------------ */

static int name_taken(const struct publication *publication)
{
    return publish_refuse(publication, EEXIST, "publish", publication->name, "another checkpoint has this name, and not every "
                          "rank asked for it to be replaced; save under another name");
}

static bool exchange_is_refused(int error)
{
    return error == -EINVAL || error == -ENOSYS || error == -EXDEV || error == -EOPNOTSUPP;
}

/* Where two directories cannot be exchanged (overlay, NFS): whoever opens next repairs a crash between the two renames, from the
 * hidden name of the new one, which is made durable first (write/commit.c has the story). */
static int move_aside(const struct publication *publication, char aside[HIDDEN_NAME_MAX + 1])
{
    uint8_t id[16];
    int error = file_fsync(publication->io, publication->root);

    io_random(publication->io, id, sizeof(id));
    hidden_name_make(publication->name, id, aside);
    if (error == 0)
        error = disk_rename(publication->io, publication->root, publication->name, publication->root, aside, RENAME_PLAIN);
    if (error == 0)
        error = disk_rename(publication->io, publication->root, publication->hidden, publication->root, publication->name,
                            RENAME_PLAIN);
    return error;
}

/* 0 when the new one has the name; `aside` is where the old one is then. */
static int name_exchange(struct publication *publication, char aside[HIDDEN_NAME_MAX + 1])
{
    int error;

    if (!parts_all_replace(publication))
        return name_taken(publication);
    error = retire_keep(publication);
    if (error == 0)
        error = file_fsync(publication->io, publication->directory) < 0
            ? publish_fail(publication, EIO, "fsync", publication->hidden) : 0;
    if (error < 0)
        return error;
    memcpy(aside, publication->hidden, sizeof(publication->hidden));
    error = disk_rename(publication->io, publication->root, publication->hidden, publication->root, publication->name,
                        RENAME_OP_EXCHANGE);
    if (exchange_is_refused(error))
        error = move_aside(publication, aside);
    return error == -ENOENT ? AGAIN : error < 0 ? publish_fail(publication, -error, "rename", publication->name) : 0;
}

/* A plain rename takes an absent name or an empty directory, and refuses everything else by itself. */
static int name_take(struct publication *publication, char aside[HIDDEN_NAME_MAX + 1])
{
    int error = disk_rename(publication->io, publication->root, publication->hidden, publication->root, publication->name,
                            RENAME_PLAIN);

    aside[0] = '\0';
    if (error == 0)
        return 0;
    if (error == -ENOENT)
        return AGAIN;
    if (error != -ENOTEMPTY && error != -EEXIST)
        return error == -ENOTDIR ? name_taken(publication) : publish_fail(publication, -error, "rename", publication->name);
    publication->old = disk_open_directory(publication->io, publication->root, publication->name);
    if (publication->old < 0)
        return publication->old == -ENOENT ? AGAIN : name_taken(publication);
    return name_exchange(publication, aside);
}

/* The whole ----------------------------------------------------------------------------------------------------------------- */

static int parts_publish(struct publication *publication)
{
    char aside[HIDDEN_NAME_MAX + 1];
    int error = parts_load(publication);

    if (error == 0)
        error = parts_check_files(publication);
    if (error == 0)
        error = claims_check(publication);
    if (error == 0)
        error = manifest_write(publication);
    if (error == 0 && MUTANT(PARTS_REMOVED_BEFORE_RENAME))
        error = parts_remove(publication);
    if (error == 0)
        error = name_take(publication, aside);
    if (error != 0)
        return error;
    error = MUTANT(PUBLISHED_ROOT_UNSYNCED) ? 0 : file_fsync(publication->io, publication->root);
    if (error < 0)
        return publish_fail(publication, -error, "fsync", ".");
    if (aside[0])
        retire_old(publication, aside);
    return parts_remove(publication);
}

/* Who waits for the lock sees that it has no name any more, and looks again. Left behind, the file would keep a directory from
 * being removed by the last rank that fails. */
static void unlock(struct publication *publication)
{
    if (publication->locked)
        file_unlink(publication->io, publication->directory, PUBLISH_NAME, 0);
    publication->locked = false;
    disk_close(publication->io, &publication->lock);
}

static int publish_once(struct publication *publication)
{
    int error = published_look(publication);

    if (error != AGAIN)
        return error;
    error = hidden_open(publication);
    if (error == 0)
        error = parts_publish(publication);
    parts_drop(publication);
    unlock(publication);
    disk_close(publication->io, &publication->old);
    disk_close(publication->io, &publication->directory);
    return error;
}

static int publish_looking(struct publication *publication)
{
    int error = AGAIN;

    for (unsigned look = 0; look < LOOKS_MAX && error == AGAIN; look++)
        error = publish_once(publication);
    if (error != AGAIN)
        return error;
    return publish_refuse(publication, EAGAIN, "publish", publication->hidden,
                          "it was taken away again and again; are ranks failing, or is it being removed?");
}

static int root_open(struct publication *publication)
{
    int handle = disk_open_directory(publication->io, IO_CWD, publication->root_path);
    char *followed = NULL;

    if ((handle == -ELOOP || handle == -ENOTDIR) && asprintf(&followed, "%s/.", publication->root_path) >= 0)
        handle = disk_open_directory(publication->io, IO_CWD, followed); /* the user's path may be a link to the root */
    free(followed);
    return publication->root = handle;
}

int publish_on(struct io *io, const char *root, const char *name, const uint8_t save_id[16], uint32_t world_size,
               struct tspool_failure *failure)
{
    struct publication publication = { .io = io, .root_path = root, .name = name, .world_size = world_size, .failure = failure,
                                       .root = -1, .directory = -1, .lock = -1, .old = -1 };
    const char *reason;
    int error;

    if (!root || !name || !save_id || world_size == 0)
        return failure_set(failure, TSPOOL_STAGE_PUBLISH, EINVAL, FAILURE_AT(.operation = "publish", .path = root),
                           "a root, a name, a save id and a world size of at least 1 are needed");
    if (checkpoint_name_check(name, &reason) < 0)
        return failure_set(failure, TSPOOL_STAGE_PUBLISH, EINVAL, FAILURE_AT(.operation = "publish", .path = name), "%s", reason);
    memcpy(publication.save_id, save_id, sizeof(publication.save_id));
    hidden_name_make(name, save_id, publication.hidden);
    if (root_open(&publication) < 0)
        return failure_set(failure, TSPOOL_STAGE_PUBLISH, -publication.root, FAILURE_AT(.operation = "open", .path = root), NULL);
    error = publish_looking(&publication);
    disk_close(io, &publication.root);
    return error;
}

int tspool_publish(const char *root, const char *name, const uint8_t save_id[TSPOOL_SAVE_ID_BYTES], uint32_t world_size,
                   struct tspool_failure *failure)
{
    struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                    .thread_name = "tspool-p" };
    struct io *io = NULL;
    int error = io_create_threads(&settings, &io, failure);

    if (error < 0)
        return error;
    error = publish_on(io, root, name, save_id, world_size, failure);
    io_destroy(io);
    return error;
}
