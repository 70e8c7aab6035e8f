/* read/checkpoint.c - opening and closing a checkpoint, and what it says about itself. See checkpoint.h.
 *
 * A directory with a manifest is ours; another directory is taken for a Hugging Face one; a file for one safetensors
 * file. Links are followed in the path that the user gave and nowhere below it.
 */
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <read/read.h>
#include <read/hidden.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_ITEM_BYTES 524288u
#define DEFAULT_DEPTH 32u
#define ITEM_BYTES_MAX (16u << 20)
#define DEPTH_MAX 1024u
#define HASH_THREADS_MAX 64u

static struct tspool_checkpoint_options options_complete(const struct tspool_checkpoint_options *given)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;

    if (given)
        memcpy(&options, given, given->size < sizeof options ? given->size : sizeof options);
    if (!options.item_bytes)
        options.item_bytes = DEFAULT_ITEM_BYTES;
    if (!options.depth)
        options.depth = DEFAULT_DEPTH;
    if (!options.hash_threads)
        options.hash_threads = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2 : 1;
    return options;
}

static const char *options_complaint(const struct tspool_checkpoint_options *options)
{
    if (options->io > TSPOOL_IO_THREADS)
        return "io is none of enum tspool_io.";
    if (options->item_bytes % 4096 || options->item_bytes > ITEM_BYTES_MAX)
        return "item_bytes must be a multiple of 4096, at most 16 MiB.";
    if (options->depth > DEPTH_MAX)
        return "depth must be at most 1024.";
    if (options->hash_threads > HASH_THREADS_MAX)
        return "hash_threads must be at most 64.";
    return NULL;
}

static void checkpoint_destroy(struct tspool_checkpoint *checkpoint, struct io *io)
{
    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        file_deinit(&checkpoint->files[i], io);
    for (size_t i = 0; checkpoint->digest_sets && i < checkpoint->manifest.digests_count; i++) {
        parsed_digests_deinit(&checkpoint->digest_sets[i].parsed);
        free(checkpoint->digest_sets[i].bytes);
    }
    for (size_t i = 0; i < checkpoint->finding_count; i++) {
        free(checkpoint->findings[i].file);
        free(checkpoint->findings[i].reason);
    }
    file_close(io, checkpoint->directory);
    name_table_deinit(&checkpoint->object_names);
    manifest_deinit(&checkpoint->manifest);
    free(checkpoint->files);
    free(checkpoint->digest_sets);
    free(checkpoint->entries);
    free(checkpoint->keys);
    free(checkpoint->metadata);
    free(checkpoint->findings);
    free(checkpoint->path);
    lane_deinit(&checkpoint->lane);
    free(checkpoint);
}

static int checkpoint_create(struct io *borrowed, const char *path, const struct tspool_checkpoint_options *given,
                             struct tspool_checkpoint **made, struct tspool_failure *failure)
{
    struct tspool_checkpoint_options options = options_complete(given);
    struct failure_at at = FAILURE_AT(.operation = "open", .path = path);
    const char *complaint = path && *path ? options_complaint(&options) : "The path is empty.";
    struct tspool_checkpoint *checkpoint;

    if (complaint)
        return failure_set(failure, TSPOOL_STAGE_READ, EINVAL, at, "%s", complaint);
    checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint || !(checkpoint->path = strdup(path))) {
        free(checkpoint);
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, at, NULL);
    }
    checkpoint->directory = -1;
    checkpoint->buffered = options.buffered;
    checkpoint->unverified = options.unverified;
    checkpoint->tolerant = options.tolerant;
    checkpoint->item_bytes = options.item_bytes;
    checkpoint->depth = options.depth;
    lane_init(&checkpoint->lane, borrowed, options.io, options.depth, options.hash_threads);
    *made = checkpoint;
    return 0;
}

static int file_kind_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    int error = files_allocate(checkpoint, 1, failure);

    checkpoint->kind = TSPOOL_KIND_FILE;
    return error == 0 ? file_load(checkpoint, io, &checkpoint->files[0], checkpoint->path, NULL, failure) : error;
}

static int directory_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "open", .path = checkpoint->path);
    struct io_stat stat = { 0 };
    int handle = file_open(io, IO_CWD, checkpoint->path, OPEN_READ | OPEN_DIRECTORY), error;

    if (handle < 0)
        return failure_set(failure, TSPOOL_STAGE_READ, -handle, at, NULL);
    checkpoint->directory = handle;
    error = file_stat(io, handle, MANIFEST_NAME, &stat);
    if (error == 0)
        return tspool_kind_load(checkpoint, io, failure);
    if (error != -ENOENT)
        return failure_set(failure, TSPOOL_STAGE_READ, -error, at, NULL);
    return huggingface_load(checkpoint, io, failure);
}

/* A name that is missing may be one whose replacement was interrupted: then it is put back first. Why it could not be
 * may say more than that it is missing. */
static int path_stat(struct tspool_checkpoint *checkpoint, struct io *io, struct io_stat *stat, struct tspool_failure *failure)
{
    int error = file_stat(io, IO_CWD, checkpoint->path, stat), repaired;

    if (error == -ENOENT) {
        repaired = path_repair(io, checkpoint->path);
        if (repaired == 0)
            error = file_stat(io, IO_CWD, checkpoint->path, stat);
        else if (!error_is_no_checkpoint(repaired))
            error = repaired;
    }
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_READ, -error, FAILURE_AT(.operation = "open", .path = checkpoint->path),
                           error == -ENOENT ? "There is nothing of that name." : NULL);
    return 0;
}

static int checkpoint_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct io_stat stat = { 0 };
    int error = path_stat(checkpoint, io, &stat, failure);

    if (error < 0)
        return error;
    error = stat.is_directory ? directory_load(checkpoint, io, failure) : file_kind_load(checkpoint, io, failure);
    return error == 0 ? entries_build(checkpoint, failure) : error;
}

int checkpoint_open_on(struct io *io, const char *path, const struct tspool_checkpoint_options *options,
                       struct tspool_checkpoint **checkpoint, struct tspool_failure *failure)
{
    struct tspool_failure own = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *made = NULL;
    int error;

    failure = failure ? failure : &own;
    error = checkpoint_create(io, path, options, &made, failure);
    if (error < 0)
        return error;
    error = lane_enter(&made->lane, failure);
    if (error == 0) {
        error = checkpoint_load(made, made->lane.io, failure);
        lane_leave(&made->lane);
    }
    if (error < 0)
        checkpoint_destroy(made, made->lane.io);
    else
        *checkpoint = made;
    return error;
}

int tspool_checkpoint_open(const char *path, const struct tspool_checkpoint_options *options,
                           struct tspool_checkpoint **checkpoint, struct tspool_failure *failure)
{
    struct stat stat;
    char *followed = path && lstat(path, &stat) == 0 && S_ISLNK(stat.st_mode) ? realpath(path, NULL) : NULL;
    int error = checkpoint_open_on(NULL, followed ? followed : path, options, checkpoint, failure);

    free(followed);
    return error;
}

void tspool_checkpoint_close(struct tspool_checkpoint *checkpoint)
{
    struct io *io = NULL;

    if (!checkpoint)
        return;
    if (lane_enter(&checkpoint->lane, NULL) == 0) {
        io = checkpoint->lane.io;
        lane_leave(&checkpoint->lane);
    }
    checkpoint_destroy(checkpoint, io);
}

/* Totals ------------------------------------------------------------------------------------------------------------- */

static uint64_t tensor_bytes(const struct tspool_checkpoint *checkpoint)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        total += checkpoint->files[i].header.data_bytes;
    return total;
}

static void files_count(const struct tspool_checkpoint *checkpoint, struct tspool_checkpoint_info *info)
{
    info->direct = checkpoint->file_count > 0;
    for (uint32_t i = 0; i < checkpoint->file_count; i++) {
        info->file_bytes += checkpoint->files[i].source.size;
        info->direct &= checkpoint->files[i].source.direct;
        info->has_digests |= checkpoint->files[i].digests != NULL;
    }
}

int tspool_checkpoint_info(const struct tspool_checkpoint *checkpoint, struct tspool_checkpoint_info *info)
{
    const struct manifest *manifest = &checkpoint->manifest;
    struct tspool_checkpoint_info made = TSPOOL_CHECKPOINT_INFO_INIT;

    made.kind = checkpoint->kind;
    made.files = checkpoint->file_count;
    made.world_size = checkpoint->kind == TSPOOL_KIND_TSPOOL ? manifest->world_size : 1;
    made.format_version = manifest->version;
    made.sequence = manifest->sequence;
    memcpy(made.save_id, manifest->save_id, sizeof made.save_id);
    made.tensor_bytes = tensor_bytes(checkpoint);
    files_count(checkpoint, &made);
    snprintf(made.backend, sizeof made.backend, "%s", checkpoint->lane.backend);
    return give_sized(info, &made, sizeof made);
}
