/* read/reader.c - the loop that reads jobs and has them checked. See reader.h.
 *
 * One job at a time gives out reads, so that a file is read front to back; several are in flight, being read or checked.
 * After the first failure nothing new is begun, and what is in flight comes back before the run returns: the kernel and
 * the compute threads write to memory that is the caller's again afterwards.
 */
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <read/reader.h>
#include <stdlib.h>
#include <string.h>

#define JOB_COUNT 12u
#define JOB_BYTES LEAF_BYTES
#define JOB_PARTS_MAX 4096u
#define JOIN_GAP_BYTES KIB(64)  /* adjacent parts closer than this share a job */
#define STREAM_COUNT 4u
#define COMPLETION_BATCH 32u

enum job_state {
    JOB_FREE,     /* job_compose, when there is something to read */
    JOB_READING,  /* its last read's completion: to CHECKING, or to FREE when a read failed */
    JOB_CHECKING  /* the check's completion: to FREE */
};

struct job {
    enum job_state state;
    struct reader *reader;
    const struct checkpoint_file *file;
    struct part *parts;
    size_t part_count, part_capacity;
    uint64_t begin, end;      /* of the file, as wanted; begin is aligned */
    uint64_t body_end;        /* aligned: reads up to here go to `memory`, the rest of a placed part through `tail` */
    uint64_t next;            /* reads were given out up to here */
    unsigned reads;           /* in flight */
    uint8_t *memory;          /* where `begin` goes: scratch, or the caller's */
    uint8_t *scratch, *tail;  /* made when first needed, kept */
    uint32_t scratch_align;
    int error;                /* the first failed read */
    uint64_t error_offset;
    struct op check;
};

struct transfer {
    struct op op;
    struct job *job;
    struct transfer *next;    /* while free */
    uint64_t end;             /* of the file: what is wanted of this read */
    bool tail;
};

struct reader_memory { struct job jobs[JOB_COUNT]; struct transfer *transfers; };

struct reader {
    const struct run *run;
    struct io *io;
    struct tspool_failure *failure;
    struct reader_memory *memory;
    struct sorted_request *sorted;
    const struct sorted_request *next_file;  /* the first request of the next file that has no stream yet */
    uint32_t *outstanding;    /* per request: parts in jobs, and 1 until its parts have all been made */
    struct part_stream streams[STREAM_COUNT];
    struct part pending[STREAM_COUNT];       /* a part that did not fit the last job */
    bool has_pending[STREAM_COUNT];
    unsigned turn;            /* the stream whose turn it is */
    struct transfer *free_transfers;
    struct job *current;      /* the job that is giving out reads */
    unsigned in_flight;       /* ops */
    int error;
};

/* Failures ------------------------------------------------------------------------------------------------------------- */

static void reader_fail(struct reader *reader, int error)
{
    if (!reader->error)
        reader->error = error;
}

static int record_damage(const struct reader *reader, const struct run_damage *damage)
{
    const struct tspool_checkpoint *checkpoint = reader->run->checkpoint;
    size_t tensor = run_request(reader->run, damage->request)->tensor;
    uint64_t file_begin = entry_file_offset(checkpoint, tensor) + damage->begin;
    struct failure_at at = { .operation = "verify", .tensor = checkpoint->entries[tensor].name, .file_offset = file_begin,
                             .path = checkpoint->files[checkpoint->entries[tensor].file].source.path };

    return failure_set(reader->failure, TSPOOL_STAGE_VERIFY, EBADMSG, at, "Bytes %llu to %llu of the file do not match their digest: "
                       "damaged after they were written.", (unsigned long long)file_begin,
                       (unsigned long long)(file_begin + damage->end - damage->begin));
}

static int record_read_error(const struct reader *reader, const struct job *job, const struct run_damage *damage)
{
    const struct tspool_checkpoint *checkpoint = reader->run->checkpoint;
    struct failure_at at = { .operation = "read", .path = job->file->source.path, .file_offset = job->error_offset,
                             .tensor = checkpoint->entries[run_request(reader->run, damage->request)->tensor].name };

    return failure_set(reader->failure, TSPOOL_STAGE_READ, -job->error, at,
                       job->error == -EBADMSG ? "The file ends here; it was longer when it was opened." : NULL);
}

static void damage_report(struct reader *reader, const struct job *job, const struct part *part)
{
    struct run_damage damage = { part->request, part->begin, part->end, job->error ? job->error : -EBADMSG };

    if (reader->run->on_damage)
        reader_fail(reader, reader->run->on_damage(reader->run->context, &damage));
    else if (!reader->error)
        reader_fail(reader, job->error ? record_read_error(reader, job, &damage) : record_damage(reader, &damage));
}

/* Requests --------------------------------------------------------------------------------------------------------------- */

static void request_put(struct reader *reader, uint32_t request)
{
    if (--reader->outstanding[request] == 0 && reader->run->on_piece && !reader->error)
        reader->run->on_piece(reader->run->context, request);
}

/* Jobs: composing ---------------------------------------------------------------------------------------------------------- */

static bool stream_start(struct reader *reader, struct part_stream *stream)
{
    const struct sorted_request *first = reader->next_file, *end = reader->sorted + reader->run->count, *last = first;

    if (first == end)
        return false;
    while (last < end && last->file == first->file)
        last++;
    *stream = (struct part_stream){ .run = reader->run, .next = first, .end = last, .file = &reader->run->checkpoint->files[first->file] };
    reader->next_file = last;
    return true;
}

/* The stream's next part; false at its end. Requests whose parts are all made are put on the way. */
static bool stream_part(struct reader *reader, unsigned number, struct part *part)
{
    struct part_stream *stream = &reader->streams[number];
    uint32_t ended = 0;
    int made;

    if (reader->has_pending[number]) {
        *part = reader->pending[number];
        reader->has_pending[number] = false;
        return true;
    }
    do {
        made = part_next(stream, part, &ended);
        if (made == 0)
            request_put(reader, ended);
    } while (made == 0);
    if (made == 1)
        reader->outstanding[part->request]++;
    return made == 1;
}

/* A part of the stream whose turn it is, or of the next one that has any; false when all is given out. */
static bool next_part(struct reader *reader, unsigned *number, struct part *part)
{
    for (unsigned tries = 0; tries < STREAM_COUNT; tries++) {
        *number = reader->turn++ % STREAM_COUNT;
        do {
            if (stream_part(reader, *number, part))
                return true;
        } while (stream_start(reader, &reader->streams[*number]));
    }
    return false;
}

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

    return !part->placed && job->part_count < JOB_PARTS_MAX && part->file_begin >= job->begin && end <= job->begin + JOB_BYTES &&
           part->file_begin <= job->end + JOIN_GAP_BYTES;
}

static int job_gather(struct reader *reader, struct job *job, unsigned number)
{
    struct part part;
    int error = 0;

    while (error == 0 && stream_part(reader, number, &part)) {
        if (!job_takes(job, &part)) {
            reader->pending[number] = part;
            reader->has_pending[number] = true;
            break;
        }
        error = job_add(job, &part);
    }
    return error;
}

static int job_begin(struct reader *reader, struct job *job, const struct part *part, unsigned number)
{
    uint32_t align = job->file->source.offset_align;
    int error;

    job->begin = job->next = align_down(part->file_begin, align);
    job->part_count = 0;
    job->end = job->begin;
    job->error = 0;
    error = job_add(job, part);
    if (error == 0 && !part->placed)
        error = job_gather(reader, job, number);
    if (error == 0)
        error = part->placed ? job_memory(job, &job->tail, align) : job_memory(job, &job->scratch, JOB_BYTES);
    job->memory = part->placed ? part->place : job->scratch;
    job->body_end = part->placed ? align_down(job->end, align) : align_up(job->end, align);
    return error;
}

static struct job *job_free(struct reader *reader)
{
    for (unsigned i = 0; i < JOB_COUNT; i++)
        if (reader->memory->jobs[i].state == JOB_FREE)
            return &reader->memory->jobs[i];
    return NULL;
}

/* Takes the next bytes to read into a free job; NULL when there is no job or nothing to read. */
static struct job *job_compose(struct reader *reader)
{
    struct job *job = job_free(reader);
    unsigned number;
    struct part part;
    int error;

    if (!job || !next_part(reader, &number, &part))
        return NULL;
    job->reader = reader;
    job->file = reader->streams[number].file;
    error = job_begin(reader, job, &part, number);
    if (error < 0) {
        reader_fail(reader, failure_set(reader->failure, TSPOOL_STAGE_READ, -error,
                                        FAILURE_AT(.operation = "read", .path = job->file->source.path), NULL));
        return NULL;
    }
    job->state = JOB_READING;
    return job;
}

/* Jobs: reading -------------------------------------------------------------------------------------------------------------- */

static bool job_is_given_out(const struct job *job) { return job->next >= job->end; }

static void transfer_aim(struct transfer *transfer, struct job *job)
{
    const struct source *source = &job->file->source;
    uint64_t item = align_up(job->reader->run->checkpoint->item_bytes, source->offset_align);

    transfer->job = job;
    transfer->tail = job->next >= job->body_end;
    transfer->op = (struct op){ .kind = OP_READ, .handle = source->handle, .file_offset = job->next, .owner = transfer };
    transfer->op.size = transfer->tail ? source->offset_align : min_u64(item, job->body_end - job->next);
    transfer->op.memory = transfer->tail ? job->tail : job->memory + (job->next - job->begin);
    transfer->end = min_u64(job->next + transfer->op.size, job->end);
}

/* 0; 1 when the io has no room just now. */
static int transfer_submit(struct reader *reader, struct transfer *transfer)
{
    int error = io_submit(reader->io, &transfer->op);

    if (error == -EBUSY && reader->in_flight > 0)
        return 1;
    if (error < 0) {
        reader_fail(reader, failure_set(reader->failure, TSPOOL_STAGE_READ, -error,
                                        FAILURE_AT(.operation = "read", .path = transfer->job->file->source.path), NULL));
        return error;
    }
    reader->in_flight++;
    transfer->job->reads++;
    return 0;
}

static void transfer_put(struct reader *reader, struct transfer *transfer)
{
    transfer->next = reader->free_transfers;
    reader->free_transfers = transfer;
}

/* Gives out reads until the io is full or there is nothing more to read just now. */
static void reader_fill(struct reader *reader)
{
    while (reader->free_transfers && !reader->error) {
        struct transfer *transfer = reader->free_transfers;

        if (!reader->current && !(reader->current = job_compose(reader)))
            return;
        transfer_aim(transfer, reader->current);
        if (transfer_submit(reader, transfer) != 0)
            return;
        reader->free_transfers = transfer->next;
        reader->current->next += transfer->op.size;
        if (job_is_given_out(reader->current))
            reader->current = NULL;
    }
}

/* Jobs: the end -------------------------------------------------------------------------------------------------------------- */

static void job_finish(struct reader *reader, struct job *job)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < job->part_count; i++) {
        const struct part *part = &job->parts[i];

        if (part->damaged || job->error)
            damage_report(reader, job, part);
        bytes += part->end - part->begin;
        request_put(reader, part->request);
    }
    job->state = JOB_FREE;
    if (reader->run->on_bytes)
        reader->run->on_bytes(reader->run->context, bytes);
}

static int64_t job_check(void *argument)
{
    struct job *job = argument;

    parts_check(job->reader->run, job->parts, job->part_count, job->memory, job->begin);
    return 0;
}

static bool job_needs_check(const struct job *job) { return job->parts[0].checked || !job->parts[0].placed; }

static void job_read_done(struct reader *reader, struct job *job)
{
    int error = 0;

    if (job->error || reader->error || !job_needs_check(job)) {
        job_finish(reader, job);
        return;
    }
    job->state = JOB_CHECKING;
    job->check = (struct op){ .kind = OP_COMPUTE, .compute = job_check, .argument = job, .owner = job };
    error = io_submit(reader->io, &job->check);
    if (error == 0) {
        reader->in_flight++;
        return;
    }
    reader_fail(reader, failure_set(reader->failure, TSPOOL_STAGE_READ, -error, FAILURE_AT(.operation = "verify"), NULL));
    job->state = JOB_FREE;
}

static void job_fail(struct job *job, int error, uint64_t file_offset)
{
    if (job->error)
        return;
    job->error = error;
    job->error_offset = file_offset;
}

/* A read came short of what is wanted: goes on from the last aligned place, where there is one further on. */
static bool transfer_advance(struct reader *reader, struct transfer *transfer, uint64_t reached)
{
    struct job *job = transfer->job;
    uint64_t from = align_down(reached, job->file->source.offset_align), step = from - transfer->op.file_offset;
    int submitted;

    if (from == transfer->op.file_offset) {
        job_fail(job, -EBADMSG, reached);
        return false;
    }
    transfer->op.file_offset = from;
    transfer->op.memory = (uint8_t *)transfer->op.memory + step;
    transfer->op.size -= step;
    submitted = transfer_submit(reader, transfer);
    if (submitted != 0)
        job_fail(job, submitted < 0 ? submitted : -EBUSY, reached);
    return submitted == 0;
}

static void transfer_done(struct reader *reader, struct transfer *transfer, int64_t result)
{
    struct job *job = transfer->job;
    uint64_t reached = transfer->op.file_offset + (result > 0 ? (uint64_t)result : 0);

    job->reads--;
    if (result < 0)
        job_fail(job, (int)result, transfer->op.file_offset);
    else if (reached < transfer->end && transfer_advance(reader, transfer, reached))
        return;
    if (transfer->tail && !job->error)
        memcpy(job->memory + (job->body_end - job->begin), job->tail, job->end - job->body_end);
    transfer_put(reader, transfer);
    if (job->reads == 0 && (job_is_given_out(job) || job->error)) {
        if (reader->current == job)
            reader->current = NULL;
        job_read_done(reader, job);
    }
}

static void reader_take(struct reader *reader, const struct completion *completion)
{
    reader->in_flight--;
    if (completion->op->kind == OP_READ)
        transfer_done(reader, completion->op->owner, completion->result);
    else
        job_finish(reader, completion->op->owner);
}

/* The run -------------------------------------------------------------------------------------------------------------------- */

static void reader_loop(struct reader *reader)
{
    struct completion completions[COMPLETION_BATCH];

    reader_fill(reader);
    while (reader->in_flight) {
        int count = io_wait(reader->io, completions, COMPLETION_BATCH, IO_FOREVER);

        if (count < 0) {
            reader_fail(reader, failure_set(reader->failure, TSPOOL_STAGE_READ, -count, FAILURE_AT(.operation = "wait"), NULL));
            lane_drop(&reader->run->checkpoint->lane); /* which waits until nothing is in flight */
            return;
        }
        for (int i = 0; i < count; i++)
            reader_take(reader, &completions[i]);
        reader_fill(reader);
    }
}

static void memory_free(void *memory)
{
    struct reader_memory *made = memory;

    for (unsigned i = 0; i < JOB_COUNT; i++) {
        free(made->jobs[i].scratch);
        free(made->jobs[i].tail);
        free(made->jobs[i].parts);
    }
    free(made->transfers);
    free(made);
}

static struct reader_memory *memory_get(struct lane *lane)
{
    struct reader_memory *memory = lane->scratch;

    if (memory)
        return memory;
    memory = calloc(1, sizeof *memory);
    if (!memory)
        return NULL;
    memory->transfers = calloc(lane->depth, sizeof *memory->transfers);
    if (!memory->transfers) {
        free(memory);
        return NULL;
    }
    lane->scratch = memory;
    lane->scratch_free = memory_free;
    return memory;
}

static int reader_init(struct reader *reader, const struct run *run, struct tspool_failure *failure)
{
    struct lane *lane = &run->checkpoint->lane;
    int error;

    *reader = (struct reader){ .run = run, .io = lane->io, .failure = failure, .memory = memory_get(lane) };
    reader->outstanding = malloc((run->count + 1) * sizeof *reader->outstanding);
    if (!reader->memory || !reader->outstanding)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "read", .path = run->checkpoint->path), NULL);
    error = requests_sort(run, &reader->sorted, failure);
    if (error < 0)
        return error;
    reader->next_file = reader->sorted;
    for (size_t i = 0; i < run->count; i++)
        reader->outstanding[i] = 1;
    for (unsigned i = 0; i < JOB_COUNT; i++)
        reader->memory->jobs[i].state = JOB_FREE;
    for (unsigned i = 0; i < lane->depth; i++)
        transfer_put(reader, &reader->memory->transfers[i]);
    return 0;
}

int reader_run(const struct run *run, struct tspool_failure *failure)
{
    struct reader reader;
    int error = reader_init(&reader, run, failure);

    if (error == 0) {
        reader_loop(&reader);
        error = reader.error;
    }
    free(reader.sorted);
    free(reader.outstanding);
    return error;
}
