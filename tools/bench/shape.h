/* bench/shape.h - which tensors one rank saves: names, dtypes, sizes and places in the whole, without their bytes.
 *
 * Models make what a training run in mixed precision saves: weights in BF16 (GPT-2: F32), master weights and Adam's two
 * moments in F32, split among ranks as Megatron and FSDP split them.
 */
#ifndef BENCH_SHAPE_H
#define BENCH_SHAPE_H

#include "job.h"

#include <tspool/tensor.h>

#define SHAPE_DIMENSIONS 4u

struct shape_tensor {
    char name[128];
    enum tspool_dtype dtype;
    uint32_t rank;
    uint64_t shape[SHAPE_DIMENSIONS], global_shape[SHAPE_DIMENSIONS], global_offsets[SHAPE_DIMENSIONS];
    bool is_sharded;         /* the last two are meant */
    const char *kind;        /* class in the report: "model.mlp", "optimizer.attention"; static */
    uint64_t bytes, memory_offset;
};

struct shape {
    struct shape_tensor *tensors;
    size_t count, capacity;
    uint64_t bytes;          /* of the tensors */
    uint64_t memory_bytes;   /* with each on a multiple of 64 bytes */
    uint64_t parameters;     /* of the whole model, before scale=; 0 where there is no model */
    uint64_t world_size;     /* ranks of the whole job */
    uint64_t tp, pp, dp;
};

/* What rank number `member` of the job saves (job->rank + member of the whole). 0, or -1 with the complaint. */
int shape_make(const struct job *job, unsigned member, struct shape *shape, struct complaint *complaint);
void shape_free(struct shape *shape);

/* For makers of shapes. 0 or -1 (no memory). `tensor` has all but bytes and memory_offset. */
int shape_append(struct shape *shape, const struct shape_tensor *tensor);

#endif
