/* publish/claims.c - what the ranks say of one tensor must fit together: a reader finds its shards by name.
 *
 * Every header is read, checked against its digest, and each tensor in it is a claim: rank r has this box of that name. All
 * claims of one name agree about dtype, dimensions and the shape of the whole, and about whether there is a whole: a tensor
 * that each rank saves entirely (replicated) has one shape. Boxes are equal (replicas) or apart. That some place of a tensor is
 * in no box is the trainer's business: it may save a part of it.
 *
 * O(n log n) in the number of tensors. Boxes that overlap are found by counting: those that differ cannot hold more elements
 * than the whole tensor has.
 */
#include <publish/publication.h>

#include <base/array.h>
#include <base/checked.h>
#include <base/mutant.h>
#include <errno.h>
#include <format/name_table.h>
#include <publish/disk.h>
#include <stdlib.h>
#include <string.h>

struct claim {
    const struct parsed_tensor *tensor;
    const struct manifest_shape *whole; /* NULL: this rank saved all of it */
    uint32_t rank;
};

struct claims {
    const struct publication *publication;
    struct parsed_header *headers;
    size_t header_count;
    struct claim *items;
    size_t count, capacity;
};

/* Reading headers ------------------------------------------------------------------------------------------------------- */

static int damaged(const struct claims *claims, const struct manifest_file *file, const char *reason)
{
    char *path = publication_path(claims->publication, file->name);
    int error = publish_refuse(claims->publication, EBADMSG, "read", path, "%s; save rank %u again under the same save id",
                               reason, file->rank);

    free(path);
    return error;
}

static int file_fail(const struct claims *claims, const struct manifest_file *file, int error, const char *operation)
{
    char *path = publication_path(claims->publication, file->name);

    error = publish_fail(claims->publication, -error, operation, path);
    free(path);
    return error;
}

static int header_read(struct claims *claims, const struct manifest_file *file, int handle, char *bytes)
{
    const char *reason = "";
    uint64_t json_size = 0;
    size_t position;
    int error = disk_read(claims->publication->io, handle, 0, bytes, file->header_size);

    if (error < 0)
        return file_fail(claims, file, error, "read");
    if (!digest_equal(hash_bytes(bytes, file->header_size), file->digest) && !MUTANT(PART_HEADER_DIGEST_NOT_COMPARED))
        return damaged(claims, file, "the header does not match its digest");
    error = file->header_size < 8 ? -EBADMSG : header_length_check((const uint8_t *)bytes, file->size, &json_size, &reason);
    if (error == 0 && 8 + json_size != file->header_size)
        error = -EBADMSG, reason = "the header has another length than its part says";
    if (error == 0)
        error = header_parse(bytes + 8, json_size, file->size - file->header_size, &claims->headers[claims->header_count],
                             &reason, &position);
    if (error < 0)
        return error == -ENOMEM ? file_fail(claims, file, error, "read") : damaged(claims, file, reason);
    claims->header_count++;
    return 0;
}

static int header_load(struct claims *claims, const struct manifest_file *file)
{
    const struct publication *publication = claims->publication;
    int handle = file_open(publication->io, publication->directory, file->name, OPEN_READ), error;
    char *bytes;

    if (handle < 0)
        return file_fail(claims, file, handle, "open");
    bytes = file->header_size <= SAFETENSORS_HEADER_MAX + 8u ? malloc(file->header_size + 1) : NULL;
    error = bytes ? header_read(claims, file, handle, bytes)
                  : damaged(claims, file, "there is no memory for its header, or it is larger than any header can be");
    free(bytes);
    disk_close(publication->io, &handle);
    return error;
}

static int header_claims(struct claims *claims, uint32_t rank, const struct name_table *shapes)
{
    const struct parsed_header *header = &claims->headers[claims->header_count - 1];
    const struct manifest *part = &claims->publication->parts[rank];

    if (array_reserve((void **)&claims->items, &claims->capacity, claims->count + header->count, sizeof(*claims->items)) < 0)
        return publish_fail(claims->publication, ENOMEM, "publish", claims->publication->hidden);
    for (size_t i = 0; i < header->count; i++) {
        size_t found = name_table_find(shapes, header->tensors[i].name);

        claims->items[claims->count++] = (struct claim){ &header->tensors[i], found == SIZE_MAX ? NULL : &part->shapes[found],
                                                         rank };
    }
    return 0;
}

static int part_claims(struct claims *claims, uint32_t rank)
{
    const struct manifest *part = &claims->publication->parts[rank];
    struct name_table shapes = { NULL, 0 };
    int error = name_table_build(&shapes, part->shapes, sizeof(*part->shapes), part->shape_count);

    if (error)
        return publish_fail(claims->publication, ENOMEM, "publish", claims->publication->hidden);
    for (size_t i = 0; i < part->file_count && error == 0; i++) {
        if (part->files[i].kind != MANIFEST_SAFETENSORS)
            continue;
        error = header_load(claims, &part->files[i]);
        if (error == 0)
            error = header_claims(claims, rank, &shapes);
    }
    name_table_deinit(&shapes);
    return error;
}

/* One name ------------------------------------------------------------------------------------------------------------------ */

static int compare_u64s(const uint64_t *a, const uint64_t *b, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int compare_boxes(const struct parsed_tensor *a, const struct parsed_tensor *b)
{
    int order = a->rank != b->rank ? (a->rank > b->rank) - (a->rank < b->rank) : 0;

    if (!order && a->global_offsets && b->global_offsets)
        order = compare_u64s(a->global_offsets, b->global_offsets, a->rank);
    return order ? order : compare_u64s(a->shape, b->shape, a->rank);
}

static int by_name_and_box(const void *left, const void *right)
{
    const struct claim *a = left, *b = right;
    int order = strcmp(a->tensor->name, b->tensor->name);

    if (!order)
        order = compare_boxes(a->tensor, b->tensor);
    return order ? order : (a->rank > b->rank) - (a->rank < b->rank);
}

static int refuse(const struct claims *claims, const struct claim *a, const struct claim *b, const char *what)
{
    return publish_refuse(claims->publication, EINVAL, "publish", claims->publication->hidden, "ranks %u and %u disagree about "
                          "tensor %.200s: %s", a->rank, b->rank, a->tensor->name, what);
}

static int pair_check(const struct claims *claims, const struct claim *a, const struct claim *b)
{
    if (a->tensor->dtype != b->tensor->dtype)
        return refuse(claims, a, b, "its dtype differs");
    if (!a->whole != !b->whole)
        return refuse(claims, a, b, "one saved a shard of it, the other the whole; give global_shape and global_offsets on all "
                      "ranks or on none");
    if (a->tensor->rank != b->tensor->rank || (a->whole && (a->whole->rank != b->whole->rank ||
        compare_u64s(a->whole->global_shape, b->whole->global_shape, a->whole->rank) != 0)))
        return refuse(claims, a, b, "its global shape differs");
    if (!a->whole && compare_u64s(a->tensor->shape, b->tensor->shape, a->tensor->rank) != 0)
        return refuse(claims, a, b, "both saved the whole of it, and its shape differs");
    return 0;
}

static uint64_t elements_of(const uint64_t *shape, uint32_t rank)
{
    uint64_t elements = 1;

    for (uint32_t i = 0; i < rank; i++)
        if (!checked_mul(elements, shape[i], &elements))
            return UINT64_MAX;
    return elements;
}

/* Boxes that lie in the whole and differ hold together no more than it does, if none overlaps another. */
static int overlap_check(const struct claims *claims, const struct claim *group, size_t count)
{
    uint64_t whole = elements_of(group->whole->global_shape, group->whole->rank), sum = 0;

    for (size_t i = 0; i < count; i++) {
        if (i > 0 && compare_boxes(group[i - 1].tensor, group[i].tensor) == 0)
            continue;
        if (!checked_add(sum, elements_of(group[i].tensor->shape, group[i].tensor->rank), &sum) || sum > whole)
            return refuse(claims, &group[i > 0 ? i - 1 : 0], &group[i], "their shards overlap; check global_offsets");
    }
    return 0;
}

static int group_check(const struct claims *claims, const struct claim *group, size_t count)
{
    int error = 0;

    for (size_t i = 1; i < count && error == 0; i++)
        error = pair_check(claims, &group[0], &group[i]);
    return error == 0 && group->whole && group->whole->rank == group->tensor->rank ? overlap_check(claims, group, count) : error;
}

static int groups_check(struct claims *claims)
{
    int error = 0;

    if (claims->count > 0)
        qsort(claims->items, claims->count, sizeof(*claims->items), by_name_and_box);
    for (size_t first = 0, end; first < claims->count && error == 0; first = end) {
        const char *name = claims->items[first].tensor->name;

        for (end = first + 1; end < claims->count && strcmp(claims->items[end].tensor->name, name) == 0;)
            end++;
        error = group_check(claims, claims->items + first, end - first);
    }
    return error;
}

static size_t files_count(const struct publication *publication)
{
    size_t count = 0;

    for (uint32_t rank = 0; rank < publication->world_size; rank++)
        count += publication->parts[rank].file_count;
    return count;
}

int claims_check(const struct publication *publication)
{
    struct claims claims = { .publication = publication };
    int error = 0;

    claims.headers = calloc(files_count(publication) + 1, sizeof(*claims.headers));
    if (!claims.headers)
        return publish_fail(publication, ENOMEM, "publish", publication->hidden);
    for (uint32_t rank = 0; rank < publication->world_size && error == 0; rank++)
        error = part_claims(&claims, rank);
    if (error == 0)
        error = groups_check(&claims);
    for (size_t i = 0; i < claims.header_count; i++)
        parsed_header_deinit(&claims.headers[i]);
    free(claims.headers);
    free(claims.items);
    return error;
}
