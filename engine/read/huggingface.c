/* read/huggingface.c - a folder of safetensors files that others wrote: with an index, or all *.safetensors in it.
 *
 * Nothing was recorded to verify against; headers, sizes and the index must agree all the same.
 */
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <format/index.h>
#include <read/checkpoint.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_MAX_BYTES (1u << 30)

static int folder_refuse(const struct tspool_checkpoint *checkpoint, int error, const char *name, const char *cause,
                         struct tspool_failure *failure)
{
    char *path = path_join(checkpoint->path, name);
    struct failure_at at = FAILURE_AT(.operation = "open", .path = path ? path : name);

    error = failure_set(failure, TSPOOL_STAGE_READ, -error, at, "%s", cause);
    free(path);
    return error;
}

static int shard_load(struct tspool_checkpoint *checkpoint, struct io *io, struct checkpoint_file *file, const char *name,
                      struct tspool_failure *failure)
{
    int error = file_load(checkpoint, io, file, name, NULL, failure);

    if (error == 0)
        return 0;
    file->broken = true;
    return finding_note(checkpoint, error, name, file->source.size, failure);
}

/* With an index ------------------------------------------------------------------------------------------------------ */

static int index_load(struct tspool_checkpoint *checkpoint, struct io *io, struct parsed_index *index,
                      struct tspool_failure *failure)
{
    struct source source = { .handle = -1 };
    char *shown = path_join(checkpoint->path, INDEX_NAME);
    const char *reason = "";
    void *json = NULL;
    int error;

    error = source_open(io, checkpoint->directory, INDEX_NAME, shown ? shown : INDEX_NAME, true, &source, failure);
    free(shown);
    if (error == 0 && source.size > INDEX_MAX_BYTES)
        error = folder_refuse(checkpoint, -EBADMSG, INDEX_NAME, "The index is larger than any index can be.", failure);
    if (error == 0)
        error = source_load(io, &source, 0, source.size, &json, failure);
    if (error == 0) {
        error = index_parse(json, source.size, index, &reason);
        if (error < 0)
            folder_refuse(checkpoint, error, INDEX_NAME, error == -EBADMSG ? reason : failure_likely_cause(-error), failure);
    }
    free(json);
    source_close(io, &source);
    return error;
}

static int name_compare(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* A name and its file, sorted, for comparing what the index says with what the headers say. */
struct holding { const char *tensor, *file; };

static int holding_compare(const void *left, const void *right)
{
    const struct holding *a = left, *b = right;
    int order = strcmp(a->tensor, b->tensor);

    return order ? order : strcmp(a->file, b->file);
}

static int index_miss(struct tspool_checkpoint *checkpoint, const struct index_entry *entry, struct tspool_failure *failure)
{
    char *path = path_join(checkpoint->path, INDEX_NAME);
    struct failure_at at = FAILURE_AT(.operation = "open", .tensor = entry->tensor, .path = path ? path : INDEX_NAME);
    int error = failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, at, "The index says that %s holds this tensor, but its header "
                            "does not list it.", entry->file);

    free(path);
    return finding_note(checkpoint, error, entry->file, 0, failure);
}

static bool file_is_broken(const struct tspool_checkpoint *checkpoint, const char *name)
{
    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        if (checkpoint->files[i].broken && strcmp(checkpoint->files[i].source.name, name) == 0)
            return true;
    return false;
}

static struct holding *holdings_make(const struct tspool_checkpoint *checkpoint, size_t *count)
{
    struct holding *holdings;
    size_t total = 0, next = 0;

    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        total += checkpoint->files[i].header.count;
    holdings = malloc((total ? total : 1) * sizeof *holdings);
    if (!holdings)
        return NULL;
    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        for (size_t j = 0; j < checkpoint->files[i].header.count; j++)
            holdings[next++] = (struct holding){ checkpoint->files[i].header.tensors[j].name, checkpoint->files[i].source.name };
    qsort(holdings, total, sizeof *holdings, holding_compare);
    *count = total;
    return holdings;
}

static int index_check(struct tspool_checkpoint *checkpoint, const struct parsed_index *index, struct tspool_failure *failure)
{
    size_t count = 0;
    struct holding *holdings = holdings_make(checkpoint, &count);
    int error = 0;

    if (!holdings)
        return folder_refuse(checkpoint, -ENOMEM, INDEX_NAME, failure_likely_cause(ENOMEM), failure);
    for (size_t i = 0; i < index->entry_count && error == 0; i++) {
        struct holding wanted = { index->entries[i].tensor, index->entries[i].file };

        if (!bsearch(&wanted, holdings, count, sizeof *holdings, holding_compare) && !file_is_broken(checkpoint, wanted.file))
            error = index_miss(checkpoint, &index->entries[i], failure);
    }
    free(holdings);
    return error;
}

static int indexed_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct parsed_index index = { 0 };
    int error = index_load(checkpoint, io, &index, failure);

    if (error < 0)
        return error;
    error = files_allocate(checkpoint, index.file_count, failure);
    for (size_t i = 0; i < index.file_count && error == 0; i++)
        error = shard_load(checkpoint, io, &checkpoint->files[i], index.files[i], failure);
    if (error == 0)
        error = index_check(checkpoint, &index, failure);
    parsed_index_deinit(&index);
    return error;
}

/* Without one -------------------------------------------------------------------------------------------------------- */

static bool is_shard_name(const char *name)
{
    size_t length = strlen(name), suffix = strlen(".safetensors");

    return length > suffix && strcmp(name + length - suffix, ".safetensors") == 0 && file_name_is_safe(name);
}

/* Moves the shard names to the front; the list stays whole for its release. */
static size_t shards_first(struct io_list *list)
{
    size_t count = 0;

    for (size_t i = 0; i < list->count; i++)
        if (is_shard_name(list->names[i])) {
            char *name = list->names[i];

            list->names[i] = list->names[count];
            list->names[count++] = name;
        }
    if (count)
        qsort(list->names, count, sizeof *list->names, name_compare);
    return count;
}

static int unindexed_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct io_list list = { 0 };
    size_t count = 0;
    int error = directory_list(io, checkpoint->directory, &list);

    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_READ, -error, FAILURE_AT(.operation = "list", .path = checkpoint->path), NULL);
    count = shards_first(&list);
    if (count == 0)
        error = failure_set(failure, TSPOOL_STAGE_READ, ENOENT, FAILURE_AT(.operation = "open", .path = checkpoint->path),
                            "No checkpoint is in this directory: neither %s nor any .safetensors file.", MANIFEST_NAME);
    if (error == 0)
        error = files_allocate(checkpoint, count, failure);
    for (size_t i = 0; i < count && error == 0; i++)
        error = shard_load(checkpoint, io, &checkpoint->files[i], list.names[i], failure);
    io_list_free(&list);
    return error;
}

/* Without its manifest one of ours looks like somebody's folder, and would load unverified without a word. */
static int orphaned_digests_refuse(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct io_list list = { 0 };
    bool has_digests = false;
    int error = directory_list(io, checkpoint->directory, &list);

    for (size_t i = 0; i < list.count; i++)
        has_digests |= strncmp(list.names[i], DIGESTS_NAME, strlen(DIGESTS_NAME)) == 0;
    io_list_free(&list);
    if (error < 0 || !has_digests)
        return error < 0 ? folder_refuse(checkpoint, error, "", failure_likely_cause(-error), failure) : 0;
    error = folder_refuse(checkpoint, -ENOENT, MANIFEST_NAME,
                          "The manifest is missing and digests are here: this was a tspool checkpoint. Open it unverified, or "
                          "remove the digests, to take it as it is.", failure);
    return finding_note(checkpoint, error, MANIFEST_NAME, 0, failure);
}

int huggingface_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure)
{
    struct io_stat stat = { 0 };
    int error = checkpoint->unverified ? 0 : orphaned_digests_refuse(checkpoint, io, failure);

    checkpoint->kind = TSPOOL_KIND_HUGGINGFACE;
    if (error < 0)
        return error;
    if (file_stat(io, checkpoint->directory, INDEX_NAME, &stat) == 0)
        return indexed_load(checkpoint, io, failure);
    return unindexed_load(checkpoint, io, failure);
}
