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
    free(set->origins);
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

/* A shard whose global shape was not recorded (files of PyTorch's writer): as far as its siblings reach. */
static void reach_of(const struct source_set *set, const struct tspool_tensor_info *shard, uint64_t *reach)
{
    memset(reach, 0, TSPOOL_RANK_MAX * sizeof *reach);
    for (size_t i = 0; i < set->origin_count; i++) {
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

        tspool_checkpoint_tensor(set->origins[i].checkpoint, set->origins[i].entry, &info);
        if (strcmp(info.name, shard->name) != 0 || info.rank != shard->rank || !info.global_offsets)
            continue;
        for (uint32_t d = 0; d < info.rank; d++)
            if (info.global_offsets[d] + info.shape[d] > reach[d])
                reach[d] = info.global_offsets[d] + info.shape[d];
    }
}

/* The address that stands for the tensor's memory; the one of the tensor that it is tied to. */
static const void *address_of(const struct source_set *set, size_t number, const struct tspool_tensor_info *info)
{
    size_t stored = 0, first = number - set->origins[number].entry;

    if (info->tied_to && tspool_checkpoint_find(set->origins[number].checkpoint, info->tied_to, &stored) == 0)
        return &set->addresses[first + stored];
    return &set->addresses[number];
}

static int tensor_declare(const struct source_set *set, size_t number, struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    uint64_t reach[TSPOOL_RANK_MAX];

    tspool_checkpoint_tensor(set->origins[number].checkpoint, set->origins[number].entry, &info);
    tensor.name = info.name;
    tensor.dtype = info.dtype;
    tensor.rank = info.rank;
    tensor.shape = info.shape;
    tensor.data = address_of(set, number, &info);
    tensor.global_offsets = info.global_offsets;
    tensor.global_shape = info.global_shape;
    if (info.global_offsets && !info.global_shape) {
        reach_of(set, &info, reach);
        tensor.global_shape = reach;
    }
    return tspool_save_add(save, &tensor, failure);
}

static int origins_collect(struct source_set *set, struct tspool_failure *failure)
{
    size_t total = 0;

    for (size_t i = 0; i < set->count; i++)
        total += tspool_checkpoint_count(set->checkpoints[i]);
    set->origins = calloc(total + 1, sizeof *set->origins);
    set->addresses = calloc(total + 1, 1);
    if (!set->origins || !set->addresses)
        return refuse(failure, ENOMEM, "copy", "no memory");
    for (size_t i = 0; i < set->count; i++)
        for (size_t j = 0; j < tspool_checkpoint_count(set->checkpoints[i]); j++)
            set->origins[set->origin_count++] = (struct origin){ set->checkpoints[i], j };
    return 0;
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
    int error = origins_collect(set, failure);

    for (size_t i = 0; i < set->origin_count && error == 0; i++)
        error = tensor_declare(set, i, save, failure);
    for (size_t i = 0; i < set->count && error == 0; i++)
        error = extras_declare(set->checkpoints[i], save, failure);
    return error;
}
