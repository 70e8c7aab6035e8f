/* write/hashing.c - leaf digests of staged chunks, on compute threads.
 *
 * A task reads its chunk's slot and the sheet, and writes digests of leaves that no other task writes; what it found goes
 * back to the loop in the task itself. So nothing is shared but what submission and completion hand over.
 */
#include <write/machine.h>

#include <assert.h>
#include <base/checked.h>
#include <errno.h>
#include <format/digests.h>
#include <stdlib.h>

#define TASKS_PER_THREAD 2u /* one at work, one waiting */

struct hash_task {
    struct task task;
    struct hash_task *next;
    uint32_t chunk;
    const uint8_t *bytes;
    uint64_t begin, end;          /* of the chunk in its file */
    struct hash_stream *straddle; /* leading: in; interior: out, NULL when no leaf straddles */
    uint64_t straddle_leaf;
    uint64_t cpu_ns;
};

void hashing_init(struct hashing *hashing, uint32_t threads)
{
    *hashing = (struct hashing){ .limit = (threads ? threads : 1) * TASKS_PER_THREAD };
}

/* On a compute thread ------------------------------------------------------------------------------------------------ */

static uint64_t cpu_ns(const struct writer *writer)
{
    const struct writer_memory *memory = writer->settings.memory;

    return memory->cpu_ns ? memory->cpu_ns(memory->context) : 0;
}

static int straddle_begin(struct hash_task *hash, uint64_t leaf, uint64_t leaf_begin)
{
    if (!(hash->straddle = hash_stream_create()))
        return -ENOMEM;
    hash_stream_reset(hash->straddle);
    hash_stream_update(hash->straddle, hash->bytes + (leaf_begin - hash->begin), hash->end - leaf_begin);
    hash->straddle_leaf = leaf;
    return 0;
}

/* The leaves of one tensor that begin in the chunk. */
static int tensor_hash(struct hash_task *hash, uint64_t tensor)
{
    struct job *job = hash->task.job;
    const struct sheet_tensor *place = &job->input.sheet.tensors[tensor];
    uint64_t tensor_end = place->file_offset + place->size;
    uint64_t skipped = hash->begin > place->file_offset ? divide_up(hash->begin - place->file_offset, LEAF_BYTES) : 0;
    uint64_t leaf = job->first_leaf[tensor] + skipped, begin = place->file_offset + skipped * LEAF_BYTES;

    for (; begin < tensor_end && begin < hash->end; begin += LEAF_BYTES, leaf++) {
        uint64_t end = min_u64(begin + LEAF_BYTES, tensor_end);

        if (end > hash->end)
            return straddle_begin(hash, leaf, begin);
        job->leaves[leaf] = hash_bytes(hash->bytes + (begin - hash->begin), end - begin);
    }
    return 0;
}

static int64_t interior_compute(void *argument)
{
    struct hash_task *hash = argument;
    struct job *job = hash->task.job;
    const struct chunk *chunk = &job->chunks[hash->chunk];
    const struct sheet_file *file = &job->input.sheet.files[chunk->file];
    uint64_t started_ns = cpu_ns(job->writer), last = file->tensor_first + file->tensor_count;
    int error = 0;

    for (uint64_t i = chunk->tensor; i < last && error == 0 && job->input.sheet.tensors[i].file_offset < hash->end; i++)
        error = tensor_hash(hash, i);
    hash->cpu_ns = cpu_ns(job->writer) - started_ns;
    return error;
}

static int64_t leading_compute(void *argument)
{
    struct hash_task *hash = argument;
    struct job *job = hash->task.job;
    const struct sheet_tensor *place = &job->input.sheet.tensors[job->chunks[hash->chunk].tensor];
    uint64_t started_ns = cpu_ns(job->writer);
    uint64_t leaf_end = place->file_offset + align_up(hash->begin - place->file_offset, LEAF_BYTES);
    uint64_t end = min_u64(leaf_end, place->file_offset + place->size);

    hash_stream_update(hash->straddle, hash->bytes, end - hash->begin - MUTANT(STRADDLING_LEAF_CUT_SHORT));
    job->leaves[hash->straddle_leaf] = hash_stream_digest(hash->straddle);
    hash->cpu_ns = cpu_ns(job->writer) - started_ns;
    return 0;
}

/* In the loop ----------------------------------------------------------------------------------------------------------- */

static void hash_task_free(struct hash_task *hash)
{
    hash_stream_destroy(hash->straddle);
    free(hash);
}

static void hash_task_discard(struct task *task) { hash_task_free((struct hash_task *)task); }

static struct hash_task *hash_task_queue(struct job *job, uint32_t chunk, int64_t (*compute)(void *))
{
    struct hash_task *hash = calloc(1, sizeof(*hash));

    if (!hash) {
        job_fail(job, ENOMEM, "hash", job->name, "no memory to hash a chunk");
        return NULL;
    }
    hash->chunk = chunk;
    hash->bytes = chunk_bytes(job, chunk);
    hash->begin = chunk_file_offset(job, chunk);
    hash->end = hash->begin + chunk_size(job, chunk);
    hash->task.op.kind = OP_COMPUTE;
    hash->task.op.compute = compute;
    hash->task.op.argument = hash;
    hash->task.writer = job->writer;
    hash->task.job = job;
    hash->task.file = job->chunks[chunk].file;
    hash->task.discard = hash_task_discard;
    if (job->hashes.last)
        job->hashes.last->next = hash;
    else
        job->hashes.first = hash;
    job->hashes.last = hash;
    return hash;
}

static void hash_ended(struct hash_task *hash, int64_t result)
{
    struct job *job = hash->task.job;

    hash->task.writer->hashing.in_flight--;
    job->hashing--;
    job->counts.hash_cpu_ns += hash->cpu_ns;
    if (result < 0)
        job_fail(job, (int)-result, "hash", job->name, "no memory to hash a chunk");
}

static void leading_done(struct task *task, int64_t result)
{
    struct hash_task *hash = (struct hash_task *)task;
    struct job *job = task->job;

    hash_ended(hash, result);
    if (!job->failed)
        chunk_settle(job, hash->chunk, CHUNK_LEADING);
    hash_task_free(hash);
    job_advance(job);
}

/* The leading piece of `chunk`, once it is staged and what comes before it is hashed. */
static void leading_queue(struct job *job, uint32_t chunk)
{
    struct chunk *before;
    struct hash_task *hash;

    if (chunk == 0 || chunk >= job->chunk_count || !job->chunks[chunk].leading || !job->chunks[chunk].staged)
        return;
    before = &job->chunks[chunk - 1]; /* of the same file: the leaf straddles */
    if (!before->interior_done || !(hash = hash_task_queue(job, chunk, leading_compute)))
        return;
    hash->task.done = leading_done;
    hash->straddle = before->straddle;
    hash->straddle_leaf = before->straddle_leaf;
    before->straddle = NULL;
}

static void interior_done(struct task *task, int64_t result)
{
    struct hash_task *hash = (struct hash_task *)task;
    struct job *job = task->job;
    struct chunk *chunk = &job->chunks[hash->chunk];

    hash_ended(hash, result);
    if (!job->failed) {
        chunk->straddle = hash->straddle;
        chunk->straddle_leaf = hash->straddle_leaf;
        hash->straddle = NULL;
        chunk->interior_done = true;
        chunk_settle(job, hash->chunk, CHUNK_INTERIOR);
        leading_queue(job, hash->chunk + 1);
    }
    hash_task_free(hash);
    job_advance(job);
}

void hashing_chunk_staged(struct job *job, uint32_t chunk)
{
    struct hash_task *hash = hash_task_queue(job, chunk, interior_compute);

    if (!hash)
        return;
    hash->task.done = interior_done;
    leading_queue(job, chunk);
}

void hash_queue_drop(struct job *job)
{
    struct hash_task *hash;

    while ((hash = job->hashes.first)) {
        job->hashes.first = hash->next;
        hash_task_free(hash);
    }
    job->hashes.last = NULL;
}

/* On few CPUs hashing would take them from the copying that the trainer waits for; the disk is the longer part anyway. */
static bool hashes_are_due(const struct job *job)
{
    return job->hashes.first && !job->failed && (!job->hash_late || job_is_staged(job));
}

void hashing_pump(struct writer *writer)
{
    struct hashing *hashing = &writer->hashing;

    for (struct job *job = writer->first_job; job; job = job->next)
        while (hashing->in_flight < hashing->limit && hashes_are_due(job)) {
            struct hash_task *hash = job->hashes.first;

            job->hashes.first = hash->next;
            if (!job->hashes.first)
                job->hashes.last = NULL;
            hash->next = NULL;
            hashing->in_flight++;
            job->hashing++;
            tasks_submit(&writer->tasks, &hash->task);
        }
}
