/* write/sweep.c - a failed attempt leaves nothing: its files are closed and removed, by the names that this job made and no
 * others, then its directory, which goes only if it is empty. Errors change nothing: the save failed already, and gc
 * removes what could not be removed here.
 */
#include <write/machine.h>

static void handle_close(struct job *job, uint32_t file, int *handle)
{
    if (*handle < 0)
        return;
    job_submit(job, file, job_ignored, &(struct op){ .kind = OP_CLOSE, .handle = *handle });
    *handle = -1;
}

/* Before they are removed: a network file system keeps an open file under another name, and the directory with it. */
void sweep_close(struct job *job)
{
    for (uint32_t i = 0; i < job->file_count; i++)
        handle_close(job, i, &job->files[i].handle);
}

static void unlink_name(struct job *job, uint32_t file, const char *name)
{
    job_submit(job, file, job_ignored, &(struct op){ .kind = OP_UNLINK, .handle = job->directory, .name = name });
}

void sweep_unlink(struct job *job)
{
    const struct job_replaced *replaced = &job->replaced;

    if (job->directory < 0)
        return;
    for (uint32_t i = 0; i < job->file_count; i++) {
        if (job->files[i].made)
            unlink_name(job, i, job->files[i].partial);
        if (job->files[i].uncovered)
            unlink_name(job, i, job->files[i].name);
    }
    for (size_t i = 0; replaced->linked && i < replaced->names.count; i++)
        if (replaced->linked[i])
            unlink_name(job, NO_FILE, replaced->names.names[i]);
    if (job->part_made)
        unlink_name(job, NO_FILE, job->part);
    if (job->shared.exclusion >= 0)
        unlink_name(job, NO_FILE, PUBLISH_NAME);
}

void sweep_remove(struct job *job)
{
    if (job->directory_made)
        job_submit(job, NO_FILE, job_ignored,
                   &(struct op){ .kind = OP_UNLINK, .handle = job->writer->settings.root, .name = job->hidden,
                                 .flags = UNLINK_DIRECTORY });
}

void sweep_close_rest(struct job *job)
{
    sweep_close(job);
    handle_close(job, NO_FILE, &job->part_handle);
    handle_close(job, NO_FILE, &job->replaced.handle);
    handle_close(job, NO_FILE, &job->shared.exclusion);
    handle_close(job, NO_FILE, &job->directory);
}
