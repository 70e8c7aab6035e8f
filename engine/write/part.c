/* write/part.c - what stands in the part record, for those who ask whose this attempt is (format/part.h).
 *
 * It is written beside the opening of the files, once the lock is held, and never synced. Nothing depends on it: a record that
 * cannot be written says nothing. The io has PART_WRITES places for it besides those of the data: of more saves that begin at
 * once, some wait for one.
 */
#include <write/machine.h>

#include <string.h>

static struct part_record record_of(const struct writer *writer)
{
    const struct message_hello *hello = &writer->settings.hello;
    struct part_record record = { .writer_pid = (uint32_t)writer->settings.pid, .trainer_pid = hello->trainer_pid,
                                  .trainer_start = hello->trainer_start, .pid_namespace = hello->pid_namespace };

    memcpy(record.boot_id, hello->boot_id, sizeof(record.boot_id));
    return record;
}

static void record_written(struct task *task, int64_t result);

static void record_submit(struct job *job)
{
    job->record_waits = false;
    job->writer->part_writes++;
    job->record_task = (struct task){
        .op = { .kind = OP_WRITE, .handle = job->part_handle, .memory = job->record, .size = sizeof(job->record) },
        .done = record_written, .writer = job->writer, .job = job, .file = NO_FILE };
    tasks_submit(&job->writer->tasks, &job->record_task);
}

static void records_pump(struct writer *writer)
{
    for (struct job *job = writer->first_job; job && writer->part_writes < PART_WRITES; job = job->next)
        if (job->record_waits)
            record_submit(job);
}

static void record_written(struct task *task, int64_t result)
{
    task->writer->part_writes--;
    records_pump(task->writer);
    job_op_end(task->job);
}

/* One of the state's ops from here on, also while it waits for a place. */
void part_write(struct job *job)
{
    const struct part_record record = record_of(job->writer);

    part_emit(&record, job->record);
    job->record_waits = true;
    job->pending++;
    records_pump(job->writer);
    if (job->writer->trainer_dead)
        part_mark(job);
}

/* Before the record's state it marks itself; from JOB_UNCOVER on the record is on its way out. */
void part_mark(struct job *job)
{
    if (MUTANT(ORPHAN_NOT_MARKED))
        return;
    if (job->is_orphan || job->failed || job->state <= JOB_LOCK || job->state >= JOB_UNCOVER)
        return;
    job->is_orphan = true;
    job_submit(job, NO_FILE, job_ignored,
               &(struct op){ .kind = OP_TRUNCATE, .handle = job->part_handle, .size = PART_ORPHAN_BYTES });
}
