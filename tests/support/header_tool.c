/* tests/support/header_tool.c - the header code behind a pipe, so that a test in Python can hold it against safetensors.
 *
 *   header_tool MODE    MODE is parse or rebuild
 *
 * Standard input and output carry records: u32 LE length, bytes. Each input record is a whole safetensors file.
 *   parse    answers JSON: {"tensors": [[name, dtype, shape, begin, end, offsets or null], ...], "metadata": {...}},
 *            or {"refused": reason}
 *   rebuild  answers the file with the header that header_build makes of what was parsed; an empty record when refused
 */
#include <endian.h>
#include <format/safetensors.h>
#include <format/text.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct record { char *bytes; uint32_t size; };

/* False at the end of the input. */
static bool record_read(struct record *record)
{
    uint32_t size;

    if (fread(&size, sizeof size, 1, stdin) != 1)
        return false;
    record->size = le32toh(size);
    record->bytes = malloc(record->size ? record->size : 1); /* exact, so that the sanitizer sees a byte too many */
    return record->bytes && fread(record->bytes, 1, record->size, stdin) == record->size;
}

static void record_write(const char *bytes, size_t size)
{
    uint32_t length = htole32((uint32_t)size);

    fwrite(&length, sizeof length, 1, stdout);
    fwrite(bytes, 1, size, stdout);
    fflush(stdout);
}

/* Returns where the data starts; 0 with *reason when the file is refused. */
static size_t file_parse(const struct record *file, struct parsed_header *header, const char **reason)
{
    uint8_t prefix[8] = { 0 };
    uint64_t json_size;
    size_t position;

    memcpy(prefix, file->bytes, file->size < sizeof prefix ? file->size : sizeof prefix);
    if (header_length_check(prefix, file->size, &json_size, reason) ||
        header_parse(file->bytes + sizeof prefix, json_size, file->size - sizeof prefix - json_size, header, reason, &position))
        return 0;
    return sizeof prefix + json_size;
}

static void put_tensor(struct text *text, const struct parsed_tensor *tensor)
{
    text_puts(text, "[");
    text_put_name(text, tensor->name);
    text_puts(text, ",");
    text_put_name(text, tspool_dtype_name(tensor->dtype));
    text_puts(text, ",");
    text_put_array(text, tensor->shape, tensor->rank);
    text_puts(text, ",");
    text_put_u64(text, tensor->begin);
    text_puts(text, ",");
    text_put_u64(text, tensor->end);
    text_puts(text, ",");
    if (tensor->global_offsets)
        text_put_array(text, tensor->global_offsets, tensor->rank);
    else
        text_puts(text, "null");
    text_puts(text, "]");
}

static void put_header(struct text *text, const struct parsed_header *header)
{
    text_puts(text, "{\"tensors\":[");
    for (size_t i = 0; i < header->count; i++) {
        text_puts(text, i ? "," : "");
        put_tensor(text, &header->tensors[i]);
    }
    text_puts(text, "],\"metadata\":{");
    for (size_t i = 0; i < header->metadata_count; i++) {
        text_puts(text, i ? "," : "");
        text_put_name(text, header->metadata[i].key);
        text_puts(text, ":");
        text_put_name(text, header->metadata[i].value);
    }
    text_puts(text, "}}");
}

static void answer_parse(const struct record *file)
{
    struct parsed_header header = { 0 };
    struct text text = { 0 };
    const char *reason = NULL;
    char *answer;
    size_t size;

    if (file_parse(file, &header, &reason))
        put_header(&text, &header);
    else {
        text_puts(&text, "{\"refused\":");
        text_put_name(&text, reason);
        text_puts(&text, "}");
    }
    if (text_finish(&text, &answer, &size))
        exit(1);
    record_write(answer, size);
    free(answer);
    parsed_header_deinit(&header);
}

static char *file_rebuild(const struct record *file, const struct parsed_header *header, size_t data_at, size_t *size)
{
    struct header_entry *entries = calloc(header->count + 1, sizeof *entries);
    bool sharded = false;
    void *front = NULL;
    char *rebuilt;

    for (size_t i = 0; i < header->count; i++) {
        const struct parsed_tensor *tensor = &header->tensors[i];

        entries[i] = (struct header_entry){ tensor->name, tensor->dtype, tensor->rank, tensor->shape,
                                            tensor->begin, tensor->end, tensor->global_offsets };
        sharded = sharded || tensor->global_offsets;
    }
    if (header_build(entries, header->count, sharded, header->metadata, header->metadata_count, SAFETENSORS_DATA_ALIGN, &front,
                     size))
        exit(1);
    rebuilt = realloc(front, *size + (file->size - data_at) + 1);
    memcpy(rebuilt + *size, file->bytes + data_at, file->size - data_at);
    *size += file->size - data_at;
    free(entries);
    return rebuilt;
}

static void answer_rebuild(const struct record *file)
{
    struct parsed_header header = { 0 };
    const char *reason;
    size_t data_at = file_parse(file, &header, &reason), size = 0;
    char *rebuilt = data_at ? file_rebuild(file, &header, data_at, &size) : NULL;

    record_write(rebuilt ? rebuilt : "", size);
    free(rebuilt);
    parsed_header_deinit(&header);
}

int main(int argc, char **argv)
{
    bool rebuild = argc == 2 && !strcmp(argv[1], "rebuild");
    struct record file = { 0 };

    if (argc != 2 || (!rebuild && strcmp(argv[1], "parse"))) {
        fprintf(stderr, "usage: header_tool parse|rebuild\n");
        return 2;
    }
    while (record_read(&file)) {
        if (rebuild)
            answer_rebuild(&file);
        else
            answer_parse(&file);
        free(file.bytes);
        file.bytes = NULL;
    }
    free(file.bytes);
    return 0;
}
