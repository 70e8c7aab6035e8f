/* bench/trust.c - see trust.h. Each doubt has a rule with a number, and says the number. */
#include "trust.h"

#include "../commands/command.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define FOREIGN_DISK_LEAST ((uint64_t)16 << 20)
#define DRIFT 0.10
#define DRIFT_ROUNDS 6u
#define CACHED 0.05

static void doubt(struct doubts *doubts, const char *kind, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void doubt(struct doubts *doubts, const char *kind, const char *format, ...)
{
    va_list arguments;

    if (doubts->count == DOUBTS_MAX)
        return;
    snprintf(doubts->items[doubts->count].kind, sizeof doubts->items[0].kind, "%s", kind);
    va_start(arguments, format);
    vsnprintf(doubts->items[doubts->count].text, sizeof doubts->items[0].text, format, arguments);
    va_end(arguments);
    doubts->count++;
}

/* The I/O mode ------------------------------------------------------------------------------------------------------- */

static void mode_judge(const struct job *job, const struct outcome *outcome, const struct device *device, struct doubts *doubts)
{
    if (outcome->wanted_direct && !outcome->is_direct)
        doubt(doubts, "buffered", "O_DIRECT was asked for and is not in force on %s: this is the page cache's speed, not "
              "the device's",
              *device->filesystem ? device->filesystem : "this file system");
    if (job->ioengine != IOENGINE_THREADS && job->ioengine != IOENGINE_BUFFERED && strcmp(outcome->backend, "threads") == 0)
        doubt(doubts, "fallback", "threads wrote, not io_uring: %s", *outcome->io_note ? outcome->io_note
              : "the kernel refused it");
    if (!*device->name)
        doubt(doubts, "no_device", "there is no block device beneath %s: memory, a network or another file system was measured",
              *device->filesystem ? device->filesystem : "this directory");
}

static uint64_t bytes_of(const struct outcome *outcomes, const struct job *job)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < job->numjobs; i++)
        bytes += outcomes[i].bytes;
    return bytes;
}

/* After direct writes nothing of them belongs in the page cache; before a cold read nothing may be there. */
static void cache_judge(const struct job *job, const struct outcome *outcome, uint64_t all_bytes, struct doubts *doubts)
{
    uint64_t cached = 0, bytes = all_bytes, rounds = atomic_load(&outcome->rounds_done);

    for (uint64_t i = 0; i < rounds && i < ROUNDS_KEPT; i++)
        cached = outcome->rounds[i].page_cache_bytes > cached ? outcome->rounds[i].page_cache_bytes : cached;
    bytes = rounds ? bytes / rounds : bytes;
    if (!bytes || (double)cached < CACHED * (double)bytes || cached < ((uint64_t)1 << 20))
        return;
    if (job_is_reading(job) && !outcome->is_direct)
        doubt(doubts, "page_cache_hits", "%s of what was read were in the page cache before: that is memory's speed",
              human_bytes(cached).bytes);
    else if (!job_is_reading(job) && outcome->is_direct)
        doubt(doubts, "direct_ignored", "%s of what was written with O_DIRECT are in the page cache: the file system ignores it",
              human_bytes(cached).bytes);
}

/* Drift -------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static double median_wall(const struct round *rounds, size_t count)
{
    uint64_t walls[ROUNDS_KEPT];

    for (size_t i = 0; i < count; i++)
        walls[i] = rounds[i].wall_ns;
    qsort(walls, count, sizeof *walls, by_size);
    return count % 2 ? (double)walls[count / 2] : ((double)walls[count / 2 - 1] + (double)walls[count / 2]) / 2;
}

/* The later half against the earlier one: a drive that gets hot, a write cache that is full, a credit that is spent. */
static void drift_judge(const struct outcome *outcome, struct doubts *doubts)
{
    size_t count = atomic_load(&outcome->rounds_done), half;
    double early, late;

    count = count < ROUNDS_KEPT ? count : ROUNDS_KEPT;
    half = count / 2;
    if (count < DRIFT_ROUNDS)
        return;
    early = median_wall(outcome->rounds, half);
    late = median_wall(outcome->rounds + count - half, half);
    if (late > early * (1 + DRIFT) || late < early * (1 - DRIFT))
        doubt(doubts, "drift", "the later rounds took %.2f times as long as the earlier ones: heat, a full write cache, "
              "spent burst "
              "credits, or other work; run longer", late / early);
}

/* Others ------------------------------------------------------------------------------------------------------------- */

static void others_judge(const struct surroundings *around, struct doubts *doubts)
{
    uint64_t own = around->own_bytes, all, foreign;

    if (around->foreign_cpu > TRUST_FOREIGN_CPU)
        doubt(doubts, "cpu_busy", "other work took %.0f %% of the machine's CPU time meanwhile", 100 * around->foreign_cpu);
    if (!around->disk)
        return;
    all = around->disk->written_bytes + around->disk->read_bytes;
    foreign = all > own ? all - own : 0;
    if (foreign > FOREIGN_DISK_LEAST && (double)foreign > TRUST_FOREIGN_DISK * (double)own)
        doubt(doubts, "device_busy", "others read and wrote %s on %s meanwhile, beside our %s", human_bytes(foreign).bytes,
              around->device->disk, human_bytes(own).bytes);
}

static void failure_judge(const struct outcome *outcomes, const struct job *job, struct doubts *doubts)
{
    uint32_t attempts = 0;

    for (unsigned i = 0; i < job->numjobs; i++)
        for (uint64_t r = 0; r < atomic_load(&outcomes[i].rounds_done) && r < ROUNDS_KEPT; r++)
            attempts = outcomes[i].rounds[r].attempts > attempts ? outcomes[i].rounds[r].attempts : attempts;
    if (attempts > 1)
        doubt(doubts, "repeated", "a save took %u attempts: the writer died or a write failed meanwhile", attempts);
}

void trust_judge(const struct job *job, const struct outcome *outcomes, const struct surroundings *around, struct doubts *doubts)
{
    *doubts = (struct doubts){ 0 };
    if (bytes_of(outcomes, job) == 0)
        return;
    mode_judge(job, &outcomes[0], around->device, doubts);
    cache_judge(job, &outcomes[0], bytes_of(outcomes, job), doubts);
    drift_judge(&outcomes[0], doubts);
    others_judge(around, doubts);
    failure_judge(outcomes, job, doubts);
}

/* CPU ---------------------------------------------------------------------------------------------------------------- */

static double timeval_s(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec / 1e6; }

void cpu_clock_read(struct cpu_clock *clock)
{
    double ticks[8] = { 0 }, per_second = (double)sysconf(_SC_CLK_TCK);
    FILE *file = fopen("/proc/stat", "re");
    struct rusage own, children;

    if (file && fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &ticks[0], &ticks[1], &ticks[2], &ticks[3], &ticks[4],
                       &ticks[5],
                       &ticks[6], &ticks[7]) < 4)
        ticks[0] = 0;
    if (file)
        fclose(file);
    getrusage(RUSAGE_SELF, &own);
    getrusage(RUSAGE_CHILDREN, &children);
    clock->busy = (ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7]) / per_second;
    clock->own = timeval_s(own.ru_utime) + timeval_s(own.ru_stime) + timeval_s(children.ru_utime) + timeval_s(children.ru_stime);
    clock->wall = (double)now_ns() / 1e9;
}

double cpu_foreign(const struct cpu_clock *before, const struct cpu_clock *after, uint64_t own_ns)
{
    double foreign = (after->busy - before->busy) - (after->own - before->own) - (double)own_ns / 1e9;
    double all = (after->wall - before->wall) * (double)sysconf(_SC_NPROCESSORS_ONLN);

    return foreign > 0 && all > 0.2 ? foreign / all : 0; /* jiffies say nothing about less */
}
