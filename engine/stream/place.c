/* stream/place.c - from a hidden name to the name. See place.h.
 *
 *   hidden file made and locked | ... written ... | cut | synced | renamed onto the name | directory synced
 *
 * The lock (flock) tells a living owner from a dead one: it falls with the process, however that ends. Between making the file
 * and locking it another stream for the same name may take it for a dead one's: whoever got the lock looks whether the file
 * still has a name, and begins again with another where it has none.
 */
#include <stream/place.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <io/calls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNREPORTED_ALIGN 4096u /* O_DIRECT alignment where statx says nothing: no device asks for more */
#define ALIGN_MAX KIB(4)       /* blocks are multiples of it; a file system that asks for more is written buffered */
#define TRIES_MAX 8            /* hidden names of which somebody else took hold before they were locked */
#define TAKEN 1                /* outcome: that name is another's */
#define REFUSES_DIRECT 2       /* outcome */

int place_refuse(const struct place *place, enum tspool_stage stage, const char *operation, int error, uint64_t file_offset,
                 const char *cause, struct tspool_failure *failure)
{
    struct failure_at at = { .operation = operation, .path = place->path, .file_offset = file_offset };

    return cause ? failure_set(failure, stage, error, at, "%s", cause) : failure_set(failure, stage, error, at, NULL);
}

static int refuse_open(const struct place *place, const char *operation, int error, const char *cause,
                       struct tspool_failure *failure)
{
    return place_refuse(place, TSPOOL_STAGE_OPEN, operation, error, TSPOOL_NO_OFFSET, cause, failure);
}

/* The directory ---------------------------------------------------------------------------------------------------- */

/* "a/b/c" is "c" in "a/b/."; the dot has a link followed that stands for the directory, which is the user's to set. */
static int directory_open(struct place *place, struct tspool_failure *failure)
{
    int length = (int)(place->name - place->path);
    char *directory = NULL;

    if (asprintf(&directory, "%.*s.", length, place->path) < 0)
        return refuse_open(place, "open", ENOMEM, NULL, failure);
    place->directory = file_open(place->io, IO_CWD, directory, OPEN_READ | OPEN_DIRECTORY);
    free(directory);
    if (place->directory >= 0)
        return 0;
    return refuse_open(place, "open", -place->directory, place->directory == -ENOENT ?
                       "the directory that is to hold the file does not exist; make it first" : NULL, failure);
}

static int name_take(struct place *place, struct tspool_failure *failure)
{
    const char *slash = strrchr(place->path, '/');

    place->name = slash ? slash + 1 : place->path;
    if (!*place->name || strcmp(place->name, ".") == 0 || strcmp(place->name, "..") == 0)
        return refuse_open(place, "open", *place->path ? EISDIR : ENOENT, "the path must end in the name of a file", failure);
    if (strlen(place->name) > STREAMED_NAME_MAX)
        return refuse_open(place, "open", ENAMETOOLONG, "the hidden file beside it is named after it and needs 33 bytes more: "
                           "choose a name of at most 222 bytes", failure);
    return 0;
}

/* What has the name now: nothing, or something that a rename can replace. */
static int target_check(const struct place *place, struct tspool_failure *failure)
{
    struct io_stat stat = { 0 };
    int error = file_stat(place->io, place->directory, place->name, &stat);

    if (error == -ENOENT)
        return 0;
    if (error < 0)
        return refuse_open(place, "stat", -error, NULL, failure);
    if (stat.is_directory)
        return refuse_open(place, "open", EISDIR, "a directory has this name", failure);
    if (place->keep)
        return refuse_open(place, "open", EEXIST, "a file has this name, and it was asked not to replace one", failure);
    return 0;
}

/* What the dead left ----------------------------------------------------------------------------------------------- */

static void remnant_remove(const struct place *place, const char *partial)
{
    int handle = file_open(place->io, place->directory, partial, OPEN_WRITE);

    if (handle < 0)
        return;
    if (file_lock(place->io, handle, 0) == 0 || MUTANT(STREAM_LIVING_ONE_SWEPT))
        file_unlink(place->io, place->directory, partial, 0);
    file_close(place->io, handle);
}

/* Errors are nobody's concern: the files are in nobody's way, and the next stream tries again. */
static void remnants_sweep(const struct place *place)
{
    struct io_list list = { 0 };

    directory_list(place->io, place->directory, &list);
    for (size_t i = 0; i < list.count; i++)
        if (streamed_partial_is_of(list.names[i], place->name))
            remnant_remove(place, list.names[i]);
    io_list_free(&list);
}

/* The hidden file -------------------------------------------------------------------------------------------------- */

static void hidden_close(struct place *place)
{
    file_close(place->io, place->handle);
    place->handle = -1;
}

static void hidden_remove(struct place *place)
{
    if (place->hidden_stands && place->io)
        file_unlink(place->io, place->directory, place->partial, 0);
    place->hidden_stands = false;
    hidden_close(place);
}

/* 0, TAKEN, or -errno. File systems without locks are written all the same: there nobody gets a lock to remove it either. */
static int hidden_claim(const struct place *place)
{
    struct io_stat stat = { 0 };
    int error = file_lock(place->io, place->handle, 0);

    if (error == -EWOULDBLOCK)
        return TAKEN;
    error = file_stat(place->io, place->handle, NULL, &stat);
    return error < 0 ? error : stat.links == 0 ? TAKEN : 0;
}

static int hidden_make(struct place *place, bool direct)
{
    uint8_t random[8];
    int error;

    io_random(place->io, random, sizeof random);
    streamed_partial_make(place->name, random, place->partial);
    place->handle = file_open(place->io, place->directory, place->partial,
                              OPEN_WRITE | OPEN_CREATE | (direct ? OPEN_DIRECT : 0));
    if (place->handle < 0)
        return place->handle == -EEXIST ? TAKEN : place->handle;
    place->hidden_stands = true;
    error = hidden_claim(place);
    if (error)
        hidden_remove(place);
    return error;
}

/* Where statx does not tell: one block of zeros shows whether O_DIRECT that opened can also write. The stream's first block
 * overwrites it, or the cut removes it. */
static int direct_probe(const struct place *place)
{
    void *block = aligned_alloc(UNREPORTED_ALIGN, UNREPORTED_ALIGN);
    struct op op = { .kind = OP_WRITE, .handle = place->handle, .memory = block, .size = UNREPORTED_ALIGN };
    int64_t result;

    if (!block)
        return -ENOMEM;
    memset(block, 0, UNREPORTED_ALIGN);
    result = io_call(place->io, &op);
    free(block);
    return result == -EINVAL ? REFUSES_DIRECT : result < 0 ? (int)result : 0;
}

/* 0, REFUSES_DIRECT, or -errno. */
static int direct_check(struct place *place)
{
    struct io_stat stat = { 0 };
    int error = file_stat(place->io, place->handle, NULL, &stat);
    uint64_t align = max_u64(stat.direct_offset_align, stat.direct_memory_align);

    if (error < 0)
        return error;
    place->align = stat.direct_offset_align ? (uint32_t)align : UNREPORTED_ALIGN;
    if (!stat.direct_offset_align)
        return direct_probe(place);
    return is_power_of_two(align) && align <= ALIGN_MAX ? 0 : REFUSES_DIRECT;
}

/* 0, TAKEN, REFUSES_DIRECT or -errno. */
static int hidden_open(struct place *place, bool direct)
{
    int error = hidden_make(place, direct);

    place->direct = direct;
    place->align = 1;
    if (error == 0 && direct && (error = direct_check(place)) != 0)
        hidden_remove(place);
    return error == -EINVAL && direct ? REFUSES_DIRECT : error;
}

static int hidden_try(struct place *place, bool buffered)
{
    bool direct = !buffered;
    int error = TAKEN;

    for (int tries = 0; error > 0 && tries < TRIES_MAX; tries++) {
        error = hidden_open(place, direct);
        direct = direct && error != REFUSES_DIRECT;
    }
    return error > 0 ? -EAGAIN : error;
}

int place_open(struct io *io, const struct place_request *request, struct place *place, struct tspool_failure *failure)
{
    int error;

    *place = (struct place){ .io = io, .path = strdup(request->path), .directory = -1, .handle = -1, .keep = request->keep };
    if (!place->path)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_AT(.operation = "open", .path = request->path), NULL);
    error = name_take(place, failure);
    if (error == 0)
        error = directory_open(place, failure);
    if (error == 0)
        error = target_check(place, failure);
    if (error < 0)
        return error;
    remnants_sweep(place);
    error = hidden_try(place, request->buffered);
    return error < 0 ? refuse_open(place, "open", -error, NULL, failure) : 0;
}

/* Publishing ------------------------------------------------------------------------------------------------------- */

static bool no_replace_is_refused(int error) { return error == -EINVAL || error == -ENOSYS || error == -EOPNOTSUPP; }

/* Where the kernel cannot rename without replacing (NFS): a second name is only given where there is none. */
static int link_onto(struct place *place)
{
    struct op link = { .kind = OP_LINK, .handle = place->directory, .name = place->partial, .to_handle = place->directory,
                       .to_name = place->name };
    int error = (int)io_call(place->io, &link);

    return error < 0 ? error : file_unlink(place->io, place->directory, place->partial, 0);
}

static int name_give(struct place *place)
{
    int error = file_rename(place->io, place->directory, place->partial, place->name,
                            place->keep ? RENAME_OP_NOREPLACE : RENAME_PLAIN);

    if (place->keep && no_replace_is_refused(error))
        error = link_onto(place);
    place->hidden_stands = error != 0;
    return error;
}

static int refuse_publish(const struct place *place, const char *operation, int error, const char *cause,
                          struct tspool_failure *failure)
{
    return place_refuse(place, TSPOOL_STAGE_PUBLISH, operation, -error, TSPOOL_NO_OFFSET, cause, failure);
}

int place_publish(struct place *place, uint64_t size, struct tspool_failure *failure)
{
    int error = MUTANT(STREAM_TAIL_NOT_CUT) ? 0 : file_truncate(place->io, place->handle, size);

    if (error < 0)
        return place_refuse(place, TSPOOL_STAGE_SEAL, "truncate", -error, size, NULL, failure);
    error = MUTANT(STREAM_FILE_UNSYNCED) ? 0 : file_fsync(place->io, place->handle);
    if (error < 0)
        return place_refuse(place, TSPOOL_STAGE_SYNC, "fsync", -error, TSPOOL_NO_OFFSET, NULL, failure);
    error = name_give(place);
    if (error < 0)
        return refuse_publish(place, "rename", error, error == -EEXIST ?
                              "a file came under this name while this one was written, and it was asked not to replace one" :
                              NULL, failure);
    error = MUTANT(STREAM_DIRECTORY_UNSYNCED) ? 0 : file_fsync(place->io, place->directory);
    if (error < 0)
        return refuse_publish(place, "fsync", error, "the file has its name, but the directory could not be synced: after a "
                              "power cut either the old or the new file may stand there", failure);
    return 0;
}

static void place_close(struct place *place)
{
    hidden_close(place);
    file_close(place->io, place->directory);
    free(place->path);
    *place = (struct place){ .directory = -1, .handle = -1 };
}

void place_abandon(struct place *place)
{
    if (!place->path)
        return;
    hidden_remove(place);
    place_close(place);
}
