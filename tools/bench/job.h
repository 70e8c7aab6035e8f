/* bench/job.h - what one job asks for, under fio's names where fio has the notion.
 *
 * Options are set by name and text, from job files and the command line alike: one table says what each takes. What was
 * given is kept, for the report.
 */
#ifndef BENCH_JOB_H
#define BENCH_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum workload { WORKLOAD_SAVE, WORKLOAD_LOAD, WORKLOAD_WRITE, WORKLOAD_READ };
enum ioengine { IOENGINE_AUTO, IOENGINE_URING, IOENGINE_THREADS, IOENGINE_BUFFERED };
enum staging_choice { STAGING_CHOICE_NOW, STAGING_CHOICE_BACKGROUND };

#define NUMJOBS_MAX 256u

struct job_option { char *name, *value; };

struct job {
    char *name;
    struct job_option *given;  /* in order; of [global] too */
    size_t given_count, given_capacity, global_count; /* the first global_count were inherited */
    unsigned group;            /* jobs of one group run at once */
    enum workload rw;
    enum ioengine ioengine;
    enum staging_choice staging;
    const char *directory, *filename, *shape, *writer, *destroy_data_on, *settings; /* in `given`; NULL: not given */
    uint64_t bs;               /* one read or write; 0: the engine's */
    uint64_t size;             /* bytes of a plain job */
    uint64_t rate;             /* bytes a second; 0: as fast as it goes */
    uint64_t arena, prime;     /* bytes; prime: memory touched and given back before each measure */
    uint64_t iodepth, iodepth_batch, numjobs, loops, fsync;
    uint64_t runtime_ns, ramp_ns, thinktime_ns;
    bool is_direct, end_fsync, group_reporting, stonewall, new_group, time_based, keep, invalidate;
    uint64_t ranks, rank, tp, pp, dp; /* 0: the shape's own; rank: the first one that is simulated */
    double scale;
    uint64_t seed, staging_threads, hash_threads;
    uint64_t interval_steps, interval_ns; /* between saves: steps, or time; 0 both: no training loop */
    uint64_t train_ns;         /* one step */
};

struct complaint { char text[512]; };
/* Always -1. */
int complaint_set(struct complaint *complaint, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A job with every option at its default. 0 or -1 (no memory). */
int job_defaults(struct job *job, const char *name);
/* The same options, so far all inherited. */
int job_inherit(struct job *job, const struct job *global, const char *name);
void job_drop(struct job *job);
/* value NULL: an option given without one. 0, or -1 with the complaint, which names the option and the remedy. */
int job_set(struct job *job, const char *name, const char *value, struct complaint *complaint);
/* What only all options together show. */
int job_check(struct job *job, struct complaint *complaint);
/* Whether there is such an option of jobs, and whether it may stand without a value. */
bool job_knows(const char *name, bool *is_flag);
size_t job_option_count(void);
const char *job_option_name(size_t number);
const char *workload_name(enum workload rw);
static inline bool job_is_plain(const struct job *job) { return job->rw == WORKLOAD_WRITE || job->rw == WORKLOAD_READ; }
static inline bool job_is_reading(const struct job *job) { return job->rw == WORKLOAD_LOAD || job->rw == WORKLOAD_READ; }

struct jobs { struct job *jobs; size_t count, capacity; struct job global; bool has_global; };
int jobs_init(struct jobs *jobs);
void jobs_deinit(struct jobs *jobs);
/* A new job that has what is global so far; NULL: no memory. */
struct job *jobs_add(struct jobs *jobs, const char *name);
/* Checks every job and numbers the groups. */
int jobs_finish(struct jobs *jobs, struct complaint *complaint);

/* Reads a job file as fio would: [global], sections, ; and # comments, names without a value. `path` "-" is stdin. 0 or -1. */
int jobfile_read(struct jobs *jobs, const char *path, struct complaint *complaint);
int jobfile_parse(struct jobs *jobs, char *text, const char *path, struct complaint *complaint);

#endif
