/* fuzz_sheet - sheet_view and appendix_view on arbitrary bytes: no read beyond them, and what is accepted can be walked
 * the way the writer walks it. The memory is exactly as large as the input, so the sanitizer sees every step outside. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <wire/sheet.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void walk_file(const struct sheet *sheet, const struct sheet_file *file)
{
    uint64_t end = 0;

    require(file_name_is_safe(file->name) && file->size > 0 && file->size < INT64_MAX);
    require((uint64_t)file->chunk_count * CHUNK_BYTES >= file->size);
    for (uint64_t i = 0; i < file->tensor_count; i++) {
        const struct sheet_tensor *tensor = &sheet->tensors[file->tensor_first + i];

        require(tensor->file_offset >= end && tensor->file_offset + tensor->size <= file->size);
        end = tensor->file_offset + tensor->size;
    }
}

static void walk_sheet(const void *bytes, size_t size)
{
    const char *reason = NULL;
    struct sheet sheet;
    uint64_t chunks = 0;

    if (sheet_view(bytes, size, &sheet, &reason) < 0) {
        require(reason != NULL);
        return;
    }
    for (uint32_t i = 0; i < sheet.front->file_count; i++) {
        require(sheet.files[i].chunk_first == chunks);
        require(i == 0 || strcmp(sheet.files[i - 1].name, sheet.files[i].name) != 0);
        walk_file(&sheet, &sheet.files[i]);
        chunks += sheet.files[i].chunk_count;
    }
    require(chunks == sheet.front->chunk_count);
}

static void walk_appendix(const void *bytes, size_t size)
{
    const char *reason = NULL;
    struct appendix appendix;
    volatile uint8_t sum = 0;

    if (appendix_view(bytes, size, &appendix, &reason) < 0) {
        require(reason != NULL);
        return;
    }
    for (uint32_t i = 0; i < appendix.front->text_count; i++) {
        const struct appendix_text *text = &appendix.front->texts[i];

        require(file_name_is_safe(text->name));
        for (uint64_t k = 0; k < text->size; k++)
            sum = (uint8_t)(sum + appendix.bytes[text->offset + k]);
    }
    require(appendix.front->digests_patch + 32 <= appendix.front->self_patch);
    require(appendix.front->self_patch + 32 <= appendix.front->texts[appendix.front->text_count - 1].size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    void *bytes = malloc(size + (size == 0));

    if (!bytes)
        return 0;
    memcpy(bytes, data, size);
    walk_sheet(bytes, size);
    walk_appendix(bytes, size);
    free(bytes);
    return 0;
}
