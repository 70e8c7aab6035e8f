/* read/job.c - see job.h. */
#include <base/array.h>
#include <base/checked.h>
#include <errno.h>
#include <read/job.h>
#include <stdlib.h>
#include <string.h>

#define JOB_BYTES LEAF_BYTES
#define JOB_PARTS_MAX 4096u
#define JOIN_GAP_BYTES KIB(64)  /* adjacent parts closer than this share a job */

/* A part may begin just behind an aligned place and end just behind another: two blocks more than its size. */
static int job_memory(struct job *job, uint8_t **memory, size_t size)
{
    uint32_t alignment = (uint32_t)max_u64(job->file->source.memory_align, max_u64(job->file->source.offset_align, 4096));

    if (job->scratch_align < alignment) {
        free(job->scratch);
        free(job->tail);
        job->scratch = job->tail = NULL;
        job->scratch_align = alignment;
    }
    if (!*memory)
        *memory = aligned_alloc(job->scratch_align, align_up(size + 2 * job->scratch_align, job->scratch_align));
    return *memory ? 0 : -ENOMEM;
}

static int job_add(struct job *job, const struct part *part)
{
    int error = array_reserve((void **)&job->parts, &job->part_capacity, job->part_count + 1, sizeof *part);

    if (error < 0)
        return error;
    job->parts[job->part_count++] = *part;
    job->end = max_u64(job->end, part->file_begin + (part->end - part->begin));
    return 0;
}

static bool job_takes(const struct job *job, const struct part *part)
{
    uint64_t end = part->file_begin + (part->end - part->begin);

    if (part->placed || job->part_count == JOB_PARTS_MAX)
        return false;
    return part->file_begin >= job->begin && end <= job->begin + JOB_BYTES && part->file_begin <= job->end + JOIN_GAP_BYTES;
}

static int job_gather(struct job *job, struct supply *supply, unsigned stream)
{
    struct part part;
    int error = 0;

    while (error == 0 && supply_more(supply, stream, &part)) {
        if (!job_takes(job, &part)) {
            supply_return(supply, stream, &part);
            break;
        }
        error = job_add(job, &part);
    }
    return error;
}

/* Straight into the caller's memory. */
static int job_place(struct job *job, const struct part *part)
{
    uint32_t align = job->file->source.offset_align;

    job->memory = part->place;
    job->body_end = align_down(job->end, align);
    return job_memory(job, &job->tail, align);
}

/* Through the job's own memory, with what else lies beside it. */
static int job_collect(struct job *job, struct supply *supply, unsigned stream)
{
    int error = job_gather(job, supply, stream);

    if (error == 0)
        error = job_memory(job, &job->scratch, JOB_BYTES);
    job->memory = job->scratch;
    job->body_end = align_up(job->end, job->file->source.offset_align);
    return error;
}

int job_compose(struct job *job, struct supply *supply)
{
    unsigned stream;
    struct part part;
    int error;

    if (!supply_next(supply, &stream, &part))
        return 0;
    job->run = supply->run;
    job->file = supply->streams[stream].file;
    job->part_count = 0;
    job->error = 0;
    job->begin = job->end = job->next = align_down(part.file_begin, job->file->source.offset_align);
    error = job_add(job, &part);
    if (error == 0)
        error = part.placed ? job_place(job, &part) : job_collect(job, supply, stream);
    if (error < 0)
        return error;
    job->state = JOB_READING;
    return 1;
}

void transfer_aim(struct transfer *transfer, struct job *job)
{
    const struct source *source = &job->file->source;
    uint64_t item = align_up(job->run->checkpoint->item_bytes, source->offset_align);

    transfer->job = job;
    transfer->tail = job->next >= job->body_end;
    transfer->op = (struct op){ .kind = OP_READ, .handle = source->handle, .file_offset = job->next, .owner = transfer };
    transfer->op.size = transfer->tail ? source->offset_align : min_u64(item, job->body_end - job->next);
    transfer->op.memory = transfer->tail ? job->tail : job->memory + (job->next - job->begin);
    transfer->end = min_u64(job->next + transfer->op.size, job->end);
}

bool transfer_advance(struct transfer *transfer, uint64_t reached)
{
    uint64_t from = align_down(reached, transfer->job->file->source.offset_align), step = from - transfer->op.file_offset;

    transfer->op.file_offset = from;
    transfer->op.memory = (uint8_t *)transfer->op.memory + step;
    transfer->op.size -= step;
    return step > 0;
}

void transfer_settle(const struct transfer *transfer)
{
    const struct job *job = transfer->job;

    if (transfer->tail)
        memcpy(job->memory + (job->body_end - job->begin), job->tail, job->end - job->body_end);
}

void job_deinit(struct job *job)
{
    free(job->scratch);
    free(job->tail);
    free(job->parts);
}
