/* bench/outcome.h - what one rank measured: written by its process in memory that it shares with the command's. */
#ifndef BENCH_OUTCOME_H
#define BENCH_OUTCOME_H

#include "histogram.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ROUNDS_KEPT 1024u
#define DEPTH_LEVELS 7u      /* 1, 2, 4, 8, 16, 32, >=64, as fio has them */

/* One save, or one load. Times in nanoseconds since its beginning. */
struct round {
    uint64_t bytes, wall_ns;
    uint64_t stall_ns, planned_ns, staged_ns, written_ns, synced_ns, durable_ns, published_ns;
    uint64_t cpu_ns;         /* of this process and the writer */
    uint64_t page_cache_bytes; /* of what was written, still in the page cache at the end (load: at the beginning) */
    uint32_t attempts;
    bool plan_reused, replayable;
};

struct training {
    uint64_t steps, steps_during;
    double step_ns, step_during_ns;      /* medians, without and with a save in flight */
    double worst_step_ns;
    double lost_steps, goodput;          /* per save; share of the wall time that was worth a step */
    uint64_t wall_ns;
};

struct bandwidth { struct moments kib, ios; uint64_t window_ns, window_bytes, window_ios; }; /* samples of half a second */

struct outcome {
    int error;               /* errno; message says it all */
    char message[512];
    pid_t pid;
    _Atomic uint64_t done_bytes, total_bytes; /* for the status line */
    _Atomic uint32_t rounds_done;
    uint64_t started_wall_ms;
    uint64_t elapsed_ns;     /* of the whole job */
    uint64_t runtime_ns;     /* of what was measured */
    uint64_t bytes, ios, short_ios;
    uint64_t prepared_bytes; /* written outside the clock: what is read afterwards */
    struct histogram slat, clat, lat, sync;
    struct bandwidth bandwidth;
    uint64_t depth_levels[DEPTH_LEVELS], submits[DEPTH_LEVELS], completes[DEPTH_LEVELS]; /* the last two: of 0, 4, ... >=64 */
    uint64_t user_ns, system_ns, writer_ns, hash_ns, stage_ns, switches, major_faults, minor_faults;
    uint64_t peak_bytes, writer_peak_bytes, extra_bytes; /* extra: private memory beyond state and arena */
    uint64_t state_bytes, tensors, arena_bytes;
    struct round rounds[ROUNDS_KEPT];
    struct training training;
    bool is_direct, is_registered, wanted_direct;
    uint32_t item_bytes, depth, submit_batch, page_bytes, staging_threads, hash_threads, files;
    uint64_t short_writes;
    char backend[16], io_note[160];
};

#endif
