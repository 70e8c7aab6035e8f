/* bench/rank.c - see rank.h. */
#include "rank.h"
#include "measure.h"

#include "../commands/command.h"

#include <base/checked.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const struct workload_kind *workload_kind_of(const struct job *job)
{
    return job->rw == WORKLOAD_SAVE ? &save_kind : job->rw == WORKLOAD_LOAD ? &load_kind : &plain_kind;
}

int rank_fail(struct crew *crew, unsigned member, int error, const char *format, ...)
{
    struct outcome *outcome = outcome_of(crew, member);
    va_list arguments;

    if (!outcome->error && !crew_is_given_up(crew)) {
        va_start(arguments, format);
        vsnprintf(outcome->message, sizeof outcome->message, format, arguments);
        va_end(arguments);
        outcome->error = error ? error : EIO;
    }
    return -error;
}

int rank_meet(struct crew *crew, unsigned member)
{
    if (crew->job->numjobs > 1)
        return crew_meet(crew);
    return crew_is_given_up(crew) ? -ECANCELED : 0;
}

/* Rank 0 decides for all, so that none saves alone. */
static bool is_last(struct crew *crew, unsigned member, uint32_t done, uint64_t started_ns)
{
    const struct job *job = crew->job;
    uint64_t elapsed = now_ns() - started_ns;
    bool last = job->time_based ? elapsed >= job->ramp_ns + job->runtime_ns
                                : done >= job->loops || (job->runtime_ns && elapsed >= job->ramp_ns + job->runtime_ns);

    if (job->numjobs == 1)
        return last;
    if (member == 0)
        atomic_store(&crew->shared->verdict, last);
    if (crew_meet(crew) < 0)
        return true;
    return atomic_load(&crew->shared->verdict) != 0;
}

static void outcome_begin(struct outcome *outcome)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    outcome->started_wall_ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void rank_run(struct crew *crew, unsigned member)
{
    const struct workload_kind *kind = workload_kind_of(crew->job);
    struct outcome *outcome = outcome_of(crew, member);
    void *context = calloc(1, kind->context_bytes);
    uint64_t started = now_ns();
    uint32_t done = 0;
    int error;

    if (!context) {
        rank_fail(crew, member, ENOMEM, "out of memory");
        return;
    }
    outcome_begin(outcome);
    error = kind->open(crew, member, context);
    if (error == 0)
        error = rank_meet(crew, member);
    started = now_ns();
    while (error == 0) {
        error = kind->round(crew, member, context, done++);
        if (error < 0 || is_last(crew, member, done, started))
            break;
    }
    outcome->elapsed_ns = now_ns() - started;
    kind->close(crew, member, context);
    free(context);
}

void rank_serve(struct crew *crew, unsigned member)
{
    const struct workload_kind *kind = workload_kind_of(crew->job);
    void *context = calloc(1, kind->context_bytes);
    uint32_t served = 0;
    int error;

    if (!context) {
        rank_fail(crew, member, ENOMEM, "out of memory");
        return;
    }
    outcome_begin(outcome_of(crew, member));
    error = kind->open(crew, member, context);
    while (error == 0 && crew_await_order(crew, served)) {
        error = kind->round(crew, member, context, served++);
        if (error == 0)
            crew_answer(crew);
    }
    kind->close(crew, member, context);
    free(context);
}

/* The engine's options ----------------------------------------------------------------------------------------------- */

/* The whole state and a little for headers, if memory has room for it; else the engine's own choice. */
static uint64_t arena_of(const struct job *job, const struct shape *shape)
{
    uint64_t wanted = align_up(shape->bytes, MIB(16)) + MIB(64), room = meminfo_bytes("MemAvailable") / job->numjobs;

    return job->arena ? job->arena : room && wanted > room - room / 4 ? 0 : wanted;
}

int rank_options(struct crew *crew, unsigned member, const struct shape *shape, struct tspool_options *options)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const struct job *job = crew->job;

    *options = (struct tspool_options)TSPOOL_OPTIONS_INIT;
    if (job->settings && tspool_options_load(job->settings, options, &failure) < 0)
        return rank_fail(crew, member, failure.error, "%s", failure.message);
    options->root = crew->root;
    if (job->bs)
        options->item_bytes = (uint32_t)job->bs;
    if (job->iodepth)
        options->depth = (uint32_t)job->iodepth;
    if (job->ioengine != IOENGINE_AUTO)
        options->io = job->ioengine == IOENGINE_URING ? TSPOOL_IO_URING : job->ioengine == IOENGINE_THREADS ? TSPOOL_IO_THREADS
                                                                                                            : TSPOOL_IO_AUTO;
    if (job->staging_threads)
        options->staging_threads = (uint32_t)job->staging_threads;
    if (job->iodepth_batch)
        options->submit_batch = (uint32_t)job->iodepth_batch;
    options->hash_threads = (uint32_t)job->hash_threads;
    options->bytes_per_second = job->rate;
    options->buffered = !job->is_direct;
    options->arena_bytes = arena_of(job, shape);
    options->writer_path = job->writer ? job->writer : writer_beside();
    options->rank = member;
    options->world_size = (uint32_t)job->numjobs;
    options->local_ranks = (uint32_t)job->numjobs;
    return 0;
}
