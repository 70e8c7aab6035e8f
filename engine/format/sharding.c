/* format/sharding.c - DCP_SHARDING_INFO, both ways. */
#include <format/sharding.h>

#include <base/checked.h>
#include <errno.h>
#include <format/name_table.h>
#include <format/scan.h>
#include <string.h>

void sharding_emit(struct text *text, const struct header_entry *entries, size_t count)
{
    static const uint64_t zeros[TSPOOL_RANK_MAX];

    text_put(text, "{", 1);
    for (size_t i = 0; i < count; i++) {
        if (i)
            text_put(text, ",", 1);
        text_put_name(text, entries[i].name);
        text_puts(text, ":{\"saved_offsets\":");
        text_put_array(text, entries[i].global_offsets ? entries[i].global_offsets : zeros, entries[i].rank);
        text_put(text, "}", 1);
    }
    text_put(text, "}", 1);
}

/* Entries usually come in the order of the tensors: the next one is tried before the table is asked. The table is built
 * only when that guess fails for the first time. */
struct sharding {
    struct parsed_tensor *tensors;
    size_t count, guess;
    struct name_table table;
    const uint64_t *offsets; /* of the entry at hand */
    size_t offset_count;
};

static int take_offsets(struct scan *scan, void *context)
{
    struct sharding *sharding = context;

    return scan_numbers(scan, TSPOOL_RANK_MAX, &sharding->offsets, &sharding->offset_count);
}

static int tensor_find(struct scan *scan, struct sharding *sharding, const char *name, struct parsed_tensor **found)
{
    size_t index = sharding->guess;
    int error;

    if (index >= sharding->count || strcmp(sharding->tensors[index].name, name)) {
        if (!sharding->table.slots) {
            error = name_table_build(&sharding->table, &sharding->tensors->name, sizeof *sharding->tensors, sharding->count);
            if (error)
                return error < 0 ? scan_no_memory(scan) : scan_fault(scan, "a tensor's name is given twice");
        }
        index = name_table_find(&sharding->table, name);
    }
    *found = index == SIZE_MAX ? NULL : &sharding->tensors[index];
    sharding->guess = index == SIZE_MAX ? sharding->guess : index + 1;
    return 0;
}

static int part_check(struct scan *scan, const struct parsed_tensor *tensor, const struct sharding *sharding)
{
    uint64_t end;

    if (tensor->global_offsets)
        return scan_fault(scan, "DCP_SHARDING_INFO names a tensor twice");
    if (sharding->offset_count != tensor->rank)
        return scan_fault(scan, "DCP_SHARDING_INFO gives a tensor another number of dimensions");
    for (uint32_t i = 0; i < tensor->rank; i++)
        if (!checked_add(sharding->offsets[i], tensor->shape[i], &end))
            return scan_fault(scan, "DCP_SHARDING_INFO has an offset that is too large");
    return 0;
}

static int take_tensor(struct scan *scan, struct scan_token key, void *context)
{
    static const struct scan_member members[] = { { "saved_offsets", take_offsets, true, 0 } };
    struct sharding *sharding = context;
    struct parsed_tensor *tensor = NULL;
    const char *name;
    int error = scan_keep(scan, key, &name, NULL);

    if (!error)
        error = tensor_find(scan, sharding, name, &tensor);
    if (!error)
        error = scan_object(scan, members, 1, sharding);
    if (error || !tensor)
        return error;
    error = part_check(scan, tensor, sharding);
    if (error)
        return error;
    tensor->global_offsets = sharding->offsets;
    return 0;
}

int sharding_parse(const char *info, size_t size, struct parsed_tensor *tensors, size_t count, struct pool *pool,
                   const char **reason)
{
    struct sharding sharding = { .tensors = tensors, .count = count };
    struct scan scan;
    int error;

    error = scan_init(&scan, info, size, pool);
    if (!error)
        error = scan_map(&scan, take_tensor, &sharding);
    if (!error)
        error = scan_finish(&scan);
    name_table_deinit(&sharding.table);
    if (error)
        *reason = scan.reason;
    return error;
}
