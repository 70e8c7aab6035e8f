/* bench/report_terse.c - fio's terse output, version 3: one line a job, semicolons, fields in fio's order. See report.h. */
#include "report.h"

#include "../commands/command.h"

#include <inttypes.h>
#include <stdlib.h>

#define TERSE_PERCENTILES 20u

static void latency_fields(FILE *out, const struct moments *moments)
{
    fprintf(out, ";%" PRIu64 ";%" PRIu64 ";%f;%f", moments->min / 1000, moments->max / 1000, moments->mean / 1000,
            moments_deviation(moments) / 1000);
}

static void direction_fields(FILE *out, const struct outcome *o)
{
    static const struct outcome nothing;
    double seconds;

    o = o ? o : &nothing;
    seconds = o->runtime_ns ? (double)o->runtime_ns / 1e9 : 1;
    fprintf(out, ";%" PRIu64 ";%" PRIu64 ";%" PRIu64 ";%" PRIu64, o->bytes / 1024, (uint64_t)((double)o->bytes / 1024 / seconds),
            (uint64_t)((double)o->ios / seconds), (o->runtime_ns + 999999) / 1000000);
    latency_fields(out, &o->slat.moments);
    latency_fields(out, &o->clat.moments);
    for (unsigned i = 0; i < TERSE_PERCENTILES; i++)
        if (i < PERCENTILES)
            fprintf(out, ";%f%%=%" PRIu64, percentiles[i], histogram_percentile(&o->clat, percentiles[i]) / 1000);
        else
            fputs(";0%=0", out);
    latency_fields(out, &o->lat.moments);
    fprintf(out, ";%" PRIu64 ";%" PRIu64 ";%f%%;%f;%f", o->bandwidth.kib.min, o->bandwidth.kib.max, o->bandwidth.kib.count
            ? 100.0 : 0.0,
            o->bandwidth.kib.mean, moments_deviation(&o->bandwidth.kib));
}

static void entry_line(FILE *out, const struct ran *ran, unsigned first, unsigned count)
{
    struct outcome *o = run_merged(ran, first, count);
    struct latency_classes classes[3];
    double elapsed;

    if (!o)
        return;
    elapsed = o->elapsed_ns ? (double)o->elapsed_ns * count : 1;
    fprintf(out, "3;tspool-%s;%s;%u;%d", TSPOOL_VERSION, ran->job->name, ran->job->group, o->error);
    direction_fields(out, job_is_reading(ran->job) ? o : NULL);
    direction_fields(out, job_is_reading(ran->job) ? NULL : o);
    fprintf(out, ";%f%%;%f%%;%" PRIu64 ";%" PRIu64 ";%" PRIu64, 100 * (double)o->user_ns / elapsed,
            100 * (double)(o->system_ns + o->writer_ns) / elapsed, o->switches, o->major_faults, o->minor_faults);
    for (unsigned i = 0; i < DEPTH_LEVELS; i++)
        fprintf(out, ";%.1f%%", percent_of(o->depth_levels, i));
    latency_classes_of(&o->clat, classes);
    for (unsigned u = 1; u < 3; u++)
        for (unsigned i = 0; i < classes[u].count; i++)
            fprintf(out, ";%.2f%%", classes[u].percent[i]);
    fputc('\n', out);
    free(o);
}

void report_terse(FILE *out, const struct run *run)
{
    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned r = 0, step = report_step(run->ran[i].job); run->ran[i].outcomes && r < run->ran[i].job->numjobs; r += step)
            entry_line(out, &run->ran[i], r, step);
}
