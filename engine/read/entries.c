/* read/entries.c - what a checkpoint holds, by number and by name.
 *
 * Stored tensors come in file order, then the names that are tied to one of them. They are found by a table sorted by
 * 64-bit hash: comparing integers sorts a million names in a fifth of the time that comparing strings takes, and no
 * choice of names makes it quadratic.
 */
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int no_memory(const struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = checkpoint->path), NULL);
}

const struct parsed_tensor *entry_tensor(const struct tspool_checkpoint *checkpoint, size_t index)
{
    const struct entry *stored = &checkpoint->entries[checkpoint->entries[index].stored];

    return &checkpoint->files[stored->file].header.tensors[stored->tensor];
}

uint64_t entry_file_offset(const struct tspool_checkpoint *checkpoint, size_t index)
{
    const struct entry *entry = &checkpoint->entries[index];

    return checkpoint->files[entry->file].data_start + entry_tensor(checkpoint, index)->begin;
}

uint64_t entry_bytes(const struct tspool_checkpoint *checkpoint, size_t index)
{
    const struct parsed_tensor *tensor = entry_tensor(checkpoint, index);

    return tensor->end - tensor->begin;
}

uint64_t entry_digest_number(const struct tspool_checkpoint *checkpoint, size_t index)
{
    const struct entry *entry = &checkpoint->entries[index];

    return checkpoint->files[entry->file].digest_first + entry->tensor;
}

const struct digest *entry_leaves(const struct tspool_checkpoint *checkpoint, size_t index)
{
    const struct digest_set *set = checkpoint->files[checkpoint->entries[index].file].digests;

    if (!set || entry_bytes(checkpoint, index) == 0)
        return NULL;
    return &set->parsed.leaves[set->parsed.first_leaf[entry_digest_number(checkpoint, index)]];
}

/* Names -------------------------------------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *name)
{
    struct digest digest = hash_bytes(name, strlen(name));
    uint64_t hash;

    memcpy(&hash, digest.bytes, sizeof hash);
    return hash;
}

static int key_compare(const void *left, const void *right)
{
    const struct entry_key *a = left, *b = right;

    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return a->entry < b->entry ? -1 : a->entry > b->entry;
}

/* (Re)makes the table over the first `count` entries. */
static int keys_build(struct tspool_checkpoint *checkpoint, size_t count, struct tspool_failure *failure)
{
    struct entry_key *keys = realloc(checkpoint->keys, (count ? count : 1) * sizeof *keys);

    if (!keys)
        return no_memory(checkpoint, failure);
    checkpoint->keys = keys;
    for (size_t i = 0; i < count; i++)
        keys[i] = (struct entry_key){ name_hash(checkpoint->entries[i].name), (uint32_t)i };
    if (count)
        qsort(keys, count, sizeof *keys, key_compare);
    return 0;
}

static size_t keys_lower_bound(const struct tspool_checkpoint *checkpoint, size_t count, uint64_t hash)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (checkpoint->keys[middle].hash < hash)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t keys_find(const struct tspool_checkpoint *checkpoint, size_t count, const char *name)
{
    uint64_t hash = name_hash(name);

    for (size_t k = keys_lower_bound(checkpoint, count, hash); k < count && checkpoint->keys[k].hash == hash; k++)
        if (strcmp(checkpoint->entries[checkpoint->keys[k].entry].name, name) == 0)
            return checkpoint->keys[k].entry;
    return count;
}

static bool is_shard(const struct tspool_checkpoint *checkpoint, size_t index)
{
    return entry_tensor(checkpoint, index)->global_offsets != NULL;
}

/* One name may stand for several shards of one tensor, never for two whole tensors. */
static int duplicates_check(const struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    for (size_t i = 1; i < checkpoint->entry_count; i++) {
        const struct entry_key *a = &checkpoint->keys[i - 1], *b = &checkpoint->keys[i];
        const struct entry *entry = &checkpoint->entries[b->entry];

        if (a->hash != b->hash || strcmp(checkpoint->entries[a->entry].name, entry->name) != 0)
            continue;
        if (is_shard(checkpoint, a->entry) && is_shard(checkpoint, b->entry))
            continue;
        return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG,
                           FAILURE_AT(.operation = "open", .tensor = entry->name,
                                      .path = checkpoint->files[entry->file].source.path),
                           "The same tensor also stands in %s: which one is meant cannot be told.",
                           checkpoint->files[checkpoint->entries[a->entry].file].source.name);
    }
    return 0;
}

/* Stored tensors ----------------------------------------------------------------------------------------------------- */

static int entries_reserve(struct tspool_checkpoint *checkpoint, size_t count, struct tspool_failure *failure)
{
    int error = count < UINT32_MAX ? 0 : -ENOMEM;

    if (error == 0)
        error = array_reserve((void **)&checkpoint->entries, &checkpoint->entry_capacity, count, sizeof(struct entry));
    return error < 0 ? no_memory(checkpoint, failure) : 0;
}

static void file_entries(struct tspool_checkpoint *checkpoint, uint32_t number)
{
    const struct parsed_header *header = &checkpoint->files[number].header;

    for (size_t i = 0; i < header->count; i++) {
        uint32_t index = (uint32_t)checkpoint->entry_count++;

        checkpoint->entries[index] = (struct entry){ .name = header->tensors[i].name, .file = number, .tensor = (uint32_t)i,
                                                     .stored = index };
    }
}

static int stored_build(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = 0;

    for (uint32_t i = 0; i < checkpoint->file_count && error == 0; i++) {
        if (checkpoint->files[i].broken)
            continue;
        error = entries_reserve(checkpoint, checkpoint->entry_count + checkpoint->files[i].header.count, failure);
        if (error == 0)
            file_entries(checkpoint, i);
    }
    checkpoint->stored_count = checkpoint->entry_count;
    return error;
}

/* Ties and metadata -------------------------------------------------------------------------------------------------- */

static bool is_structure(const char *key) { return strcmp(key, "DCP_SHARDING_INFO") == 0 || strcmp(key, "DCP_VERSION") == 0; }

static int tie_add(struct tspool_checkpoint *checkpoint, const char *alias, size_t stored, struct tspool_failure *failure)
{
    int error = entries_reserve(checkpoint, checkpoint->entry_count + 1, failure);

    if (error < 0)
        return error;
    checkpoint->entries[checkpoint->entry_count] = checkpoint->entries[stored];
    checkpoint->entries[checkpoint->entry_count++].name = alias;
    return 0;
}

static bool any_is_broken(const struct tspool_checkpoint *checkpoint)
{
    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        if (checkpoint->files[i].broken)
            return true;
    return false;
}

/* What it is tied to is not stored: a lie of the manifest's, unless it stood in a file that is known to be broken. */
static int tie_miss(struct tspool_checkpoint *checkpoint, const struct manifest_alias *alias, struct tspool_failure *failure)
{
    int error;

    if (any_is_broken(checkpoint))
        return 0;
    error = failure_set(failure, TSPOOL_STAGE_READ, EBADMSG,
                        FAILURE_AT(.operation = "open", .tensor = alias->alias, .path = checkpoint->path),
                        "The manifest ties this tensor to %s, which is not stored.", alias->stored);
    return finding_note(checkpoint, error, MANIFEST_NAME, 0, failure);
}

/* The entry of that name in one file, or stored_count. */
static size_t file_find(const struct tspool_checkpoint *checkpoint, uint32_t file, const char *name)
{
    uint64_t hash = name_hash(name);

    for (size_t k = keys_lower_bound(checkpoint, checkpoint->stored_count, hash);
         k < checkpoint->stored_count && checkpoint->keys[k].hash == hash; k++) {
        const struct entry *entry = &checkpoint->entries[checkpoint->keys[k].entry];

        if (entry->file == file && strcmp(entry->name, name) == 0)
            return checkpoint->keys[k].entry;
    }
    return checkpoint->stored_count;
}

/* With several ranks a name stands once per rank, and so do its ties: each header has those of its own file. */
static int file_ties(struct tspool_checkpoint *checkpoint, uint32_t file, struct tspool_failure *failure)
{
    const struct parsed_header *header = &checkpoint->files[file].header;
    int error = 0;

    for (size_t i = 0; i < header->metadata_count && error == 0; i++) {
        size_t stored = file_find(checkpoint, file, header->metadata[i].value);

        if (stored < checkpoint->stored_count && !is_structure(header->metadata[i].key) &&
            strcmp(header->metadata[i].key, "format") != 0)
            error = tie_add(checkpoint, header->metadata[i].key, stored, failure);
    }
    return error;
}

static int ranks_ties(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = 0;

    for (uint32_t i = 0; i < checkpoint->file_count && error == 0; i++)
        error = file_ties(checkpoint, i, failure);
    return error;
}

static int manifest_ties(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    const struct manifest *manifest = &checkpoint->manifest;
    int error = 0;

    for (size_t i = 0; i < manifest->alias_count && error == 0; i++) {
        const struct manifest_alias *alias = &manifest->aliases[i];
        size_t stored = keys_find(checkpoint, checkpoint->stored_count, alias->stored);

        if (stored < checkpoint->stored_count)
            error = tie_add(checkpoint, alias->alias, stored, failure);
        else
            error = tie_miss(checkpoint, alias, failure);
    }
    return error;
}

static int metadata_add(struct tspool_checkpoint *checkpoint, const struct header_pair *pair, struct tspool_failure *failure)
{
    for (size_t i = 0; i < checkpoint->metadata_count; i++)
        if (strcmp(checkpoint->metadata[i].key, pair->key) == 0)
            return 0;
    if (array_reserve((void **)&checkpoint->metadata, &checkpoint->metadata_capacity, checkpoint->metadata_count + 1,
                      sizeof *pair) < 0)
        return no_memory(checkpoint, failure);
    checkpoint->metadata[checkpoint->metadata_count++] = *pair;
    return 0;
}

/* A pair of a header's __metadata__ is a tie when it maps a name that is not stored to one that is, in the same file
 * (safetensors.torch.save_model writes ties so), and the user's otherwise. */
static int header_pair_take(struct tspool_checkpoint *checkpoint, uint32_t file, const struct header_pair *pair,
                            struct tspool_failure *failure)
{
    size_t stored = keys_find(checkpoint, checkpoint->stored_count, pair->value);

    if (is_structure(pair->key))
        return 0;
    if (stored < checkpoint->stored_count && checkpoint->entries[stored].file == file && strcmp(pair->key, "format") != 0 &&
        keys_find(checkpoint, checkpoint->stored_count, pair->key) == checkpoint->stored_count)
        return tie_add(checkpoint, pair->key, stored, failure);
    return metadata_add(checkpoint, pair, failure);
}

static int header_pairs(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = 0;

    for (uint32_t i = 0; i < checkpoint->file_count; i++)
        for (size_t j = 0; j < checkpoint->files[i].header.metadata_count && error == 0; j++)
            error = header_pair_take(checkpoint, i, &checkpoint->files[i].header.metadata[j], failure);
    return error;
}

static int manifest_pairs(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = 0;

    for (size_t i = 0; i < checkpoint->manifest.metadata_count && error == 0; i++)
        error = metadata_add(checkpoint, &checkpoint->manifest.metadata[i], failure);
    if (error == 0)
        error = checkpoint->manifest.world_size > 1 ? ranks_ties(checkpoint, failure) : manifest_ties(checkpoint, failure);
    return error;
}

/* Every shard of a name learns the shape of the whole. */
static void global_shapes_give(struct tspool_checkpoint *checkpoint)
{
    for (size_t i = 0; i < checkpoint->manifest.shape_count; i++) {
        const struct manifest_shape *shape = &checkpoint->manifest.shapes[i];
        uint64_t hash = name_hash(shape->name);

        for (size_t k = keys_lower_bound(checkpoint, checkpoint->entry_count, hash);
             k < checkpoint->entry_count && checkpoint->keys[k].hash == hash; k++) {
            size_t index = checkpoint->keys[k].entry;

            if (is_shard(checkpoint, index) && entry_tensor(checkpoint, index)->rank == shape->rank &&
                strcmp(checkpoint->entries[index].name, shape->name) == 0)
                checkpoint->entries[index].global_shape = shape->global_shape;
        }
    }
    for (size_t i = checkpoint->stored_count; i < checkpoint->entry_count; i++) /* only stored names are listed */
        checkpoint->entries[i].global_shape = checkpoint->entries[checkpoint->entries[i].stored].global_shape;
}

int entries_build(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = stored_build(checkpoint, failure);

    if (error == 0)
        error = keys_build(checkpoint, checkpoint->stored_count, failure);
    if (error == 0)
        error = checkpoint->kind == TSPOOL_KIND_TSPOOL ? manifest_pairs(checkpoint, failure) : header_pairs(checkpoint, failure);
    if (error == 0)
        error = keys_build(checkpoint, checkpoint->entry_count, failure);
    if (error == 0)
        global_shapes_give(checkpoint);
    return error == 0 ? duplicates_check(checkpoint, failure) : error;
}
