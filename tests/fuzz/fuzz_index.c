/* Any bytes as a Hugging Face index: parsing never crashes or over-reads, names of files stay plain, tensors are distinct
 * and sorted, and an index built from it says the same again. */
#include <assert.h>
#include <base/names.h>
#include <format/index.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void assert_orderly(const struct parsed_index *index)
{
    for (size_t i = 0; i < index->file_count; i++)
        assert(file_name_is_safe(index->files[i]) && (!i || strcmp(index->files[i - 1], index->files[i]) < 0));
    for (size_t i = 0; i < index->entry_count; i++)
        assert(file_name_is_safe(index->entries[i].file) &&
               (!i || strcmp(index->entries[i - 1].tensor, index->entries[i].tensor) < 0));
}

static void rebuild(const struct parsed_index *index)
{
    struct parsed_index again;
    const char *reason;
    char *json;
    size_t size;

    assert(!index_build(index->entries, index->entry_count, 7, &json, &size));
    assert(!index_parse(json, size, &again, &reason));
    assert(again.entry_count == index->entry_count && again.file_count == index->file_count);
    for (size_t i = 0; i < index->entry_count; i++)
        assert(!strcmp(again.entries[i].tensor, index->entries[i].tensor) &&
               !strcmp(again.entries[i].file, index->entries[i].file));
    parsed_index_deinit(&again);
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct parsed_index index;
    const char *reason = NULL;

    if (index_parse((const char *)data, size, &index, &reason)) {
        assert(reason);
        return 0;
    }
    assert_orderly(&index);
    rebuild(&index);
    parsed_index_deinit(&index);
    return 0;
}
