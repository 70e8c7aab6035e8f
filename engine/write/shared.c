/* write/shared.c - what is different when several ranks write one checkpoint: they share its hidden directory.
 *
 * Each rank touches its own files only: they carry its number. Whoever is there first makes the directory; a rank that fails
 * removes it if it is empty; whoever publishes renames it. So a rank that begins may find the directory gone under its feet,
 * and begins again. What an earlier attempt of the same rank left behind is removed, if its part record's lock is free.
 *
 * The list of a rank's files, "tspool.part-<rank + 1>.json", gets its name when everything in it is durable under its final
 * name: where it stands, the part is whole. From then on anyone may publish, so nothing is removed any more. The record's lock
 * is kept: gc sees that the save is not forgotten.
 */
#include <write/machine.h>

#include <errno.h>
#include <stdlib.h>

#define RETURNS_MAX 16

/* An earlier attempt's record ------------------------------------------------------------------------------------------ */

static void adopted(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result >= 0)
        job->part_handle = (int)result;
    else if (!(job->shared.gone = result == -ENOENT)) /* swept in between: begin again */
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

void shared_adopt(struct job *job)
{
    job_submit(job, NO_FILE, adopted,
               &(struct op){ .kind = OP_OPEN, .handle = job->directory, .name = job->part, .flags = OPEN_WRITE });
}

/* Whoever publishes holds this lock from before it reads the parts until they are gone: what stands complete is not taken away
 * under its hands. */
static void excluded(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result == -EWOULDBLOCK)
        job_fail(job, EBUSY, "lock", job->hidden, "the save is being published just now; look at what came of that before this "
                 "rank saves again");
    else if (result < 0)
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

static void exclusion_open(struct job *job, uint32_t flags, void (*done)(struct task *task, int64_t result))
{
    job_submit(job, NO_FILE, done,
               &(struct op){ .kind = OP_OPEN, .handle = job->directory, .name = PUBLISH_NAME, .flags = OPEN_WRITE | flags });
}

static void exclusion_opened(struct task *task, int64_t result)
{
    struct job *job = task->job;

    job->shared.exclusion = result >= 0 ? (int)result : -1;
    if (result >= 0)
        job_submit(job, NO_FILE, excluded, &(struct op){ .kind = OP_LOCK, .handle = job->shared.exclusion });
    else if (result == -EEXIST)
        exclusion_open(job, 0, exclusion_opened);
    else if (result == -ENOENT)
        exclusion_open(job, OPEN_CREATE, exclusion_opened); /* its owner removed it in between, or the directory is gone */
    else
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

void shared_exclude(struct job *job) { exclusion_open(job, OPEN_CREATE, exclusion_opened); }

void shared_include(struct job *job)
{
    if (job->shared.exclusion < 0)
        return;
    job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_UNLINK, .handle = job->directory, .name = PUBLISH_NAME });
    job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_CLOSE, .handle = job->shared.exclusion });
    job->shared.exclusion = -1;
}

/* Is it still the shared directory? ------------------------------------------------------------------------------------- */

static void looked(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result == -ENOENT)
        job->shared.gone = true;
    else if (result < 0)
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

/* Published or swept between our opening and our locking, it would be another's directory that we write into. Now that the
 * record is locked nobody sweeps it any more, and nobody publishes without this rank's part. */
void shared_inherit(struct job *job)
{
    struct job_shared *shared = &job->shared;
    int root = job->writer->settings.root;

    job_submit(job, NO_FILE, looked, &(struct op){ .kind = OP_STAT, .handle = job->directory, .stat = &shared->directory });
    job_submit(job, NO_FILE, looked,
               &(struct op){ .kind = OP_STAT, .handle = root, .name = job->hidden, .stat = &shared->hidden });
    job_submit(job, NO_FILE, looked, &(struct op){ .kind = OP_STAT, .handle = job->part_handle, .stat = &shared->part });
    if (shared->part_found)
        job_submit(job, NO_FILE, looked, &(struct op){ .kind = OP_LIST, .handle = job->directory, .list = &shared->names });
}

static bool is_another(const struct job_shared *shared)
{
    return shared->gone || shared->part.links == 0 || shared->hidden.inode != shared->directory.inode ||
           shared->hidden.device != shared->directory.device;
}

/* Nothing here is ours but the record that we made just now. */
static void begin_again(struct job *job)
{
    if (!job->shared.part_found)
        job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_UNLINK, .handle = job->directory, .name = job->part });
    job->shared.gone = true;
    job->part_made = job->directory_made = false;
}

void shared_clear(struct job *job)
{
    if (is_another(&job->shared)) {
        begin_again(job);
        return;
    }
    if (job->shared.part_found) /* it may bear the mark of an orphan */
        job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_TRUNCATE, .handle = job->part_handle, .size = 0 });
    for (size_t i = 0; i < job->shared.names.count; i++)
        if (MUTANT(OTHER_RANKS_FILES_CLEARED) ||
            file_name_is_of_rank(job->shared.names.names[i], job->writer->settings.hello.rank))
            job_submit(job, NO_FILE, job_checked,
                       &(struct op){ .kind = OP_UNLINK, .handle = job->directory, .name = job->shared.names.names[i] });
}

void shared_leave(struct job *job)
{
    if (++job->shared.returns > RETURNS_MAX)
        job_fail(job, EBUSY, "open", job->hidden, "the directory of this save was taken away again and again; are other ranks "
                 "failing?");
    job->shared.gone = false;
    io_list_free(&job->shared.names);
    job->shared.names = (struct io_list){ NULL, 0 };
    sweep_close_rest(job);
}

/* Durable ---------------------------------------------------------------------------------------------------------------- */

static void uncovered(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result < 0) {
        job->publishing = !rename_changed_nothing((int)-result);
        job_fail_task(job, task, (int)-result);
    }
    job_task_end(task);
}

/* With its name the part is everybody's: a publisher may take it, whatever comes after. */
void shared_uncover(struct job *job)
{
    job->counts.synced_ns = job->writer->tasks.now_ns;
    job->publishing = true;
    if (!MUTANT(PART_NAMED_BEFORE_SYNC) && !MUTANT(PART_NAMED_WITH_ITS_FILES))
        commit_uncover_file(job, job->file_count - 1, uncovered);
}

void shared_hold(struct job *job)
{
    struct held_part *part = calloc(1, sizeof(*part));

    job_progress(job, MESSAGE_DURABLE);
    job->answered = true;
    if (!part)
        return; /* the lock goes with the job: gc then decides by what stands there */
    part->handle = job->part_handle;
    job->part_handle = -1;
    part->next = job->writer->held;
    job->writer->held = part;
}

/* Locks that outlive their jobs ------------------------------------------------------------------------------------------ */

static void part_drop(struct writer *writer, struct held_part **link)
{
    struct held_part *part = *link;

    *link = part->next;
    writer_close_handle(writer, part->handle);
    free(part);
}

static void part_looked(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;
    struct held_part **link = &writer->held;

    while (&(*link)->look != task)
        link = &(*link)->next;
    (*link)->looking = false;
    if (result >= 0 && (*link)->stat.links == 0)
        part_drop(writer, link);
}

void held_parts_look(struct writer *writer)
{
    for (struct held_part *part = writer->held; part; part = part->next) {
        if (part->looking)
            continue;
        part->looking = true;
        part->look = (struct task){ .op = { .kind = OP_STAT, .handle = part->handle, .stat = &part->stat }, .done = part_looked,
                                    .writer = writer, .file = NO_FILE };
        tasks_submit(&writer->tasks, &part->look);
    }
}

bool held_parts_drop(struct writer *writer)
{
    bool any = writer->held != NULL;

    while (writer->held)
        part_drop(writer, &writer->held);
    return any;
}

void held_parts_free(struct writer *writer)
{
    struct held_part *next;

    for (struct held_part *part = writer->held; part; part = next) {
        next = part->next;
        free(part);
    }
}
