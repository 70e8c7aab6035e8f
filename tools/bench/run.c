/* bench/run.c - see run.h. The command's process starts ranks, shows how far they are, takes Ctrl-C for all, and judges. */
#include "run.h"
#include "crew.h"
#include "measure.h"
#include "rank.h"
#include "status.h"
#include "workspace.h"

#include "../commands/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Before anything is written ------------------------------------------------------------------------------------------- */

/* What all ranks of a job put on the disk at once. */
static int job_bytes(const struct job *job, uint64_t *bytes, struct complaint *complaint)
{
    *bytes = 0;
    if (job_is_plain(job)) {
        *bytes = job->size * (job->filename ? 1 : job->numjobs);
        return 0;
    }
    for (unsigned i = 0; job->shape && i < job->numjobs; i++) {
        struct shape shape;

        if (shape_make(job, i, &shape, complaint) < 0)
            return -1;
        *bytes += shape.bytes;
        shape_free(&shape);
    }
    return 0;
}

static int job_place(struct ran *ran, struct complaint *complaint)
{
    const struct job *job = ran->job;

    if (job->filename && job->rw == WORKLOAD_WRITE) {
        if (device_consent(job, job->filename, complaint) < 0 || workspace_claim(job->filename, complaint) < 0)
            return -1;
    } else if (job->filename && access(job->filename, R_OK) < 0 && !workspace_owns(job->filename)) {
        return complaint_set(complaint, "%.300s: %s", job->filename, strerror(errno));
    }
    if (job->filename)
        snprintf(ran->root, sizeof ran->root, "%s", job->filename);
    else if (workspace_make(job->directory, ran->root, complaint) < 0)
        return -1;
    device_look(ran->root, &ran->device);
    return 0;
}

static int group_place(struct run *run, size_t from, size_t to, struct complaint *complaint)
{
    uint64_t bytes, sum = 0;

    for (size_t i = from; i < to; i++) {
        if (job_bytes(run->ran[i].job, &bytes, complaint) < 0 || job_place(&run->ran[i], complaint) < 0)
            return -1;
        if (run->ran[i].job->filename && run->ran[i].job->rw != WORKLOAD_WRITE)
            continue;
        sum = run->ran[i].device.major_number == run->ran[from].device.major_number &&
              run->ran[i].device.minor_number == run->ran[from].device.minor_number ? sum + bytes : bytes;
        if (strcmp(run->ran[i].device.filesystem, "none") != 0 && space_check(run->ran[i].root, sum, complaint) < 0)
            return -1;
    }
    return 0;
}

/* A group -------------------------------------------------------------------------------------------------------------- */

static int group_start(struct run *run, struct crew *crews, size_t from, size_t to, struct complaint *complaint)
{
    for (size_t i = from; i < to; i++) {
        int error = crew_start(&crews[i - from], run->ran[i].job, run->ran[i].root, rank_run);

        if (error < 0) {
            for (size_t j = from; j < i; j++)
                crew_give_up(&crews[j - from]);
            return complaint_set(complaint, "job '%s': no process could be started: %s", run->ran[i].job->name, strerror(-error));
        }
    }
    return 0;
}

static void group_wait(struct run *run, struct crew *crews, size_t count, const char *name)
{
    const struct timespec pause = { .tv_nsec = 20000000 };
    struct status status;
    bool done;

    status_begin(&status, run->shows_status, name);
    do {
        done = true;
        for (size_t i = 0; i < count; i++)
            done &= !crews[i].shared || crew_is_done(&crews[i]);
        if (interrupted() && !run->was_interrupted) {
            run->was_interrupted = true;
            for (size_t i = 0; i < count; i++)
                if (crews[i].shared)
                    crew_give_up(&crews[i]);
        }
        status_show(&status, crews, count);
        if (!done)
            nanosleep(&pause, NULL);
    } while (!done);
    status_end(&status);
}

/* Writers that lost their rank are ours now: until they are gone they may still write. */
static void strays_await(void)
{
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

static int outcomes_take(struct ran *ran, struct crew *crew)
{
    size_t bytes = ran->job->numjobs * sizeof(struct outcome);

    ran->outcomes = crew->shared ? malloc(bytes) : NULL;
    if (ran->outcomes)
        memcpy(ran->outcomes, crew->shared->outcomes, bytes);
    return ran->outcomes ? 0 : -1;
}

static bool ran_failed(const struct ran *ran)
{
    for (unsigned i = 0; ran->outcomes && i < ran->job->numjobs; i++)
        if (ran->outcomes[i].error)
            return true;
    return ran->outcomes == NULL;
}

/* What a rank put through the device, in its clock or not: ramp_time= is not in `bytes`. */
static uint64_t moved_bytes(const struct outcome *outcome)
{
    uint64_t done = atomic_load(&outcome->done_bytes);

    return outcome->prepared_bytes + (done > outcome->bytes ? done : outcome->bytes);
}

static void group_judge(struct run *run, size_t from, size_t to, const struct cpu_clock *before,
                        const struct disk_load *disk_before)
{
    struct surroundings around = { 0 };
    struct disk_load after;
    struct cpu_clock now;

    cpu_clock_read(&now);
    for (size_t i = from; i < to; i++)
        for (unsigned r = 0; run->ran[i].outcomes && r < run->ran[i].job->numjobs; r++)
            around.own_bytes += moved_bytes(&run->ran[i].outcomes[r]);
    for (size_t i = from; i < to; i++) {
        struct ran *ran = &run->ran[i];

        around.device = &ran->device;
        around.disk = disk_load_read(&ran->device, &after) ? &ran->disk : NULL;
        if (around.disk)
            ran->disk = disk_load_between(&disk_before[i - from], &after);
        around.foreign_cpu = cpu_foreign(before, &now, 0);
        if (ran->outcomes)
            trust_judge(ran->job, ran->outcomes, &around, &ran->doubts);
        run->failed += ran_failed(ran);
    }
}

static int group_run(struct run *run, size_t from, size_t to, struct complaint *complaint)
{
    struct crew *crews = calloc(to - from, sizeof *crews);
    struct disk_load *disks = calloc(to - from, sizeof *disks);
    uint64_t started = now_ns();
    struct cpu_clock clock;
    int status = crews && disks ? group_place(run, from, to, complaint) : complaint_set(complaint, "out of memory");

    if (status == 0) {
        cpu_clock_read(&clock);
        for (size_t i = from; i < to; i++)
            disk_load_read(&run->ran[i].device, &disks[i - from]);
        status = group_start(run, crews, from, to, complaint);
        group_wait(run, crews, to - from, run->ran[from].job->name);
        strays_await();
        for (size_t i = from; i < to; i++) {
            outcomes_take(&run->ran[i], &crews[i - from]);
            run->ran[i].wall_ns = now_ns() - started;
            crew_destroy(&crews[i - from]);
        }
        group_judge(run, from, to, &clock, disks);
    }
    free(crews);
    free(disks);
    return status;
}

int run_jobs(struct run *run, const struct jobs *jobs, bool shows_status, struct complaint *complaint)
{
    struct timespec now;
    int status = 0;
    unsigned number = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    *run = (struct run){ .jobs = jobs, .shows_status = shows_status,
                         .started_wall_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 };
    run->ran = calloc(jobs->count, sizeof *run->ran);
    if (!run->ran)
        return complaint_set(complaint, "out of memory");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (size_t i = 0; i < jobs->count; i++) {
        run->ran[i].job = &jobs->jobs[i];
        run->ran[i].first_number = number;
        number += (unsigned)jobs->jobs[i].numjobs;
    }
    for (size_t from = 0, to; from < jobs->count && status == 0 && !run->was_interrupted && !run->failed; from = to) {
        for (to = from + 1; to < jobs->count && jobs->jobs[to].group == jobs->jobs[from].group; to++)
            ;
        status = group_run(run, from, to, complaint);
    }
    return status;
}

void run_deinit(struct run *run)
{
    for (size_t i = 0; run->ran && i < run->jobs->count; i++)
        free(run->ran[i].outcomes);
    free(run->ran);
    run->ran = NULL;
}

/* Merging -------------------------------------------------------------------------------------------------------------- */

static void outcome_merge(struct outcome *into, const struct outcome *from)
{
    into->error = into->error ? into->error : from->error;
    into->bytes += from->bytes;
    into->ios += from->ios;
    into->short_ios += from->short_ios;
    into->runtime_ns = from->runtime_ns > into->runtime_ns ? from->runtime_ns : into->runtime_ns;
    into->elapsed_ns = from->elapsed_ns > into->elapsed_ns ? from->elapsed_ns : into->elapsed_ns;
    histogram_merge(&into->slat, &from->slat);
    histogram_merge(&into->clat, &from->clat);
    histogram_merge(&into->lat, &from->lat);
    histogram_merge(&into->sync, &from->sync);
    moments_merge(&into->bandwidth.kib, &from->bandwidth.kib);
    moments_merge(&into->bandwidth.ios, &from->bandwidth.ios);
    for (unsigned i = 0; i < DEPTH_LEVELS; i++) {
        into->depth_levels[i] += from->depth_levels[i];
        into->submits[i] += from->submits[i];
        into->completes[i] += from->completes[i];
    }
    into->user_ns += from->user_ns;
    into->system_ns += from->system_ns;
    into->writer_ns += from->writer_ns;
    into->hash_ns += from->hash_ns;
    into->stage_ns += from->stage_ns;
    into->switches += from->switches;
    into->major_faults += from->major_faults;
    into->minor_faults += from->minor_faults;
    into->state_bytes += from->state_bytes;
    into->tensors += from->tensors;
    into->arena_bytes += from->arena_bytes;
    into->peak_bytes += from->peak_bytes;
    into->writer_peak_bytes += from->writer_peak_bytes;
    into->extra_bytes += from->extra_bytes;
    into->files += from->files;
    into->short_writes += from->short_writes;
}

/* Of the ranks' rounds the slowest counts, as it does for the training. */
static void rounds_merge(struct outcome *into, const struct outcome *from)
{
    for (size_t i = 0; i < atomic_load(&from->rounds_done) && i < ROUNDS_KEPT; i++) {
        struct round *to = &into->rounds[i];
        const struct round *of = &from->rounds[i];
        uint64_t bytes = to->bytes + of->bytes, cpu = to->cpu_ns + of->cpu_ns,
                cached = to->page_cache_bytes + of->page_cache_bytes;

        if (of->wall_ns > to->wall_ns)
            *to = *of;
        to->bytes = bytes;
        to->cpu_ns = cpu;
        to->page_cache_bytes = cached;
    }
}

struct outcome *run_merged(const struct ran *ran, unsigned first, unsigned count)
{
    struct outcome *merged = malloc(sizeof *merged);

    if (!merged)
        return NULL;
    *merged = ran->outcomes[first];
    for (unsigned i = first + 1; i < first + count; i++) {
        outcome_merge(merged, &ran->outcomes[i]);
        rounds_merge(merged, &ran->outcomes[i]);
    }
    return merged;
}
