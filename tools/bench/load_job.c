/* bench/load_job.c - rw=load: verified reads of a whole checkpoint into memory that was touched before. See rank.h.
 *
 * Without filename= the checkpoint is made first, outside the clock. Each rank reads what it saved. invalidate=1 (the default)
 * asks the kernel to forget the files' pages before each load; what stays is counted and told.
 */
#include "measure.h"
#include "rank.h"
#include "state.h"

#include "../commands/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct loader {
    struct shape shape;      /* of what is to be read; made from the checkpoint with filename= */
    uint8_t *memory;
    char path[4200];
};

/* Making it first: one round of rw=save, whose figures are thrown away. */
static int checkpoint_make(struct crew *crew, unsigned member, struct loader *loader)
{
    struct outcome *outcome = outcome_of(crew, member);
    void *saver = calloc(1, save_kind.context_bytes);
    pid_t pid = outcome->pid;
    uint64_t started = outcome->started_wall_ms, written;
    int error;

    if (!saver)
        return rank_fail(crew, member, ENOMEM, "out of memory");
    error = save_kind.open(crew, member, saver);
    if (error == 0)
        error = save_kind.round(crew, member, saver, 0);
    save_kind.close(crew, member, saver);
    free(saver);
    if (error == 0) {
        written = outcome->bytes;
        memset(outcome, 0, sizeof *outcome);
        outcome->prepared_bytes = written;
        outcome->pid = pid;
        outcome->started_wall_ms = started;
    }
    snprintf(loader->path, sizeof loader->path, "%s/bench-00000001", crew->root);
    return error;
}

static int checkpoint_open(struct crew *crew, unsigned member, const struct loader *loader, struct tspool_checkpoint **checkpoint)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const struct job *job = crew->job;
    int error;

    options.io = job->ioengine == IOENGINE_URING ? TSPOOL_IO_URING : job->ioengine == IOENGINE_THREADS ? TSPOOL_IO_THREADS
            : TSPOOL_IO_AUTO;
    options.item_bytes = (uint32_t)job->bs;
    options.depth = (uint32_t)job->iodepth;
    options.hash_threads = (uint32_t)job->hash_threads;
    options.buffered = !job->is_direct;
    error = tspool_checkpoint_open(loader->path, &options, checkpoint, &failure);
    return error < 0 ? rank_fail(crew, member, -error, "%s", failure.message) : 0;
}

static bool is_at(const struct tspool_tensor_info *info, const struct shape_tensor *tensor)
{
    if (!info->global_offsets)
        return true;
    for (uint32_t d = 0; d < info->rank; d++)
        if (info->global_offsets[d] != tensor->global_offsets[d])
            return false;
    return true;
}

/* Of several shards of one name the one at our place; they follow each other. */
static int tensor_find(struct tspool_checkpoint *checkpoint, const struct shape_tensor *tensor, size_t *index)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    size_t at;

    if (tspool_checkpoint_find(checkpoint, tensor->name, &at) < 0)
        return -ENOENT;
    for (; tspool_checkpoint_tensor(checkpoint, at, &info) == 0; at++)
        if (strcmp(info.name, tensor->name) == 0 && (!tensor->is_sharded || is_at(&info, tensor))) {
            *index = at;
            return 0;
        }
    return -ENOENT;
}

/* With filename=: whatever is in it, by its number. */
static int shape_take(struct tspool_checkpoint *checkpoint, struct loader *loader)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

    for (size_t i = 0; tspool_checkpoint_tensor(checkpoint, i, &info) == 0; i++) {
        struct shape_tensor tensor = { .dtype = TSPOOL_U8, .rank = 1, .shape = { info.bytes }, .kind = "tensors" };

        if (!info.tied_to && shape_append(&loader->shape, &tensor) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int shape_find(struct crew *crew, unsigned member, struct loader *loader)
{
    struct tspool_checkpoint *checkpoint;
    struct complaint complaint;
    int error;

    if (!crew->job->filename)
        return shape_make(crew->job, member, &loader->shape, &complaint) < 0
                ? rank_fail(crew, member, EINVAL, "%s", complaint.text) : 0;
    error = checkpoint_open(crew, member, loader, &checkpoint);
    if (error < 0)
        return error;
    error = shape_take(checkpoint, loader);
    tspool_checkpoint_close(checkpoint);
    return error < 0 ? rank_fail(crew, member, -error, "out of memory") : 0;
}

static int load_open(struct crew *crew, unsigned member, void *context)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct loader *loader = context;
    int error = 0;

    if (crew->job->filename)
        snprintf(loader->path, sizeof loader->path, "%s", crew->job->filename);
    else
        error = checkpoint_make(crew, member, loader);
    if (error == 0)
        error = shape_find(crew, member, loader);
    if (error < 0)
        return error;
    loader->memory = memory_map(loader->shape.memory_bytes);
    if (!loader->memory)
        return rank_fail(crew, member, errno, "memory for the state: %s", strerror(errno));
    memset(loader->memory, 1, loader->shape.memory_bytes);
    outcome->tensors = loader->shape.count;
    outcome->state_bytes = loader->shape.bytes;
    outcome->wanted_direct = crew->job->is_direct;
    return rank_meet(crew, member);
}

static struct tspool_read_request *requests_make(const struct crew *crew, const struct loader *loader,
                                                 struct tspool_checkpoint *checkpoint)
{
    struct tspool_read_request *requests = calloc(loader->shape.count ? loader->shape.count : 1, sizeof *requests);
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    size_t index = 0;

    for (size_t i = 0; requests && i < loader->shape.count; i++) {
        const struct shape_tensor *tensor = &loader->shape.tensors[i];

        if (!crew->job->filename && tensor_find(checkpoint, tensor, &index) < 0) {
            free(requests);
            return NULL;
        }
        while (crew->job->filename && tspool_checkpoint_tensor(checkpoint, index, &info) == 0 && info.tied_to)
            index++;
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        requests[i].tensor = index;
        requests[i].data = loader->memory + tensor->memory_offset;
        requests[i].bytes = tensor->bytes;
        index += crew->job->filename != NULL;
    }
    return requests;
}

static void load_note(struct crew *crew, unsigned member, const struct tspool_checkpoint *checkpoint, const struct round *round,
                      uint32_t number)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct outcome *outcome = outcome_of(crew, member);
    uint64_t item = crew->job->bs ? crew->job->bs : 512 << 10;

    tspool_checkpoint_info(checkpoint, &info);
    outcome->is_direct = info.direct;
    outcome->files = info.files;
    outcome->item_bytes = (uint32_t)item;
    outcome->depth = crew->job->iodepth ? (uint32_t)crew->job->iodepth : 32;
    memcpy(outcome->backend, info.backend, sizeof outcome->backend);
    if (number < ROUNDS_KEPT)
        outcome->rounds[number] = *round;
    outcome->bytes += round->bytes;
    outcome->ios += (round->bytes + item - 1) / item;
    outcome->runtime_ns += round->wall_ns;
    histogram_add(&outcome->clat, round->wall_ns);
    histogram_add(&outcome->lat, round->wall_ns);
    moments_add(&outcome->bandwidth.kib, (uint64_t)((double)round->bytes / 1024 * 1e9 / (double)round->wall_ns));
    atomic_store(&outcome->done_bytes, (number + 1) * outcome->state_bytes);
}

static int load_round(struct crew *crew, unsigned member, void *context, uint32_t number)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct outcome *outcome = outcome_of(crew, member);
    struct tspool_read_request *requests = NULL;
    struct loader *loader = context;
    struct tspool_checkpoint *checkpoint;
    struct round round = { .bytes = loader->shape.bytes };
    uint64_t begun, cpu;
    int error;

    atomic_store(&outcome->total_bytes, (crew->job->loops > number ? crew->job->loops : number + 1) * outcome->state_bytes);
    if (crew->job->invalidate && member == 0)
        cache_drop(loader->path);
    memory_prime(crew->job->prime);
    memset(loader->memory, 1, loader->shape.memory_bytes);
    round.page_cache_bytes = member == 0 ? cached_bytes(loader->path) : 0;
    error = rank_meet(crew, member);
    if (error < 0)
        return error;
    cpu = own_cpu_ns();
    begun = now_ns();
    error = checkpoint_open(crew, member, loader, &checkpoint);
    if (error < 0)
        return error;
    requests = requests_make(crew, loader, checkpoint);
    if (!requests)
        error = rank_fail(crew, member, ENOENT, "%s does not hold the tensors of this shape", loader->path);
    else if ((error = tspool_checkpoint_read(checkpoint, requests, loader->shape.count, NULL, NULL, &failure)) < 0)
        rank_fail(crew, member, -error, "%s", failure.message);
    round.wall_ns = now_ns() - begun;
    round.cpu_ns = own_cpu_ns() - cpu;
    if (error == 0)
        load_note(crew, member, checkpoint, &round, number);
    atomic_store(&outcome->rounds_done, number + 1);
    tspool_checkpoint_close(checkpoint);
    free(requests);
    return error;
}

static void load_close(struct crew *crew, unsigned member, void *context)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct loader *loader = context;

    outcome->peak_bytes = status_bytes(getpid(), "VmHWM");
    usage_take(outcome);
    memory_unmap(loader->memory, loader->shape.memory_bytes);
    shape_free(&loader->shape);
}

const struct workload_kind load_kind = { sizeof(struct loader), load_open, load_round, load_close };
