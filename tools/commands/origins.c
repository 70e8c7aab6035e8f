/* commands/origins.c - see origins.h. */
#include "origins.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int u64s_compare(uint32_t count, const uint64_t *a, const uint64_t *b)
{
    for (uint32_t i = 0; i < count; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

/* Tensors that are no shards come before those of that name that are. */
static int places_compare(const struct tspool_tensor_info *a, const struct tspool_tensor_info *b)
{
    if (!a->global_offsets || !b->global_offsets)
        return (a->global_offsets != NULL) - (b->global_offsets != NULL);
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    return u64s_compare(a->rank, a->global_offsets, b->global_offsets);
}

static int by_name_place_source(const void *left, const void *right)
{
    const struct origin *a = *(const struct origin *const *)left, *b = *(const struct origin *const *)right;
    int order = strcmp(a->info.name, b->info.name);

    if (!order)
        order = places_compare(&a->info, &b->info);
    return order ? order : (a->source > b->source) - (a->source < b->source);
}

static int by_name_place_source_entry(const void *left, const void *right)
{
    const struct origin *a = *(const struct origin *const *)left, *b = *(const struct origin *const *)right;
    int order = by_name_place_source(left, right);

    return order ? order : (a->entry > b->entry) - (a->entry < b->entry);
}

static void sort(struct origins *origins)
{
    for (size_t i = 0; i < origins->count; i++)
        origins->by_place[i] = &origins->items[i];
    qsort(origins->by_place, origins->count, sizeof(*origins->by_place), by_name_place_source_entry);
}

/* What is no shard and stands there twice is left to whoever declares it: that is somebody's mistake. */
static bool is_replica(const struct origin *before, const struct origin *after)
{
    return after->info.global_offsets && by_name_place_source(&before, &after) == 0;
}

/* Sorted again afterwards: what was pointed to has moved. */
static void replicas_drop(struct origins *origins)
{
    size_t kept = 0;

    for (size_t i = 1; i < origins->count; i++)
        if (is_replica(origins->by_place[i - 1], origins->by_place[i]))
            origins->items[origins->by_place[i] - origins->items].checkpoint = NULL;
    for (size_t i = 0; i < origins->count; i++)
        if (origins->items[i].checkpoint)
            origins->items[kept++] = origins->items[i];
    origins->count = kept;
    sort(origins);
}

int origins_collect(struct origins *origins, struct tspool_checkpoint **sources, size_t count)
{
    size_t total = 0;

    for (size_t i = 0; i < count; i++)
        total += tspool_checkpoint_count(sources[i]);
    *origins = (struct origins){ .items = calloc(total + 1, sizeof(*origins->items)),
                                 .by_place = calloc(total + 1, sizeof(*origins->by_place)) };
    if (!origins->items || !origins->by_place)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < tspool_checkpoint_count(sources[i]); j++) {
            struct origin *origin = &origins->items[origins->count++];

            *origin = (struct origin){ sources[i], j, i, TSPOOL_TENSOR_INFO_INIT };
            tspool_checkpoint_tensor(sources[i], j, &origin->info);
        }
    sort(origins);
    replicas_drop(origins);
    return 0;
}

void origins_deinit(struct origins *origins)
{
    free(origins->items);
    free(origins->by_place);
}

const struct origin *origins_stored(const struct origins *origins, const struct origin *tied)
{
    struct origin wanted = *tied;
    const struct origin *key = &wanted, **found;

    if (!tied->info.tied_to)
        return tied;
    wanted.info.name = tied->info.tied_to;
    found = bsearch(&key, origins->by_place, origins->count, sizeof(*origins->by_place), by_name_place_source);
    return found ? *found : tied;
}

/* The first of that name. */
static size_t name_first(const struct origins *origins, const char *name)
{
    size_t low = 0, high = origins->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (strcmp(origins->by_place[middle]->info.name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void origins_reach(const struct origins *origins, const struct origin *shard, uint64_t reach[TSPOOL_RANK_MAX])
{
    memset(reach, 0, TSPOOL_RANK_MAX * sizeof(*reach));
    for (size_t i = name_first(origins, shard->info.name); i < origins->count; i++) {
        const struct tspool_tensor_info *info = &origins->by_place[i]->info;

        if (strcmp(info->name, shard->info.name) != 0)
            return;
        for (uint32_t d = 0; info->global_offsets && info->rank == shard->info.rank && d < info->rank; d++)
            if (info->global_offsets[d] + info->shape[d] > reach[d])
                reach[d] = info->global_offsets[d] + info->shape[d];
    }
}
