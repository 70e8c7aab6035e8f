/* read/contents.c - what an open checkpoint says of its contents: the public accessors. */
#include <base/checked.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <string.h>

int give_sized(void *to, const void *from, size_t size)
{
    size_t room;

    memcpy(&room, to, sizeof room);
    if (room < 2 * sizeof room)
        return -EINVAL;
    memcpy((char *)to + sizeof room, (const char *)from + sizeof room, min_u64(room, size) - sizeof room);
    return 0;
}

size_t tspool_checkpoint_count(const struct tspool_checkpoint *checkpoint)
{
    return checkpoint->entry_count;
}

static void digest_give(const struct tspool_checkpoint *checkpoint, size_t index, struct tspool_tensor_info *info)
{
    const struct digest_set *set = checkpoint->files[checkpoint->entries[index].file].digests;

    if (!set)
        return;
    info->has_digest = 1;
    memcpy(info->digest, digests_tensor(&set->parsed, entry_digest_number(checkpoint, index)).bytes, sizeof info->digest);
}

int tspool_checkpoint_tensor(const struct tspool_checkpoint *checkpoint, size_t index,
                             struct tspool_tensor_info *info)
{
    struct tspool_tensor_info made = TSPOOL_TENSOR_INFO_INIT;
    const struct parsed_tensor *tensor;
    const struct entry *entry;

    if (index >= checkpoint->entry_count)
        return -ENOENT;
    entry = &checkpoint->entries[index];
    tensor = entry_tensor(checkpoint, index);
    made.name = entry->name;
    made.dtype = tensor->dtype;
    made.rank = tensor->rank;
    made.shape = tensor->shape;
    made.global_shape = entry->global_shape;
    made.global_offsets = tensor->global_offsets;
    made.bytes = tensor->end - tensor->begin;
    made.file = checkpoint->files[entry->file].source.name;
    made.file_offset = entry_file_offset(checkpoint, index);
    made.tied_to = entry->stored == index ? NULL : tensor->name;
    digest_give(checkpoint, index, &made);
    return give_sized(info, &made, sizeof made);
}

int tspool_checkpoint_find(const struct tspool_checkpoint *checkpoint, const char *name, size_t *index)
{
    size_t found = name ? keys_find(checkpoint, checkpoint->entry_count, name) : checkpoint->entry_count;

    if (found == checkpoint->entry_count)
        return -ENOENT;
    *index = found;
    return 0;
}

const char *tspool_checkpoint_metadata(const struct tspool_checkpoint *checkpoint, const char *key)
{
    for (size_t i = 0; i < checkpoint->metadata_count; i++)
        if (strcmp(checkpoint->metadata[i].key, key) == 0)
            return checkpoint->metadata[i].value;
    return NULL;
}

int tspool_checkpoint_metadata_at(const struct tspool_checkpoint *checkpoint, size_t number, const char **key,
                                  const char **value)
{
    if (number >= checkpoint->metadata_count)
        return -ENOENT;
    *key = checkpoint->metadata[number].key;
    *value = checkpoint->metadata[number].value;
    return 0;
}
