/* publish/merge.c - one manifest of all parts, in the order of the ranks. The same parts make the same bytes, whoever merges. */
#include <publish/publication.h>

#include <base/mutant.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A list of every part, one after the other. */
struct lists { struct manifest whole; size_t *digest_patch; };

static int room_make(void **items, size_t count, size_t size)
{
    *items = calloc(count + 1, size);
    return *items ? 0 : -ENOMEM;
}

static int rooms_make(const struct publication *publication, struct lists *lists)
{
    struct manifest counts = { 0 }, *whole = &lists->whole;

    for (uint32_t rank = 0; rank < publication->world_size; rank++) {
        const struct manifest *part = &publication->parts[rank];

        counts.metadata_count += part->metadata_count;
        counts.file_count += part->file_count;
        counts.digests_count += part->digests_count;
        counts.object_count += part->object_count;
        counts.alias_count += part->alias_count;
        counts.shape_count += part->shape_count;
    }
    if (room_make((void **)&whole->metadata, counts.metadata_count, sizeof(*whole->metadata)) < 0 ||
        room_make((void **)&whole->files, counts.file_count, sizeof(*whole->files)) < 0 ||
        room_make((void **)&whole->digests, counts.digests_count, sizeof(*whole->digests)) < 0 ||
        room_make((void **)&whole->objects, counts.object_count, sizeof(*whole->objects)) < 0 ||
        room_make((void **)&whole->aliases, counts.alias_count, sizeof(*whole->aliases)) < 0 ||
        room_make((void **)&whole->shapes, counts.shape_count, sizeof(*whole->shapes)) < 0 ||
        room_make((void **)&lists->digest_patch, counts.digests_count, sizeof(*lists->digest_patch)) < 0)
        return publish_fail(publication, ENOMEM, "publish", publication->hidden);
    return 0;
}

static void lists_deinit(struct lists *lists)
{
    free(lists->whole.metadata);
    free(lists->whole.files);
    free(lists->whole.digests);
    free(lists->whole.objects);
    free(lists->whole.aliases);
    free(lists->whole.shapes);
    free(lists->digest_patch);
}

/* Metadata is the first rank's that has the key. That ranks saved different steps is the one thing that must not pass. */
static int metadata_add(const struct publication *publication, struct manifest *whole, const struct header_pair *pair,
                        uint32_t rank)
{
    for (size_t i = 0; i < whole->metadata_count; i++) {
        if (strcmp(whole->metadata[i].key, pair->key) != 0)
            continue;
        if (strcmp(pair->key, "step") != 0 || strcmp(whole->metadata[i].value, pair->value) == 0)
            return 0;
        return publish_refuse(publication, EINVAL, "publish", publication->hidden, "rank %u saved step %.40s, a rank before it "
                              "step %.40s: they are not one checkpoint", rank, pair->value, whole->metadata[i].value);
    }
    whole->metadata[whole->metadata_count++] = *pair;
    return 0;
}

/* A part without aliases, say, has no list of them: memcpy wants a pointer even for nothing. */
static void list_append(void *items, size_t *count, const void *more, size_t more_count, size_t size)
{
    if (more_count == 0)
        return;
    memcpy((char *)items + *count * size, more, more_count * size);
    *count += more_count;
}

static int part_add(const struct publication *publication, struct manifest *whole, uint32_t rank)
{
    const struct manifest *part = &publication->parts[rank];
    int error = 0;

    for (size_t i = 0; i < part->metadata_count && error == 0; i++)
        error = metadata_add(publication, whole, &part->metadata[i], rank);
    list_append(whole->files, &whole->file_count, part->files, part->file_count, sizeof(*part->files));
    list_append(whole->digests, &whole->digests_count, part->digests, part->digests_count, sizeof(*part->digests));
    list_append(whole->objects, &whole->object_count, part->objects, part->object_count, sizeof(*part->objects));
    list_append(whole->aliases, &whole->alias_count, part->aliases, part->alias_count, sizeof(*part->aliases));
    list_append(whole->shapes, &whole->shape_count, part->shapes, part->shape_count, sizeof(*part->shapes));
    if (part->sequence > whole->sequence) {
        whole->sequence = part->sequence;
        whole->time_seconds = part->time_seconds;
    }
    return error;
}

/* What several ranks say alike is said once --------------------------------------------------------------------------------- */

static int by_alias(const void *left, const void *right)
{
    return strcmp(((const struct manifest_alias *)left)->alias, ((const struct manifest_alias *)right)->alias);
}

static int by_shape_name(const void *left, const void *right)
{
    return strcmp(((const struct manifest_shape *)left)->name, ((const struct manifest_shape *)right)->name);
}

static int aliases_unite(const struct publication *publication, struct manifest *whole)
{
    size_t kept = 0;

    if (whole->alias_count > 0)
        qsort(whole->aliases, whole->alias_count, sizeof(*whole->aliases), by_alias);
    for (size_t i = 0; i < whole->alias_count; i++) {
        if (kept == 0 || by_alias(&whole->aliases[kept - 1], &whole->aliases[i]) != 0)
            whole->aliases[kept++] = whole->aliases[i];
        else if (strcmp(whole->aliases[kept - 1].stored, whole->aliases[i].stored) != 0)
            return publish_refuse(publication, EINVAL, "publish", publication->hidden, "one rank ties tensor %.160s to %.160s, "
                                  "another to %.160s; declare tensors in the same order on all ranks",
                                  whole->aliases[i].alias, whole->aliases[kept - 1].stored, whole->aliases[i].stored);
    }
    whole->alias_count = kept;
    return 0;
}

/* By name, those of one name in the order of the ranks. */
static int by_object_name(const void *left, const void *right)
{
    const struct manifest_object *a = *(const struct manifest_object *const *)left;
    const struct manifest_object *b = *(const struct manifest_object *const *)right;
    int order = strcmp(a->name, b->name);

    return order ? order : (a > b) - (a < b);
}

static bool is_same_object(const struct manifest_object *a, const struct manifest_object *b)
{
    return MUTANT(OBJECTS_OF_RANKS_NOT_COMPARED) ||
           (strcmp(a->kind, b->kind) == 0 && a->size == b->size && digest_equal(a->digest, b->digest));
}

/* Marks what a rank before it has too: a name of NULL. */
static int objects_compare(const struct publication *publication, struct manifest_object **sorted, size_t count)
{
    struct manifest_object *first = NULL;

    for (size_t i = 0; i < count; i++) {
        if (!first || strcmp(first->name, sorted[i]->name) != 0) {
            first = sorted[i];
            continue;
        }
        if (!is_same_object(first, sorted[i]))
            return publish_refuse(publication, EINVAL, "publish", publication->hidden, "ranks %u and %u saved different objects "
                                  "as %.200s; give each rank's its own name, or save it on one rank only", first->rank,
                                  sorted[i]->rank, first->name);
        sorted[i]->name = NULL;
    }
    return 0;
}

/* A reader asks for an object by its name: there is one of each. */
static int objects_unite(const struct publication *publication, struct manifest *whole)
{
    struct manifest_object **sorted = calloc(whole->object_count + 1, sizeof(*sorted));
    size_t kept = 0;
    int error;

    if (!sorted)
        return publish_fail(publication, ENOMEM, "publish", publication->hidden);
    for (size_t i = 0; i < whole->object_count; i++)
        sorted[i] = &whole->objects[i];
    qsort(sorted, whole->object_count, sizeof(*sorted), by_object_name);
    error = objects_compare(publication, sorted, whole->object_count);
    free(sorted);
    for (size_t i = 0; i < whole->object_count && error == 0; i++)
        if (whole->objects[i].name)
            whole->objects[kept++] = whole->objects[i];
    whole->object_count = error == 0 ? kept : whole->object_count;
    return error;
}

/* That they agree was checked with the claims. */
static void shapes_unite(struct manifest *whole)
{
    size_t kept = 0;

    if (whole->shape_count > 0)
        qsort(whole->shapes, whole->shape_count, sizeof(*whole->shapes), by_shape_name);
    for (size_t i = 0; i < whole->shape_count; i++)
        if (kept == 0 || by_shape_name(&whole->shapes[kept - 1], &whole->shapes[i]) != 0)
            whole->shapes[kept++] = whole->shapes[i];
    whole->shape_count = kept;
}

int merge(const struct publication *publication, char **json, size_t *size)
{
    struct lists lists = { .whole = { .version = MANIFEST_VERSION, .world_size = publication->world_size } };
    int error = rooms_make(publication, &lists);
    size_t self;

    memcpy(lists.whole.save_id, publication->save_id, sizeof(lists.whole.save_id));
    for (uint32_t rank = 0; rank < publication->world_size && error == 0; rank++)
        error = part_add(publication, &lists.whole, rank);
    if (error == 0)
        error = aliases_unite(publication, &lists.whole);
    if (error == 0)
        error = objects_unite(publication, &lists.whole);
    if (error == 0) {
        shapes_unite(&lists.whole);
        error = manifest_build(&lists.whole, json, size, lists.digest_patch, &self);
        if (error < 0)
            publish_fail(publication, -error, "publish", publication->hidden);
    }
    lists_deinit(&lists);
    return error;
}
