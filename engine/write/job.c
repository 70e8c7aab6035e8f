/* write/job.c - the states of one attempt: which follows which, what an error means in each, and what is answered. */
#include <write/machine.h>

#include <assert.h>
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void job_prepared(struct job *job);
static void job_written(struct job *job);
static void job_published(struct job *job);
static void job_answer(struct job *job);

/* What entering a state does, and the stage that its errors are recorded under. */
static const struct { void (*enter)(struct job *job); enum tspool_stage stage; } states[] = {
    [JOB_READ] = { prepare_read, TSPOOL_STAGE_PREPARE },
    [JOB_ADMIT] = { prepare_admit, TSPOOL_STAGE_PREPARE },
    [JOB_LOOK_OPEN] = { prepare_look_open, TSPOOL_STAGE_PREPARE },
    [JOB_LOOK_LIST] = { prepare_look_list, TSPOOL_STAGE_PREPARE },
    [JOB_MAKE] = { prepare_make, TSPOOL_STAGE_PREPARE },
    [JOB_ENTER] = { prepare_enter, TSPOOL_STAGE_PREPARE },
    [JOB_CLAIM] = { prepare_claim, TSPOOL_STAGE_PREPARE },
    [JOB_ADOPT] = { shared_adopt, TSPOOL_STAGE_PREPARE },
    [JOB_LOCK] = { prepare_lock, TSPOOL_STAGE_PREPARE },
    [JOB_EXCLUDE] = { shared_exclude, TSPOOL_STAGE_PREPARE },
    [JOB_INHERIT] = { shared_inherit, TSPOOL_STAGE_PREPARE },
    [JOB_CLEAR] = { shared_clear, TSPOOL_STAGE_PREPARE },
    [JOB_LEAVE] = { shared_leave, TSPOOL_STAGE_PREPARE },
    [JOB_OPEN] = { prepare_open, TSPOOL_STAGE_PREPARE },
    [JOB_ALLOCATE] = { prepare_allocate, TSPOOL_STAGE_PREPARE },
    [JOB_WRITE] = { job_prepared, TSPOOL_STAGE_WRITE },
    [JOB_SEAL] = { seal_compose, TSPOOL_STAGE_SEAL },
    [JOB_TEXTS] = { NULL, TSPOOL_STAGE_SEAL },
    [JOB_CUT] = { job_written, TSPOOL_STAGE_SEAL },
    [JOB_SYNC] = { commit_sync, TSPOOL_STAGE_SYNC },
    [JOB_KEEP_OPEN] = { replace_open, TSPOOL_STAGE_SYNC },
    [JOB_KEEP_LIST] = { replace_list, TSPOOL_STAGE_SYNC },
    [JOB_KEEP_LINK] = { replace_link, TSPOOL_STAGE_SYNC },
    [JOB_UNCOVER] = { commit_uncover, TSPOOL_STAGE_SYNC },
    [JOB_SYNC_DIRECTORY] = { commit_sync_directory, TSPOOL_STAGE_SYNC },
    [JOB_UNCOVER_PART] = { shared_uncover, TSPOOL_STAGE_SYNC },
    [JOB_SYNC_PART] = { commit_sync_directory, TSPOOL_STAGE_SYNC },
    [JOB_RENAME] = { commit_rename, TSPOOL_STAGE_PUBLISH },
    [JOB_SYNC_HIDDEN] = { commit_sync_root, TSPOOL_STAGE_PUBLISH },
    [JOB_ASIDE] = { commit_aside, TSPOOL_STAGE_PUBLISH },
    [JOB_RENAME_IN] = { commit_rename_in, TSPOOL_STAGE_PUBLISH },
    [JOB_RENAME_BACK] = { commit_rename_back, TSPOOL_STAGE_PUBLISH },
    [JOB_SYNC_ROOT] = { commit_sync_root, TSPOOL_STAGE_PUBLISH },
    [JOB_RETIRE_LIST] = { job_published, TSPOOL_STAGE_PUBLISH },
    [JOB_RETIRE_MOVE] = { replace_move, TSPOOL_STAGE_PUBLISH },
    [JOB_RETIRE_UNLINK] = { replace_unlink, TSPOOL_STAGE_PUBLISH },
    [JOB_RETIRE_REMOVE] = { replace_remove, TSPOOL_STAGE_PUBLISH },
    [JOB_HOLD] = { shared_hold, TSPOOL_STAGE_PUBLISH },
    [JOB_SWEEP_CLOSE] = { sweep_close, TSPOOL_STAGE_NONE },
    [JOB_SWEEP_UNLINK] = { sweep_unlink, TSPOOL_STAGE_NONE },
    [JOB_SWEEP_REMOVE] = { sweep_remove, TSPOOL_STAGE_NONE },
    [JOB_CLOSE] = { sweep_close_rest, TSPOOL_STAGE_NONE },
    [JOB_END] = { job_answer, TSPOOL_STAGE_NONE },
};

/* Moving on -------------------------------------------------------------------------------------------------------- */

bool job_is_part(const struct job *job) { return job->writer->settings.hello.world_size > 1; }

/* Where the way of one of several ranks is another. */
static enum job_state state_after_part(const struct job *job)
{
    switch (job->state) {
    case JOB_ENTER:
        return job->shared.gone ? JOB_LEAVE : JOB_CLAIM;
    case JOB_CLAIM:
        return job->shared.gone ? JOB_LEAVE : job->shared.part_found ? JOB_ADOPT : JOB_LOCK;
    case JOB_ADOPT:
        return job->shared.gone ? JOB_LEAVE : JOB_LOCK;
    case JOB_LOCK:
        return job->shared.part_found ? JOB_EXCLUDE : JOB_INHERIT;
    case JOB_CLEAR:
        return job->shared.gone ? JOB_LEAVE : JOB_OPEN;
    case JOB_LEAVE:
        return JOB_ADMIT;
    case JOB_SYNC_PART:
        return JOB_SYNC_ROOT;
    case JOB_SYNC_ROOT:
        return JOB_HOLD;
    case JOB_HOLD:
        return JOB_CLOSE;
    case JOB_ADMIT:
        return job->name_exists && !job->replace ? JOB_LOOK_OPEN : JOB_MAKE;
    case JOB_SYNC:
        return JOB_UNCOVER;
    default:
        return job->state + 1;
    }
}

/* Where the straight way forks; everywhere else the next state in the enum follows. */
static enum job_state state_after(const struct job *job)
{
    const struct job_replaced *replaced = &job->replaced;

    if (job_is_part(job))
        return state_after_part(job);
    switch (job->state) {
    case JOB_ADMIT:
        return job->name_exists && !job->replace ? JOB_LOOK_OPEN : JOB_MAKE;
    case JOB_CLAIM:
        return JOB_LOCK;
    case JOB_LOCK:
        return JOB_OPEN;
    case JOB_SYNC:
        return job->replace ? JOB_KEEP_OPEN : JOB_UNCOVER;
    case JOB_KEEP_OPEN:
        return replaced->handle >= 0 ? JOB_KEEP_LIST : JOB_UNCOVER;
    case JOB_SYNC_DIRECTORY:
        return JOB_RENAME;
    case JOB_RENAME:
        return replaced->handle >= 0 && !replaced->exchanged ? JOB_SYNC_HIDDEN : JOB_SYNC_ROOT;
    case JOB_RENAME_IN:
        return JOB_SYNC_ROOT;
    case JOB_RETIRE_LIST:
        return replaced->handle >= 0 ? JOB_RETIRE_MOVE : JOB_CLOSE;
    case JOB_RETIRE_REMOVE:
        return JOB_CLOSE;
    default:
        return job->state + 1;
    }
}

/* After an error: what was not published is removed; what may have been published is left alone. */
static enum job_state state_after_failure(const struct job *job)
{
    if (job->state >= JOB_RETIRE_LIST)
        return state_after(job); /* already on its way out */
    if (job->state == JOB_RENAME_IN)
        return JOB_RENAME_BACK;
    if (MUTANT(FAILED_ONE_STAYS))
        return JOB_CLOSE;
    return job->publishing && !MUTANT(UNKNOWN_IS_SWEPT) ? JOB_CLOSE : JOB_SWEEP_CLOSE;
}

/* Saves of one name are published in the order in which they were staged, and each from what stands there to what it replaces
 * removed: a later one would else look at a checkpoint that is being replaced under it, and an older one could replace a newer
 * one. Not in the order of BEGIN: one that is not staged yet may wait for slots that this one gives back when it is durable. */
static bool is_behind_another(const struct job *job)
{
    const struct job *other = MUTANT(OLDER_SAVE_OVERTAKES) ? NULL : job->writer->first_job;

    while (other && !(other->turn && other->turn < job->turn && strcmp(other->name, job->name) == 0))
        other = other->next;
    return other;
}

/* True while the state is not over. */
static bool job_is_waiting(const struct job *job)
{
    if (job->pending > (MUTANT(SYNC_BEFORE_WRITES_END) && (job->state == JOB_TEXTS || job->state == JOB_CUT)))
        return true;
    if (job->failed)
        return job->hashing; /* its slots must be quiet before the trainer hears of the failure */
    if (job->state == JOB_SYNC)
        return is_behind_another(job);
    if (job->state == JOB_WRITE)
        return job->done_count < job->chunk_count;
    return job->state == JOB_TEXTS && job->writes.text_file < job->file_count;
}

/* The one function that moves a job. */
void job_advance(struct job *job)
{
    while (job->state != JOB_END && !job_is_waiting(job)) {
        job->state = job->failed ? state_after_failure(job) : state_after(job);
        if (states[job->state].enter)
            states[job->state].enter(job);
    }
}

void job_start(struct job *job)
{
    job->state = JOB_READ;
    states[JOB_READ].enter(job);
    job_advance(job);
}

/* Answers ---------------------------------------------------------------------------------------------------------- */

void job_progress(struct job *job, enum message_kind kind)
{
    const struct writer *writer = job->writer;
    struct message message;
    struct message_progress *progress = &message.progress;

    message_init(&message, kind, &job->attempt);
    progress->at_ns = writer->tasks.now_ns;
    progress->synced_ns = job->counts.synced_ns;
    progress->writes = job->counts.writes;
    progress->short_writes = job->counts.short_writes;
    progress->bytes = job->counts.bytes;
    progress->hash_cpu_ns = job->counts.hash_cpu_ns;
    progress->item_bytes = writer->transfer.item_bytes;
    progress->depth = writer->transfer.depth;
    progress->direct = writer->mode.direct;
    progress->registered = writer->arena_buffer != IO_NO_BUFFER && writer->io->registered;
    if (writer->settings.keeper)
        writer->settings.keeping->account(writer->settings.keeper, &progress->kept);
    connection_send(job->writer, &message);
}

static void job_prepared(struct job *job) { job_progress(job, MESSAGE_PREPARED); }

static void job_written(struct job *job)
{
    job_progress(job, MESSAGE_WRITTEN);
    commit_cut(job);
}

void job_report_published(struct job *job)
{
    job_progress(job, MESSAGE_DURABLE);
    job_progress(job, MESSAGE_PUBLISHED);
    job->answered = true;
}

static void job_published(struct job *job)
{
    if (!(MUTANT(REPORTED_BEFORE_ROOT_SYNC) && job->answered))
        job_report_published(job);
    replace_list_again(job);
}

static void job_answer(struct job *job)
{
    const struct tspool_failure *failure = &job->failure;
    struct message message;

    if (job->answered)
        return;
    job->answered = true;
    message_init(&message, job->publishing ? MESSAGE_UNKNOWN : job->answer, &job->attempt);
    if (message.kind != MESSAGE_ABANDONED) {
        message.failure.error = failure->error;
        message.failure.stage = failure->stage;
        message.failure.file = job->failure_file;
        message.failure.file_offset = failure->file_offset;
        memcpy(message.failure.operation, failure->operation, sizeof(message.failure.operation));
        snprintf(message.failure.path, sizeof(message.failure.path), "%.255s", failure->path);
        memcpy(message.failure.cause, failure->cause, sizeof(message.failure.cause));
    }
    connection_send(job->writer, &message);
}

/* Failures ----------------------------------------------------------------------------------------------------------- */

void job_task_path(const struct task *task, char path[JOB_PATH_BYTES])
{
    const struct job *job = task->job;
    const char *name = task->op.name, *directory = job ? job->hidden : NULL;

    if (job && task->file != NO_FILE) {
        const struct job_file *file = &job->files[task->file];
        bool is_final = file->uncovered && task->op.kind != OP_RENAME;

        snprintf(path, JOB_PATH_BYTES, "%s/%s", directory, is_final ? file->name : file->partial);
    } else if (job && task->op.handle == job->directory && job->directory >= 0) {
        snprintf(path, JOB_PATH_BYTES, "%s%s%s", directory, name ? "/" : "", name ? name : "");
    } else if (job && task->op.handle == job->part_handle && job->part_handle >= 0) {
        snprintf(path, JOB_PATH_BYTES, "%s/%s", directory, job->part);
    } else if (job && task->op.handle == job->replaced.handle && job->replaced.handle >= 0) {
        snprintf(path, JOB_PATH_BYTES, "%s%s%.250s", job->name, name ? "/" : "", name ? name : "");
    } else {
        snprintf(path, JOB_PATH_BYTES, "%.250s", name ? name : ".");
    }
}

static uint64_t task_offset(const struct task *task)
{
    return task->op.kind == OP_WRITE ? task->op.file_offset : TSPOOL_NO_OFFSET;
}

/* The record stays the first error's. What was queued is not begun any more. */
static void job_set_failed(struct job *job, uint32_t file)
{
    job->failed = true;
    job->failure_file = file;
    hash_queue_drop(job);
}

void job_fail_task(struct job *job, const struct task *task, int error)
{
    const struct failure_at at = { .operation = op_kind_name(task->op.kind), .file_offset = task_offset(task) };
    char path[JOB_PATH_BYTES];
    struct failure_at there = at;

    if (job->failed)
        return;
    if (error == ECANCELED) /* a file server's, say: our own word for a writer that ends, after which the trainer awaits that */
        error = EIO;
    job_task_path(task, path);
    there.path = path;
    job_set_failed(job, task->file < job->shard_count ? task->file : UINT32_MAX);
    failure_set(&job->failure, states[job->state].stage, error, there, NULL);
}

void job_fail(struct job *job, int error, const char *operation, const char *path, const char *cause, ...)
{
    char text[sizeof(job->failure.cause)];
    va_list arguments;

    if (job->failed)
        return;
    va_start(arguments, cause);
    vsnprintf(text, sizeof(text), cause, arguments);
    va_end(arguments);
    job_set_failed(job, UINT32_MAX);
    failure_set(&job->failure, states[job->state].stage, error, FAILURE_AT(.operation = operation, .path = path), "%s", text);
}

void job_give_up(struct job *job, enum message_kind answer, int error, const char *cause)
{
    if (job->publishing || job->state >= JOB_RETIRE_LIST)
        return;
    if (!job->failed)
        job->answer = answer;
    job_fail(job, error, "", job->name, "%s", cause);
    job_advance(job);
}

/* Its clock runs from the last STAGED on, and not any more once the rename was begun: that is not given up. */
uint64_t job_deadline(const struct job *job)
{
    return job->failed || job->publishing || job->state >= JOB_RETIRE_LIST ? IO_FOREVER : job->expires_ns;
}

void job_expire(struct job *job)
{
    job_fail(job, ETIMEDOUT, "", job->name, "not durable %.3f s after its last chunk was staged: the deadline of this save",
             (double)job->allowed_ns / 1e9);
    job_advance(job);
}

/* Ops -------------------------------------------------------------------------------------------------------------- */

/* With the spare a rename is never given up for want of memory, nor its sync: they are alone in their states. */
static struct task *task_take(struct job *job)
{
    struct task *task = calloc(1, sizeof(*task));

    if (task)
        task->discard = task_free;
    else if (!job->spare.job)
        *(task = &job->spare) = (struct task){ .job = job };
    return task;
}

static void task_put(struct task *task)
{
    if (task == &task->job->spare)
        task->job = NULL;
    else
        free(task);
}

void job_submit(struct job *job, uint32_t file, void (*done)(struct task *task, int64_t result), const struct op *op)
{
    struct task *task = task_take(job);

    if (!task) {
        job_fail(job, ENOMEM, op_kind_name(op->kind), job->name, "%s", failure_likely_cause(ENOMEM));
        return;
    }
    task->op = *op;
    task->done = done;
    task->writer = job->writer;
    task->job = job;
    task->file = file;
    job->pending++;
    tasks_submit(&job->writer->tasks, task);
}

void job_op_end(struct job *job)
{
    assert(job->pending > 0);
    if (--job->pending == 0 || MUTANT(SYNC_BEFORE_WRITES_END))
        job_advance(job);
}

void job_task_end(struct task *task)
{
    struct job *job = task->job;

    task_put(task);
    job_op_end(job);
}

void job_checked(struct task *task, int64_t result)
{
    if (MUTANT(FSYNC_TRIED_AGAIN) && result < 0 && task->op.kind == OP_FSYNC && task->file != NO_FILE) {
        tasks_submit(&task->writer->tasks, task);
        return;
    }
    if (result < 0)
        job_fail_task(task->job, task, (int)-result);
    job_task_end(task);
}

void job_ignored(struct task *task, int64_t result) { job_task_end(task); }

/* Beginning and end --------------------------------------------------------------------------------------------------- */

int job_create(struct writer *writer, const struct message *begin, const int *fds, struct job **job)
{
    struct job *made = calloc(1, sizeof(*made));

    if (!made) {
        writer_close_handle(writer, fds[0]);
        writer_close_handle(writer, fds[1]);
        return -ENOMEM;
    }
    made->writer = writer;
    made->attempt = begin->attempt;
    memcpy(made->name, begin->begin.name, sizeof(made->name));
    hidden_name_make(made->name, made->attempt.save_id, made->hidden);
    part_name_make(writer->settings.hello.rank, made->part);
    made->replace = begin->begin.replace;
    made->hash_late = begin->begin.hash_late;
    made->allowed_ns = begin->begin.deadline_ns;
    made->expires_ns = IO_FOREVER;
    made->answer = MESSAGE_FAILED;
    made->failure_file = UINT32_MAX;
    made->input.sheet_handle = fds[0];
    made->input.appendix_handle = fds[1];
    made->input.sheet_bytes = begin->begin.sheet_bytes;
    made->input.appendix_bytes = begin->begin.appendix_bytes;
    made->directory = made->part_handle = made->replaced.handle = made->shared.exclusion = -1;
    write_queue_init(&made->writes);
    *job = made;
    return 0;
}

static void input_deinit(struct job *job)
{
    const struct writer_memory *memory = job->writer->settings.memory;

    if (job->input.sheet_base)
        memory->unmap(memory->context, job->input.sheet_base, job->input.sheet_bytes);
    if (job->input.appendix_base)
        memory->unmap(memory->context, job->input.appendix_base, job->input.appendix_bytes);
    free(job->input.early);
}

void job_destroy(struct job *job)
{
    hash_queue_drop(job);
    if (job->chunks)
        for (uint32_t i = 0; i < job->chunk_count; i++)
            hash_stream_destroy(job->chunks[i].straddle);
    input_deinit(job);
    free(job->files);
    free(job->chunks);
    free(job->first_leaf);
    free(job->leaves);
    free(job->seal.digests);
    free(job->seal.manifest);
    io_list_free(&job->replaced.names);
    io_list_free(&job->replaced.names_again);
    io_list_free(&job->shared.names);
    free(job->replaced.linked);
    free(job);
}
