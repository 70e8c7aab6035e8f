/* write/transfer.c - keeping `depth` write items in flight, checking each that comes back.
 *
 * This is the hot path: 52,000 times a second at 26 GB/s. Nothing is allocated here, and nothing is searched but the short
 * list of jobs.
 */
#include <write/machine.h>

#include <assert.h>
#include <base/checked.h>
#include <errno.h>
#include <plan/items.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_PIECE_BYTES MIB(4) /* texts are buffered: larger calls cost less, and four are enough to keep any device busy */
#define STUCK_MAX 4u            /* writes in a row that move nothing: a kernel that never errs would keep us for ever */
#define BURST_NS 10000000u      /* a capped writer may run this far ahead, so that it need not wake for each item */

_Static_assert(CHUNK_BYTES % 4096 == 0, "slots are page-aligned");

struct item {
    struct task task;
    struct item *next_idle;
    uint32_t chunk;             /* NO_CHUNK: a piece of a text */
    uint32_t align;             /* what is written by a short write counts in multiples of this */
    unsigned stuck;
};

int transfer_init(struct transfer *transfer, const struct message_hello *hello)
{
    *transfer = (struct transfer){ .depth = hello->depth, .item_bytes = hello->item_bytes,
                                   .bytes_per_second = hello->bytes_per_second, .resume_ns = IO_FOREVER };
    transfer->items = calloc(hello->depth, sizeof(*transfer->items));
    if (!transfer->items)
        return -ENOMEM;
    for (uint32_t i = 0; i < hello->depth; i++) {
        transfer->items[i].next_idle = transfer->idle;
        transfer->idle = &transfer->items[i];
    }
    return 0;
}

void transfer_deinit(struct transfer *transfer) { free(transfer->items); }

/* The queue of one job ----------------------------------------------------------------------------------------------- */

void write_queue_init(struct write_queue *queue)
{
    *queue = (struct write_queue){ .first_chunk = NO_CHUNK, .last_chunk = NO_CHUNK };
}

static struct item_rules rules_of(const struct writer *writer)
{
    return (struct item_rules){ writer->transfer.item_bytes, writer->mode.offset_align };
}

void write_queue_add(struct job *job, uint32_t chunk)
{
    struct write_queue *queue = &job->writes;
    const struct item_rules rules = rules_of(job->writer);

    job->chunks[chunk].items_left = item_count(&rules, chunk_size(job, chunk));
    job->chunks[chunk].next = NO_CHUNK;
    if (queue->last_chunk == NO_CHUNK)
        queue->first_chunk = chunk;
    else
        job->chunks[queue->last_chunk].next = chunk;
    queue->last_chunk = chunk;
}

/* Fills in what is written where. */
static void chunk_next(struct job *job, struct item *item)
{
    const struct item_rules rules = rules_of(job->writer);
    struct write_queue *queue = &job->writes;
    uint32_t number = queue->first_chunk;
    struct write_item place;
    uint64_t size, arena_offset;

    size = chunk_size(job, number);
    place = item_at(&rules, chunk_file_offset(job, number), size, queue->next_item);
    arena_offset = (uint64_t)job->chunks[number].slot * CHUNK_BYTES + place.chunk_offset;
    item->chunk = number;
    item->align = rules.offset_align;
    item->task.file = job->chunks[number].file;
    item->task.op.file_offset = place.file_offset;
    item->task.op.size = place.size;
    item->task.op.buffer = job->writer->arena_buffer;
    item->task.op.buffer_offset = arena_offset;
    item->task.op.memory = (uint8_t *)job->writer->arena + arena_offset;
    if (++queue->next_item == item_count(&rules, size)) {
        queue->next_item = 0;
        queue->first_chunk = job->chunks[number].next;
        if (queue->first_chunk == NO_CHUNK)
            queue->last_chunk = NO_CHUNK;
    }
}

/* Empty texts need no write: their files are there. The manifest, the last, is never empty. */
static void text_next(struct job *job, struct item *item)
{
    struct write_queue *queue = &job->writes;
    const struct job_file *file;

    while (job->files[queue->text_file].size == 0)
        queue->text_file++;
    assert(queue->text_file < job->file_count);
    file = &job->files[queue->text_file];
    item->chunk = NO_CHUNK;
    item->align = 1;
    item->task.file = queue->text_file;
    item->task.op.file_offset = queue->text_offset;
    item->task.op.size = min_u64(file->size - queue->text_offset, TEXT_PIECE_BYTES);
    item->task.op.buffer = IO_NO_BUFFER;
    item->task.op.memory = (uint8_t *)(uintptr_t)file->text + queue->text_offset; /* written from, never to */
    queue->text_offset += item->task.op.size;
    if (queue->text_offset == file->size) {
        queue->text_file++;
        queue->text_offset = 0;
    }
}

static bool job_has_item(const struct job *job)
{
    if (job->failed)
        return false;
    if (job->state == JOB_WRITE)
        return job->writes.first_chunk != NO_CHUNK;
    return job->state == JOB_TEXTS && job->writes.text_file < job->file_count;
}

/* Completion ----------------------------------------------------------------------------------------------------------- */

static void item_release(struct item *item)
{
    struct transfer *transfer = &item->task.writer->transfer;
    struct job *job = item->task.job;

    item->next_idle = transfer->idle;
    transfer->idle = item;
    job_op_end(job);
}

static void item_finish(struct item *item)
{
    struct job *job = item->task.job;

    if (item->chunk != NO_CHUNK && --job->chunks[item->chunk].items_left == 0)
        chunk_settle(job, item->chunk, CHUNK_WRITING);
    item_release(item);
}

/* Bytes of the file, padding aside. */
static void bytes_count(struct job *job, const struct item *item, uint64_t written)
{
    const struct job_file *file = &job->files[item->task.file];
    uint64_t begin = item->task.op.file_offset;

    if (item->chunk != NO_CHUNK && begin < file->size)
        job->counts.bytes += min_u64(written, file->size - begin);
}

/* A short write: what it left is written again. With O_DIRECT the rest must begin at a multiple of the alignment, so a part
 * beyond the last one is written twice: 10,000 of 16,384 bytes at 4096: go on at 8192. */
static bool item_go_on(struct item *item, uint64_t written)
{
    struct op *op = &item->task.op;
    uint64_t usable = MUTANT(SHORT_WRITE_GOES_ON_UNALIGNED) ? written : align_down(written, item->align);

    item->task.job->counts.short_writes++;
    item->stuck = usable ? 0 : item->stuck + 1;
    if (item->stuck == STUCK_MAX)
        return false;
    bytes_count(item->task.job, item, usable);
    op->file_offset += MUTANT(SHORT_WRITE_GOES_ON_ELSEWHERE) ? 0 : usable;
    op->buffer_offset += usable;
    op->memory = (uint8_t *)op->memory + usable;
    op->size -= usable;
    tasks_submit(&item->task.writer->tasks, &item->task);
    return true;
}

static void item_written(struct task *task, int64_t result)
{
    struct item *item = (struct item *)task;
    struct job *job = task->job;

    job->counts.writes++;
    if (result < 0) {
        job_fail_task(job, task, (int)-result);
    } else if ((uint64_t)result > task->op.size) {
        job_fail(job, EIO, "write", job->hidden, "the kernel says that it wrote more than it was asked to");
    } else if ((uint64_t)result < task->op.size && !job->failed && !MUTANT(SHORT_WRITE_TAKEN_FOR_WHOLE)) {
        if (item_go_on(item, (uint64_t)result))
            return;
        job_fail_task(job, task, EIO);
    } else if (!job->failed) {
        bytes_count(job, item, (uint64_t)result);
        item_finish(item);
        return;
    }
    item_release(item);
}

/* Submitting ----------------------------------------------------------------------------------------------------------- */

/* The cap as a leaky bucket: every item moves paid_until_ns on by the time it is worth; the next may go when that lies less
 * than a burst ahead. */
static bool cap_allows(struct writer *writer)
{
    struct transfer *transfer = &writer->transfer;

    transfer->resume_ns = IO_FOREVER;
    if (!transfer->bytes_per_second || transfer->paid_until_ns <= writer->tasks.now_ns + BURST_NS)
        return true;
    transfer->resume_ns = transfer->paid_until_ns - BURST_NS;
    return false;
}

static void cap_pay(struct writer *writer, uint64_t bytes)
{
    struct transfer *transfer = &writer->transfer;

    if (transfer->bytes_per_second)
        transfer->paid_until_ns = max_u64(transfer->paid_until_ns, writer->tasks.now_ns) +
                                  (uint64_t)((double)bytes * 1e9 / (double)transfer->bytes_per_second);
}

static void item_submit(struct job *job, struct item *item)
{
    struct task *task = &item->task;

    task->op.kind = OP_WRITE;
    task->op.handle = job->files[task->file].handle;
    task->done = item_written;
    task->writer = job->writer;
    task->job = job;
    item->stuck = 0;
    job->pending++;
    cap_pay(job->writer, task->op.size);
    tasks_submit(&job->writer->tasks, task);
}

void transfer_pump(struct writer *writer)
{
    struct transfer *transfer = &writer->transfer;

    transfer->resume_ns = IO_FOREVER;
    for (struct job *job = writer->first_job; job && transfer->idle; job = job->next)
        while (transfer->idle && job_has_item(job)) {
            struct item *item = transfer->idle;

            if (!cap_allows(writer))
                return;
            transfer->idle = item->next_idle;
            if (job->state == JOB_WRITE)
                chunk_next(job, item);
            else
                text_next(job, item);
            item_submit(job, item);
        }
}
