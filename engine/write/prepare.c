/* write/prepare.c - from BEGIN to PREPARED: the plan is read, and whatever can refuse a save is asked before its tensors are
 * gone: the name, the free space, the directory, every file and its blocks.
 */
#include <write/machine.h>

#include <assert.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <format/digests.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_LOOK_NS 20000000u

_Static_assert(LEAF_BYTES * 2 <= CHUNK_BYTES, "a leaf lies in one chunk or straddles two");

/* Reading the input: on a compute thread ----------------------------------------------------------------------------
 *
 * A sheet of a million tensors takes milliseconds to check. Until the task has come back only it touches the job's
 * input and tables. */

static int input_fault(struct job_input *input, const char *what, const char *reason)
{
    return failure_set(&input->failure, TSPOOL_STAGE_PREPARE, EBADMSG, FAILURE_AT(.operation = "read", .path = what), "%s",
                       reason);
}

static int input_map(struct job *job)
{
    const struct writer_memory *memory = job->writer->settings.memory;
    struct job_input *input = &job->input;
    const char *reason;
    int error;

    error = memory->map(memory->context, input->sheet_handle, input->sheet_bytes, &input->sheet_base, &input->failure);
    if (error == 0)
        error = memory->map(memory->context, input->appendix_handle, input->appendix_bytes, &input->appendix_base,
                            &input->failure);
    if (error < 0)
        return error;
    if (sheet_view(input->sheet_base, input->sheet_bytes, &input->sheet, &reason) < 0)
        return input_fault(input, "sheet", reason);
    if (appendix_view(input->appendix_base, input->appendix_bytes, &input->appendix, &reason) < 0)
        return input_fault(input, "appendix", reason);
    if (input->appendix.front->digests_size !=
        digests_file_size(input->sheet.front->tensor_count, input->sheet.front->leaf_count))
        return input_fault(input, "appendix", "the size of the digests file disagrees with the sheet");
    return 0;
}

static void file_set(struct job_file *file, const char *name, uint64_t size, uint64_t allocated, const uint8_t *text)
{
    *file = (struct job_file){ .name = name, .size = size, .allocated = allocated, .text = text, .handle = -1 };
    snprintf(file->partial, sizeof(file->partial), "%s%s", name, PARTIAL_SUFFIX);
}

/* Shards, then objects and index, then digests, then the manifest. */
static int files_build(struct job *job)
{
    const struct appendix *appendix = &job->input.appendix;
    const struct sheet *sheet = &job->input.sheet;
    uint32_t texts = appendix->front->text_count, align = job->writer->mode.offset_align, next;

    job->shard_count = next = sheet->front->file_count;
    job->writes.text_file = job->shard_count;
    if (!(job->files = calloc((size_t)job->shard_count + texts + 1, sizeof(*job->files))))
        return -ENOMEM;
    for (uint32_t i = 0; i < job->shard_count; i++)
        file_set(&job->files[i], sheet->files[i].name, sheet->files[i].size, align_up(sheet->files[i].size, align), NULL);
    for (uint32_t i = 0; i < texts; i++) {
        const struct appendix_text *text = &appendix->front->texts[i];

        if (text->kind == TEXT_MANIFEST)
            file_set(&job->files[next++], appendix->front->digests_name, appendix->front->digests_size,
                     appendix->front->digests_size, NULL);
        file_set(&job->files[next++], text->name, text->size, text->size, appendix->bytes + text->offset);
    }
    job->file_count = next;
    return 0;
}

static int leaves_build(struct job *job)
{
    const struct sheet *sheet = &job->input.sheet;
    uint64_t leaf = 0;

    job->first_leaf = calloc(sheet->front->tensor_count + 1, sizeof(*job->first_leaf));
    job->leaves = calloc(sheet->front->leaf_count + 1, sizeof(*job->leaves));
    if (!job->first_leaf || !job->leaves)
        return -ENOMEM;
    for (uint64_t i = 0; i < sheet->front->tensor_count; i++) {
        job->first_leaf[i] = leaf;
        leaf += leaf_count_of(sheet->tensors[i].size);
    }
    assert(leaf == sheet->front->leaf_count); /* or sheet_view had refused it */
    return 0;
}

static void file_chunks_build(struct job *job, uint32_t number)
{
    const struct sheet_file *file = &job->input.sheet.files[number];
    const struct sheet_tensor *tensors = job->input.sheet.tensors;
    uint64_t tensor = file->tensor_first, end = file->tensor_first + file->tensor_count;

    for (uint32_t i = 0; i < file->chunk_count; i++) {
        struct chunk *chunk = &job->chunks[file->chunk_first + i];
        uint64_t begin = (uint64_t)i * CHUNK_BYTES;

        while (tensor < end && tensors[tensor].file_offset + tensors[tensor].size <= begin)
            tensor++;
        chunk->file = number;
        chunk->tensor = tensor;
        chunk->leading = tensor < end && tensors[tensor].file_offset < begin &&
                         (begin - tensors[tensor].file_offset) % LEAF_BYTES != 0;
        chunk->waits = CHUNK_WRITING | CHUNK_INTERIOR | (chunk->leading ? CHUNK_LEADING : 0);
        chunk->next = NO_CHUNK;
    }
}

static int64_t input_read(void *argument)
{
    struct job *job = argument;
    int error = input_map(job);

    if (error == 0)
        error = files_build(job);
    if (error == 0)
        error = leaves_build(job);
    if (error < 0)
        return error;
    job->chunk_count = job->input.sheet.front->chunk_count;
    if (!(job->chunks = calloc(job->chunk_count, sizeof(*job->chunks))))
        return -ENOMEM;
    for (uint32_t i = 0; i < job->shard_count; i++)
        file_chunks_build(job, i);
    return 0;
}

static void input_failed(struct job *job, int error)
{
    const struct tspool_failure *failure = &job->input.failure;

    if (failure->error)
        job_fail(job, error, failure->operation, failure->path, "%s", failure->cause);
    else
        job_fail(job, error, "read", "sheet", "%s", failure_likely_cause(error));
}

static void handle_drop(struct job *job, int *handle)
{
    if (*handle >= 0)
        job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_CLOSE, .handle = *handle });
    *handle = -1;
}

static void read_done(struct task *task, int64_t result)
{
    struct job *job = task->job;
    struct job_input *input = &job->input;

    if (result < 0)
        input_failed(job, (int)-result);
    handle_drop(job, &input->sheet_handle);
    handle_drop(job, &input->appendix_handle);
    job_task_end(task);
}

void prepare_read(struct job *job)
{
    job_submit(job, NO_FILE, read_done, &(struct op){ .kind = OP_COMPUTE, .compute = input_read, .argument = job });
}

/* Admission --------------------------------------------------------------------------------------------------------- */

/* "1.50 GiB", for people. */
static void size_text(uint64_t bytes, char text[32])
{
    static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    unsigned unit = 0;
    double value = (double)bytes;

    for (; value >= 1024 && unit < sizeof(units) / sizeof(units[0]) - 1; unit++)
        value /= 1024;
    snprintf(text, 32, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
}

static uint64_t bytes_needed(const struct job *job)
{
    uint64_t needed = 0;

    for (uint32_t i = 0; i < job->file_count; i++)
        needed += job->files[i].allocated;
    return needed;
}

static void root_look(struct job *job);

static void room_waited(struct task *task, int64_t result)
{
    if (!task->job->failed)
        root_look(task->job);
    job_task_end(task);
}

/* What is missing may just be freed by retention. False when it is not, and this op was begun after that was said. */
static bool room_await(const struct task *task, void (*waited)(struct task *task, int64_t result))
{
    const struct writer_settings *settings = &task->writer->settings;
    uint64_t now_ns = task->writer->tasks.now_ns;
    struct job *job = task->job;

    if (!settings->keeper || job->failed)
        return false;
    if (settings->keeping->makes_room(settings->keeper))
        job->room_denied_ns = 0;
    else if (job->room_denied_ns == 0)
        job->room_denied_ns = now_ns;
    else if (task->submitted_ns >= job->room_denied_ns)
        return false;
    job_submit(job, task->file, waited, &(struct op){ .kind = OP_TIMER, .deadline_ns = now_ns + ROOM_LOOK_NS });
    return true;
}

static void root_looked(struct task *task, int64_t result)
{
    struct job *job = task->job;
    uint64_t needed = bytes_needed(job);
    char needed_text[32], free_text[32];

    if (result < 0) {
        job_fail_task(job, task, (int)-result);
    } else if (needed > job->root_stat.free_bytes && !MUTANT(SPACE_NOT_ASKED) && !room_await(task, room_waited)) {
        size_text(needed, needed_text);
        size_text(job->root_stat.free_bytes, free_text);
        job_fail(job, ENOSPC, "allocate", job->name,
                 "the checkpoint needs %s (%llu bytes), the file system has %s free (%llu bytes)", needed_text,
                 (unsigned long long)needed, free_text, (unsigned long long)job->root_stat.free_bytes);
    }
    job_task_end(task);
}

static void root_look(struct job *job)
{
    job_submit(job, NO_FILE, root_looked,
               &(struct op){ .kind = OP_STAT, .handle = job->writer->settings.root, .stat = &job->root_stat });
}

static void name_taken(struct job *job, const char *why)
{
    job_fail(job, EEXIST, "publish", job->name, "%s; choose another name, or ask for the old one to be replaced", why);
}

static void name_looked(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result < 0 && result != -ENOENT)
        job_fail_task(job, task, (int)-result);
    job->name_exists = result >= 0;
    if (job->name_exists && !job->name_stat.is_directory)
        job_fail(job, job->replace ? ENOTDIR : EEXIST, "publish", job->name,
                 "something of that name exists and is not a directory; choose another name, or remove it");
    job_task_end(task);
}

void prepare_admit(struct job *job)
{
    int root = job->writer->settings.root;

    for (size_t i = 0; i < job->input.early_count; i++)
        job_take_staged(job, &job->input.early[i]);
    job->input.early_count = 0;
    if (writer_is_ending(job->writer) && !job_is_staged(job))
        job_fail(job, ECANCELED, "", job->name, "the writer ended before the save was staged");
    if (job->failed)
        return;
    root_look(job);
    job_submit(job, NO_FILE, name_looked,
               &(struct op){ .kind = OP_STAT, .handle = root, .name = job->name, .stat = &job->name_stat });
}

/* A directory of that name may stand there if it is empty: rename(2) replaces that, and nothing else. */
static void look_opened(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result >= 0)
        job->replaced.handle = (int)result;
    else if (result != -ENOENT)
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

void prepare_look_open(struct job *job)
{
    job_submit(job, NO_FILE, look_opened,
               &(struct op){ .kind = OP_OPEN, .handle = job->writer->settings.root, .name = job->name,
                             .flags = OPEN_READ | OPEN_DIRECTORY });
}

static void look_listed(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result < 0)
        job_fail_task(job, task, (int)-result);
    else if (job->replaced.names.count > 0)
        name_taken(job, "a checkpoint or directory of that name exists and is not empty");
    io_list_free(&job->replaced.names);
    job->replaced.names = (struct io_list){ NULL, 0 };
    handle_drop(job, &job->replaced.handle);
    job_task_end(task);
}

void prepare_look_list(struct job *job)
{
    if (job->replaced.handle >= 0)
        job_submit(job, NO_FILE, look_listed,
                   &(struct op){ .kind = OP_LIST, .handle = job->replaced.handle, .list = &job->replaced.names });
}

/* The hidden directory ------------------------------------------------------------------------------------------------ */

static void made(struct task *task, int64_t result)
{
    struct job *job = task->job;

    job->directory_made = result >= 0 || (result == -EEXIST && job_is_part(job)); /* another rank's is ours as well */
    if (result == -EEXIST && !job_is_part(job))
        job_fail(job, EEXIST, "mkdir", job->hidden,
                 "another attempt of this save is at work there or left it behind; 'tspool gc' removes what dead ones left");
    else if (result < 0 && result != -EEXIST)
        job_fail_task(job, task, (int)-result);
    job_task_end(task);
}

void prepare_make(struct job *job)
{
    job_submit(job, NO_FILE, made, &(struct op){ .kind = OP_MKDIR, .handle = job->writer->settings.root, .name = job->hidden });
}

/* A rank that fails removes the directory when it is empty: then another one is made. */
static bool was_removed(struct job *job, int64_t result)
{
    job->shared.gone = result == -ENOENT && job_is_part(job);
    return job->shared.gone;
}

static void entered(struct task *task, int64_t result)
{
    if (result >= 0)
        task->job->directory = (int)result;
    else if (!was_removed(task->job, result))
        job_fail_task(task->job, task, (int)-result);
    job_task_end(task);
}

void prepare_enter(struct job *job)
{
    job_submit(job, NO_FILE, entered,
               &(struct op){ .kind = OP_OPEN, .handle = job->writer->settings.root, .name = job->hidden,
                             .flags = OPEN_READ | OPEN_DIRECTORY });
}

static void claimed(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result >= 0)
        job->part_handle = (int)result;
    else if (result == -EEXIST && job_is_part(job))
        job->shared.part_found = true;
    else if (!was_removed(job, result))
        job_fail_task(job, task, (int)-result);
    job->part_made = result != -EEXIST && !job->shared.gone; /* an open that failed otherwise may have made it */
    job_task_end(task);
}

void prepare_claim(struct job *job)
{
    job->shared.part_found = false;
    job_submit(job, NO_FILE, claimed,
               &(struct op){ .kind = OP_OPEN, .handle = job->directory, .name = job->part, .flags = OPEN_WRITE | OPEN_CREATE });
}

static void locked(struct task *task, int64_t result)
{
    struct job *job = task->job;

    if (result == -EWOULDBLOCK && job->shared.part_found)
        job_fail(job, EBUSY, "lock", job->part, "another attempt of this rank is at work on this save, or holds its part until "
                 "it is published; end it, or save under a new save id");
    else if (result < 0)
        job_fail_task(job, task, (int)-result);
    else
        job->part_made = true; /* one that was found is ours now */
    job_task_end(task);
}

/* The directory's lock outlives the record, which is dropped before the publish; with several ranks it stays, and the directory
 * is nobody's. Not every file system has it. */
void prepare_lock(struct job *job)
{
    if (MUTANT(PART_NOT_LOCKED))
        return;
    job_submit(job, NO_FILE, locked, &(struct op){ .kind = OP_LOCK, .handle = job->part_handle });
    if (!job_is_part(job))
        job_submit(job, NO_FILE, job_ignored, &(struct op){ .kind = OP_LOCK, .handle = job->directory });
}

/* Files ------------------------------------------------------------------------------------------------------------- */

static void opened(struct task *task, int64_t result)
{
    struct job_file *file = &task->job->files[task->file];

    if (result < 0)
        job_fail_task(task->job, task, (int)-result);
    else
        file->handle = (int)result;
    file->made = result != -EEXIST;
    job_task_end(task);
}

void prepare_open(struct job *job)
{
    uint32_t direct = job->writer->mode.direct ? OPEN_DIRECT : 0;

    shared_include(job);
    part_write(job);
    for (uint32_t i = 0; i < job->file_count; i++)
        job_submit(job, i, opened,
                   &(struct op){ .kind = OP_OPEN, .handle = job->directory, .name = job->files[i].partial,
                                 .flags = OPEN_WRITE | OPEN_CREATE | (i < job->shard_count ? direct : 0) });
}

/* Blocks before bytes: no space shows here, and extending writes are half as fast. */
static void file_allocate(struct job *job, uint32_t file);

static void allocation_waited(struct task *task, int64_t result)
{
    if (!task->job->failed)
        file_allocate(task->job, task->file);
    job_task_end(task);
}

/* The space that a file system says to be free need not be free for files. */
static void allocated(struct task *task, int64_t result)
{
    if (result != -ENOSPC || !room_await(task, allocation_waited)) {
        job_checked(task, result);
        return;
    }
    job_task_end(task);
}

static void file_allocate(struct job *job, uint32_t file)
{
    job_submit(job, file, allocated,
               &(struct op){ .kind = OP_ALLOCATE, .handle = job->files[file].handle, .size = job->files[file].allocated });
}

void prepare_allocate(struct job *job)
{
    for (uint32_t i = 0; i < job->file_count; i++)
        if (job->files[i].allocated > 0)
            file_allocate(job, i);
}
