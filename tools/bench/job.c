/* bench/job.c - the table of options, and how one is set. See job.h. */
#include "job.h"
#include "nearest.h"
#include "units.h"

#include <base/array.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum option_kind { KIND_BYTES, KIND_NUMBER, KIND_SECONDS, KIND_MICROSECONDS, KIND_MILLISECONDS, KIND_FLAG, KIND_TEXT, KIND_REAL,
                   KIND_CHOICE, KIND_INTERVAL };

struct choice { const char *name; int value; };

struct option_row {
    const char *name, *alias;
    enum option_kind kind;
    size_t offset;
    uint64_t least, most;
    const struct choice *choices; /* ends with a NULL name */
};

static const struct choice workloads[] = { { "save", WORKLOAD_SAVE }, { "load", WORKLOAD_LOAD }, { "write", WORKLOAD_WRITE },
                                           { "read", WORKLOAD_READ }, { NULL, 0 } };
static const struct choice ioengines[] = { { "auto", IOENGINE_AUTO }, { "uring", IOENGINE_URING }, { "io_uring", IOENGINE_URING },
                                           { "threads", IOENGINE_THREADS }, { "buffered", IOENGINE_BUFFERED }, { NULL, 0 } };
static const struct choice stagings[] = { { "now", STAGING_CHOICE_NOW }, { "background", STAGING_CHOICE_BACKGROUND },
                                         { NULL, 0 } };

#define AT(member) offsetof(struct job, member)
static const struct option_row rows[] = {
    { "rw", "readwrite", KIND_CHOICE, AT(rw), 0, 0, workloads },
    { "ioengine", NULL, KIND_CHOICE, AT(ioengine), 0, 0, ioengines },
    { "staging", NULL, KIND_CHOICE, AT(staging), 0, 0, stagings },
    { "directory", NULL, KIND_TEXT, AT(directory), 0, 0, NULL },
    { "filename", NULL, KIND_TEXT, AT(filename), 0, 0, NULL },
    { "shape", NULL, KIND_TEXT, AT(shape), 0, 0, NULL },
    { "writer", NULL, KIND_TEXT, AT(writer), 0, 0, NULL },
    { "settings", NULL, KIND_TEXT, AT(settings), 0, 0, NULL },
    { "destroy_data_on", NULL, KIND_TEXT, AT(destroy_data_on), 0, 0, NULL },
    { "bs", "blocksize", KIND_BYTES, AT(bs), 512, 16 << 20, NULL },
    { "size", NULL, KIND_BYTES, AT(size), 512, INT64_MAX, NULL },
    { "rate", NULL, KIND_BYTES, AT(rate), 1, UINT64_MAX, NULL },
    { "arena", NULL, KIND_BYTES, AT(arena), 32 << 20, UINT64_MAX, NULL },
    { "prime", NULL, KIND_BYTES, AT(prime), 0, UINT64_MAX, NULL },
    { "iodepth", NULL, KIND_NUMBER, AT(iodepth), 1, 1024, NULL },
    { "iodepth_batch", "iodepth_batch_submit", KIND_NUMBER, AT(iodepth_batch), 1, 1024, NULL },
    { "numjobs", NULL, KIND_NUMBER, AT(numjobs), 1, NUMJOBS_MAX, NULL },
    { "loops", NULL, KIND_NUMBER, AT(loops), 1, UINT32_MAX, NULL },
    { "fsync", NULL, KIND_NUMBER, AT(fsync), 0, UINT64_MAX, NULL },
    { "end_fsync", NULL, KIND_FLAG, AT(end_fsync), 0, 0, NULL },
    { "direct", NULL, KIND_FLAG, AT(is_direct), 0, 0, NULL },
    { "invalidate", NULL, KIND_FLAG, AT(invalidate), 0, 0, NULL },
    { "keep", NULL, KIND_FLAG, AT(keep), 0, 0, NULL },
    { "runtime", "timeout", KIND_SECONDS, AT(runtime_ns), 0, 0, NULL },
    { "ramp_time", NULL, KIND_SECONDS, AT(ramp_ns), 0, 0, NULL },
    { "thinktime", NULL, KIND_MICROSECONDS, AT(thinktime_ns), 0, 0, NULL },
    { "time_based", NULL, KIND_FLAG, AT(time_based), 0, 0, NULL },
    { "group_reporting", NULL, KIND_FLAG, AT(group_reporting), 0, 0, NULL },
    { "stonewall", "wait_for_previous", KIND_FLAG, AT(stonewall), 0, 0, NULL },
    { "new_group", NULL, KIND_FLAG, AT(new_group), 0, 0, NULL },
    { "ranks", NULL, KIND_NUMBER, AT(ranks), 1, UINT32_MAX, NULL },
    { "rank", NULL, KIND_NUMBER, AT(rank), 0, UINT32_MAX, NULL },
    { "tp", NULL, KIND_NUMBER, AT(tp), 1, UINT32_MAX, NULL },
    { "pp", NULL, KIND_NUMBER, AT(pp), 1, UINT32_MAX, NULL },
    { "dp", NULL, KIND_NUMBER, AT(dp), 1, UINT32_MAX, NULL },
    { "scale", NULL, KIND_REAL, AT(scale), 0, 0, NULL },
    { "seed", "randseed", KIND_NUMBER, AT(seed), 0, UINT64_MAX, NULL },
    { "staging_threads", NULL, KIND_NUMBER, AT(staging_threads), 1, 64, NULL },
    { "hash_threads", NULL, KIND_NUMBER, AT(hash_threads), 1, 64, NULL },
    { "interval", NULL, KIND_INTERVAL, AT(interval_steps), 0, 0, NULL },
    { "train_ms", NULL, KIND_MILLISECONDS, AT(train_ns), 0, 0, NULL },
};
#undef AT
#define ROW_COUNT (sizeof rows / sizeof *rows)

int complaint_set(struct complaint *complaint, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(complaint->text, sizeof complaint->text, format, arguments);
    va_end(arguments);
    return -1;
}

size_t job_option_count(void) { return ROW_COUNT; }
const char *job_option_name(size_t number) { return rows[number].name; }

const char *workload_name(enum workload rw) { return workloads[rw].name; }

static const struct option_row *row_find(const char *name)
{
    for (size_t i = 0; i < ROW_COUNT; i++)
        if (strcmp(rows[i].name, name) == 0 || (rows[i].alias && strcmp(rows[i].alias, name) == 0))
            return &rows[i];
    return NULL;
}

bool job_knows(const char *name, bool *is_flag)
{
    const struct option_row *row = row_find(name);

    *is_flag = row && row->kind == KIND_FLAG;
    return row != NULL;
}

/* Values ------------------------------------------------------------------------------------------------------------- */

static int flag_take(bool *to, const char *value)
{
    if (value && strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
        return -1;
    *to = !value || *value == '1';
    return 0;
}

static int choice_take(const struct option_row *row, enum workload *to, const char *value, struct complaint *complaint)
{
    char known[256] = "";
    size_t used = 0;

    for (const struct choice *choice = row->choices; choice->name; choice++) {
        if (strcmp(choice->name, value) == 0) {
            memcpy(to, &choice->value, sizeof(int)); /* each enum here is as wide as an int */
            return 0;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", choice->name);
    }
    return complaint_set(complaint, "%s: '%s' is none of %s", row->name, value, known);
}

/* "100": steps; "30s": time. */
static int interval_take(struct job *job, const char *value)
{
    uint64_t steps, time_ns;

    if (units_number(value, &steps)) {
        job->interval_steps = steps;
        job->interval_ns = 0;
        return steps ? 0 : -1;
    }
    if (!units_time(value, 1, &time_ns) || !time_ns)
        return -1;
    job->interval_ns = time_ns;
    job->interval_steps = 0;
    return 0;
}

static int number_take(const struct option_row *row, uint64_t *to, const char *value, struct complaint *complaint)
{
    bool bytes = row->kind == KIND_BYTES;
    uint64_t number;

    if (!(bytes ? units_bytes(value, &number) : units_number(value, &number)))
        return complaint_set(complaint, "%s: '%s' is no %s", row->name, value, bytes ? "size (4096, 512k, 2g)" : "number");
    if (number < row->least || number > row->most)
        return complaint_set(complaint, "%s: %s is not within %llu..%llu", row->name, value, (unsigned long long)row->least,
                             (unsigned long long)row->most);
    *to = number;
    return 0;
}

static int time_take(const struct option_row *row, uint64_t *to, const char *value, struct complaint *complaint)
{
    uint64_t bare = row->kind == KIND_SECONDS ? 1000000000 : row->kind == KIND_MILLISECONDS ? 1000000 : 1000;

    if (units_time(value, bare, to))
        return 0;
    return complaint_set(complaint, "%s: '%s' is no time (30, 30s, 500ms, 2m)", row->name, value);
}

static int value_take(struct job *job, const struct option_row *row, const char *value, struct complaint *complaint)
{
    void *to = (char *)job + row->offset;

    switch (row->kind) {
    case KIND_BYTES:
    case KIND_NUMBER:       return number_take(row, to, value, complaint);
    case KIND_SECONDS:
    case KIND_MILLISECONDS:
    case KIND_MICROSECONDS: return time_take(row, to, value, complaint);
    case KIND_CHOICE:       return choice_take(row, to, value, complaint);
    case KIND_TEXT:
        *(const char **)to = value;
        return *value ? 0 : complaint_set(complaint, "%s: the value is empty", row->name);
    case KIND_FLAG:
        return flag_take(to, value) == 0 ? 0 : complaint_set(complaint, "%s: '%s' is neither 0 nor 1", row->name, value);
    case KIND_REAL:
        return units_real(value, to) ? 0 : complaint_set(complaint, "%s: '%s' is no positive number (0.25, 1/16)", row->name,
                                                         value);
    case KIND_INTERVAL:
        return interval_take(job, value) == 0 ? 0
               : complaint_set(complaint, "%s: '%s' is neither a number of steps (100) nor a time (30s)", row->name, value);
    }
    return -1;
}

static int unknown(const char *name, struct complaint *complaint)
{
    const char *words[2 * ROW_COUNT], *near;

    for (size_t i = 0; i < ROW_COUNT; i++) {
        words[2 * i] = rows[i].name;
        words[2 * i + 1] = rows[i].alias;
    }
    near = nearest_word(name, words, 2 * ROW_COUNT);
    if (near)
        return complaint_set(complaint, "there is no option '%s'; did you mean '%s'?", name, near);
    return complaint_set(complaint, "there is no option '%s'; 'tspool bench --help' lists them", name);
}

/* Jobs --------------------------------------------------------------------------------------------------------------- */

static int given_keep(struct job *job, const char *name, const char *value, const char **kept)
{
    struct job_option option;

    if (array_reserve((void **)&job->given, &job->given_capacity, job->given_count + 1, sizeof *job->given) < 0)
        return -1;
    option.name = strdup(name);
    option.value = strdup(value);
    if (!option.name || !option.value) {
        free(option.name);
        free(option.value);
        return -1;
    }
    job->given[job->given_count++] = option;
    *kept = option.value;
    return 0;
}

int job_set(struct job *job, const char *name, const char *value, struct complaint *complaint)
{
    const struct option_row *row = row_find(name);
    const char *kept;

    if (!row)
        return unknown(name, complaint);
    if (!value && row->kind != KIND_FLAG)
        return complaint_set(complaint, "%s: give a value: %s=...", row->name, row->name);
    if (given_keep(job, row->name, value ? value : "1", &kept) < 0)
        return complaint_set(complaint, "out of memory");
    return value_take(job, row, kept, complaint);
}

int job_defaults(struct job *job, const char *name)
{
    *job = (struct job){ .rw = WORKLOAD_SAVE, .numjobs = 1, .loops = 1, .is_direct = true, .invalidate = true, .scale = 1,
                         .seed = 1 };
    job->name = strdup(name);
    return job->name ? 0 : -1;
}

int job_inherit(struct job *job, const struct job *global, const char *name)
{
    struct complaint complaint;

    if (job_defaults(job, name) < 0)
        return -1;
    for (size_t i = 0; i < global->given_count; i++)
        if (job_set(job, global->given[i].name, global->given[i].value, &complaint) < 0) {
            job_drop(job);
            return -1;
        }
    job->global_count = job->given_count;
    return 0;
}

void job_drop(struct job *job)
{
    for (size_t i = 0; i < job->given_count; i++) {
        free(job->given[i].name);
        free(job->given[i].value);
    }
    free(job->given);
    free(job->name);
    *job = (struct job){ 0 };
}

/* Blocks of O_DIRECT go by 4096: what each device takes, whatever its sectors are. */
static int plain_check(const struct job *job, struct complaint *complaint)
{
    uint64_t bs = job->bs;

    if (!job->size)
        return complaint_set(complaint, "job '%s': rw=%s needs size=", job->name, workload_name(job->rw));
    if (job->is_direct && bs % 4096)
        return complaint_set(complaint, "job '%s': bs=%llu is no multiple of 4096, which direct=1 needs; direct=0 takes any",
                             job->name, (unsigned long long)bs);
    if (job->size < bs)
        return complaint_set(complaint, "job '%s': size is smaller than one block of %llu", job->name, (unsigned long long)bs);
    if (job->shape || job->interval_steps || job->interval_ns)
        return complaint_set(complaint, "job '%s': %s= goes with rw=save and rw=load only", job->name,
                             job->shape ? "shape" : "interval");
    return 0;
}

static int state_check(const struct job *job, struct complaint *complaint)
{
    if (job->size)
        return complaint_set(complaint, "job '%s': size= goes with rw=write and rw=read; rw=%s takes shape=, such as "
                             "shape='16 x 64m'", job->name, workload_name(job->rw));
    if (!job->shape && !(job->rw == WORKLOAD_LOAD && job->filename))
        return complaint_set(complaint, "job '%s': rw=%s needs shape=: a model (gpt2-124m), a .safetensors file, or '16 x 64m'",
                             job->name, workload_name(job->rw));
    if (job->bs % 4096)
        return complaint_set(complaint, "job '%s': bs=%llu is no multiple of 4096", job->name, (unsigned long long)job->bs);
    if (job->rw == WORKLOAD_SAVE && job->filename)
        return complaint_set(complaint, "job '%s': rw=save makes its checkpoints itself: give directory=, not filename=",
                             job->name);
    if (job->fsync)
        return complaint_set(complaint, "job '%s': fsync= goes with rw=write; a save is always synced", job->name);
    if (job->thinktime_ns || job->ramp_ns)
        return complaint_set(complaint, "job '%s': %s= goes with rw=write and rw=read", job->name,
                             job->ramp_ns ? "ramp_time" : "thinktime");
    return 0;
}

int job_check(struct job *job, struct complaint *complaint)
{
    if (job->ioengine == IOENGINE_BUFFERED)
        job->is_direct = false;
    if (job_is_plain(job) && !job->bs)
        job->bs = 512 << 10; /* the engine's own item */
    if (job_is_plain(job) && !job->iodepth)
        job->iodepth = 32;
    if (job->time_based && !job->runtime_ns)
        return complaint_set(complaint, "job '%s': time_based needs runtime=", job->name);
    if ((job->interval_steps || job->interval_ns) && !job->train_ns)
        job->train_ns = 50000000;
    if (job->train_ns && !job->interval_steps && !job->interval_ns)
        job->interval_steps = 20;
    if (job->train_ns && job->rw != WORKLOAD_SAVE)
        return complaint_set(complaint, "job '%s': train_ms= goes with rw=save only", job->name);
    return job_is_plain(job) ? plain_check(job, complaint) : state_check(job, complaint);
}

int jobs_init(struct jobs *jobs)
{
    *jobs = (struct jobs){ 0 };
    return job_defaults(&jobs->global, "global");
}

void jobs_deinit(struct jobs *jobs)
{
    for (size_t i = 0; i < jobs->count; i++)
        job_drop(&jobs->jobs[i]);
    free(jobs->jobs);
    job_drop(&jobs->global);
    *jobs = (struct jobs){ 0 };
}

struct job *jobs_add(struct jobs *jobs, const char *name)
{
    if (array_reserve((void **)&jobs->jobs, &jobs->capacity, jobs->count + 1, sizeof *jobs->jobs) < 0)
        return NULL;
    if (job_inherit(&jobs->jobs[jobs->count], &jobs->global, name) < 0)
        return NULL;
    return &jobs->jobs[jobs->count++];
}

int jobs_finish(struct jobs *jobs, struct complaint *complaint)
{
    unsigned group = 0;

    if (jobs->count == 0)
        return complaint_set(complaint, "no job: give a job file, or options such as --name=first --rw=save --shape='16 x 64m'");
    for (size_t i = 0; i < jobs->count; i++) {
        if (job_check(&jobs->jobs[i], complaint) < 0)
            return -1;
        if (i > 0 && (jobs->jobs[i].stonewall || jobs->jobs[i].new_group))
            group++;
        jobs->jobs[i].group = group;
    }
    return 0;
}
