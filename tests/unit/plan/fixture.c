/* fixture.c - see fixture.h. What is checked here is derived anew from the declared tensors, not from the planner's steps. */
#include "fixture.h"

#include <base/checked.h>
#include <criterion/criterion.h>
#include <format/digests.h>
#include <format/safetensors.h>
#include <plan/items.h>
#include <stdlib.h>
#include <string.h>

const struct plan_rules plain_rules = { .offset_align = 4096, .world_size = 1 };

void declare_shard(struct state_dict *dict, const char *name, enum tspool_dtype dtype, const void *data, uint32_t rank,
                   const uint64_t *shape, const uint64_t *global_shape, const uint64_t *global_offsets)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    tensor.name = name;
    tensor.dtype = dtype;
    tensor.data = data;
    tensor.rank = rank;
    tensor.shape = shape;
    tensor.global_shape = global_shape;
    tensor.global_offsets = global_offsets;
    cr_assert_eq(state_dict_add(dict, &tensor, false, &failure), 0, "%s", failure.message);
}

void declare(struct state_dict *dict, const char *name, enum tspool_dtype dtype, const void *data, uint32_t rank,
             const uint64_t *shape)
{
    declare_shard(dict, name, dtype, data, rank, shape, NULL, NULL);
}

struct plan *plan_of(const struct state_dict *dict, const struct plan_rules *rules)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct plan *plan = NULL;

    cr_assert_eq(plan_build(dict, rules, &plan, &failure), 0, "%s", failure.message);
    return plan;
}

size_t entry_of(const struct plan *plan, uint32_t source)
{
    for (size_t i = 0; i < plan->entry_count; i++)
        if (plan->entries[i].source == source)
            return i;
    return SIZE_MAX;
}

const char *stored_name(const struct state_dict *dict, const struct plan *plan, size_t entry)
{
    struct tspool_tensor tensor;

    state_dict_tensor(dict, plan->entries[entry].source, &tensor);
    return tensor.name;
}

uint64_t random_u64(struct random *random)
{
    uint64_t mixed = random->state += 0x9e3779b97f4a7c15u;

    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebu;
    return mixed ^ mixed >> 31;
}

uint64_t random_below(struct random *random, uint64_t bound) { return random_u64(random) % bound; }

uint8_t *naive_copy(const struct tspool_tensor *tensor, uint64_t size)
{
    size_t element_bytes = tspool_dtype_bits(tensor->dtype) / 8;
    uint8_t *copy = malloc(size + 1);

    if (!tensor->strides)
        return memcpy(copy, tensor->data ? tensor->data : copy, size);
    for (uint64_t i = 0; i < size / element_bytes; i++) {
        const uint8_t *from = tensor->data;
        uint64_t rest = i;

        for (uint32_t k = tensor->rank; k-- > 0; rest /= tensor->shape[k])
            from += rest % tensor->shape[k] * (uint64_t)tensor->strides[k] * element_bytes;
        memcpy(copy + i * element_bytes, from, element_bytes);
    }
    return copy;
}

/* Structure ------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct tspool_tensor *tensor)
{
    uint64_t elements = 1;

    for (uint32_t i = 0; i < tensor->rank; i++)
        elements *= tensor->shape[i];
    return elements * tspool_dtype_bits(tensor->dtype) / 8;
}

static const char *judge_stored_once(const struct state_dict *dict, const struct plan *plan)
{
    uint8_t *seen = calloc(state_dict_count(dict) + 1, 1);
    const char *fault = NULL;

    for (size_t i = 0; i < plan->entry_count; i++)
        seen[plan->entries[i].source]++;
    for (size_t i = 0; i < plan->alias_count; i++) {
        seen[plan->aliases[i].alias]++;
        if (entry_of(plan, plan->aliases[i].stored) == SIZE_MAX || plan->aliases[i].stored >= plan->aliases[i].alias)
            fault = "an alias of what is not stored, or of what was declared later";
    }
    for (size_t i = 0; i < state_dict_count(dict); i++)
        if (seen[i] != 1)
            fault = "a tensor neither stored nor an alias, or both";
    free(seen);
    return fault;
}

static unsigned class_of(const struct tspool_tensor *tensor, uint64_t size)
{
    return size == 0 ? 1000 : size % 4096 == 0 ? 0 : 100 - tspool_dtype_bits(tensor->dtype);
}

static const char *judge_entry_order(const struct state_dict *dict, const struct plan *plan, const struct plan_file *file)
{
    struct tspool_tensor before, tensor;
    uint64_t size_before, size;

    for (size_t i = file->entry_first + 1; i < file->entry_first + file->entry_count; i++) {
        state_dict_tensor(dict, plan->entries[i - 1].source, &before);
        state_dict_tensor(dict, plan->entries[i].source, &tensor);
        size_before = bytes_of(&before);
        size = bytes_of(&tensor);
        if (class_of(&before, size_before) > class_of(&tensor, size))
            return "entries out of order";
        if (class_of(&before, size_before) == class_of(&tensor, size) && size > 0 &&
            plan->entries[i - 1].source > plan->entries[i].source)
            return "the caller's order was not kept within a class";
        if (size == 0 && size_before == 0 && strcmp(before.name, tensor.name) >= 0)
            return "empty entries not sorted by name";
    }
    return NULL;
}

static const char *judge_file(const struct state_dict *dict, const struct plan *plan, uint32_t number,
                              const struct plan_rules *rules)
{
    const struct plan_file *file = &plan->files[number];
    uint64_t align = rules->offset_align > 4096 ? rules->offset_align : 4096, at = file->header_size, json;
    uint64_t shard_bytes = rules->shard_bytes ? rules->shard_bytes : GIB(4);
    uint32_t header_bytes = rules->header_bytes ? rules->header_bytes : SAFETENSORS_HEADER_MAX;
    size_t with_bytes = 0;
    struct tspool_tensor tensor;

    if (file->header_size == 0 || file->header_size % align != 0)
        return "data does not start at an alignment border";
    memcpy(&json, file->header, sizeof(json));
    if (json + 8 != file->header_size || (json > header_bytes && json != align - 8))
        return "a header longer than allowed";
    for (size_t i = file->entry_first; i < file->entry_first + file->entry_count; i++) {
        const struct plan_entry *entry = &plan->entries[i];

        state_dict_tensor(dict, entry->source, &tensor);
        if (entry->file != number || entry->file_offset != at || entry->size != bytes_of(&tensor))
            return "entries with a gap, an overlap or a wrong size";
        if (entry->size > 0 && tspool_dtype_bits(tensor.dtype) % 8 == 0 &&
            entry->file_offset % (tspool_dtype_bits(tensor.dtype) / 8) != 0)
            return "a tensor not aligned to its elements";
        at += entry->size;
        with_bytes += entry->size > 0;
    }
    if (at != file->size)
        return "header and tensors are not the file's size";
    if (file->size - file->header_size > shard_bytes && with_bytes > 1)
        return "several tensors beyond shard_bytes";
    return judge_entry_order(dict, plan, file);
}

static const char *judge_pieces(const struct plan *plan, uint32_t chunk)
{
    struct plan_chunk place = plan_chunk_at(plan, chunk);
    const struct plan_file *file = &plan->files[place.file];
    struct plan_cursor cursor;
    struct plan_piece piece;
    uint64_t at = 0, begin;

    plan_cursor_init(&cursor, plan, chunk);
    while (plan_cursor_next(&cursor, plan, &piece)) {
        if (piece.chunk_offset != at || piece.size == 0 || piece.size > place.size - at)
            return "pieces with a gap or an overlap";
        begin = piece.kind == PIECE_HEADER ? 0 : plan->entries[piece.entry].file_offset;
        if (piece.kind == PIECE_TENSOR &&
            (plan->entries[piece.entry].file != place.file || piece.source_offset + piece.size > plan->entries[piece.entry].size))
            return "a piece outside of its tensor";
        if (piece.kind == PIECE_HEADER && piece.source_offset + piece.size > file->header_size)
            return "a piece outside of the header";
        if (begin + piece.source_offset != place.file_offset + at)
            return "a piece at the wrong place";
        at += piece.size;
    }
    return at == place.size ? NULL : "pieces that do not cover the chunk";
}

static const char *judge_items(const struct plan *plan, uint32_t chunk, uint32_t item_bytes, uint32_t offset_align)
{
    struct plan_chunk place = plan_chunk_at(plan, chunk);
    struct item_rules rules = { item_bytes, offset_align };
    uint64_t at = 0;

    for (uint32_t i = 0; i < item_count(&rules, place.size); i++) {
        struct write_item item = item_at(&rules, place.file_offset, place.size, i);

        if (item.chunk_offset != at || item.file_offset != place.file_offset + at || item.size == 0 || item.size > item_bytes)
            return "items with a gap, or too large";
        if (item.file_offset % offset_align || item.size % offset_align || item.chunk_offset + item.size > CHUNK_BYTES)
            return "an item not aligned, or beyond its slot";
        at += item.size;
    }
    return at >= place.size && at - place.size < offset_align ? NULL : "items that do not cover the chunk";
}

static const char *judge_chunk_numbers(const struct plan *plan)
{
    uint32_t chunk = 0;

    for (uint32_t i = 0; i < plan->file_count; i++) {
        const struct plan_file *file = &plan->files[i];
        struct plan_chunk last;

        if (file->chunk_first != chunk || file->chunk_count != divide_up(file->size, CHUNK_BYTES))
            return "chunks not numbered through the files";
        chunk += file->chunk_count;
        last = plan_chunk_at(plan, chunk - 1);
        if (last.file != i || last.file_offset + last.size != file->size ||
            plan_chunk_at(plan, file->chunk_first).file_offset != 0)
            return "chunks that do not cover the file";
    }
    return chunk == plan->chunk_count ? NULL : "a wrong count of chunks";
}

/* Each chunk once, ascending in its file, never more than four files begun and unfinished, and these take turns. */
static const char *judge_chunk_order(const struct plan *plan)
{
    uint32_t *done = calloc(plan->file_count, sizeof(*done)), open = 0;
    const char *fault = NULL;

    for (uint32_t i = 0; i < plan->chunk_count && !fault; i++) {
        uint32_t chunk = plan->chunk_order[i], file;

        if (chunk >= plan->chunk_count) {
            fault = "no such chunk in the order";
            break;
        }
        file = plan_chunk_at(plan, chunk).file;
        if (chunk != plan->files[file].chunk_first + done[file])
            fault = "chunks of a file out of order, or twice";
        open += done[file] == 0;
        done[file]++;
        if (open > 4)
            fault = "more than four files at a time";
        open -= done[file] == plan->files[file].chunk_count;
    }
    for (uint32_t i = 0; i < plan->file_count && !fault; i++)
        if (done[i] != plan->files[i].chunk_count)
            fault = "a chunk is missing in the order";
    free(done);
    return fault;
}

static const char *judge_sheet(const struct plan *plan)
{
    const char *fault = NULL;
    struct sheet sheet;
    uint64_t size;
    void *bytes;

    if (plan_sheet(plan, &bytes, &size) < 0)
        return "no sheet";
    if (sheet_view(bytes, size, &sheet, &fault) == 0) {
        for (size_t i = 0; i < plan->entry_count; i++)
            if (sheet.tensors[i].file_offset != plan->entries[i].file_offset || sheet.tensors[i].size != plan->entries[i].size)
                fault = "a sheet with other tensors";
        if (sheet.front->leaf_count != plan->leaf_count || sheet.front->chunk_count != plan->chunk_count)
            fault = "a sheet with other counts";
    }
    free(bytes);
    return fault;
}

static const char *judge_totals(const struct plan *plan)
{
    uint64_t tensor_bytes = 0, leaves = 0, file_bytes = 0;

    for (size_t i = 0; i < plan->entry_count; i++) {
        tensor_bytes += plan->entries[i].size;
        leaves += leaf_count_of(plan->entries[i].size);
    }
    for (uint32_t i = 0; i < plan->file_count; i++)
        file_bytes += plan->files[i].size;
    if (tensor_bytes != plan->tensor_bytes || leaves != plan->leaf_count || file_bytes != plan->file_bytes)
        return "wrong totals";
    return NULL;
}

const char *judge_structure(const struct state_dict *dict, const struct plan *plan, const struct plan_rules *rules)
{
    uint32_t stride = plan->chunk_count / 300 + 1;
    const char *fault;

    if ((fault = judge_stored_once(dict, plan)))
        return fault;
    for (uint32_t i = 0; i < plan->file_count; i++)
        if ((fault = judge_file(dict, plan, i, rules)))
            return fault;
    if ((fault = judge_chunk_numbers(plan)) || (fault = judge_chunk_order(plan)))
        return fault;
    for (uint32_t chunk = 0; chunk < plan->chunk_count; chunk += stride)
        if ((fault = judge_pieces(plan, chunk)) || (fault = judge_items(plan, chunk, 524288, 4096)) ||
            (fault = judge_items(plan, chunk, 4096, 512)))
            return fault;
    if ((fault = judge_pieces(plan, plan->chunk_count - 1)) || (fault = judge_totals(plan)))
        return fault;
    return judge_sheet(plan);
}

/* Bytes ----------------------------------------------------------------------------------------------------------- */

static const char *stage_chunk(const struct state_dict *dict, const struct plan *plan, uint32_t chunk, uint8_t *slot)
{
    struct tspool_tensor tensor;
    struct plan_cursor cursor;
    struct plan_piece piece;

    plan_cursor_init(&cursor, plan, chunk);
    while (plan_cursor_next(&cursor, plan, &piece)) {
        if (piece.kind == PIECE_HEADER) {
            const uint8_t *header = plan->files[plan_chunk_at(plan, chunk).file].header;

            memcpy(slot + piece.chunk_offset, header + piece.source_offset, piece.size);
            continue;
        }
        state_dict_tensor(dict, plan->entries[piece.entry].source, &tensor);
        tensor_copy(&tensor, piece.source_offset, piece.size, slot + piece.chunk_offset);
    }
    return NULL;
}

static bool same_extents(const uint64_t *a, const uint64_t *b, uint32_t rank)
{
    return rank == 0 || (a && b && memcmp(a, b, rank * sizeof(*a)) == 0);
}

static const char *judge_tensor(const struct tspool_tensor *declared, const struct parsed_tensor *parsed, const uint8_t *data)
{
    uint8_t *expected;
    bool equal;

    if (strcmp(parsed->name, declared->name) != 0 || parsed->dtype != declared->dtype || parsed->rank != declared->rank ||
        !same_extents(parsed->shape, declared->shape, declared->rank))
        return "a tensor is described differently in the header";
    if (declared->global_offsets && !same_extents(parsed->global_offsets, declared->global_offsets, declared->rank))
        return "a shard without its offsets in the header";
    expected = naive_copy(declared, parsed->end - parsed->begin);
    equal = memcmp(expected, data + parsed->begin, parsed->end - parsed->begin) == 0;
    free(expected);
    return equal ? NULL : "bytes differ";
}

static bool has_pair(const struct parsed_header *header, const char *key, const char *value)
{
    for (size_t i = 0; i < header->metadata_count; i++)
        if (strcmp(header->metadata[i].key, key) == 0)
            return strcmp(header->metadata[i].value, value) == 0;
    return false;
}

static const char *judge_ties(const struct state_dict *dict, const struct plan *plan, uint32_t file,
                              const struct parsed_header *header)
{
    struct tspool_tensor alias, stored;

    for (size_t i = 0; i < plan->alias_count; i++) {
        state_dict_tensor(dict, plan->aliases[i].alias, &alias);
        state_dict_tensor(dict, plan->aliases[i].stored, &stored);
        if (plan->entries[entry_of(plan, plan->aliases[i].stored)].file == file && !has_pair(header, alias.name, stored.name))
            return "a tie is missing in the metadata";
    }
    return NULL;
}

static const char *judge_image(const struct state_dict *dict, const struct plan *plan, uint32_t number, const uint8_t *image)
{
    const struct plan_file *file = &plan->files[number];
    struct parsed_header header;
    struct tspool_tensor tensor;
    const char *fault = NULL, *reason;
    uint64_t json_size;
    size_t position;

    if (header_length_check(image, file->size, &json_size, &reason) < 0 || json_size + 8 != file->header_size)
        return "a header of the wrong length";
    if (header_parse((const char *)image + 8, json_size, file->size - file->header_size, &header, &reason, &position) < 0)
        return reason;
    if (header.count != file->entry_count)
        fault = "a header with another count";
    for (size_t i = 0; i < header.count && !fault; i++) {
        state_dict_tensor(dict, plan->entries[file->entry_first + i].source, &tensor);
        fault = judge_tensor(&tensor, &header.tensors[i], image + file->header_size);
    }
    if (!fault)
        fault = judge_ties(dict, plan, number, &header);
    parsed_header_deinit(&header);
    return fault;
}

const char *judge_bytes(const struct state_dict *dict, const struct plan *plan)
{
    uint8_t **images = calloc(plan->file_count, sizeof(*images));
    const char *fault = NULL;

    for (uint32_t i = 0; i < plan->file_count; i++) {
        images[i] = malloc(plan->files[i].size); /* exact: a byte too many is seen by the sanitizer */
        memset(images[i], 0xa5, plan->files[i].size);
    }
    for (uint32_t i = 0; i < plan->chunk_count && !fault; i++) {
        struct plan_chunk chunk = plan_chunk_at(plan, plan->chunk_order[i]);

        fault = stage_chunk(dict, plan, plan->chunk_order[i], images[chunk.file] + chunk.file_offset);
    }
    for (uint32_t i = 0; i < plan->file_count && !fault; i++)
        fault = judge_image(dict, plan, i, images[i]);
    for (uint32_t i = 0; i < plan->file_count; i++)
        free(images[i]);
    free(images);
    return fault;
}

const char *judge_equal(const struct plan *a, const struct plan *b)
{
    if (a->file_count != b->file_count || a->entry_count != b->entry_count || a->alias_count != b->alias_count ||
        a->chunk_count != b->chunk_count || a->sharded != b->sharded)
        return "counts differ";
    for (uint32_t i = 0; i < a->file_count; i++)
        if (strcmp(a->files[i].name, b->files[i].name) || a->files[i].header_size != b->files[i].header_size ||
            memcmp(a->files[i].header, b->files[i].header, a->files[i].header_size) ||
            !digest_equal(a->files[i].header_digest, b->files[i].header_digest))
            return "files differ";
    for (size_t i = 0; i < a->entry_count; i++)
        if (a->entries[i].source != b->entries[i].source || a->entries[i].file != b->entries[i].file ||
            a->entries[i].file_offset != b->entries[i].file_offset)
            return "entries differ";
    for (size_t i = 0; i < a->alias_count; i++)
        if (a->aliases[i].alias != b->aliases[i].alias || a->aliases[i].stored != b->aliases[i].stored)
            return "aliases differ";
    if (memcmp(a->chunk_order, b->chunk_order, a->chunk_count * sizeof(*a->chunk_order)))
        return "orders differ";
    return NULL;
}
