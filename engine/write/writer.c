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

/* Probe ------------------------------------------------------------------------------------------------------------
 *
 * The root's alignment and whether it can be written to show only on a file in it: one is made, looked at and removed.
 * Its name has the form of an unpublished attempt, so that gc removes one that a crash left. */

static void probe_open(struct writer *writer);

static void probe_submit(struct writer *writer, void (*done)(struct task *, int64_t), const struct op *op)
{
    struct task *task = &writer->probe.task;

    memset(task, 0, sizeof(*task));
    task->op = *op;
    task->done = done;
    task->writer = writer;
    task->file = NO_FILE;
    tasks_submit(&writer->tasks, task);
}

static void ready_send(struct writer *writer)
{
    const struct root_mode *mode = &writer->mode;
    struct message message;
    struct message_ready *ready = &message.ready;

    message_init(&message, MESSAGE_READY, NULL);
    snprintf(ready->version, sizeof(ready->version), "%s", TSPOOL_VERSION);
    snprintf(ready->backend, sizeof(ready->backend), "%s", writer->io->backend);
    snprintf(ready->filesystem, sizeof(ready->filesystem), "%s", mode->filesystem);
    snprintf(ready->note, sizeof(ready->note), "%s", mode->note);
    ready->pid = writer->settings.pid;
    ready->memory_align = mode->direct ? mode->memory_align : 0;
    ready->offset_align = mode->direct ? mode->offset_align : 0;
    ready->direct = mode->direct;
    ready->registered = writer->arena_buffer != IO_NO_BUFFER && writer->io->registered;
    ready->error = writer->probe.error;
    connection_send(writer, &message);
}

/* Adds a reason why this is not the preferred mode. */
static void note_add(struct writer *writer, const char *text)
{
    char *note = writer->mode.note;
    size_t used = strlen(note);

    snprintf(note + used, sizeof(writer->mode.note) - used, "%s%s", used ? "; " : "", text);
}

static void probe_refuse(struct writer *writer, int error, const char *operation)
{
    if (writer->probe.error)
        return;
    writer->probe.error = error;
    writer->probe.operation = operation;
    snprintf(writer->mode.note, sizeof(writer->mode.note), "%s in the root directory: %s: %s", operation, strerror(error),
             failure_likely_cause(error));
}

static void probe_end(struct writer *writer)
{
    if (writer->trainer_dead || writer->state != WRITER_PROBING) {
        writer->state = WRITER_ENDING;
        return;
    }
    ready_send(writer);
    if (writer->probe.error || writer->connection.starved) {
        writer->state = WRITER_ENDING;
        return;
    }
    writer->state = WRITER_SERVING;
    connection_receive(writer);
}

static void probe_removed(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;

    writer->probe.made = false;
    if (!writer->probe.error && writer->probe.handle < 0)
        probe_open(writer); /* once more, without O_DIRECT */
    else
        probe_end(writer);
}

static void probe_remove(struct writer *writer)
{
    if (writer->probe.made)
        probe_submit(writer, probe_removed,
                     &(struct op){ .kind = OP_UNLINK, .handle = writer->settings.root, .name = writer->probe.name });
    else
        probe_end(writer);
}

static void probe_closed(struct task *task, int64_t result) { probe_remove(task->writer); }

/* An alignment that nobody reports cannot be relied on: O_DIRECT opens succeed on btrfs and tmpfs without being direct. */
static void mode_settle(struct writer *writer)
{
    const struct io_stat *stat = &writer->probe.stat;
    struct root_mode *mode = &writer->mode;
    uint32_t memory = stat->direct_memory_align, offset = stat->direct_offset_align;

    memcpy(mode->filesystem, stat->filesystem, sizeof(mode->filesystem));
    mode->filesystem[sizeof(mode->filesystem) - 1] = '\0';
    mode->direct = writer->probe.direct && is_power_of_two(memory) && is_power_of_two(offset) && memory <= 4096 &&
                   offset <= CHUNK_BYTES && is_aligned(writer->settings.hello.item_bytes, offset);
    mode->memory_align = mode->direct ? memory : 1;
    mode->offset_align = mode->direct ? offset : 1;
    if (!mode->direct && !writer->settings.hello.buffered)
        note_add(writer, writer->probe.direct ? "buffered: no usable O_DIRECT alignment is reported here"
                                              : "buffered: O_DIRECT is refused here");
}

static void probe_looked(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;

    if (result < 0)
        probe_refuse(writer, (int)-result, "stat");
    else
        mode_settle(writer);
    probe_submit(writer, probe_closed, &(struct op){ .kind = OP_CLOSE, .handle = writer->probe.handle });
}

static void probe_opened(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;
    struct probe *probe = &writer->probe;

    probe->made = result != -EEXIST;
    if (result >= 0) {
        probe->handle = (int)result;
        probe_submit(writer, probe_looked, &(struct op){ .kind = OP_STAT, .handle = probe->handle, .stat = &probe->stat });
        return;
    }
    if (result == -EINVAL && probe->direct)
        probe->direct = false; /* the refused open may have made the file: it is removed before the next try */
    else
        probe_refuse(writer, (int)-result, "create a file");
    probe_remove(writer);
}

static void probe_open(struct writer *writer)
{
    struct probe *probe = &writer->probe;
    uint32_t flags = OPEN_WRITE | OPEN_CREATE | (probe->direct ? OPEN_DIRECT : 0);

    probe_submit(writer, probe_opened,
                 &(struct op){ .kind = OP_OPEN, .handle = writer->settings.root, .name = probe->name, .flags = flags });
}

static void probe_start(struct writer *writer)
{
    uint8_t id[16];

    io_random(writer->io, id, sizeof(id));
    hidden_name_make("tspool.probe", id, writer->probe.name);
    writer->probe.handle = -1;
    writer->probe.direct = !writer->settings.hello.buffered;
    probe_open(writer);
}

/* Messages --------------------------------------------------------------------------------------------------------- */

static struct job *job_find(const struct writer *writer, const struct attempt *attempt)
{
    for (struct job *job = writer->first_job; job; job = job->next)
        if (job->attempt.number == attempt->number && !memcmp(job->attempt.save_id, attempt->save_id, sizeof(attempt->save_id)))
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

static void begin(struct writer *writer, const struct message *message, const int *fds)
{
    struct job *job;

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
        failure_answer(writer, &message->attempt, ENOMEM, failure_likely_cause(ENOMEM));
        return;
    }
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
        saves_decide(writer, message->close.abandon, "the spool was closed before the save was staged");
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
    connection_mute(writer);
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
    saves_decide(writer, false, writer->trainer_dead ? "the trainer died before the save was staged"
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

static void jobs_reap(struct writer *writer)
{
    struct job **link = &writer->first_job, *kept = NULL;

    while (*link) {
        struct job *job = *link;

        if (job->state != JOB_END) {
            kept = job;
            link = &job->next;
            continue;
        }
        *link = job->next;
        job_destroy(job);
    }
    writer->last_job = kept;
}

static void jobs_expire(struct writer *writer)
{
    for (struct job *job = writer->first_job; job; job = job->next)
        if (job_deadline(job) <= writer->tasks.now_ns)
            job_expire(job);
}

static void writer_leave(struct writer *writer)
{
    if (writer->state == WRITER_ENDING && !writer->first_job && connection_is_quiet(writer) && !writer->tasks.flying.oldest) {
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
    } while (writer->tasks.refused.oldest);
    jobs_reap(writer);
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
    if (hello->world_size > 1) {
        *reason = "several ranks are not supported yet";
        return EOPNOTSUPP;
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
        note_add(writer, "the arena is not registered: its mapping is read-only here");
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
        note_add(made, settings->note);
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
    connection_deinit(writer);
    transfer_deinit(&writer->transfer);
    writer->settings.memory->detach(writer->settings.memory->context, writer->arena, writer->settings.hello.arena_bytes);
    free(writer);
}
