/* bench/save_job.c - rw=save: whole saves through the engine, as a trainer makes them. See rank.h.
 *
 * A round is one checkpoint. Outside its clock: the one before is removed and that is made durable, memory is primed, an
 * optimizer's step writes every tensor. Inside: declaring (or taking over), planning, staging, writing, hashing, syncing and
 * publishing; with several ranks the publish of rank 0 too.
 */
#include "measure.h"
#include "rank.h"
#include "state.h"
#include "training.h"
#include "workspace.h"

#include "../commands/command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define LOOK_NS 50000000u

struct saver {
    struct shape shape;
    uint8_t *memory;
    struct tspool *spool;
    struct tspool_save *previous, *save;
    struct training_loop *training;
    char removable[64];  /* the checkpoint of the round before */
};

/* Opening ------------------------------------------------------------------------------------------------------------ */

static int state_make(struct crew *crew, unsigned member, struct saver *saver)
{
    struct complaint complaint;
    uint64_t available = meminfo_bytes("MemAvailable"), wanted;

    if (shape_make(crew->job, member, &saver->shape, &complaint) < 0)
        return rank_fail(crew, member, EINVAL, "%s", complaint.text);
    wanted = (saver->shape.memory_bytes + (64 << 20)) * crew->job->numjobs;
    if (available && wanted > available)
        return rank_fail(crew, member, ENOMEM,
                         "the state of %llu rank(s) takes %s of memory and %s are available: give a smaller "
                         "shape or scale=", (unsigned long long)crew->job->numjobs, human_bytes(wanted).bytes,
                         human_bytes(available).bytes);
    saver->memory = memory_map(saver->shape.memory_bytes);
    if (!saver->memory)
        return rank_fail(crew, member, errno, "memory for the state: %s", strerror(errno));
    memory_fill(saver->memory, saver->shape.memory_bytes, crew->job->seed + ((uint64_t)member << 32));
    return 0;
}

static int spool_make(struct crew *crew, unsigned member, struct saver *saver)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct outcome *outcome = outcome_of(crew, member);
    struct tspool_options options;
    int error = rank_options(crew, member, &saver->shape, &options);

    if (error < 0)
        return error;
    error = tspool_open(&options, &saver->spool, &failure);
    if (error == 0 && options.arena_bytes > saver->shape.bytes)
        error = tspool_reserve(saver->spool, saver->shape.bytes, &failure);
    if (error < 0)
        return rank_fail(crew, member, -error, "%s", failure.message);
    outcome->arena_bytes = options.arena_bytes;
    outcome->staging_threads = options.staging_threads;
    outcome->submit_batch = options.submit_batch ? options.submit_batch : 1;
    return 0;
}

static int save_open(struct crew *crew, unsigned member, void *context)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct saver *saver = context;
    int error = state_make(crew, member, saver);

    if (error == 0)
        error = spool_make(crew, member, saver);
    if (error == 0 && crew->job->train_ns && !(saver->training = training_create(crew->job->train_ns, crew->job->seed)))
        error = rank_fail(crew, member, ENOMEM, "out of memory");
    outcome->state_bytes = saver->shape.bytes;
    outcome->tensors = saver->shape.count;
    outcome->wanted_direct = crew->job->is_direct;
    return error;
}

/* One round ---------------------------------------------------------------------------------------------------------- */

static void tree_remove(const char *root, const char *name)
{
    char path[4200];
    int fd;

    snprintf(path, sizeof path, "%s/%s", root, name);
    directory_remove(path);
    fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
}

static int round_prepare(struct crew *crew, unsigned member, struct saver *saver)
{
    if (member == 0 && *saver->removable)
        tree_remove(crew->root, saver->removable);
    memory_prime(crew->job->prime);
    memory_step(saver->memory, saver->shape.memory_bytes);
    if (member == 0 && getrandom(crew->shared->save_id, sizeof crew->shared->save_id, 0) < 0)
        return rank_fail(crew, member, errno, "getrandom: %s", strerror(errno));
    return rank_meet(crew, member);
}

static int tensor_declare(const struct saver *saver, const struct shape_tensor *source, struct tspool_failure *failure)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

    tensor.name = source->name;
    tensor.dtype = source->dtype;
    tensor.rank = source->rank;
    tensor.shape = source->shape;
    tensor.data = saver->memory + source->memory_offset;
    tensor.global_shape = source->is_sharded ? source->global_shape : NULL;
    tensor.global_offsets = source->is_sharded ? source->global_offsets : NULL;
    return tspool_save_add(saver->save, &tensor, failure);
}

static int save_declare(struct crew *crew, struct saver *saver, const char *name, struct tspool_failure *failure)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    int error;

    options.staging = crew->job->staging == STAGING_CHOICE_BACKGROUND ? TSPOOL_STAGING_BACKGROUND : TSPOOL_STAGING_NOW;
    options.guarded = crew->job->staging == STAGING_CHOICE_BACKGROUND;
    options.save_id = crew->job->numjobs > 1 ? crew->shared->save_id : NULL;
    if (saver->previous)
        return tspool_save_again(saver->spool, name, saver->previous, &options, &saver->save, failure);
    error = tspool_save_begin(saver->spool, name, &options, &saver->save, failure);
    for (size_t i = 0; i < saver->shape.count && error == 0; i++)
        error = tensor_declare(saver, &saver->shape.tensors[i], failure);
    return error;
}

static void progress_tell(struct outcome *outcome, const struct tspool_save_result *result, uint32_t number)
{
    atomic_store(&outcome->done_bytes, number * outcome->state_bytes + result->written_bytes);
}

/* Until the level is reached; training goes on meanwhile, as it would. */
static int level_await(struct crew *crew, unsigned member, struct saver *saver, enum tspool_level level, uint32_t number)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    int error;

    do {
        if (saver->training)
            training_step(saver->training, true);
        error = tspool_save_wait(saver->save, level, saver->training ? 0 : LOOK_NS);
        tspool_save_result(saver->save, &result);
        progress_tell(outcome, &result, number);
        if (crew_is_given_up(crew))
            return -ECANCELED;
    } while (error == -ETIMEDOUT);
    return error < 0 ? rank_fail(crew, member, -error, "%s", *result.failure.message ? result.failure.message
                                 : strerror(-error)) : 0;
}

static int publish(struct crew *crew, unsigned member, const char *name)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = crew_meet(crew);

    if (error == 0 && member == 0) {
        error = tspool_publish(crew->root, name, crew->shared->save_id, (uint32_t)crew->job->numjobs, &failure);
        crew->shared->published_ns = now_ns();
        if (error < 0)
            rank_fail(crew, member, -error, "%s", failure.message);
    }
    if (error < 0)
        crew_give_up(crew);
    return error < 0 ? error : crew_meet(crew);
}

static void modes_note(struct outcome *outcome, const struct tspool_save_result *result)
{
    outcome->is_direct = result->direct;
    outcome->is_registered = result->registered;
    outcome->item_bytes = result->item_bytes;
    outcome->depth = result->depth;
    outcome->page_bytes = result->page_bytes;
    outcome->files = result->files;
    outcome->short_writes += result->short_writes;
    memcpy(outcome->backend, result->backend, sizeof outcome->backend);
    memcpy(outcome->io_note, result->io_note, sizeof outcome->io_note);
}

static struct round round_of(const struct tspool_save_result *result, uint64_t begun, uint64_t submitted, uint64_t stall,
                             uint64_t ended)
{
    uint64_t before = submitted - begun; /* the engine counts from the submit */

    return (struct round){
        .bytes = result->file_bytes, .wall_ns = ended - begun, .stall_ns = stall, .planned_ns = before + result->planned_ns,
        .staged_ns = before + result->staged_ns, .written_ns = before + result->written_ns,
                .synced_ns = before + result->synced_ns,
        .durable_ns = before + result->durable_ns, .published_ns = ended - begun, .attempts = result->attempts,
        .plan_reused = result->plan_reused, .replayable = result->replayable,
    };
}

/* stall, the rest, and both, under fio's names for submission, completion and total latency. */
static void round_note(struct crew *crew, unsigned member, struct round *round, const struct tspool_save_result *result,
                       uint32_t number)
{
    struct outcome *outcome = outcome_of(crew, member);

    modes_note(outcome, result);
    if (number < ROUNDS_KEPT)
        outcome->rounds[number] = *round;
    outcome->hash_ns += result->hash_cpu_ns;
    outcome->stage_ns += result->stage_cpu_ns;
    outcome->bytes += round->bytes;
    outcome->ios += result->writes;
    outcome->runtime_ns += round->wall_ns;
    histogram_add(&outcome->slat, round->stall_ns);
    histogram_add(&outcome->clat, round->wall_ns - round->stall_ns);
    histogram_add(&outcome->lat, round->wall_ns);
    histogram_add(&outcome->sync, round->synced_ns > round->written_ns ? round->synced_ns - round->written_ns : 0);
    moments_add(&outcome->bandwidth.kib, (uint64_t)((double)round->bytes / 1024 * 1e9 / (double)round->wall_ns));
    moments_add(&outcome->bandwidth.ios, (uint64_t)((double)result->writes * 1e9 / (double)round->wall_ns));
}

static int save_measure(struct crew *crew, unsigned member, struct saver *saver, const char *name, uint32_t number,
                        struct round *round)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int writer = tspool_writer_pid(saver->spool), error;
    uint64_t writer_cpu = process_cpu_ns(writer), cpu = own_cpu_ns() + writer_cpu, begun = now_ns(), submitted, stall;
    char path[4200];

    error = save_declare(crew, saver, name, &failure);
    submitted = now_ns();
    if (error == 0)
        error = tspool_save_submit(saver->save, &failure);
    stall = now_ns() - begun;
    if (error < 0)
        return rank_fail(crew, member, -error, "%s", failure.message);
    if (saver->training)
        training_stalled(saver->training, stall);
    error = level_await(crew, member, saver, crew->job->numjobs > 1 ? TSPOOL_DURABLE : TSPOOL_PUBLISHED, number);
    if (error == 0 && crew->job->numjobs > 1)
        error = publish(crew, member, name);
    if (error < 0)
        return error;
    tspool_save_result(saver->save, &result);
    *round = round_of(&result, begun, submitted, stall, crew->job->numjobs > 1 ? crew->shared->published_ns
                                                                               : submitted + result.published_ns);
    outcome_of(crew, member)->writer_ns = process_cpu_ns(writer);
    if (!saver->training)
        round->cpu_ns = own_cpu_ns() + process_cpu_ns(writer) - cpu;
    else
        round->cpu_ns = process_cpu_ns(writer) - writer_cpu + result.stage_cpu_ns; /* the training's own is not the engine's */
    outcome_of(crew, member)->writer_peak_bytes = status_bytes(writer, "VmHWM");
    snprintf(path, sizeof path, "%s/%s", crew->root, name);
    round->page_cache_bytes = member == 0 ? cached_bytes(path) : 0;
    round_note(crew, member, round, &result, number);
    return 0;
}

static int save_round(struct crew *crew, unsigned member, void *context, uint32_t number)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct saver *saver = context;
    struct round round;
    char name[64];
    int error;

    snprintf(name, sizeof name, "bench-%08u", number + 1);
    atomic_store(&outcome->total_bytes, (crew->job->loops > number ? crew->job->loops : number + 1) * outcome->state_bytes);
    error = round_prepare(crew, member, saver);
    if (error == 0 && saver->training)
        error = training_until_save(saver->training, crew);
    if (error == 0 && saver->training)
        error = rank_meet(crew, member);
    if (error == 0)
        error = save_measure(crew, member, saver, name, number, &round);
    if (saver->training)
        training_report(saver->training, &outcome->training);
    tspool_save_free(saver->previous);
    saver->previous = error == 0 ? saver->save : NULL;
    if (error < 0) {
        if (saver->save && tspool_save_abort(saver->save) == 0)
            tspool_save_wait(saver->save, TSPOOL_PUBLISHED, UINT64_MAX);
        tspool_save_free(saver->save);
    }
    saver->save = NULL;
    memcpy(saver->removable, name, sizeof name);
    atomic_store(&outcome->rounds_done, number + 1);
    return error;
}

static void save_close(struct crew *crew, unsigned member, void *context)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    struct outcome *outcome = outcome_of(crew, member);
    struct saver *saver = context;
    uint64_t own = status_bytes(getpid(), "RssAnon"), known = saver->shape.memory_bytes;
    int writer = saver->spool ? tspool_writer_pid(saver->spool) : 0;

    outcome->extra_bytes = (own > known ? own - known : 0) + status_bytes(writer, "RssAnon");
    outcome->peak_bytes = status_bytes(getpid(), "VmHWM");
    usage_take(outcome);
    tspool_save_free(saver->previous);
    report.mode = TSPOOL_CLOSE_ABORT;
    tspool_close(saver->spool, UINT64_MAX, &report);
    training_destroy(saver->training);
    memory_unmap(saver->memory, saver->shape.memory_bytes);
    shape_free(&saver->shape);
}

const struct workload_kind save_kind = { sizeof(struct saver), save_open, save_round, save_close };
