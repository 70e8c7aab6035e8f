/* format/index.c - model.safetensors.index.json, both ways: emitted directly, laid out as json.dumps(indent=2) does. */
#include <format/index.h>

#include <base/array.h>
#include <base/names.h>
#include <errno.h>
#include <format/name_table.h>
#include <format/scan.h>
#include <format/text.h>
#include <string.h>

int index_build(const struct index_entry *entries, size_t count, uint64_t total_size, char **json, size_t *size)
{
    struct text text = { 0 };

    text_puts(&text, "{\n  \"metadata\": {\n    \"total_size\": ");
    text_put_u64(&text, total_size);
    text_puts(&text, "\n  },\n  \"weight_map\": {");
    for (size_t i = 0; i < count; i++) {
        text_puts(&text, i ? ",\n    " : "\n    ");
        text_put_name(&text, entries[i].tensor);
        text_puts(&text, ": ");
        text_put_name(&text, entries[i].file);
    }
    text_puts(&text, count ? "\n  }\n}\n" : "}\n}\n");
    return text_finish(&text, json, size);
}

/* Parsing --------------------------------------------------------------------------------------------------------- */

struct parser {
    struct parsed_index *index;
    struct pool pool;
    size_t entry_capacity, file_capacity;
};

/* Entries of one file mostly follow each other: each run of them shares one text. */
static int file_keep(struct scan *scan, struct parser *parser, struct scan_token token, const char **file)
{
    struct parsed_index *index = parser->index;
    const char *last = index->entry_count ? index->entries[index->entry_count - 1].file : NULL, *kept;
    int error;

    if (last && scan_token_is(token, last)) {
        *file = last;
        return 0;
    }
    error = scan_keep(scan, token, &kept, NULL);
    if (error)
        return error;
    if (!file_name_is_safe(kept))
        return scan_fault(scan, "the index names a file that is not a plain name");
    if (array_reserve((void **)&index->files, &parser->file_capacity, index->file_count + 1, sizeof *index->files))
        return scan_no_memory(scan);
    index->files[index->file_count++] = (char *)kept;
    *file = kept;
    return 0;
}

static int take_entry(struct scan *scan, struct scan_token key, void *context)
{
    struct parser *parser = context;
    struct parsed_index *index = parser->index;
    struct index_entry entry;
    struct scan_token file;
    int error = scan_keep(scan, key, &entry.tensor, NULL);

    if (!error)
        error = scan_string(scan, &file);
    if (!error)
        error = file_keep(scan, parser, file, &entry.file);
    if (error)
        return error;
    if (array_reserve((void **)&index->entries, &parser->entry_capacity, index->entry_count + 1, sizeof entry))
        return scan_no_memory(scan);
    index->entries[index->entry_count++] = entry;
    return 0;
}

static int take_weight_map(struct scan *scan, void *context) { return scan_map(scan, take_entry, context); }

static int entry_compare(const void *left, const void *right)
{
    return strcmp(((const struct index_entry *)left)->tensor, ((const struct index_entry *)right)->tensor);
}

static int file_compare(const void *left, const void *right) { return strcmp(*(char *const *)left, *(char *const *)right); }

static int entries_sort(struct scan *scan, struct parsed_index *index)
{
    if (index->entry_count)
        qsort(index->entries, index->entry_count, sizeof *index->entries, entry_compare);
    for (size_t i = 1; i < index->entry_count; i++)
        if (!entry_compare(&index->entries[i - 1], &index->entries[i]))
            return scan_fault(scan, "the index names a tensor twice");
    return 0;
}

static void files_sort(struct parsed_index *index)
{
    size_t distinct = 0;

    if (index->file_count)
        qsort(index->files, index->file_count, sizeof *index->files, file_compare);
    for (size_t i = 0; i < index->file_count; i++)
        if (!distinct || strcmp(index->files[distinct - 1], index->files[i]))
            index->files[distinct++] = index->files[i];
    index->file_count = distinct;
}

static int parse(struct scan *scan, struct parser *parser, const char *json, size_t size)
{
    static const struct scan_member members[] = { { "weight_map", take_weight_map, true, 0 } };
    int error = scan_init(scan, json, size, &parser->pool);

    if (!error)
        error = scan_object(scan, members, 1, parser);
    if (!error)
        error = scan_finish(scan);
    if (!error)
        error = entries_sort(scan, parser->index);
    if (!error)
        files_sort(parser->index);
    return error;
}

/* parsed_index.memory is the pool's newest block. */
void parsed_index_deinit(struct parsed_index *index)
{
    struct pool pool = { index->memory };

    pool_deinit(&pool);
    free(index->files);
    free(index->entries);
    *index = (struct parsed_index){ 0 };
}

int index_parse(const char *json, size_t size, struct parsed_index *index, const char **reason)
{
    struct parsed_index parsed = { 0 };
    struct parser parser = { .index = &parsed };
    struct scan scan;
    int error = parse(&scan, &parser, json, size);

    parsed.memory = parser.pool.newest;
    if (error) {
        *reason = scan.reason;
        parsed_index_deinit(&parsed);
        return error;
    }
    *index = parsed;
    return 0;
}
