/* bench/report_normal.c - the report that people read, laid out as fio's. See report.h. */
#include "report.h"

#include "../commands/command.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Quantities ----------------------------------------------------------------------------------------------------------- */

static struct text kibi(double value, const char *suffix)
{
    struct text text = human_bytes((uint64_t)value);
    size_t used = strlen(text.bytes);

    snprintf(text.bytes + used, sizeof text.bytes - used, "%s", suffix);
    return text;
}

static struct text decimal_rate(double value)
{
    static const char *const units[] = { "B/s", "kB/s", "MB/s", "GB/s", "TB/s" };
    struct text text;
    unsigned unit = 0;

    while (value >= 1000 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(text.bytes, sizeof text.bytes, value < 10 ? "%.2f%s" : value < 100 ? "%.1f%s" : "%.0f%s", value, units[unit]);
    return text;
}

static struct text iops_text(double value)
{
    struct text text;

    if (value >= 10000)
        snprintf(text.bytes, sizeof text.bytes, "%.1fk", value / 1000);
    else
        snprintf(text.bytes, sizeof text.bytes, value < 10 ? "%.2f" : "%.0f", value);
    return text;
}

/* The unit in which a latency's largest value still has digits to spare, as fio chooses it. */
static double unit_of(const struct moments *moments, const char **name)
{
    if (moments->min > 2000000 && moments->max > 99999999)
        *name = "msec";
    else
        *name = moments->min > 2000 && moments->max > 99999 ? "usec" : "nsec";
    return **name == 'm' ? 1e6 : **name == 'u' ? 1e3 : 1;
}

/* Lines ---------------------------------------------------------------------------------------------------------------- */

static void latency_line(FILE *out, const char *name, const struct moments *moments)
{
    const char *unit;
    double by = unit_of(moments, &unit);

    if (moments->count)
        fprintf(out, "    %s (%s): min=%.0f, max=%.0f, avg=%.2f, stdev=%.2f\n", name, unit, (double)moments->min / by,
                (double)moments->max / by, moments->mean / by, moments_deviation(moments) / by);
}

static void percentiles_lines(FILE *out, const struct histogram *histogram)
{
    const char *unit;
    double by = unit_of(&histogram->moments, &unit);

    if (!histogram->moments.count)
        return;
    fprintf(out, "    clat percentiles (%s):\n", unit);
    for (unsigned i = 0; i < PERCENTILES; i++)
        fprintf(out, "%s%5.2fth=[%5.0f]%s", i % 4 == 0 ? "     | " : " ", percentiles[i],
                (double)histogram_percentile(histogram, percentiles[i]) / by, i % 4 == 3 || i == PERCENTILES - 1 ? "\n" : ",");
}

static void latency_classes_lines(FILE *out, const struct histogram *histogram)
{
    struct latency_classes classes[3];

    latency_classes_of(histogram, classes);
    for (unsigned u = 0; u < 3; u++) {
        unsigned shown = 0;

        for (unsigned i = 0; i < classes[u].count; i++)
            if (classes[u].percent[i] > 0)
                fprintf(out, "%s%s=%.2f%%", shown++ ? ", " : u == 0 ? "  lat (nsec)   : " : u == 1 ? "  lat (usec)   : "
                                                                                            : "  lat (msec)   : ",
                        classes[u].labels[i], classes[u].percent[i]);
        if (shown)
            fputc('\n', out);
    }
}

static void levels_line(FILE *out, const char *name, const uint64_t levels[DEPTH_LEVELS], const char *const *labels)
{
    fprintf(out, "%s", name);
    for (unsigned i = 0; i < DEPTH_LEVELS; i++)
        fprintf(out, "%s%s=%.1f%%", i ? ", " : "", labels[i], percent_of(levels, i));
    fputc('\n', out);
}

static void rate_line(FILE *out, const struct job *job, const struct outcome *outcome)
{
    double seconds = (double)outcome->runtime_ns / 1e9, rate = outcome->runtime_ns ? (double)outcome->bytes / seconds : 0;

    fprintf(out, "  %s: IOPS=%s, BW=%s (%s)(%s/%" PRIu64 "msec)\n", job_is_reading(job) ? "read" : "write",
            iops_text(outcome->runtime_ns ? (double)outcome->ios / seconds : 0).bytes, kibi(rate, "/s").bytes,
                    decimal_rate(rate).bytes,
            human_bytes(outcome->bytes).bytes, (outcome->runtime_ns + 999999) / 1000000);
}

/* What a checkpoint adds ------------------------------------------------------------------------------------------------ */

enum stage { STAGE_STALL, STAGE_PLANNED, STAGE_STAGED, STAGE_WRITTEN, STAGE_SYNCED, STAGE_DURABLE, STAGE_PUBLISHED, STAGE_COUNT };

static uint64_t stage_of(const struct round *round, enum stage stage)
{
    const uint64_t times[STAGE_COUNT] = { round->stall_ns, round->planned_ns, round->staged_ns, round->written_ns,
                                         round->synced_ns,
                                          round->durable_ns, round->published_ns };

    return times[stage];
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void stage_lines(FILE *out, const struct outcome *outcome)
{
    static const char *const names[STAGE_COUNT] = { "stall", "planned", "staged", "written", "synced", "durable", "published" };
    uint64_t values[ROUNDS_KEPT];
    size_t count = atomic_load(&outcome->rounds_done);

    count = count < ROUNDS_KEPT ? count : ROUNDS_KEPT;
    fprintf(out, "  save stages (msec since the call; median (min-max)):\n");
    for (unsigned s = 0; s < STAGE_COUNT && count; s++) {
        for (size_t i = 0; i < count; i++)
            values[i] = stage_of(&outcome->rounds[i], s);
        qsort(values, count, sizeof *values, by_size);
        fprintf(out, "     %-10s: %.3f (%.3f-%.3f)\n", names[s], (double)values[count / 2] / 1e6, (double)values[0] / 1e6,
                (double)values[count - 1] / 1e6);
    }
}

static void engine_lines(FILE *out, const struct outcome *outcome)
{
    fprintf(out, "  engine       : %s, %s, item=%s, depth=%u, batch=%u, arena pages of %s\n", outcome->backend,
            outcome->is_direct ? "direct" : "buffered", human_bytes(outcome->item_bytes).bytes, outcome->depth,
                    outcome->submit_batch,
            human_bytes(outcome->page_bytes).bytes);
    if (*outcome->io_note)
        fprintf(out, "                 %s\n", outcome->io_note);
}

static void rounds_line(FILE *out, const struct outcome *outcome, bool is_save)
{
    size_t count = atomic_load(&outcome->rounds_done);
    uint64_t cpu = 0, cached = 0, bytes = 0;
    uint32_t attempts = 0;

    for (size_t i = 0; i < count && i < ROUNDS_KEPT; i++) {
        cpu += outcome->rounds[i].cpu_ns;
        bytes += outcome->rounds[i].bytes;
        attempts += outcome->rounds[i].attempts;
        cached = outcome->rounds[i].page_cache_bytes > cached ? outcome->rounds[i].page_cache_bytes : cached;
    }
    fprintf(out, "  %-12s : %zu, %" PRIu64 " tensors of %s each time, cpu %.3f s/GiB, page cache %s", is_save ? "saves" : "loads",
            count, outcome->tensors, human_bytes(outcome->state_bytes).bytes,
            bytes ? (double)cpu / 1e9 / ((double)bytes / (1 << 30)) : 0,
            human_bytes(cached).bytes);
    if (is_save)
        fprintf(out, ", attempts=%u", attempts);
    fprintf(out, "\n  memory       : peak %s", human_bytes(outcome->peak_bytes).bytes);
    if (is_save)
        fprintf(out, ", writer %s, beyond state and arena %s", human_bytes(outcome->writer_peak_bytes).bytes,
                human_bytes(outcome->extra_bytes).bytes);
    fputc('\n', out);
}

static void kinds_line(FILE *out, const struct job *job, unsigned first, unsigned count)
{
    struct tensor_kinds kinds;

    tensor_kinds_of(job, first, count, &kinds);
    if (kinds.count > 1)
        fprintf(out, "  classes      :");
    for (unsigned k = 0; kinds.count > 1 && k < kinds.count; k++)
        fprintf(out, "%s%s=%s", k == 0 ? " " : k % 5 == 0 ? ",\n                 " : ", ", kinds.names[k],
                human_bytes(kinds.bytes[k]).bytes);
    if (kinds.count > 1)
        fputc('\n', out);
}

static void training_lines(FILE *out, const struct training *training)
{
    if (!training->steps)
        return;
    fprintf(out, "  training     : %" PRIu64 " steps of %.2f ms, %.2f ms beside a save (x %.2f, worst %.2f ms)\n",
            training->steps,
            training->step_ns / 1e6, training->step_during_ns / 1e6,
            training->step_ns > 0 ? training->step_during_ns / training->step_ns : 0, training->worst_step_ns / 1e6);
    fprintf(out, "                 %.2f steps lost a save, goodput %.1f %%\n", training->lost_steps, 100 * training->goodput);
}

static void depth_lines(FILE *out, const struct job *job, const struct outcome *outcome)
{
    levels_line(out, "  IO depths    : ", outcome->depth_levels, depth_labels);
    levels_line(out, "     submit    : ", outcome->submits, batch_labels);
    levels_line(out, "     complete  : ", outcome->completes, batch_labels);
    fprintf(out, "     issued rwts: total=%" PRIu64 ",%" PRIu64 ",0,%" PRIu64 " short=%" PRIu64 ",%" PRIu64
            ",0,0 dropped=0,0,0,0\n",
            job_is_reading(job) ? outcome->ios : 0, job_is_reading(job) ? 0 : outcome->ios, outcome->sync.moments.count,
            job_is_reading(job) ? outcome->short_ios : 0, job_is_reading(job) ? 0 : outcome->short_ios);
    fprintf(out, "     latency   : target=0, window=0, percentile=100.00%%, depth=%" PRIu64 "\n", job->iodepth);
}

/* Jobs ----------------------------------------------------------------------------------------------------------------- */

static void header_line(FILE *out, const struct job *job)
{
    static const char *const engines[] = { "auto", "uring", "threads", "buffered" };

    fprintf(out, "%s: (g=%u): rw=%s, ", job->name, job->group, workload_name(job->rw));
    if (job_is_plain(job))
        fprintf(out, "bs=%s, size=%s, ", human_bytes(job->bs).bytes, human_bytes(job->size).bytes);
    else
        fprintf(out, "shape=%s, ", job->shape ? job->shape : job->filename);
    fprintf(out, "ioengine=%s, iodepth=%s%.0" PRIu64 "\n", engines[job->ioengine], job->iodepth ? "" : "default", job->iodepth);
}

static void cpu_line(FILE *out, const struct outcome *outcome, unsigned count)
{
    double elapsed = outcome->elapsed_ns ? (double)outcome->elapsed_ns * count : 1;

    fprintf(out, "  cpu          : usr=%.2f%%, sys=%.2f%%", 100 * (double)outcome->user_ns / elapsed,
            100 * (double)outcome->system_ns / elapsed);
    if (outcome->writer_ns)
        fprintf(out, ", writer=%.2f%%", 100 * (double)outcome->writer_ns / elapsed);
    fprintf(out, ", ctx=%" PRIu64 ", majf=%" PRIu64 ", minf=%" PRIu64 "\n", outcome->switches, outcome->major_faults,
            outcome->minor_faults);
}

static void entry_lines(FILE *out, const struct ran *ran, unsigned first, unsigned count)
{
    struct outcome *outcome = run_merged(ran, first, count);
    const struct job *job = ran->job;
    time_t seconds;
    char when[64];
    struct tm local;

    if (!outcome)
        return;
    seconds = (time_t)(outcome->started_wall_ms / 1000);
    strftime(when, sizeof when, "%a %b %e %H:%M:%S %Y", localtime_r(&seconds, &local));
    fprintf(out, "\n%s: (groupid=%u, jobs=%u): err=%2d%s%s%s: pid=%d: %s\n", job->name, job->group, count, outcome->error,
            outcome->error ? " (" : "", outcome->error ? strerror(outcome->error) : "", outcome->error ? ")" : "",
                    (int)outcome->pid, when);
    rate_line(out, job, outcome);
    latency_line(out, "slat", &outcome->slat.moments);
    latency_line(out, "clat", &outcome->clat.moments);
    latency_line(out, " lat", &outcome->lat.moments);
    percentiles_lines(out, &outcome->clat);
    if (outcome->sync.moments.count)
        latency_line(out, "sync", &outcome->sync.moments);
    latency_classes_lines(out, &outcome->clat);
    cpu_line(out, outcome, count);
    if (job_is_plain(job))
        depth_lines(out, job, outcome);
    else
        rounds_line(out, outcome, job->rw == WORKLOAD_SAVE);
    kinds_line(out, job, first, count);
    if (job->rw == WORKLOAD_SAVE)
        stage_lines(out, outcome);
    engine_lines(out, outcome);
    training_lines(out, &outcome->training);
    free(outcome);
}

/* All of a group as one: fio's summary. */
static void group_line(FILE *out, const struct run *run, unsigned group, bool reads)
{
    uint64_t bytes = 0, shortest = UINT64_MAX, longest = 0;
    double rate = 0, least = 0, most = 0;

    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned r = 0; run->ran[i].outcomes && r < run->ran[i].job->numjobs; r++) {
            const struct outcome *outcome = &run->ran[i].outcomes[r];
            double own = outcome->runtime_ns ? (double)outcome->bytes * 1e9 / (double)outcome->runtime_ns : 0;

            if (run->ran[i].job->group != group || job_is_reading(run->ran[i].job) != reads || !outcome->bytes)
                continue;
            bytes += outcome->bytes;
            rate += own;
            least = least == 0 || own < least ? own : least;
            most = own > most ? own : most;
            shortest = outcome->runtime_ns < shortest ? outcome->runtime_ns : shortest;
            longest = outcome->runtime_ns > longest ? outcome->runtime_ns : longest;
        }
    if (bytes)
        fprintf(out, "  %5s: bw=%s (%s), %s-%s, io=%s, run=%" PRIu64 "-%" PRIu64 "msec\n", reads ? "READ" : "WRITE",
                kibi(rate, "/s").bytes,
                decimal_rate(rate).bytes, kibi(least, "/s").bytes, kibi(most, "/s").bytes, human_bytes(bytes).bytes,
                (shortest + 999999) / 1000000, (longest + 999999) / 1000000);
}

static void device_lines(FILE *out, const struct ran *ran)
{
    const struct device *device = &ran->device;

    fprintf(out, "\nDevice of %s:\n  %s on %s (%s), %s free", ran->job->name, *device->name ? device->name : "no block device",
            *device->mount_point ? device->mount_point : "-", device->filesystem, human_bytes(device->free_bytes).bytes);
    if (*device->disk)
        fprintf(out, "\n  disk %s: %s%s%s, scheduler %s, write cache: %s, O_DIRECT by %u", device->disk, device->model,
                *device->model ? ", " : "", human_bytes(device->disk_bytes).bytes, *device->scheduler ? device->scheduler
                : "unknown",
                *device->write_cache ? device->write_cache : "unknown", device->direct_offset_align);
    if (*device->disk)
        fprintf(out, "\n\nDisk stats (read/write):\n  %s: ios=%" PRIu64 "/%" PRIu64 ", merge=%" PRIu64 "/%" PRIu64
                ", ticks=%" PRIu64 "/%"
                PRIu64 ", in_queue=%" PRIu64, device->disk, ran->disk.reads, ran->disk.writes, ran->disk.read_merges,
                ran->disk.write_merges, ran->disk.read_ms, ran->disk.write_ms, ran->disk.queue_ms);
    fputc('\n', out);
}

static void doubts_lines(FILE *out, const struct run *run)
{
    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned d = 0; d < run->ran[i].doubts.count; d++)
            fprintf(out, "%s%s: %s\n", i == 0 && d == 0 ? "\nNot to be trusted as it is:\n  " : "  ", run->ran[i].job->name,
                    run->ran[i].doubts.items[d].text);
}

void report_normal(FILE *out, const struct run *run)
{
    unsigned groups = run->jobs->jobs[run->jobs->count - 1].group + 1;

    for (size_t i = 0; i < run->jobs->count; i++)
        header_line(out, run->ran[i].job);
    fprintf(out, "tspool-%s\n", TSPOOL_VERSION);
    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned r = 0, step = report_step(run->ran[i].job); run->ran[i].outcomes && r < run->ran[i].job->numjobs; r += step)
            entry_lines(out, &run->ran[i], r, step);
    for (unsigned g = 0; g < groups; g++) {
        fprintf(out, "\nRun status group %u (all jobs):\n", g);
        group_line(out, run, g, true);
        group_line(out, run, g, false);
    }
    if (run->ran[0].outcomes)
        device_lines(out, &run->ran[0]);
    doubts_lines(out, run);
}
