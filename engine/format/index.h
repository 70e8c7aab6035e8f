/* format/index.h - model.safetensors.index.json: which shard file holds which tensor (Hugging Face). Pure. */
#ifndef FORMAT_INDEX_H
#define FORMAT_INDEX_H

#include <stddef.h>
#include <stdint.h>

struct index_entry { const char *tensor, *file; };

/* {"metadata": {"total_size": N}, "weight_map": {tensor: file, ...}}; *json is malloc'ed, without NUL. */
int index_build(const struct index_entry *entries, size_t count, uint64_t total_size, char **json, size_t *size);

struct parsed_index {
    char **files;        /* distinct, sorted, each checked with file_name_is_safe */
    size_t file_count;
    struct index_entry *entries; /* sorted by tensor */
    size_t entry_count;
    void *memory;
};
/* 0, -ENOMEM, or -EBADMSG with *reason (static). */
int index_parse(const char *json, size_t size, struct parsed_index *index, const char **reason);
void parsed_index_deinit(struct parsed_index *index);

#endif
