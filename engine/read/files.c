/* read/files.c - one safetensors file of a checkpoint: open, check, parse the header. See checkpoint.h.
 *
 * Whom it trusts: nobody. The header's length is checked against the file, the header against its digest where a
 * manifest recorded one, and only then is it parsed.
 */
#include <base/array.h>
#include <base/failure.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int files_allocate(struct tspool_checkpoint *checkpoint, size_t count, struct tspool_failure *failure)
{
    checkpoint->files = count < UINT32_MAX ? calloc(count ? count : 1, sizeof *checkpoint->files) : NULL;
    if (!checkpoint->files)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = checkpoint->path), NULL);
    for (size_t i = 0; i < count; i++)
        checkpoint->files[i].source.handle = -1;
    checkpoint->file_count = (uint32_t)count;
    return 0;
}

static int damaged(const struct checkpoint_file *file, uint64_t file_offset, const char *cause, struct tspool_failure *failure)
{
    struct failure_at at = { .operation = "open", .path = file->source.path, .file_offset = file_offset };

    return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, at, "%s", cause);
}

/* `front` is the length and the JSON, `size` bytes. */
static int header_check_digest(const struct checkpoint_file *file, const void *front, uint64_t size,
                               struct tspool_failure *failure)
{
    if (!file->listed || MUTANT(HEADER_DIGEST_NOT_COMPARED))
        return 0;
    if (size != file->listed->header_size || !digest_equal(hash_bytes(front, size), file->listed->digest))
        return damaged(file, 0, "The header does not match the digest in the manifest: damaged.", failure);
    return 0;
}

static int header_take(struct checkpoint_file *file, const char *front, uint64_t json_size, struct tspool_failure *failure)
{
    const char *reason = "";
    size_t position = 0;
    int error;

    file->data_start = 8 + json_size;
    error = header_parse(front + 8, json_size, file->source.size - file->data_start, &file->header, &reason, &position);
    if (error == -EBADMSG)
        return damaged(file, 8 + position, reason, failure);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_READ, -error, FAILURE_AT(.operation = "open", .path = file->source.path), NULL);
    return 0;
}

static int header_load(struct checkpoint_file *file, struct io *io, struct tspool_failure *failure)
{
    uint8_t prefix[8];
    uint64_t json_size = 0;
    const char *reason = "";
    void *front = NULL;
    int error;

    if (file->source.size < sizeof prefix)
        return damaged(file, file->source.size, "The file is too short for a safetensors header.", failure);
    error = source_read(io, &file->source, 0, prefix, sizeof prefix, failure);
    if (error < 0)
        return error;
    if (header_length_check(prefix, file->source.size, &json_size, &reason) < 0)
        return damaged(file, 0, reason, failure);
    error = source_load(io, &file->source, 0, 8 + json_size, &front, failure);
    if (error == 0)
        error = header_check_digest(file, front, 8 + json_size, failure);
    if (error == 0)
        error = header_take(file, front, json_size, failure);
    free(front);
    return error;
}

int file_load(struct tspool_checkpoint *checkpoint, struct io *io, struct checkpoint_file *file, const char *name,
              const struct manifest_file *listed, struct tspool_failure *failure)
{
    char *path = checkpoint->directory < 0 ? strdup(checkpoint->path) : path_join(checkpoint->path, name);
    int directory = checkpoint->directory < 0 ? IO_CWD : checkpoint->directory;
    int error;

    if (!path)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = name), NULL);
    file->listed = listed;
    error = source_open(io, directory, name, path, checkpoint->buffered, &file->source, failure);
    free(path);
    if (error == 0 && listed)
        error = source_check_size(&file->source, listed->size, failure);
    return error == 0 ? header_load(file, io, failure) : error;
}

void file_deinit(struct checkpoint_file *file, struct io *io)
{
    parsed_header_deinit(&file->header);
    source_close(io, &file->source);
}

bool error_is_damage(int error)
{
    return error == -EBADMSG || error == -ENOENT || error == -EIO || error == -EISDIR || error == -ELOOP || error == -EACCES;
}

bool error_is_no_checkpoint(int error)
{
    return error == -ENOENT || error == -ENOTDIR || error == -ELOOP || error == -EISDIR || error == -EBADMSG || error == -EACCES;
}

int finding_note(struct tspool_checkpoint *checkpoint, int error, const char *file, uint64_t size, struct tspool_failure *failure)
{
    struct finding finding = { .kind = error == -ENOENT ? TSPOOL_DAMAGE_MISSING : TSPOOL_DAMAGE_FILE, .bytes = size };

    if (error == 0 || !checkpoint->tolerant || !error_is_damage(error))
        return error;
    finding.file_offset = failure->file_offset == TSPOOL_NO_OFFSET ? 0 : failure->file_offset;
    finding.bytes = finding.file_offset < size ? size - finding.file_offset : 0;
    finding.file = strdup(file);
    finding.reason = strdup(failure->cause);
    if (!finding.file || !finding.reason ||
        array_reserve((void **)&checkpoint->findings, &checkpoint->finding_capacity, checkpoint->finding_count + 1,
                      sizeof finding) < 0) {
        free(finding.file);
        free(finding.reason);
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = checkpoint->path), NULL);
    }
    checkpoint->findings[checkpoint->finding_count++] = finding;
    return 0;
}
