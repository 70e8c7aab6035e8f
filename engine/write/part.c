/* write/part.c - what stands in the part record, for those who ask whose this attempt is (format/part.h).
 *
 * It is written beside the opening of the files, once the lock is held, and never waited for on the way to the disk. Nothing
 * depends on it: a record that cannot be written says nothing.
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

void part_write(struct job *job)
{
    const struct part_record record = record_of(job->writer);

    part_emit(&record, job->record);
    job_submit(job, NO_FILE, job_ignored,
               &(struct op){ .kind = OP_WRITE, .handle = job->part_handle, .memory = job->record, .size = sizeof(job->record) });
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
