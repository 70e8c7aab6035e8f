/* bench/trust.h - why a result should not be believed. An honest benchmark says so itself. */
#ifndef BENCH_TRUST_H
#define BENCH_TRUST_H

#include "device.h"
#include "job.h"
#include "outcome.h"

#define TRUST_FOREIGN_CPU 0.15  /* share of the machine */
#define TRUST_FOREIGN_DISK 0.10 /* of our own bytes */
#define DOUBTS_MAX 8u
struct doubts { unsigned count; struct { char kind[32], text[256]; } items[DOUBTS_MAX]; };

/* What other work did while the job ran. */
struct surroundings {
    const struct device *device;
    const struct disk_load *disk; /* NULL: not known */
    double foreign_cpu;           /* share of the machine's CPU time that was taken by others */
    uint64_t own_bytes;           /* that all jobs which ran at once wrote and read */
};

void trust_judge(const struct job *job, const struct outcome *outcomes, const struct surroundings *around, struct doubts *doubts);

/* CPU time of the whole machine that was worked or stolen, and of this process tree, for foreign_cpu. */
struct cpu_clock { double busy, own, wall; };
void cpu_clock_read(struct cpu_clock *clock);
/* `own_ns`: of the processes that worked for us and are not reaped, or were not our children. */
double cpu_foreign(const struct cpu_clock *before, const struct cpu_clock *after, uint64_t own_ns);

#endif
