/* write/writer.c - the writer's own states: it probes the root, answers HELLO, takes saves, and ends in order.
 *
 * What a message asks for is decided here; how a save is made is job.c's.
 */
#include <write/machine.h>

#include <assert.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/version.h>
#include <wire/sheet.h>

/* Messages --------------------------------------------------------------------------------------------------------- */

static struct job *job_find(const struct writer *writer, const struct attempt *attempt)
{
    for (struct job *job = writer->first_job; job; job = job->next)
        if ((job->attempt.number == attempt->number || MUTANT(STAGED_OF_ANOTHER_ATTEMPT_TAKEN)) &&
            !memcmp(job->attempt.save_id, attempt->save_id, sizeof(attempt->save_id)))
            return job;
    return NULL;
}

static void failure_answer(struct writer *writer, const struct attempt *attempt, int error, const char *cause)
{
    struct message message;

    message_init(&message, MESSAGE_FAILED, attempt);
    message.failure.error = error;
    message.failure.stage = TSPOOL_STAGE_PREPARE;
    message.failure.file = UINT32_MAX;
    message.failure.file_offset = TSPOOL_NO_OFFSET;
    snprintf(message.failure.cause, sizeof(message.failure.cause), "%s", cause);
    connection_send(writer, &message);
}

static void handles_close(struct writer *writer, const int *fds, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        writer_close_handle(writer, fds[i]);
}

void writer_cannot_begin(struct writer *writer, const struct attempt *attempt, int error)
{
    failure_answer(writer, attempt, error, failure_likely_cause(error));
}

static void begin(struct writer *writer, const struct message *message, const int *fds)
{
    struct job *job;

    held_parts_look(writer);
    if (job_find(writer, &message->attempt)) {
        handles_close(writer, fds, 2);
        writer_broken(writer);
        return;
    }
    if (writer->state != WRITER_SERVING && writer->state != WRITER_DRAINING) {
        handles_close(writer, fds, 2);
        failure_answer(writer, &message->attempt, ECANCELED, "the writer is ending and takes no new saves");
        return;
    }
    if (job_create(writer, message, fds, &job) < 0) {
        writer_cannot_begin(writer, &message->attempt, ENOMEM);
        return;
    }
    if (writer->settings.keeper)
        writer->settings.keeping->save_begins(writer->settings.keeper);
    if (writer->last_job)
        writer->last_job->next = job;
    else
        writer->first_job = job;
    writer->last_job = job;
    job_start(job);
}

/* The oldest op in flight tells a hung device from a busy one. */
static void pong(struct writer *writer, uint64_t sequence)
{
    const struct task *oldest = writer->tasks.flying.oldest;
    char path[JOB_PATH_BYTES];
    struct message message;

    message_init(&message, MESSAGE_PONG, NULL);
    message.pong.sequence = sequence;
    if (oldest) {
        job_task_path(oldest, path);
        message.pong.oldest_op_ns = writer->tasks.now_ns - oldest->submitted_ns;
        snprintf(message.pong.oldest_op, sizeof(message.pong.oldest_op), "%s", op_kind_name(oldest->op.kind));
        snprintf(message.pong.oldest_path, sizeof(message.pong.oldest_path), "%.255s", path);
    }
    connection_send(writer, &message);
}

/* What is not staged now never will be; with `all`, what is staged is given up too. */
static void saves_decide(struct writer *writer, bool all, const char *cause)
{
    writer->state = WRITER_ENDING;
    for (struct job *job = writer->first_job; job; job = job->next)
        if (all || (job->state != JOB_READ && !job_is_staged(job))) /* a sheet that is being read is decided about then */
            job_give_up(job, MESSAGE_FAILED, ECANCELED, cause);
}

void writer_message(struct writer *writer, const struct message *message, const int *fds, unsigned fd_count)
{
    struct job *job = job_find(writer, &message->attempt);

    switch (message->kind) {
    case MESSAGE_BEGIN:
        begin(writer, message, fds);
        return;
    case MESSAGE_STAGED: /* of an attempt that has ended: ignored, here and below */
        if (job)
            job_staged(job, &message->staged);
        return;
    case MESSAGE_ABANDON:
        if (job)
            job_give_up(job, MESSAGE_ABANDONED, ECANCELED, "given up by the trainer");
        return;
    case MESSAGE_CLOSE:
        saves_decide(writer, message->close.abandon, message->close.abandon ? "given up when the spool was closed"
                                                                            : "the spool was closed before the save was staged");
        return;
    case MESSAGE_PING:
        pong(writer, message->ping.sequence);
        return;
    default: /* a second HELLO, or what only a writer says */
        handles_close(writer, fds, fd_count);
        writer_broken(writer);
    }
}

/* Ends -------------------------------------------------------------------------------------------------------------- */

bool writer_is_ending(const struct writer *writer) { return writer->state >= WRITER_ENDING; }

static void drain(struct writer *writer)
{
    if (writer->state != WRITER_SERVING)
        return;
    writer->state = WRITER_DRAINING;
    connection_drain(writer);
}

void writer_trainer_gone(struct writer *writer)
{
    writer->trainer_dead = true;
    for (struct job *job = writer->first_job; job; job = job->next)
        part_mark(job);
    connection_mute(writer);
    if (MUTANT(DEATH_BEFORE_LAST_MESSAGES) && writer->state == WRITER_SERVING)
        saves_decide(writer, false, "the trainer died before the save was staged");
    if (writer->state > WRITER_DRAINING)
        writer->connection.stream_over = true;
    drain(writer);
}

void writer_terminated(struct writer *writer)
{
    if (writer->state == WRITER_PROBING)
        probe_refuse(writer, ECANCELED, "SIGTERM before the handshake was over; probing");
    drain(writer);
}

void writer_drained(struct writer *writer)
{
    writer->connection.draining = false;
    if (writer->trainer_dead)
        writer->connection.stream_over = true;
    saves_decide(writer, MUTANT(STAGED_SAVE_DIES_WITH_TRAINER) && writer->trainer_dead,
                 writer->trainer_dead ? "the trainer died before the save was staged"
                                      : "the writer got SIGTERM before the save was staged");
}

/* What the trainer says makes no sense: nothing more of it is believed, and what is staged is safe. */
void writer_broken(struct writer *writer)
{
    writer->connection.stream_over = true;
    writer->connection.draining = false;
    connection_mute(writer);
    if (writer->state < WRITER_ENDING)
        saves_decide(writer, false, "the trainer sent a message that makes no sense");
}

static void handle_closed(struct task *task, int64_t result) { free(task); }

void writer_close_handle(struct writer *writer, int handle)
{
    struct task *task = calloc(1, sizeof(*task));

    if (!task)
        return; /* a descriptor stays open in a process that has no memory: not the worst of its troubles */
    task->op.kind = OP_CLOSE;
    task->op.handle = handle;
    task->done = handle_closed;
    task->writer = writer;
    task->file = NO_FILE;
    task->discard = task_free;
    tasks_submit(&writer->tasks, task);
}

/* Step --------------------------------------------------------------------------------------------------------------- */

static void keeper_tell(const struct writer *writer, const struct job *job)
{
    enum save_end end = job->failed ? SAVE_CAME_TO_NOTHING : job_is_part(job) ? SAVE_IS_PART : SAVE_PUBLISHED;

    if (writer->settings.keeper)
        writer->settings.keeping->save_ends(writer->settings.keeper, end, job->attempt.save_id, job->hidden);
}

static void jobs_reap(struct writer *writer)
{
    struct job **link = &writer->first_job, *kept = NULL;
    bool reaped = false;

    while (*link) {
        struct job *job = *link;

        if (job->state != JOB_END) {
            kept = job;
            link = &job->next;
            continue;
        }
        *link = job->next;
        keeper_tell(writer, job);
        job_destroy(job);
        reaped = true;
    }
    writer->last_job = kept;
    for (struct job *job = writer->first_job; job && reaped; job = job->next)
        job_advance(job); /* one that waited for its name */
}

static void jobs_expire(struct writer *writer)
{
    for (struct job *job = writer->first_job; job; job = job->next)
        if (job_deadline(job) <= writer->tasks.now_ns)
            job_expire(job);
}

static void writer_leave(struct writer *writer)
{
    if (writer->state == WRITER_ENDING && !writer->first_job && connection_is_quiet(writer) && !writer->tasks.flying.oldest &&
        !held_parts_drop(writer)) {
        writer->state = WRITER_LEAVING;
        tasks_cancel_standing(&writer->tasks);
    }
    if (writer->state == WRITER_LEAVING && tasks_are_idle(&writer->tasks)) {
        if (writer->arena_buffer != IO_NO_BUFFER)
            io_detach(writer->io, writer->arena_buffer);
        writer->state = WRITER_FINISHED;
    }
}

void writer_step(struct writer *writer, const struct completion *completion)
{
    writer->tasks.now_ns = io_now(writer->io);
    if (completion)
        tasks_complete(&writer->tasks, completion);
    if (writer->connection.starved && !writer->connection.mute)
        writer_broken(writer);
    jobs_expire(writer);
    do {
        tasks_finish_refused(&writer->tasks);
        hashing_pump(writer);
        transfer_pump(writer);
        jobs_reap(writer);
    } while (writer->tasks.refused.oldest);
    writer_leave(writer);
}

uint64_t writer_deadline(const struct writer *writer)
{
    uint64_t deadline_ns = writer->transfer.resume_ns;

    for (const struct job *job = writer->first_job; job; job = job->next)
        deadline_ns = min_u64(deadline_ns, job_deadline(job));
    return deadline_ns;
}

bool writer_finished(const struct writer *writer) { return writer->state == WRITER_FINISHED; }

/* Beginning and end --------------------------------------------------------------------------------------------------- */

int writer_hello_refusal(const struct message_hello *hello, const char **reason)
{
    if (strcmp(hello->version, TSPOOL_VERSION) != 0) {
        *reason = "library and tspool-writer are of different versions; install them together";
        return EPROTO;
    }
    if (hello->chunk_bytes != CHUNK_BYTES) {
        *reason = "library and tspool-writer disagree about the size of a chunk";
        return EPROTO;
    }
    return 0;
}

static int arena_take(struct writer *writer, struct tspool_failure *failure)
{
    const struct writer_settings *settings = &writer->settings;
    const struct writer_memory *memory = settings->memory;
    int buffer, error;

    error = memory->attach(memory->context, settings->arena, settings->hello.arena_bytes, &writer->arena, failure);
    if (error < 0)
        return error;
    buffer = io_attach(writer->io, writer->arena, settings->hello.arena_bytes);
    writer->arena_buffer = buffer > 0 ? (uint32_t)buffer : IO_NO_BUFFER; /* refused: its pages are addressed by pointer */
    if (settings->hello.registered && !(buffer > 0 && writer->io->registered))
        writer_note(writer, "the arena is not registered: its mapping is read-only here");
    return 0;
}

int writer_create(struct io *io, const struct writer_settings *settings, struct writer **writer, struct tspool_failure *failure)
{
    struct writer *made = calloc(1, sizeof(*made));
    int error;

    if (!made)
        return failure_set(failure, TSPOOL_STAGE_WRITER, ENOMEM, FAILURE_NOWHERE, NULL);
    made->io = io;
    made->settings = *settings;
    made->settings.note = NULL;
    made->tasks.io = io;
    made->tasks.now_ns = io_now(io);
    if (settings->note)
        writer_note(made, settings->note);
    hashing_init(&made->hashing, settings->hello.hash_threads);
    error = transfer_init(&made->transfer, &settings->hello);
    if (error == 0)
        error = arena_take(made, failure);
    else
        failure_set(failure, TSPOOL_STAGE_WRITER, -error, FAILURE_NOWHERE, NULL);
    if (error < 0) {
        transfer_deinit(&made->transfer);
        free(made);
        return error;
    }
    connection_init(made);
    probe_start(made);
    *writer = made;
    return 0;
}

void writer_destroy(struct writer *writer)
{
    struct job *job;

    if (!writer)
        return;
    tasks_deinit(&writer->tasks);
    while ((job = writer->first_job)) {
        writer->first_job = job->next;
        job_destroy(job);
    }
    held_parts_free(writer);
    connection_deinit(writer);
    transfer_deinit(&writer->transfer);
    writer->settings.memory->detach(writer->settings.memory->context, writer->arena, writer->settings.hello.arena_bytes);
    free(writer);
}
