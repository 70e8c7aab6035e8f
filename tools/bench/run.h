/* bench/run.h - jobs one group after the other, and what came out of them. */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include "device.h"
#include "job.h"
#include "outcome.h"
#include "trust.h"

/* One job as it ran. */
struct ran {
    const struct job *job;
    struct outcome *outcomes;   /* one per rank, copied from the crew; NULL: it was never started */
    unsigned first_number;      /* of its first process in the report */
    char root[4096];            /* where it worked */
    struct device device;       /* beneath that */
    struct disk_load disk;      /* the device's while the job's group ran */
    struct doubts doubts;
    uint64_t wall_ns;           /* of its group */
};

struct run {
    const struct jobs *jobs;
    struct ran *ran;            /* as many as jobs */
    int64_t started_wall_ms;
    bool shows_status;
    bool was_interrupted;
    unsigned failed;            /* jobs */
};

/* Runs everything. 0, or -1 with the complaint: then something was refused before anything was written. */
int run_jobs(struct run *run, const struct jobs *jobs, bool shows_status, struct complaint *complaint);
void run_deinit(struct run *run);
/* One entry of the report: the ranks [first, first + count) of a job taken together. The caller frees it. */
struct outcome *run_merged(const struct ran *ran, unsigned first, unsigned count);

#endif
