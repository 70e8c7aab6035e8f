/* wire/sheet.c - looking at a sheet and an appendix that another process composed. Nothing is copied: the bytes lie in
 * a sealed memfd and can neither change nor vanish. Whatever the writer will index with is checked here, once, in O(n)
 * and without memory: names must ascend, which makes them distinct.
 */
#include <base/checked.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <wire/sheet.h>

#define HEX_DIGITS 32u
#define FILE_BYTES_MAX ((uint64_t)INT64_MAX - CHUNK_BYTES) /* offsets are off_t, and the last item is padded */

/* The writer indexes these structs in bytes that come from another process: no hidden padding. */
_Static_assert(sizeof(struct sheet_front) == 32 && sizeof(struct sheet_file) == 128 && sizeof(struct sheet_tensor) == 16,
               "sheet structs are packed by their order");

static bool name_is_safe(const char name[SHARD_FILE_NAME_MAX + 1])
{
    return memchr(name, '\0', SHARD_FILE_NAME_MAX + 1) && file_name_is_safe(name);
}

uint64_t sheet_bytes(uint32_t file_count, uint64_t tensor_count)
{
    uint64_t tensors, bytes = sizeof(struct sheet_front) + (uint64_t)file_count * sizeof(struct sheet_file);

    if (!checked_mul(tensor_count, sizeof(struct sheet_tensor), &tensors) || !checked_add(bytes, tensors, &bytes))
        return 0;
    return bytes;
}

static const char *front_fault(const struct sheet_front *front, uint64_t size)
{
    if (front->magic != SHEET_MAGIC)
        return "not a sheet";
    if (front->version != SHEET_VERSION)
        return "a sheet of another version";
    if (front->file_count == 0)
        return "a sheet without files";
    if (sheet_bytes(front->file_count, front->tensor_count) != size)
        return "the sheet's size disagrees with its counts";
    return NULL;
}

/* How far the walk over files has come: what the next file must begin with. */
struct walk { uint64_t tensors, leaves, chunks; };

static const char *file_fault(const struct sheet *sheet, uint32_t number, const struct walk *walk)
{
    const struct sheet_file *file = &sheet->files[number];

    if (!name_is_safe(file->name))
        return "an unsafe file name";
    if (number > 0 && strcmp(sheet->files[number - 1].name, file->name) >= 0)
        return "file names that do not ascend";
    if (file->size == 0 || file->size > FILE_BYTES_MAX)
        return "an impossible file size";
    if (file->chunk_first != walk->chunks || file->chunk_count != divide_up(file->size, CHUNK_BYTES))
        return "chunks that are not numbered through the files";
    if (file->tensor_first != walk->tensors || file->tensor_count > sheet->front->tensor_count - walk->tensors)
        return "tensors that are not numbered through the files";
    return NULL;
}

static const char *tensors_fault(const struct sheet *sheet, const struct sheet_file *file, uint64_t *leaves)
{
    uint64_t end = 0;

    for (uint64_t i = 0; i < file->tensor_count; i++) {
        const struct sheet_tensor *tensor = &sheet->tensors[file->tensor_first + i];

        if (tensor->file_offset < end)
            return "tensors out of order or overlapping";
        if (tensor->file_offset > file->size || tensor->size > file->size - tensor->file_offset)
            return "a tensor beyond the end of its file";
        end = tensor->file_offset + tensor->size;
        *leaves += divide_up(tensor->size, SHEET_LEAF_BYTES); /* sizes add up to less than files: no overflow in a real sheet */
    }
    return NULL;
}

static const char *sheet_fault(const struct sheet *sheet)
{
    struct walk walk = { 0, 0, 0 };
    const char *fault;

    for (uint32_t i = 0; i < sheet->front->file_count; i++) {
        const struct sheet_file *file = &sheet->files[i];

        if ((fault = file_fault(sheet, i, &walk)) || (fault = tensors_fault(sheet, file, &walk.leaves)))
            return fault;
        walk.tensors += file->tensor_count;
        walk.chunks += file->chunk_count;
    }
    if (walk.chunks != sheet->front->chunk_count)
        return "a wrong count of chunks";
    if (walk.tensors != sheet->front->tensor_count || walk.leaves != sheet->front->leaf_count)
        return "wrong counts of tensors or leaves";
    return NULL;
}

static int refuse(const char *fault, const char **reason)
{
    *reason = fault;
    return -EBADMSG;
}

int sheet_view(const void *bytes, uint64_t size, struct sheet *sheet, const char **reason)
{
    const uint8_t *at = bytes;
    struct sheet view;
    const char *fault;

    if (!is_aligned((uintptr_t)bytes, sizeof(uint64_t)) || size < sizeof(*view.front))
        return refuse("too short for a sheet", reason);
    view.front = bytes;
    if ((fault = front_fault(view.front, size)))
        return refuse(fault, reason);
    view.files = (const struct sheet_file *)(at + sizeof(*view.front));
    view.tensors = (const struct sheet_tensor *)(view.files + view.front->file_count);
    if ((fault = sheet_fault(&view)))
        return refuse(fault, reason);
    *sheet = view;
    return 0;
}

/* Appendix -------------------------------------------------------------------------------------------------------- */

static const char *text_fault(const struct appendix_front *front, uint32_t number, uint64_t size, uint64_t *end)
{
    const struct appendix_text *text = &front->texts[number];
    bool is_last = number == front->text_count - 1;

    if (text->kind < TEXT_OBJECTS || text->kind > TEXT_MANIFEST || (text->kind == TEXT_MANIFEST) != is_last)
        return "texts of a wrong kind, or the manifest not the last";
    if (!name_is_safe(text->name) || strcmp(text->name, front->digests_name) == 0)
        return "an unsafe or repeated file name";
    for (uint32_t i = 0; i < number; i++)
        if (strcmp(front->texts[i].name, text->name) == 0)
            return "an unsafe or repeated file name";
    if (!is_aligned(text->offset, APPENDIX_ALIGN) || text->offset < *end || text->offset > size ||
        text->size > size - text->offset)
        return "a text outside of the appendix, overlapping or not aligned";
    *end = text->offset + text->size;
    return NULL;
}

static const char *appendix_fault(const struct appendix_front *front, uint64_t size)
{
    uint64_t end = sizeof(*front), manifest_bytes;
    const char *fault;

    if (front->magic != APPENDIX_MAGIC)
        return "not an appendix";
    if (front->version != SHEET_VERSION)
        return "an appendix of another version";
    if (front->text_count == 0 || front->text_count > APPENDIX_TEXTS_MAX || front->reserved != 0)
        return "a wrong count of texts";
    if (!name_is_safe(front->digests_name) || front->digests_size == 0 || front->digests_size > FILE_BYTES_MAX)
        return "an unsafe digests file";
    for (uint32_t i = 0; i < front->text_count; i++)
        if ((fault = text_fault(front, i, size, &end)))
            return fault;
    manifest_bytes = front->texts[front->text_count - 1].size;
    if (manifest_bytes < 2 * HEX_DIGITS || front->self_patch > manifest_bytes - HEX_DIGITS ||
        front->self_patch < HEX_DIGITS || front->digests_patch > front->self_patch - HEX_DIGITS)
        return "patches outside of the manifest, or in the wrong order";
    return NULL;
}

int appendix_view(const void *bytes, uint64_t size, struct appendix *appendix, const char **reason)
{
    const char *fault;

    if (!is_aligned((uintptr_t)bytes, sizeof(uint64_t)) || size < sizeof(*appendix->front))
        return refuse("too short for an appendix", reason);
    if ((fault = appendix_fault(bytes, size)))
        return refuse(fault, reason);
    *appendix = (struct appendix){ .front = bytes, .bytes = bytes };
    return 0;
}
