/* bench/shape.c - finds the maker of a shape: "N x SIZE", a file, or a model. See shape.h. */
#include "shape.h"
#include "shape_model.h"
#include "units.h"

#include <base/array.h>
#include <base/checked.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/checkpoint.h>

#define TENSORS_MAX 1000000u
#define BYTES_MAX ((uint64_t)1 << 60)

int shape_append(struct shape *shape, const struct shape_tensor *tensor)
{
    struct shape_tensor *added;
    uint64_t elements = 1;

    if (array_reserve((void **)&shape->tensors, &shape->capacity, shape->count + 1, sizeof *shape->tensors) < 0)
        return -1;
    added = &shape->tensors[shape->count++];
    *added = *tensor;
    for (uint32_t d = 0; d < tensor->rank; d++)
        elements *= tensor->shape[d];
    added->bytes = divide_up(elements * tspool_dtype_bits(tensor->dtype), 8);
    added->memory_offset = shape->memory_bytes;
    shape->bytes += added->bytes;
    shape->memory_bytes += align_up(added->bytes, 64);
    return 0;
}

void shape_free(struct shape *shape)
{
    free(shape->tensors);
    *shape = (struct shape){ 0 };
}

static int no_memory(struct complaint *complaint) { return complaint_set(complaint, "shape: out of memory"); }

/* "16 x 64m": that many tensors of that many bytes each. */

static bool repeated_parse(const char *text, uint64_t *count, uint64_t *bytes)
{
    const char *x = strpbrk(text, "xX");
    char number[32], size[32];

    return x && sscanf(text, " %31[0-9] ", number) == 1 && sscanf(x + 1, " %31[0-9a-zA-Z]", size) == 1 &&
           units_number(number, count) && units_bytes(size, bytes);
}

static int repeated_make(const struct job *job, unsigned member, uint64_t count, uint64_t bytes, struct shape *shape,
                         struct complaint *complaint)
{
    bool words = bytes % 4 == 0;
    uint64_t all;

    count = (uint64_t)((double)count * job->scale + 0.5);
    if (count == 0 || count > TENSORS_MAX || bytes == 0 || !checked_mul(count, bytes, &all) || all > BYTES_MAX)
        return complaint_set(complaint, "shape: '%s' is not within 1..%u tensors of 1 byte or more, 1 EiB in all", job->shape,
                             TENSORS_MAX);
    for (uint64_t i = 0; i < count; i++) {
        struct shape_tensor tensor = { .dtype = words ? TSPOOL_F32 : TSPOOL_U8, .rank = 1, .kind = "tensors",
                                       .shape = { words ? bytes / 4 : bytes } };

        snprintf(tensor.name, sizeof tensor.name, "rank.%" PRIu64 ".tensor.%" PRIu64, job->rank + member, i);
        if (shape_append(shape, &tensor) < 0)
            return no_memory(complaint);
    }
    return 0;
}

/* A file or a checkpoint: what its header lists, each rank the whole of it. */

static int file_tensor_add(const struct tspool_checkpoint *checkpoint, size_t index, const struct job *job, unsigned member,
                           struct shape *shape, struct complaint *complaint)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct shape_tensor tensor = { .kind = "tensors" };

    if (tspool_checkpoint_tensor(checkpoint, index, &info) < 0 || info.tied_to)
        return 0;
    if (info.rank > SHAPE_DIMENSIONS || strlen(info.name) + 24 > sizeof tensor.name) /* the bytes count, not the form */
        snprintf(tensor.name, sizeof tensor.name, "tensor.%zu", index);
    else
        snprintf(tensor.name, sizeof tensor.name, "%s", info.name);
    if (job->numjobs > 1) {
        size_t used = strlen(tensor.name);
        snprintf(tensor.name + used, sizeof tensor.name - used, ".rank.%u", member);
    }
    tensor.dtype = info.rank > SHAPE_DIMENSIONS ? TSPOOL_U8 : info.dtype;
    tensor.rank = info.rank > SHAPE_DIMENSIONS ? 1 : info.rank;
    tensor.shape[0] = info.bytes;
    for (uint32_t d = 0; d < info.rank && info.rank <= SHAPE_DIMENSIONS; d++)
        tensor.shape[d] = info.shape[d];
    return shape_append(shape, &tensor) < 0 ? no_memory(complaint) : 0;
}

static int file_make(const struct job *job, unsigned member, struct shape *shape, struct complaint *complaint)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;
    size_t count;
    int status = 0;

    if (tspool_checkpoint_open(job->shape, NULL, &checkpoint, &failure) < 0)
        return complaint_set(complaint, "shape: %.480s", failure.message);
    count = (size_t)((double)tspool_checkpoint_count(checkpoint) * job->scale + 0.5);
    for (size_t i = 0; i < count && status == 0; i++)
        status = file_tensor_add(checkpoint, i, job, member, shape, complaint);
    tspool_checkpoint_close(checkpoint);
    if (status == 0 && shape->count == 0)
        return complaint_set(complaint, "shape: %s holds no tensor", job->shape);
    return status;
}

int shape_make(const struct job *job, unsigned member, struct shape *shape, struct complaint *complaint)
{
    uint64_t count, bytes;
    int status;

    *shape = (struct shape){ .world_size = job->numjobs };
    if (shape_model_knows(job->shape))
        status = shape_model_make(job, member, shape, complaint);
    else if (repeated_parse(job->shape, &count, &bytes))
        status = repeated_make(job, member, count, bytes, shape, complaint);
    else if (strchr(job->shape, '/') || strstr(job->shape, ".safetensors"))
        status = file_make(job, member, shape, complaint);
    else
        status = shape_model_unknown(job->shape, complaint);
    if (status < 0)
        shape_free(shape);
    return status;
}
