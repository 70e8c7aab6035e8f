/* read/objects.c - non-tensor objects: listed by the manifest, checked against its digest before they are given out. */
#include <base/failure.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <stdlib.h>
#include <string.h>

size_t tspool_checkpoint_object_count(const struct tspool_checkpoint *checkpoint) { return checkpoint->manifest.object_count; }

int tspool_checkpoint_object(const struct tspool_checkpoint *checkpoint, size_t number, const char **name, const char **kind,
                             uint64_t *size)
{
    const struct manifest_object *object;

    if (number >= checkpoint->manifest.object_count)
        return -ENOENT;
    object = &checkpoint->manifest.objects[number];
    *name = object->name;
    *kind = object->kind;
    *size = object->size;
    return 0;
}

/* Of several ranks' objects of one name the first is meant: those are not in the table. */
int objects_index(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    const struct manifest *manifest = &checkpoint->manifest;
    int error = name_table_build(&checkpoint->object_names, manifest->objects, sizeof(*manifest->objects), manifest->object_count);

    if (error == 0 || error == NAME_REPEATED)
        return 0;
    return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "open", .path = checkpoint->path), NULL);
}

static const struct manifest_object *object_find(const struct tspool_checkpoint *checkpoint, const char *name)
{
    size_t found = checkpoint->object_names.count ? name_table_find(&checkpoint->object_names, name) : SIZE_MAX;

    if (found != SIZE_MAX)
        return &checkpoint->manifest.objects[found];
    if (checkpoint->object_names.count)
        return NULL;
    for (size_t i = 0; i < checkpoint->manifest.object_count; i++)
        if (strcmp(checkpoint->manifest.objects[i].name, name) == 0)
            return &checkpoint->manifest.objects[i];
    return NULL;
}

static int object_check(const struct source *source, const struct manifest_object *object, const void *bytes,
                        struct tspool_failure *failure)
{
    struct failure_at at = { .operation = "verify", .tensor = object->name, .path = source->path,
                             .file_offset = object->file_offset };

    if (digest_equal(hash_bytes(bytes, object->size), object->digest) || MUTANT(OBJECT_DIGEST_NOT_COMPARED))
        return 0;
    return failure_set(failure, TSPOOL_STAGE_VERIFY, EBADMSG, at,
                       "The %llu bytes of this object do not match its digest: damaged.",
                       (unsigned long long)object->size);
}

static int object_load(struct tspool_checkpoint *checkpoint, struct io *io, const struct manifest_object *object, void **bytes,
                       struct tspool_failure *failure)
{
    char *path = path_join(checkpoint->path, object->file);
    struct source source = { .handle = -1 };
    void *loaded = NULL;
    int error;

    error = source_open(io, checkpoint->directory, object->file, path ? path : object->file, true, &source, failure);
    if (error == 0)
        error = source_load(io, &source, object->file_offset, object->size, &loaded, failure);
    if (error == 0 && !checkpoint->unverified)
        error = object_check(&source, object, loaded, failure);
    source_close(io, &source);
    free(path);
    if (error < 0)
        free(loaded);
    else
        *bytes = loaded;
    return error;
}

int tspool_checkpoint_object_read(struct tspool_checkpoint *checkpoint, const char *name, void **bytes, size_t *size,
                                  struct tspool_failure *failure)
{
    const struct manifest_object *object = name ? object_find(checkpoint, name) : NULL;
    int error;

    if (!object)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOENT,
                           FAILURE_AT(.operation = "read", .tensor = name, .path = checkpoint->path),
                           "No object of that name is in the checkpoint.");
    error = lane_enter(&checkpoint->lane, failure);
    if (error < 0)
        return error;
    error = object_load(checkpoint, checkpoint->lane.io, object, bytes, failure);
    lane_leave(&checkpoint->lane);
    if (error == 0)
        *size = object->size;
    return error;
}
