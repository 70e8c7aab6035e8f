/* read/reader.c - the loop that reads jobs and has them checked. See reader.h.
 *
 * One job at a time gives out reads, so that a file is read front to back; several are in flight, being read or checked.
 * After the first failure nothing new is begun, and what is in flight comes back before the run returns: the kernel and
 * the compute threads write to memory that is the caller's again afterwards.
 */
#include <base/failure.h>
#include <errno.h>
#include <read/job.h>
#include <stdlib.h>

#define JOB_COUNT 12u
#define COMPLETION_BATCH 32u

struct reader_memory { struct job jobs[JOB_COUNT]; struct transfer *transfers; }; /* kept by the lane */

struct reader {
    const struct run *run;
    struct io *io;
    struct tspool_failure *failure;
    struct reader_memory *memory;
    struct supply supply;
    struct transfer *free_transfers;
    struct job *current;      /* the job that is giving out reads */
    unsigned in_flight;       /* ops */
    int error;
};

/* Failures ----------------------------------------------------------------------------------------------------------- */

static void reader_fail(struct reader *reader, int error)
{
    if (reader->error || !error)
        return;
    reader->error = error;
    reader->supply.silent = true;
}

/* The machinery refused: recorded, and the run ends. */
static int reader_refuse(struct reader *reader, int error, const char *operation)
{
    struct failure_at at = FAILURE_AT(.operation = operation, .path = reader->run->checkpoint->path);

    if (!reader->error)
        reader_fail(reader, failure_set(reader->failure, TSPOOL_STAGE_READ, -error, at, NULL));
    return error;
}

static const char *tensor_name(const struct reader *reader, const struct run_damage *damage)
{
    return reader->run->checkpoint->entries[run_request(reader->run, damage->request)->tensor].name;
}

static int record_damage(const struct reader *reader, const struct job *job, const struct run_damage *damage)
{
    size_t tensor = run_request(reader->run, damage->request)->tensor;
    uint64_t begin = entry_file_offset(reader->run->checkpoint, tensor) + damage->begin,
        end = begin + damage->end - damage->begin;
    struct failure_at at = { .operation = "verify", .tensor = tensor_name(reader, damage), .path = job->file->source.path,
                             .file_offset = begin };

    return failure_set(reader->failure, TSPOOL_STAGE_VERIFY, EBADMSG, at,
                       "Bytes %llu to %llu of the file do not match their digest: damaged after they were written.",
                       (unsigned long long)begin, (unsigned long long)end);
}

static int record_read_error(const struct reader *reader, const struct job *job, const struct run_damage *damage)
{
    struct failure_at at = { .operation = "read", .tensor = tensor_name(reader, damage), .path = job->file->source.path,
                             .file_offset = job->error_offset };

    return failure_set(reader->failure, TSPOOL_STAGE_READ, -job->error, at,
                       job->error == -EBADMSG ? "The file ends here; it was longer when it was opened." : NULL);
}

static void damage_report(struct reader *reader, const struct job *job, const struct part *part)
{
    struct run_damage damage = { part->request, part->begin, part->end, job->error ? job->error : -EBADMSG };

    if (reader->error)
        return;
    if (reader->run->on_damage)
        reader_fail(reader, reader->run->on_damage(reader->run->context, &damage));
    else
        reader_fail(reader, job->error ? record_read_error(reader, job, &damage) : record_damage(reader, job, &damage));
}

/* Giving out reads --------------------------------------------------------------------------------------------------- */

static struct job *job_free(struct reader *reader)
{
    for (unsigned i = 0; i < JOB_COUNT; i++)
        if (reader->memory->jobs[i].state == JOB_FREE)
            return &reader->memory->jobs[i];
    return NULL;
}

/* The job to read from: the one at hand, or a new one; NULL when no job is free or nothing is left to read. */
static struct job *job_at_hand(struct reader *reader)
{
    int composed = 0;

    if (!reader->current && (reader->current = job_free(reader))) {
        composed = job_compose(reader->current, &reader->supply);
        if (composed < 0)
            reader_refuse(reader, composed, "read");
        if (composed <= 0)
            reader->current = NULL;
    }
    return reader->current;
}

/* 0; 1 when the io has no room just now; -errno when it refuses. */
static int transfer_submit(struct reader *reader, struct transfer *transfer)
{
    int error = io_submit(reader->io, &transfer->op);

    if (error == -EBUSY && reader->in_flight > 0)
        return 1;
    if (error < 0)
        return reader_refuse(reader, error, "read");
    reader->in_flight++;
    transfer->job->reads++;
    return 0;
}

static void transfer_put(struct reader *reader, struct transfer *transfer)
{
    transfer->next = reader->free_transfers;
    reader->free_transfers = transfer;
}

/* Until the io is full or there is nothing more to read just now. */
static void reader_fill(struct reader *reader)
{
    while (reader->free_transfers && !reader->error) {
        struct transfer *transfer = reader->free_transfers;

        if (!job_at_hand(reader))
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

/* Taking completions ------------------------------------------------------------------------------------------------- */

static void job_finish(struct reader *reader, struct job *job)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < job->part_count; i++) {
        const struct part *part = &job->parts[i];

        if (part->damaged || job->error)
            damage_report(reader, job, part);
        bytes += part->end - part->begin;
        supply_done(&reader->supply, part->request);
    }
    job->state = JOB_FREE;
    if (reader->run->on_bytes)
        reader->run->on_bytes(reader->run->context, bytes);
}

static int64_t job_check(void *argument)
{
    struct job *job = argument;

    parts_check(job->run, job->parts, job->part_count, job->memory, job->begin);
    return 0;
}

static void job_read_done(struct reader *reader, struct job *job)
{
    int error;

    if (job->error || reader->error || !job_needs_check(job)) {
        job_finish(reader, job);
        return;
    }
    job->state = JOB_CHECKING;
    job->check = (struct op){ .kind = OP_COMPUTE, .compute = job_check, .argument = job, .owner = job };
    error = io_submit(reader->io, &job->check);
    if (error < 0) {
        reader_refuse(reader, error, "verify");
        job->state = JOB_FREE;
        return;
    }
    reader->in_flight++;
}

static void job_fail(struct job *job, int error, uint64_t file_offset)
{
    if (job->error)
        return;
    job->error = error;
    job->error_offset = file_offset;
}

/* A read came short of what is wanted: true when it goes on from the last aligned place. */
static bool transfer_continue(struct reader *reader, struct transfer *transfer, uint64_t reached)
{
    int submitted;

    if (!transfer_advance(transfer, reached)) {
        job_fail(transfer->job, -EBADMSG, reached);
        return false;
    }
    submitted = transfer_submit(reader, transfer);
    if (submitted != 0)
        job_fail(transfer->job, submitted < 0 ? submitted : -EBUSY, reached);
    return submitted == 0;
}

static void transfer_done(struct reader *reader, struct transfer *transfer, int64_t result)
{
    struct job *job = transfer->job;
    uint64_t reached = transfer->op.file_offset + (result > 0 ? (uint64_t)result : 0);

    job->reads--;
    if (result < 0)
        job_fail(job, (int)result, transfer->op.file_offset);
    else if (reached < transfer->end && transfer_continue(reader, transfer, reached))
        return;
    if (!job->error)
        transfer_settle(transfer);
    transfer_put(reader, transfer);
    if (job->reads > 0 || (!job_is_given_out(job) && !job->error))
        return;
    if (reader->current == job)
        reader->current = NULL;
    job_read_done(reader, job);
}

static void reader_take(struct reader *reader, const struct completion *completion)
{
    struct job *job = completion->op->owner;

    reader->in_flight--;
    if (completion->op->kind == OP_READ) {
        transfer_done(reader, completion->op->owner, completion->result);
        return;
    }
    if (completion->result < 0) /* nothing was checked or copied out */
        job_fail(job, (int)completion->result, job->begin);
    job_finish(reader, job);
}

/* The run ------------------------------------------------------------------------------------------------------------ */

static void reader_loop(struct reader *reader)
{
    struct completion completions[COMPLETION_BATCH];

    reader_fill(reader);
    while (reader->in_flight) {
        int count = io_wait(reader->io, completions, COMPLETION_BATCH, IO_FOREVER);

        if (count < 0) {
            reader_refuse(reader, count, "wait");
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

    for (unsigned i = 0; i < JOB_COUNT; i++)
        job_deinit(&made->jobs[i]);
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

    *reader = (struct reader){ .run = run, .io = lane->io, .failure = failure, .memory = memory_get(lane) };
    if (!reader->memory)
        return reader_refuse(reader, -ENOMEM, "read");
    for (unsigned i = 0; i < JOB_COUNT; i++)
        reader->memory->jobs[i].state = JOB_FREE;
    for (unsigned i = 0; i < lane->depth; i++)
        transfer_put(reader, &reader->memory->transfers[i]);
    return supply_init(&reader->supply, run, failure);
}

int reader_run(const struct run *run, struct tspool_failure *failure)
{
    struct reader reader;
    int error = reader_init(&reader, run, failure);

    if (error == 0) {
        reader_loop(&reader);
        error = reader.error;
    }
    supply_deinit(&reader.supply);
    return error;
}
