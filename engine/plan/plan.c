/* plan/plan.c - the steps from a state dict to a plan, each in a file of its own: what is the same thing (identity.c), which
 * order and which file (layout.c), the headers and names (here), the chunks (chunks.c).
 */
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <format/digests.h>
#include <format/safetensors.h>
#include <plan/chunks.h>
#include <plan/layout.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(LEAF_BYTES == SHEET_LEAF_BYTES, "wire/ and format/ mean the same leaves");
_Static_assert(CHUNK_BYTES % LEAF_BYTES == 0, "a chunk holds whole leaves when its tensors are aligned");

#define SHARD_BYTES_DEFAULT GIB(4)

/* What header_build is given for one file, reused from file to file. */
struct header_scratch {
    struct header_entry *entries;
    struct header_pair *pairs;
};

/* Headers --------------------------------------------------------------------------------------------------------- */

static void collect_entries(const struct layout *layout, const struct plan *plan, const struct plan_file *file,
                            struct header_entry *entries)
{
    for (size_t i = 0; i < file->entry_count; i++) {
        const struct plan_entry *entry = &plan->entries[file->entry_first + i];
        const struct declared *tensor = &layout->dict->tensors[entry->source];

        entries[i] = (struct header_entry){
            .name = tensor->name,
            .dtype = (enum tspool_dtype)tensor->dtype,
            .rank = tensor->rank,
            .shape = declared_shape(tensor),
            .begin = entry->file_offset,
            .end = entry->file_offset + entry->size,
            .global_offsets = declared_global_offsets(tensor),
        };
    }
}

/* Ties stand in the file that stores the bytes: alias -> stored name. */
static size_t collect_pairs(const struct layout *layout, const struct plan *plan, const struct plan_file *file,
                            struct header_pair *pairs)
{
    const struct plan_entry *entries = &plan->entries[file->entry_first];
    size_t pair_count = 0, count;

    for (size_t i = 0; i < file->entry_count && layout->identity->alias_count > 0; i++) {
        const struct plan_alias *aliases = identity_aliases(layout->identity, entries[i].source, &count);

        for (size_t k = 0; k < count; k++)
            pairs[pair_count++] = (struct header_pair){ layout->dict->tensors[aliases[k].alias].name,
                                                        layout->dict->tensors[aliases[k].stored].name };
    }
    return pair_count;
}

static int file_build(const struct layout *layout, struct plan *plan, struct plan_file *file,
                      const struct header_scratch *scratch, struct tspool_failure *failure)
{
    size_t pair_count = collect_pairs(layout, plan, file, scratch->pairs), header_size;
    int rc;

    collect_entries(layout, plan, file, scratch->entries);
    rc = header_build(scratch->entries, file->entry_count, layout->sharded, scratch->pairs, pair_count, layout->data_align,
                      &file->header, &header_size);
    if (rc < 0)
        return failure_set(failure, TSPOOL_STAGE_PLAN, -rc, FAILURE_AT(.path = file->name), NULL);
    file->header_size = header_size;
    file->header_digest = hash_bytes(file->header, header_size);
    file->size += header_size;
    for (size_t i = 0; i < file->entry_count; i++)
        plan->entries[file->entry_first + i].file_offset += header_size;
    return 0;
}

static size_t most_entries(const struct plan *plan)
{
    size_t most = 0;

    for (uint32_t i = 0; i < plan->file_count; i++)
        if (plan->files[i].entry_count > most)
            most = plan->files[i].entry_count;
    return most;
}

static int headers_build(const struct layout *layout, struct plan *plan, uint32_t rank, struct tspool_failure *failure)
{
    struct header_scratch scratch = {
        .entries = malloc((most_entries(plan) + 1) * sizeof(*scratch.entries)),
        .pairs = malloc((layout->identity->alias_count + 1) * sizeof(*scratch.pairs)),
    };
    int rc = 0;

    if (!scratch.entries || !scratch.pairs)
        rc = failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    for (uint32_t i = 0; rc == 0 && i < plan->file_count; i++) {
        shard_name_make(layout->sharded, rank, i + 1, plan->file_count, plan->files[i].name);
        rc = file_build(layout, plan, &plan->files[i], &scratch, failure);
    }
    free(scratch.entries);
    free(scratch.pairs);
    return rc;
}

/* Building -------------------------------------------------------------------------------------------------------- */

/* Room for JSON in a header that is padded to the alignment: at most what the rules give, at least one unit of it. */
static uint64_t json_room(uint32_t header_bytes, uint32_t data_align)
{
    uint64_t limit = header_bytes && header_bytes < SAFETENSORS_HEADER_MAX ? header_bytes : SAFETENSORS_HEADER_MAX;

    return max_u64(align_down(limit + sizeof(uint64_t), data_align), data_align) - sizeof(uint64_t);
}

static bool any_shard(const struct state_dict *dict)
{
    for (size_t i = 0; i < dict->count; i++)
        if (dict->tensors[i].is_shard)
            return true;
    return false;
}

static struct layout layout_of(const struct state_dict *dict, const struct identity *identity, const struct plan_rules *rules)
{
    uint32_t data_align = rules->offset_align > SAFETENSORS_DATA_ALIGN ? rules->offset_align : SAFETENSORS_DATA_ALIGN;

    return (struct layout){
        .dict = dict,
        .identity = identity,
        .shard_bytes = rules->shard_bytes ? rules->shard_bytes : SHARD_BYTES_DEFAULT,
        .json_bytes = json_room(rules->header_bytes, data_align),
        .data_align = data_align,
        .sharded = rules->world_size > 1 || any_shard(dict),
    };
}

static void plan_total(struct plan *plan)
{
    for (size_t i = 0; i < plan->entry_count; i++) {
        plan->tensor_bytes += plan->entries[i].size;
        plan->leaf_count += leaf_count_of(plan->entries[i].size);
    }
    for (uint32_t i = 0; i < plan->file_count; i++)
        plan->file_bytes += plan->files[i].size;
}

static void aliases_move(struct identity *identity, struct plan *plan)
{
    plan->aliases = identity->aliases;
    plan->alias_count = identity->alias_count;
    identity->aliases = NULL;
    identity->alias_count = 0;
}

static int plan_fill(struct plan *plan, const struct layout *layout, uint32_t rank, struct tspool_failure *failure)
{
    int rc;

    plan->sharded = layout->sharded;
    if ((rc = layout_order(layout, plan, failure)) < 0 || (rc = layout_split(layout, plan, failure)) < 0 ||
        (rc = headers_build(layout, plan, rank, failure)) < 0 || (rc = chunks_number(plan, failure)) < 0)
        return rc;
    plan_total(plan);
    return 0;
}

int plan_build(const struct state_dict *dict, const struct plan_rules *rules, struct plan **plan, struct tspool_failure *failure)
{
    struct plan *built = calloc(1, sizeof(*built));
    struct identity identity;
    struct layout layout;
    int rc;

    if (!built)
        return failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    if ((rc = identity_init(&identity, dict, failure)) < 0) {
        free(built);
        return rc;
    }
    layout = layout_of(dict, &identity, rules);
    rc = plan_fill(built, &layout, rules->rank, failure);
    aliases_move(&identity, built);
    identity_deinit(&identity);
    if (rc < 0)
        plan_destroy(built);
    else
        *plan = built;
    return rc;
}

void plan_destroy(struct plan *plan)
{
    if (!plan)
        return;
    for (uint32_t i = 0; i < plan->file_count; i++)
        free(plan->files[i].header);
    free(plan->files);
    free(plan->entries);
    free(plan->aliases);
    free(plan->chunk_order);
    free(plan);
}

/* Sheet ----------------------------------------------------------------------------------------------------------- */

static void sheet_fill(const struct plan *plan, struct sheet_front *front)
{
    struct sheet_file *files = (struct sheet_file *)(front + 1);
    struct sheet_tensor *tensors = (struct sheet_tensor *)(files + plan->file_count);

    *front = (struct sheet_front){
        .magic = SHEET_MAGIC, .version = SHEET_VERSION, .file_count = plan->file_count, .chunk_count = plan->chunk_count,
        .tensor_count = plan->entry_count, .leaf_count = plan->leaf_count,
    };
    for (uint32_t i = 0; i < plan->file_count; i++) {
        const struct plan_file *file = &plan->files[i];

        files[i] = (struct sheet_file){
            .size = file->size, .tensor_first = file->entry_first, .tensor_count = file->entry_count,
            .chunk_first = file->chunk_first, .chunk_count = file->chunk_count,
        };
        memcpy(files[i].name, file->name, sizeof(file->name));
    }
    for (size_t i = 0; i < plan->entry_count; i++)
        tensors[i] = (struct sheet_tensor){ plan->entries[i].file_offset, plan->entries[i].size };
}

int plan_sheet(const struct plan *plan, void **bytes, uint64_t *size)
{
    uint64_t sheet_size = sheet_bytes(plan->file_count, plan->entry_count);
    void *sheet = calloc(1, sheet_size);

    if (!sheet)
        return -ENOMEM;
    sheet_fill(plan, sheet);
    *bytes = sheet;
    *size = sheet_size;
    return 0;
}
