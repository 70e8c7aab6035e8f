/* read/tspool_kind.c - a checkpoint of ours: the manifest, the files that it lists, their digests.
 *
 * The manifest is the commit record: what it does not list does not belong, what it lists must be there and agree.
 */
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <stdlib.h>
#include <string.h>

static int no_memory(const char *path, struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = path), NULL);
}

static int text_refuse(int error, const char *path, const char *reason, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "open", .path = path);

    if (error == -EPROTO)
        return failure_set(failure, TSPOOL_STAGE_READ, EPROTO, at, "It was written by a newer tspool (%s): update to read it.",
                           reason);
    if (error == -EBADMSG)
        return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, at, "%s", reason);
    return failure_set(failure, TSPOOL_STAGE_READ, -error, at, NULL);
}

static int manifest_take(struct io *io, const struct source *source, struct manifest *manifest, struct tspool_failure *failure)
{
    const char *reason = "the format is newer";
    void *json = NULL;
    int error;

    if (source->size > MANIFEST_MAX_BYTES)
        return text_refuse(-EBADMSG, source->path, "The manifest is larger than any manifest can be.", failure);
    error = source_load(io, source, 0, source->size, &json, failure);
    if (error < 0)
        return error;
    error = manifest_parse(json, source->size, manifest, &reason);
    free(json);
    return error < 0 ? text_refuse(error, source->path, reason, failure) : 0;
}

int manifest_load(struct io *io, int directory, const char *path, struct manifest *manifest, struct tspool_failure *failure)
{
    return manifest_load_from(io, directory, path, MANIFEST_NAME, manifest, failure);
}

int manifest_load_from(struct io *io, int directory, const char *path, const char *name, struct manifest *manifest,
                       struct tspool_failure *failure)
{
    struct source source = { .handle = -1 };
    char *shown = path_join(path, name);
    int error;

    if (!shown)
        return no_memory(path, failure);
    error = source_open(io, directory, name, shown, true, &source, failure);
    if (error == 0)
        error = manifest_take(io, &source, manifest, failure);
    source_close(io, &source);
    free(shown);
    return error;
}

/* Shard files -------------------------------------------------------------------------------------------------------- */

static size_t shard_count(const struct manifest *manifest)
{
    size_t count = 0;

    for (size_t i = 0; i < manifest->file_count; i++)
        count += manifest->files[i].kind == MANIFEST_SAFETENSORS;
    return count;
}

static int shard_load(struct tspool_checkpoint *checkpoint, struct io *io, struct checkpoint_file *file,
                      const struct manifest_file *listed, struct tspool_failure *failure)
{
    int error = file_load(checkpoint, io, file, listed->name, listed, failure);

    if (error == 0)
        return 0;
    file->broken = true;
    return finding_note(checkpoint, error, listed->name, listed->size, failure);
}

static int shards_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    const struct manifest *manifest = &checkpoint->manifest;
    int error = files_allocate(checkpoint, shard_count(manifest), failure);
    size_t next = 0;

    for (size_t i = 0; i < manifest->file_count && error == 0; i++)
        if (manifest->files[i].kind == MANIFEST_SAFETENSORS)
            error = shard_load(checkpoint, io, &checkpoint->files[next++], &manifest->files[i], failure);
    return error;
}

/* Objects and index: their bytes are read when somebody asks for them, but without them the checkpoint is not whole. */
static int other_check(struct tspool_checkpoint *checkpoint, struct io *io, const struct manifest_file *listed,
                       struct tspool_failure *failure)
{
    struct source source = { .handle = -1 };
    char *shown = path_join(checkpoint->path, listed->name);
    int error;

    if (!shown)
        return no_memory(checkpoint->path, failure);
    error = source_open(io, checkpoint->directory, listed->name, shown, true, &source, failure);
    if (error == 0)
        error = source_check_size(&source, listed->size, failure);
    source_close(io, &source);
    free(shown);
    return finding_note(checkpoint, error, listed->name, listed->size, failure);
}

static int others_check(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    const struct manifest *manifest = &checkpoint->manifest;
    int error = 0;

    for (size_t i = 0; i < manifest->file_count && error == 0; i++)
        if (manifest->files[i].kind != MANIFEST_SAFETENSORS)
            error = other_check(checkpoint, io, &manifest->files[i], failure);
    return error;
}

/* Digests ------------------------------------------------------------------------------------------------------------ */

static int digests_take(struct io *io, const struct source *source, const struct manifest_digests *listed, struct digest_set *set,
                        struct tspool_failure *failure)
{
    const char *reason = "the digests file has a newer format";
    int error;

    error = source_check_size(source, listed->size, failure);
    if (error < 0)
        return error;
    error = source_load(io, source, 0, source->size, &set->bytes, failure);
    if (error < 0)
        return error;
    if (!digest_equal(hash_bytes(set->bytes, source->size), listed->digest) && !MUTANT(DIGESTS_DIGEST_NOT_COMPARED))
        return text_refuse(-EBADMSG, source->path, "The digests file does not match its digest in the manifest: damaged.",
                           failure);
    error = digests_parse(set->bytes, source->size, &set->parsed, &reason);
    if (error < 0)
        return text_refuse(error, source->path, reason, failure);
    set->loaded = true;
    return 0;
}

static int digest_set_load(struct tspool_checkpoint *checkpoint, struct io *io, const struct manifest_digests *listed,
                           struct digest_set *set, struct tspool_failure *failure)
{
    struct source source = { .handle = -1 };
    char *shown = path_join(checkpoint->path, listed->name);
    int error;

    if (!shown)
        return no_memory(checkpoint->path, failure);
    set->rank = listed->rank;
    error = source_open(io, checkpoint->directory, listed->name, shown, true, &source, failure);
    if (error == 0)
        error = digests_take(io, &source, listed, set, failure);
    source_close(io, &source);
    free(shown);
    return finding_note(checkpoint, error, listed->name, listed->size, failure);
}

static bool file_uses(const struct checkpoint_file *file, const struct digest_set *set)
{
    return file->listed->kind == MANIFEST_SAFETENSORS && file->listed->rank == set->rank;
}

static int digests_disagree(const struct tspool_checkpoint *checkpoint, const struct checkpoint_file *file,
                            struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, FAILURE_AT(.operation = "open", .path = file->source.path),
                       "The digests file of %s does not describe the tensors in this file.", checkpoint->path);
}

/* Gives the file its place in the set: the tensors [first, first + count), whose sizes must agree. */
static int digests_give(const struct tspool_checkpoint *checkpoint, struct checkpoint_file *file, const struct digest_set *set,
                        uint64_t first, struct tspool_failure *failure)
{
    size_t count = file->header.count;

    if (first > set->parsed.tensor_count || count > set->parsed.tensor_count - first)
        return digests_disagree(checkpoint, file, failure);
    for (size_t i = 0; i < count; i++) {
        const struct parsed_tensor *tensor = &file->header.tensors[i];

        if (digests_tensor_bytes(&set->parsed, first + i) != tensor->end - tensor->begin)
            return digests_disagree(checkpoint, file, failure);
    }
    file->digests = set;
    file->digest_first = first;
    return 0;
}

/* How many tensors a broken file has is not known: files before the first broken one are numbered from the front, files
 * after the last broken one from the end, and what lies between two broken ones stays without digests. */
static int digests_spread(struct tspool_checkpoint *checkpoint, struct digest_set *set, struct tspool_failure *failure)
{
    uint64_t first = 0, end = set->parsed.tensor_count;
    uint32_t number = 0, last;
    int error = 0;

    for (; number < checkpoint->file_count && error == 0; number++) {
        struct checkpoint_file *file = &checkpoint->files[number];

        if (!file_uses(file, set))
            continue;
        if (file->broken)
            break;
        error = digests_give(checkpoint, file, set, first, failure);
        first += file->header.count;
    }
    if (error < 0)
        return error;
    if (number == checkpoint->file_count)
        return first == end || !checkpoint->file_count ? 0
            : digests_disagree(checkpoint, &checkpoint->files[checkpoint->file_count - 1], failure);
    for (last = checkpoint->file_count; --last > number && error == 0;) {
        struct checkpoint_file *file = &checkpoint->files[last];

        if (!file_uses(file, set))
            continue;
        if (file->broken || file->header.count > end)
            break;
        end -= file->header.count;
        error = digests_give(checkpoint, file, set, end, failure);
    }
    return error;
}

static int digest_sets_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    const struct manifest *manifest = &checkpoint->manifest;
    int error = 0;

    checkpoint->digest_sets = calloc(manifest->digests_count ? manifest->digests_count : 1, sizeof *checkpoint->digest_sets);
    if (!checkpoint->digest_sets)
        return no_memory(checkpoint->path, failure);
    for (size_t i = 0; i < manifest->digests_count && error == 0; i++) {
        struct digest_set *set = &checkpoint->digest_sets[i];

        error = digest_set_load(checkpoint, io, &manifest->digests[i], set, failure);
        if (error == 0 && set->loaded)
            error = finding_note(checkpoint, digests_spread(checkpoint, set, failure), manifest->digests[i].name,
                                 set->parsed.tensor_count, failure);
    }
    return error;
}

int tspool_kind_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    int error = manifest_load(io, checkpoint->directory, checkpoint->path, &checkpoint->manifest, failure);

    checkpoint->kind = TSPOOL_KIND_TSPOOL;
    if (error == 0)
        error = objects_index(checkpoint, failure);
    if (error == 0)
        error = shards_load(checkpoint, io, failure);
    if (error == 0)
        error = others_check(checkpoint, io, failure);
    return error == 0 ? digest_sets_load(checkpoint, io, failure) : error;
}
