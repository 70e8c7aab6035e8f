/* commands/source_set.c - see source_set.h. */
#include "source_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int refuse(struct tspool_failure *failure, int error, const char *path, const char *cause)
{
    failure->error = error;
    failure->stage = TSPOOL_STAGE_READ;
    snprintf(failure->path, sizeof failure->path, "%s", path);
    snprintf(failure->cause, sizeof failure->cause, "%s", cause);
    snprintf(failure->message, sizeof failure->message, "%s: %s", path, cause);
    return -error;
}

static int source_open(struct source_set *set, const char *path, bool only_files, const struct tspool_checkpoint_options *options,
                       struct tspool_failure *failure)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    int error = tspool_checkpoint_open(path, options, &set->checkpoints[set->count], failure);

    if (error < 0)
        return error;
    tspool_checkpoint_info(set->checkpoints[set->count++], &info);
    if (only_files && info.kind != TSPOOL_KIND_FILE)
        return refuse(failure, EINVAL, path, "it is a directory; several sources must all be .safetensors files");
    return 0;
}

int source_set_open(struct source_set *set, char **paths, int count, const struct tspool_checkpoint_options *options,
                    struct tspool_failure *failure)
{
    int error = 0;

    *set = (struct source_set){ .checkpoints = calloc((size_t)count, sizeof *set->checkpoints) };
    if (!set->checkpoints)
        return refuse(failure, ENOMEM, paths[0], "no memory");
    for (int i = 0; i < count && error == 0; i++)
        error = source_open(set, paths[i], count > 1, options, failure);
    return error;
}

void source_set_close(struct source_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        tspool_checkpoint_close(set->checkpoints[i]);
    free(set->checkpoints);
    origins_deinit(&set->origins);
    free(set->addresses);
}

uint64_t source_set_bytes(const struct source_set *set)
{
    uint64_t total = 0;

    for (size_t i = 0; i < set->count; i++) {
        struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;

        tspool_checkpoint_info(set->checkpoints[i], &info);
        total += info.file_bytes;
    }
    return total;
}

/* Declaring ---------------------------------------------------------------------------------------------------------- */

/* A shard whose global shape was not recorded is as wide as its siblings reach: files of PyTorch's writer. What stands there
 * alone, at the beginning, is no shard: with several ranks every tensor has a place, those that all of them saved too. */
static void place_set(const struct source_set *set, const struct origin *origin, uint64_t reach[TSPOOL_RANK_MAX],
                      struct tspool_tensor *tensor)
{
    const struct tspool_tensor_info *info = &origin->info;

    tensor->global_offsets = info->global_offsets;
    tensor->global_shape = info->global_shape;
    if (!info->global_offsets || info->global_shape)
        return;
    origins_reach(&set->origins, origin, reach);
    tensor->global_shape = reach;
    for (uint32_t d = 0; d < info->rank; d++)
        if (info->global_offsets[d] > 0 || reach[d] != info->shape[d])
            return;
    tensor->global_offsets = tensor->global_shape = NULL;
}

static int tensor_declare(const struct source_set *set, size_t number, struct tspool_save *save, struct tspool_failure *failure)
{
    const struct origin *origin = &set->origins.items[number];
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    uint64_t reach[TSPOOL_RANK_MAX];

    tensor.name = origin->info.name;
    tensor.dtype = origin->info.dtype;
    tensor.rank = origin->info.rank;
    tensor.shape = origin->info.shape;
    tensor.data = &set->addresses[origins_stored(&set->origins, origin) - set->origins.items];
    place_set(set, origin, reach, &tensor);
    return tspool_save_add(save, &tensor, failure);
}

static int object_declare(struct tspool_checkpoint *source, size_t number, struct tspool_save *save,
                          struct tspool_failure *failure)
{
    const char *name, *kind;
    uint64_t recorded;
    void *bytes = NULL;
    size_t size = 0;
    int error = tspool_checkpoint_object(source, number, &name, &kind, &recorded);

    if (error == 0)
        error = tspool_checkpoint_object_read(source, name, &bytes, &size, failure);
    if (error == 0)
        error = tspool_save_add_object(save, name, kind, bytes, size, failure);
    free(bytes);
    return error;
}

static int extras_declare(struct tspool_checkpoint *source, struct tspool_save *save, struct tspool_failure *failure)
{
    const char *key, *value;
    int error = 0;

    for (size_t i = 0; error == 0 && i < tspool_checkpoint_object_count(source); i++)
        error = object_declare(source, i, save, failure);
    for (size_t i = 0; error == 0 && tspool_checkpoint_metadata_at(source, i, &key, &value) == 0; i++)
        error = tspool_save_metadata(save, key, value, failure);
    return error;
}

int source_set_declare(struct source_set *set, struct tspool_save *save, struct tspool_failure *failure)
{
    int error = origins_collect(&set->origins, set->checkpoints, set->count);

    if (error == 0 && !(set->addresses = calloc(set->origins.count + 1, 1)))
        error = -ENOMEM;
    if (error < 0)
        return refuse(failure, -error, "copy", "no memory");
    for (size_t i = 0; i < set->origins.count && error == 0; i++)
        error = tensor_declare(set, i, save, failure);
    for (size_t i = 0; i < set->count && error == 0; i++)
        error = extras_declare(set->checkpoints[i], save, failure);
    return error;
}
