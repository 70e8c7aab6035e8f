/* write/chunks.c - the chunks of one job: taken when the trainer says STAGED, given back when nothing needs their slot.
 *
 * What STAGED names is checked here: a chunk of the sheet, not staged before, a slot of the arena.
 */
#include <write/machine.h>

#include <assert.h>
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>

uint64_t chunk_file_offset(const struct job *job, uint32_t chunk)
{
    return (uint64_t)(chunk - job->input.sheet.files[job->chunks[chunk].file].chunk_first) * CHUNK_BYTES;
}

uint64_t chunk_size(const struct job *job, uint32_t chunk)
{
    return min_u64(job->input.sheet.files[job->chunks[chunk].file].size - chunk_file_offset(job, chunk), CHUNK_BYTES);
}

const uint8_t *chunk_bytes(const struct job *job, uint32_t chunk)
{
    return (const uint8_t *)job->writer->arena + (uint64_t)job->chunks[chunk].slot * CHUNK_BYTES;
}

void chunk_settle(struct job *job, uint32_t number, enum chunk_wait reason)
{
    struct chunk *chunk = &job->chunks[number];
    struct message message;

    assert(chunk->waits & reason);
    chunk->waits &= (uint8_t)~reason;
    if (MUTANT(CHUNK_RELEASED_BEFORE_ITS_HASH) ? reason != CHUNK_WRITING : MUTANT(CHUNK_RELEASED_BEFORE_ITS_WRITE)
        ? reason != CHUNK_INTERIOR : chunk->waits)
        return;
    if (job->failed)
        return;
    job->done_count++;
    message_init(&message, MESSAGE_RELEASED, &job->attempt);
    message.released.chunk = number;
    message.released.slot = chunk->slot;
    connection_send(job->writer, &message);
}

static void early_keep(struct job *job, const struct message_staged *staged)
{
    struct job_input *input = &job->input;

    if (array_reserve((void **)&input->early, &input->early_capacity, input->early_count + 1, sizeof(*staged)) < 0)
        job_fail(job, ENOMEM, "stage", job->name, "%s", failure_likely_cause(ENOMEM));
    else
        input->early[input->early_count++] = *staged;
}

static const char *staged_fault(const struct job *job, const struct message_staged *staged)
{
    if (staged->chunk >= job->chunk_count)
        return "a chunk that the sheet does not have was staged";
    if (job->chunks[staged->chunk].staged)
        return "a chunk was staged twice";
    if (staged->slot >= job->writer->settings.hello.arena_bytes / CHUNK_BYTES)
        return "a chunk was staged in a slot that the arena does not have";
    return NULL;
}

static void chunk_take(struct job *job, const struct message_staged *staged)
{
    struct chunk *chunk = &job->chunks[staged->chunk];

    chunk->slot = staged->slot;
    chunk->staged = true;
    job->staged_count++;
    if (job_is_staged(job))
        job->turn = ++job->writer->turns;
    if (job_is_staged(job) && job->allowed_ns)
        job->expires_ns = job->writer->tasks.now_ns + job->allowed_ns;
    write_queue_add(job, staged->chunk);
    hashing_chunk_staged(job, staged->chunk);
}

void job_take_staged(struct job *job, const struct message_staged *staged)
{
    const char *fault;

    if (job->failed)
        return;
    if (job->state == JOB_READ) {
        early_keep(job, staged);
    } else if ((fault = staged_fault(job, staged))) {
        job_fail(job, EBADMSG, "stage", job->name, "%s (chunk %u, slot %u)", fault, staged->chunk, staged->slot);
    } else {
        chunk_take(job, staged);
    }
}

void job_staged(struct job *job, const struct message_staged *staged)
{
    job_take_staged(job, staged);
    job_advance(job);
}

bool job_is_staged(const struct job *job) { return job->staged_count == job->chunk_count; }
