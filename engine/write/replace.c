/* write/replace.c - the checkpoint that is replaced: what others put there is kept, what is ours is removed.
 *
 * Before the exchange every file of others gets a hard link in the new directory, so that it never leaves the name. What
 * cannot be linked (directories) or came in the meantime is moved after the exchange. Only then are our own files of the
 * old one removed. Whatever fails here afterwards leaves the old directory, hidden: nothing is lost, gc looks after it.
 *
 * The writer reads no manifest: ours is what has the form of our names.
 */
#include <write/machine.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Before --------------------------------------------------------------------------------------------------------------- */

static void old_opened(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result >= 0)
        job->replaced.handle = (int)result;
    else if (result != -ENOENT) /* nothing to replace: a plain save */
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

void replace_open(struct job *job)
{
    job_submit(job, NO_FILE, old_opened,
               &(struct op){ .kind = OP_OPEN, .handle = job->writer->settings.root, .name = job->name,
                             .flags = OPEN_READ | OPEN_DIRECTORY });
}

void replace_list(struct job *job)
{
    job_submit(job, NO_FILE, job_checked,
               &(struct op){ .kind = OP_LIST, .handle = job->replaced.handle, .list = &job->replaced.names });
}

/* Errors that say "not by a link": it is moved after the exchange instead. EEXIST: we have a file of that name ourselves. */
static bool link_is_refused(int error)
{
    return error == EPERM || error == EMLINK || error == EOPNOTSUPP || error == ENOSYS || error == EXDEV || error == EEXIST;
}

static void linked(struct task *task, int64_t result)
{
    bool *mark = task->op.argument; /* unused by OP_LINK: a note to ourselves */

    *mark = result >= 0;
    if (result < 0 && result != -ENOENT && !link_is_refused((int)-result))
        job_fail_task(task->job, task, (int)-result);
    job_task_end(task);
}

void replace_link(struct job *job)
{
    struct job_replaced *replaced = &job->replaced;

    if (!(replaced->linked = calloc(replaced->names.count + 1, sizeof(*replaced->linked)))) {
        job_fail(job, ENOMEM, "link", job->name, "no memory to keep the files of others");
        return;
    }
    for (size_t i = 0; i < replaced->names.count; i++) {
        const char *name = replaced->names.names[i];

        if (!file_name_is_ours(name) && !MUTANT(FOREIGN_FILES_NOT_LINKED))
            job_submit(job, NO_FILE, linked,
                       &(struct op){ .kind = OP_LINK, .handle = replaced->handle, .name = name, .to_handle = job->directory,
                                     .to_name = name, .argument = &replaced->linked[i] });
    }
}

/* Afterwards: errors matter to nobody, the save is published ------------------------------------------------------------ */

static int name_compare(const void *key, const void *element) { return strcmp(key, *(char *const *)element); }

static bool name_was_linked(const struct job_replaced *replaced, const char *name)
{
    char **found = bsearch(name, replaced->names.names, replaced->names.count, sizeof(*found), name_compare);

    return found && replaced->linked[found - replaced->names.names];
}

void replace_list_again(struct job *job)
{
    if (job->replaced.handle >= 0)
        job_submit(job, NO_FILE, job_ignored,
                   &(struct op){ .kind = OP_LIST, .handle = job->replaced.handle, .list = &job->replaced.names_again });
}

void replace_move(struct job *job)
{
    const struct job_replaced *replaced = &job->replaced;

    for (size_t i = 0; i < replaced->names_again.count; i++) {
        const char *name = replaced->names_again.names[i];

        if (!file_name_is_ours(name) && !name_was_linked(replaced, name))
            job_submit(job, NO_FILE, job_ignored,
                       &(struct op){ .kind = OP_RENAME, .handle = replaced->handle, .name = name, .to_handle = job->directory,
                                     .to_name = name, .flags = RENAME_OP_NOREPLACE });
    }
}

void replace_unlink(struct job *job)
{
    const struct job_replaced *replaced = &job->replaced;

    for (size_t i = 0; i < replaced->names_again.count; i++) {
        const char *name = replaced->names_again.names[i];

        if (file_name_is_ours(name) || name_was_linked(replaced, name))
            job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_UNLINK, .handle = replaced->handle, .name = name });
    }
}

void replace_remove(struct job *job)
{
    const char *name = job->replaced.is_aside ? job->replaced.aside : job->hidden;

    if (MUTANT(REPLACED_ONE_STAYS))
        return;
    job_submit(job, NO_FILE, job_ignored,
               &(struct op){ .kind = OP_UNLINK, .handle = job->writer->settings.root, .name = name, .flags = UNLINK_DIRECTORY });
}
