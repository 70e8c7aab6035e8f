/* plan/layout.c - one sort, one pass. The order keeps every tensor aligned to its element size without holes, which the
 * format forbids: whole pages first, so that nothing after them is moved off a page boundary, then large elements before
 * small ones. Empty tensors come last: wherever they stood they would share an offset with a neighbour, and among
 * themselves they are sorted by name, as readers and digests count entries by (begin, end, name).
 *
 * The second shard of a name may not share a file with the first (a reader finds one chunk per name and file), so all
 * first shards are laid out before all second ones, with a new file between.
 */
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <format/safetensors.h>
#include <inttypes.h>
#include <plan/keyed.h>
#include <plan/layout.h>
#include <stdlib.h>
#include <string.h>

#define JSON_FIXED_BYTES 256u          /* braces, "__metadata__", "format", "DCP_VERSION", the frame of DCP_SHARDING_INFO */
#define DATA_BYTES_MAX ((uint64_t)INT64_MAX - GIB(1)) /* header and padding come on top, and offsets are off_t */

enum order_class { CLASS_PAGES = 0, CLASS_ELEMENTS = 1, CLASS_EMPTY = 2 };

/* Order ----------------------------------------------------------------------------------------------------------- */

static uint64_t wave_of(const struct layout *layout, uint32_t number)
{
    const uint32_t *occurrence = layout->identity->occurrence;

    return occurrence && occurrence[number] ? occurrence[number] - 1 : 0;
}

/* wave | class | element size, larger first */
static uint64_t order_key(const struct layout *layout, uint32_t number)
{
    const struct declared *tensor = &layout->dict->tensors[number];
    uint64_t wave = wave_of(layout, number) << 16;

    if (tensor->size == 0)
        return wave | CLASS_EMPTY << 8;
    if (tensor->size % SAFETENSORS_DATA_ALIGN == 0)
        return wave | CLASS_PAGES << 8;
    return wave | CLASS_ELEMENTS << 8 | (0xff - tspool_dtype_bits((enum tspool_dtype)tensor->dtype));
}

static int compare_names(const void *a, const void *b, void *context)
{
    const struct state_dict *dict = context;

    return strcmp(dict->tensors[((const struct keyed *)a)->number].name, dict->tensors[((const struct keyed *)b)->number].name);
}

static void sort_empty_by_name(const struct layout *layout, struct keyed *keys, size_t count)
{
    size_t end;

    for (size_t first = 0; first < count; first = end) {
        end = keyed_run_end(keys, count, first);
        if ((keys[first].key >> 8 & 0xff) == CLASS_EMPTY)
            qsort_r(keys + first, end - first, sizeof(*keys), compare_names, (void *)layout->dict);
    }
}

static size_t collect_stored(const struct layout *layout, struct keyed *keys)
{
    const bool *is_alias = layout->identity->is_alias;
    size_t count = 0;

    for (size_t i = 0; i < layout->dict->count; i++)
        if (!is_alias || !is_alias[i])
            keys[count++] = (struct keyed){ order_key(layout, (uint32_t)i), (uint32_t)i };
    return count;
}

int layout_order(const struct layout *layout, struct plan *plan, struct tspool_failure *failure)
{
    size_t room = layout->dict->count + 1, count;
    struct keyed *keys = malloc(room * sizeof(*keys)), *scratch = malloc(room * sizeof(*scratch));

    plan->entries = malloc(room * sizeof(*plan->entries));
    if (!keys || !scratch || !plan->entries) {
        free(keys);
        free(scratch);
        return failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    }
    count = collect_stored(layout, keys);
    keyed_sort(keys, scratch, count);
    sort_empty_by_name(layout, keys, count);
    for (size_t i = 0; i < count; i++)
        plan->entries[i] = (struct plan_entry){ .source = keys[i].number, .size = layout->dict->tensors[keys[i].number].size };
    plan->entry_count = count;
    free(keys);
    free(scratch);
    return 0;
}

/* Split ----------------------------------------------------------------------------------------------------------- */

/* The file being filled. */
struct filling {
    size_t first;
    uint64_t data_bytes, json_bytes, wave;
};

/* One entry and the ties that stand beside it: "alias":"stored". */
static uint64_t json_bound(const struct layout *layout, const struct plan_entry *entry, uint64_t begin)
{
    const struct declared *tensor = &layout->dict->tensors[entry->source];
    struct header_entry header = {
        tensor->name, (enum tspool_dtype)tensor->dtype, tensor->rank, declared_shape(tensor), begin, begin + entry->size,
        declared_global_offsets(tensor),
    };
    uint64_t bound = header_entry_bound(&header, layout->sharded);
    const struct plan_alias *aliases;
    size_t count;

    if (layout->identity->alias_count == 0)
        return bound;
    aliases = identity_aliases(layout->identity, entry->source, &count);
    for (size_t i = 0; i < count; i++)
        bound += header_pair_bound(&(struct header_pair){ layout->dict->tensors[aliases[i].alias].name, tensor->name });
    return bound;
}

static int file_end(struct plan *plan, size_t *capacity, const struct filling *filling, size_t end,
                    struct tspool_failure *failure)
{
    if (plan->file_count == SHEET_FILES_MAX)
        return failure_set(failure, TSPOOL_STAGE_PLAN, E2BIG, FAILURE_NOWHERE,
                           "more than %u shard files; raise shard_bytes", SHEET_FILES_MAX);
    if (array_reserve((void **)&plan->files, capacity, plan->file_count + 1, sizeof(*plan->files)) < 0)
        return failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    plan->files[plan->file_count++] = (struct plan_file){
        .size = filling->data_bytes, .entry_first = filling->first, .entry_count = end - filling->first,
    };
    return 0;
}

/* Would the tensor take the file past a limit? A file with one tensor is never too full of data: it cannot be split. */
static bool belongs_elsewhere(const struct layout *layout, const struct filling *filling, uint64_t size, uint64_t json,
                              uint64_t wave)
{
    uint64_t room = layout->shard_bytes - min_u64(filling->data_bytes, layout->shard_bytes);

    return size > room || filling->json_bytes + json > layout->json_bytes || filling->wave != wave;
}

static int entry_place(const struct layout *layout, struct plan *plan, struct filling *filling, struct plan_entry *entry,
                       uint64_t json, struct tspool_failure *failure)
{
    const char *name = layout->dict->tensors[entry->source].name;

    if (filling->json_bytes + json > layout->json_bytes)
        return failure_set(failure, TSPOOL_STAGE_PLAN, E2BIG, FAILURE_AT(.tensor = name),
                           "its header entry and ties alone may take %" PRIu64 " bytes, more than a header's %" PRIu64 "; raise "
                           "header_bytes, or shorten names", json, layout->json_bytes);
    entry->file = plan->file_count;
    entry->file_offset = filling->data_bytes;
    if (!checked_add(filling->data_bytes, entry->size, &filling->data_bytes) || filling->data_bytes > DATA_BYTES_MAX)
        return failure_set(failure, TSPOOL_STAGE_PLAN, EOVERFLOW, FAILURE_AT(.tensor = name),
                           "its shard file would be larger than a file can be; check the shape, or lower shard_bytes");
    filling->json_bytes += json;
    return 0;
}

int layout_split(const struct layout *layout, struct plan *plan, struct tspool_failure *failure)
{
    struct filling filling = { .json_bytes = JSON_FIXED_BYTES };
    size_t capacity = 0;
    int rc;

    for (size_t i = 0; i < plan->entry_count; i++) {
        struct plan_entry *entry = &plan->entries[i];
        uint64_t json = json_bound(layout, entry, filling.data_bytes), wave = wave_of(layout, entry->source);

        if (i > filling.first && belongs_elsewhere(layout, &filling, entry->size, json, wave)) {
            if ((rc = file_end(plan, &capacity, &filling, i, failure)) < 0)
                return rc;
            filling = (struct filling){ .first = i, .json_bytes = JSON_FIXED_BYTES };
            json = json_bound(layout, entry, 0);
        }
        filling.wave = wave;
        if ((rc = entry_place(layout, plan, &filling, entry, json, failure)) < 0)
            return rc;
    }
    return file_end(plan, &capacity, &filling, plan->entry_count, failure);
}
