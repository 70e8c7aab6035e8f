/* plan/identity.c - sort by a hash, then look closer at what is equal: names by XXH3 of their bytes, ties by address. Runs of
 * equal keys are sorted by what they really are, so a million colliding names or views of one buffer stay O(n log n).
 *
 * Two tensors are tied when address, dtype, shape, strides and place in a global tensor agree and there is a byte to share.
 * The first declared is stored. Never tied are those that were declared untied, and the shards of a name that has several: as an
 * alias such a name could meet another of its shards in one header. Nor is a name that means something else as a key of
 * __metadata__.
 */
#include <base/failure.h>
#include <base/hash.h>
#include <errno.h>
#include <plan/identity.h>
#include <plan/keyed.h>
#include <stdlib.h>
#include <string.h>

struct search {
    const struct state_dict *dict;
    struct identity *identity;
    struct keyed *keys, *scratch;
    struct tspool_failure *failure;
};

static const struct declared *tensor_of(const struct search *search, const struct keyed *key)
{
    return &search->dict->tensors[key->number];
}

static struct failure_at at_tensor(const struct search *search, const struct keyed *key)
{
    return FAILURE_AT(.tensor = tensor_of(search, key)->name);
}

static int compare_u64s(const uint64_t *a, const uint64_t *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int compare_numbers(uint32_t a, uint32_t b) { return (a > b) - (a < b); }

/* Names -------------------------------------------------------------------------------------------------------------- */

static int compare_by_name(const void *a, const void *b, void *context)
{
    const struct keyed *left = a, *right = b;
    int order = strcmp(tensor_of(context, left)->name, tensor_of(context, right)->name);

    return order ? order : compare_numbers(left->number, right->number);
}

static int compare_by_offsets(const void *a, const void *b, void *context)
{
    const struct declared *left = tensor_of(context, a), *right = tensor_of(context, b);

    return compare_u64s(declared_global_offsets(left), declared_global_offsets(right), left->rank);
}

static bool are_of_one_tensor(const struct declared *a, const struct declared *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           compare_u64s(declared_global_shape(a), declared_global_shape(b), a->rank) == 0;
}

static int refuse_twice(const struct search *search, const struct keyed *a, const struct keyed *b)
{
    return failure_set(search->failure, TSPOOL_STAGE_PLAN, EEXIST, at_tensor(search, a),
                       "the name was declared twice (tensors %u and %u); only shards with different global_offsets may share one",
                       a->number < b->number ? a->number : b->number, a->number < b->number ? b->number : a->number);
}

/* `group` has one name, in declared order. */
static int accept_shards(struct search *search, struct keyed *group, size_t count)
{
    uint32_t **occurrence = &search->identity->occurrence;

    for (size_t i = 0; i < count; i++) {
        if (!tensor_of(search, &group[i])->is_shard)
            return refuse_twice(search, &group[i], &group[i == 0 ? 1 : 0]);
        if (!are_of_one_tensor(tensor_of(search, &group[0]), tensor_of(search, &group[i])))
            return failure_set(search->failure, TSPOOL_STAGE_PLAN, EINVAL, at_tensor(search, &group[0]),
                               "shards of this name differ in dtype or global_shape; they must describe one tensor");
    }
    if (!*occurrence && !(*occurrence = calloc(search->dict->count, sizeof(**occurrence))))
        return failure_set(search->failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    for (size_t i = 0; i < count; i++)
        (*occurrence)[group[i].number] = (uint32_t)i + 1;
    qsort_r(group, count, sizeof(*group), compare_by_offsets, search);
    for (size_t i = 1; i < count; i++)
        if (compare_by_offsets(&group[i - 1], &group[i], search) == 0)
            return refuse_twice(search, &group[i - 1], &group[i]);
    return 0;
}

/* `run` has one hash: almost always one name. */
static int check_run(struct search *search, struct keyed *run, size_t count)
{
    size_t end;
    int rc;

    qsort_r(run, count, sizeof(*run), compare_by_name, search);
    for (size_t first = 0; first < count; first = end) {
        const char *name = tensor_of(search, &run[first])->name;

        for (end = first + 1; end < count && strcmp(tensor_of(search, &run[end])->name, name) == 0;)
            end++;
        if (end - first > 1 && (rc = accept_shards(search, run + first, end - first)) < 0)
            return rc;
    }
    return 0;
}

static uint64_t hash_of_name(const struct declared *tensor)
{
    struct digest digest = hash_bytes(tensor->name, tensor->name_size);
    uint64_t key;

    memcpy(&key, digest.bytes, sizeof(key));
    return key;
}

static int find_names(struct search *search)
{
    size_t count = search->dict->count, end;
    int rc;

    for (size_t i = 0; i < count; i++)
        search->keys[i] = (struct keyed){ hash_of_name(&search->dict->tensors[i]), (uint32_t)i };
    keyed_sort(search->keys, search->scratch, count);
    for (size_t first = 0; first < count; first = end) {
        end = keyed_run_end(search->keys, count, first);
        if (end - first > 1 && (rc = check_run(search, search->keys + first, end - first)) < 0)
            return rc;
    }
    return 0;
}

/* Ties --------------------------------------------------------------------------------------------------------------- */

static int compare_layouts(const struct declared *a, const struct declared *b)
{
    size_t numbers = (size_t)a->rank * (1 + (a->is_strided ? 1 : 0) + (a->is_shard ? 2 : 0));

    if (a->dtype != b->dtype)
        return a->dtype < b->dtype ? -1 : 1;
    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    if (a->is_strided != b->is_strided)
        return a->is_strided ? 1 : -1;
    if (a->is_shard != b->is_shard)
        return a->is_shard ? 1 : -1;
    return compare_u64s(a->extents, b->extents, numbers);
}

static int compare_by_layout(const void *a, const void *b, void *context)
{
    const struct keyed *left = a, *right = b;
    int order = compare_layouts(tensor_of(context, left), tensor_of(context, right));

    return order ? order : compare_numbers(left->number, right->number);
}

/* Keys of __metadata__ that are not ties: their tensors are stored even when tied. */
static bool is_metadata_key(const char *name)
{
    return strcmp(name, "format") == 0 || strcmp(name, "DCP_SHARDING_INFO") == 0 || strcmp(name, "DCP_VERSION") == 0;
}

static int make_aliases_room(struct search *search, size_t candidates)
{
    struct identity *identity = search->identity;

    if (identity->aliases)
        return 0;
    identity->aliases = malloc(candidates * sizeof(*identity->aliases));
    identity->is_alias = calloc(search->dict->count, sizeof(*identity->is_alias));
    if (!identity->aliases || !identity->is_alias)
        return failure_set(search->failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    return 0;
}

/* `run` has one address. */
static void tie_run(struct search *search, struct keyed *run, size_t count)
{
    struct identity *identity = search->identity;
    const struct keyed *stored = run;

    qsort_r(run, count, sizeof(*run), compare_by_layout, search);
    for (size_t i = 1; i < count; i++) {
        if (compare_layouts(tensor_of(search, stored), tensor_of(search, &run[i])) != 0) {
            stored = &run[i];
        } else if (!is_metadata_key(tensor_of(search, &run[i])->name)) {
            identity->is_alias[run[i].number] = true;
            identity->aliases[identity->alias_count++] = (struct plan_alias){ run[i].number, stored->number };
        }
    }
}

static size_t collect_tie_candidates(struct search *search)
{
    const uint32_t *occurrence = search->identity->occurrence;
    size_t count = 0;

    for (size_t i = 0; i < search->dict->count; i++) {
        const struct declared *tensor = &search->dict->tensors[i];

        if (tensor->data && tensor->size > 0 && !tensor->is_untied && !(occurrence && occurrence[i]))
            search->keys[count++] = (struct keyed){ (uintptr_t)tensor->data, (uint32_t)i };
    }
    return count;
}

static void sort_aliases(struct search *search)
{
    struct plan_alias *aliases = search->identity->aliases;
    size_t count = search->identity->alias_count;

    for (size_t i = 0; i < count; i++)
        search->keys[i] = (struct keyed){ (uint64_t)aliases[i].stored << 32 | aliases[i].alias, 0 };
    keyed_sort(search->keys, search->scratch, count);
    for (size_t i = 0; i < count; i++)
        aliases[i] = (struct plan_alias){ (uint32_t)search->keys[i].key, (uint32_t)(search->keys[i].key >> 32) };
}

static int find_ties(struct search *search)
{
    size_t count = collect_tie_candidates(search), end;
    int rc;

    keyed_sort(search->keys, search->scratch, count);
    for (size_t first = 0; first < count; first = end) {
        end = keyed_run_end(search->keys, count, first);
        if (end - first < 2)
            continue;
        if ((rc = make_aliases_room(search, count)) < 0)
            return rc;
        tie_run(search, search->keys + first, end - first);
    }
    sort_aliases(search);
    return 0;
}

int identity_init(struct identity *identity, const struct state_dict *dict, struct tspool_failure *failure)
{
    struct identity found = { 0 };
    struct search search = { .dict = dict, .identity = &found, .failure = failure };
    int rc;

    search.keys = malloc((dict->count + 1) * sizeof(*search.keys));
    search.scratch = malloc((dict->count + 1) * sizeof(*search.scratch));
    if (!search.keys || !search.scratch)
        rc = failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    else if ((rc = find_names(&search)) == 0)
        rc = find_ties(&search);
    free(search.keys);
    free(search.scratch);
    if (rc < 0)
        identity_deinit(&found);
    else
        *identity = found;
    return rc;
}

void identity_deinit(struct identity *identity)
{
    free(identity->occurrence);
    free(identity->is_alias);
    free(identity->aliases);
}

const struct plan_alias *identity_aliases(const struct identity *identity, uint32_t stored, size_t *count)
{
    size_t low = 0, high = identity->alias_count, end;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (identity->aliases[middle].stored < stored)
            low = middle + 1;
        else
            high = middle;
    }
    for (end = low; end < identity->alias_count && identity->aliases[end].stored == stored;)
        end++;
    *count = end - low;
    return identity->aliases ? identity->aliases + low : NULL;
}
