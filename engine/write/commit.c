/* write/commit.c - from written to durable under the name. The order is the promise (docs/ARCHITECTURE.md):
 *
 *   tails cut | files synced | .partial dropped | directory synced | renamed onto the name | root synced | reported
 *
 * With several ranks (shared.c) it ends otherwise; the rename is left to whoever publishes:
 *
 *   ... directory synced | part record named | directory synced | root synced | reported
 *
 * Each state waits for every op of the one before it. An fsync that failed is never tried again: the kernel has dropped the
 * dirty pages' state, and a second one would lie. A rename's error decides: where it is certain that nothing changed, the
 * save failed; else nobody knows, and nothing is removed.
 */
#include <write/machine.h>

#include <errno.h>

void commit_cut(struct job *job)
{
    if (MUTANT(TAILS_NOT_CUT))
        return;
    for (uint32_t i = 0; i < job->file_count; i++)
        if (job->files[i].allocated != job->files[i].size)
            job_submit(job, i, job_checked,
                       &(struct op){ .kind = OP_TRUNCATE, .handle = job->files[i].handle, .size = job->files[i].size });
}

void commit_uncover_file(struct job *job, uint32_t number, void (*done)(struct task *task, int64_t result))
{
    struct job_file *file = &job->files[number];

    file->uncovered = true; /* from now on it may have either name */
    job_submit(job, number, done,
               &(struct op){ .kind = OP_RENAME, .handle = job->directory, .name = file->partial, .to_handle = job->directory,
                             .to_name = file->name, .flags = RENAME_PLAIN });
}

static inline bool sync_is_left_out(const struct job *job, uint32_t file)
{
    return (MUTANT(FIRST_SHARD_UNSYNCED) && file == 0) || (MUTANT(LAST_SHARD_UNSYNCED) && file + 1 == job->shard_count) ||
           (MUTANT(TEXTS_UNSYNCED) && file >= job->shard_count && file + 2 < job->file_count) ||
           (MUTANT(DIGESTS_UNSYNCED) && file + 2 == job->file_count) || (MUTANT(MANIFEST_UNSYNCED) && file + 1 == job->file_count);
}

void commit_sync(struct job *job)
{
    for (uint32_t i = 0; i < job->file_count; i++)
        if (!sync_is_left_out(job, i))
            job_submit(job, i, job_checked, &(struct op){ .kind = OP_FSYNC, .handle = job->files[i].handle });
    if (MUTANT(PARTIAL_DROPPED_BEFORE_SYNC))
        commit_uncover_file(job, 0, job_checked);
    if (MUTANT(PART_NAMED_BEFORE_SYNC) && job_is_part(job))
        commit_uncover_file(job, job->file_count - 1, job_checked);
}

/* The lock's record goes too: with one rank nothing but the whole checkpoint is left to see. With several it stays, and the
 * last file, the list of this rank's, waits until the names of the others are durable. Handles are closed beside. */
void commit_uncover(struct job *job)
{
    uint32_t count = job->file_count - (job_is_part(job) || MUTANT(MANIFEST_NAMED_AFTER_DIRECTORY_SYNC) ? 1 : 0);

    for (uint32_t i = 0; i < count; i++)
        if (!(MUTANT(PARTIAL_DROPPED_BEFORE_SYNC) && i == 0))
            commit_uncover_file(job, i, job_checked);
    if (MUTANT(PART_NAMED_WITH_ITS_FILES) && job_is_part(job))
        commit_uncover_file(job, job->file_count - 1, job_checked);
    if (!job_is_part(job))
        job_submit(job, NO_FILE, job_checked, &(struct op){ .kind = OP_UNLINK, .handle = job->directory, .name = job->part });
    sweep_close(job);
}

void commit_sync_directory(struct job *job)
{
    if (MUTANT(HIDDEN_DIRECTORY_UNSYNCED) || (MUTANT(PART_NAME_UNSYNCED) && job->state == JOB_SYNC_PART))
        return;
    if (MUTANT(RENAME_BEFORE_DIRECTORY_SYNC) && !job->publishing) {
        commit_rename(job);
        return;
    }
    job_submit(job, NO_FILE, job_checked, &(struct op){ .kind = OP_FSYNC, .handle = job->directory });
}

/* Refusals that are decided before anything is changed. Not ENOENT: a file server may say it when it carries out a
 * repeated request whose first answer was lost. */
bool rename_changed_nothing(int error)
{
    if (MUTANT(RENAME_ERROR_TAKEN_FOR_CERTAIN))
        return true;
    switch (error) {
    case EEXIST: case ENOTEMPTY: case ENOTDIR: case EISDIR: case EACCES: case EPERM: case EROFS: case EXDEV: case EINVAL:
    case ENOSYS: case EOPNOTSUPP: case ENAMETOOLONG: case ELOOP: case ENOSPC: case EDQUOT: case EMLINK:
        return true;
    default:
        return false;
    }
}

static bool exchange_is_refused(int error)
{
    return error == EINVAL || error == ENOSYS || error == EXDEV || error == EOPNOTSUPP;
}

static void root_rename(struct job *job, void (*done)(struct task *, int64_t), const char *name, const char *to_name,
                        uint32_t flags)
{
    int root = job->writer->settings.root;

    job_submit(job, NO_FILE, done,
               &(struct op){ .kind = OP_RENAME, .handle = root, .name = name, .to_handle = root, .to_name = to_name,
                             .flags = flags });
}

static void renamed(struct task *task, int64_t result)
{
    struct job *job = task->job;
    bool exchange = task->op.flags == RENAME_OP_EXCHANGE;

    if (result >= 0) {
        job->replaced.exchanged = exchange;
    } else if (MUTANT(RENAME_OVER_WHAT_STANDS) && !exchange) {
        root_rename(job, renamed, job->hidden, job->name, RENAME_OP_EXCHANGE);
    } else {
        job->publishing = !rename_changed_nothing((int)-result);
        if (!exchange && (result == -EEXIST || result == -ENOTEMPTY))
            job_fail(job, EEXIST, "publish", job->name, "another save published a checkpoint of that name while this one was "
                     "written; it stands as it is. Save under another name, or ask for the old one to be replaced");
        else if (!exchange || !exchange_is_refused((int)-result))
            job_fail_task(job, task, (int)-result);
    }
    job_task_end(task);
}

/* Plain rename takes an absent name or an empty directory, and refuses everything else by itself. */
void commit_rename(struct job *job)
{
    if (MUTANT(RENAME_BEFORE_DIRECTORY_SYNC) && job->publishing) {
        commit_sync_directory(job);
        return;
    }
    if (MUTANT(MANIFEST_NAMED_AFTER_DIRECTORY_SYNC))
        commit_uncover_file(job, job->file_count - 1, job_checked);
    job->counts.synced_ns = job->writer->tasks.now_ns;
    job->publishing = true;
    root_rename(job, renamed, job->hidden, job->name, job->replaced.handle >= 0 ? RENAME_OP_EXCHANGE : RENAME_PLAIN);
}

/* Where exchange is refused (overlay, NFS) --------------------------------------------------------------------------- */

static void set_aside(struct task *task, int64_t result)
{
    struct job *job = task->job;

    job->replaced.is_aside = result >= 0;
    if (result < 0) {
        job->publishing = !rename_changed_nothing((int)-result);
        job_fail_task(job, task, (int)-result);
    }
    job_task_end(task);
}

/* For a moment nothing has the name: whoever opens next repairs a crash just then, from the new one's hidden name, which was
 * synced before: a file system that does not keep the order of renames could else lose it and keep this one. */
void commit_aside(struct job *job)
{
    uint8_t id[16];

    io_random(job->writer->io, id, sizeof(id));
    hidden_name_make(job->name, id, job->replaced.aside);
    job->publishing = true;
    root_rename(job, set_aside, job->name, job->replaced.aside, RENAME_PLAIN);
}

void commit_rename_in(struct job *job) { root_rename(job, job_checked, job->hidden, job->name, RENAME_PLAIN); }

/* Puts the old one back, if the name is free. Whatever comes of it: UNKNOWN, and nothing is removed. */
void commit_rename_back(struct job *job) { root_rename(job, job_ignored, job->replaced.aside, job->name, RENAME_PLAIN); }

void commit_sync_root(struct job *job)
{
    if ((MUTANT(ROOT_UNSYNCED) || (MUTANT(PART_DURABLE_BEFORE_ROOT_SYNC) && job_is_part(job))) && job->state == JOB_SYNC_ROOT)
        return;
    if (MUTANT(ROOT_UNSYNCED_BEFORE_ASIDE) && job->state == JOB_SYNC_HIDDEN)
        return;
    if (MUTANT(REPORTED_BEFORE_ROOT_SYNC) && job->state == JOB_SYNC_ROOT)
        job_report_published(job);
    if (MUTANT(REPLACED_REMOVED_BEFORE_ROOT_SYNC) && job->state == JOB_SYNC_ROOT && job->replaced.handle >= 0)
        job_submit(job, NO_FILE, job_ignored,
                   &(struct op){ .kind = OP_UNLINK, .handle = job->replaced.handle, .name = MANIFEST_NAME });
    job_submit(job, NO_FILE, job_checked, &(struct op){ .kind = OP_FSYNC, .handle = job->writer->settings.root });
}
