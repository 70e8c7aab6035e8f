/* bench/plain_job.c - rw=write and rw=read: one file in order, through the engine's own loop of transfers (io/io.h), and nothing
 * else of a save. See rank.h.
 *
 * Blocks come from as many buffers as are in flight, full of random bytes; each is stamped anew before it is written, page by
 * page, so that no device finds two alike. A round is one pass over size=.
 */
#include "measure.h"
#include "rank.h"
#include "state.h"

#include "../commands/command.h"

#include <errno.h>
#include <fcntl.h>
#include <io/io.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH 64u
#define LOOK_NS 100000000u
#define LAYOUT_BYTES ((size_t)1 << 20)

struct slot { struct op op; uint64_t submitted_ns, called_ns; };

struct plain {
    struct io *io;
    struct slot *slots;
    unsigned *idle, idle_count;
    uint8_t *memory;
    uint64_t memory_bytes, stamp;
    int file;
    char path[4300];
    uint64_t allowed_ns;     /* rate= and thinktime=: nothing is begun before */
    uint64_t measured_from;  /* ramp_time= ends */
    unsigned in_flight, batch; /* batch: submitted since the last wait */
    uint64_t since_sync;
};

/* Opening ------------------------------------------------------------------------------------------------------------ */

static int io_make(struct crew *crew, unsigned member, struct plain *plain)
{
    const struct job *job = crew->job;
    struct io_settings settings = { .depth = (unsigned)job->iodepth, .verb_threads = 1, .compute_threads = 1, 
                                    .submit_batch = (unsigned)job->iodepth_batch, .thread_name = "tspool-b" };
    struct outcome *outcome = outcome_of(crew, member);
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = -ENOSYS;

    if (job->ioengine != IOENGINE_THREADS)
        error = io_create_uring(&settings, &plain->io, &failure);
    if (error < 0 && job->ioengine == IOENGINE_URING)
        return rank_fail(crew, member, -error, "%s", failure.message);
    if (error < 0) {
        snprintf(outcome->io_note, sizeof outcome->io_note, "%.150s", failure.cause);
        failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
        error = io_create_threads(&settings, &plain->io, &failure);
    }
    if (error < 0)
        return rank_fail(crew, member, -error, "%s", failure.message);
    memcpy(outcome->backend, plain->io->backend, strnlen(plain->io->backend, sizeof outcome->backend - 1));
    return 0;
}

static int buffers_make(struct crew *crew, unsigned member, struct plain *plain)
{
    unsigned depth = (unsigned)crew->job->iodepth;

    plain->memory_bytes = ((crew->job->bs + 4095) & ~(uint64_t)4095) * depth;
    plain->memory = memory_map(plain->memory_bytes);
    plain->slots = calloc(depth, sizeof *plain->slots);
    plain->idle = calloc(depth, sizeof *plain->idle);
    if (!plain->memory || !plain->slots || !plain->idle)
        return rank_fail(crew, member, ENOMEM, "%u blocks of %llu bytes: out of memory", depth,
                         (unsigned long long)crew->job->bs);
    memory_fill(plain->memory, plain->memory_bytes, crew->job->seed + ((uint64_t)member << 32));
    for (unsigned i = 0; i < depth; i++)
        plain->idle[plain->idle_count++] = depth - 1 - i;
    return 0;
}

/* The file is made before it is read, outside the clock. */
static int layout_make(struct crew *crew, unsigned member, struct plain *plain)
{
    uint64_t left = crew->job->size;
    uint8_t *chunk = memory_map(LAYOUT_BYTES);
    int error = chunk ? 0 : ENOMEM;

    for (uint64_t i = 0; error == 0 && left > 0 && !crew_is_given_up(crew); i++) {
        size_t size = left < LAYOUT_BYTES ? left : LAYOUT_BYTES;

        memory_fill(chunk, LAYOUT_BYTES, crew->job->seed + i);
        for (size_t done = 0; done < size && error == 0;) {
            ssize_t wrote = write(plain->file, chunk + done, size - done);

            error = wrote < 0 && errno != EINTR ? errno : 0;
            done += wrote > 0 ? (size_t)wrote : 0;
        }
        left -= size;
    }
    if (error == 0 && fsync(plain->file) < 0)
        error = errno;
    outcome_of(crew, member)->prepared_bytes = crew->job->size - left;
    memory_unmap(chunk, LAYOUT_BYTES);
    return error ? rank_fail(crew, member, error, "%s: laying it out: %s", plain->path, strerror(error)) : 0;
}

static int file_lay_out(struct crew *crew, unsigned member, struct plain *plain)
{
    int error;

    if (crew->job->rw != WORKLOAD_READ || crew->job->filename)
        return 0;
    plain->file = open(plain->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (plain->file < 0)
        return rank_fail(crew, member, errno, "%s: %s", plain->path, strerror(errno));
    error = layout_make(crew, member, plain);
    close(plain->file);
    plain->file = -1;
    return error;
}

/* O_DIRECT where it is wanted and there; what runs is noted. */
static int file_open(struct crew *crew, unsigned member, struct plain *plain)
{
    const struct job *job = crew->job;
    int flags = (job->rw == WORKLOAD_READ ? O_RDONLY : O_RDWR) | (job->filename || job->rw == WORKLOAD_READ ? 0
                                                                  : O_CREAT) | O_CLOEXEC;
    struct outcome *outcome = outcome_of(crew, member);
    struct stat stat;

    plain->file = job->is_direct ? open(plain->path, flags | O_DIRECT, 0600) : -1;
    outcome->is_direct = plain->file >= 0;
    if (plain->file < 0 && (!job->is_direct || errno == EINVAL))
        plain->file = open(plain->path, flags, 0600);
    if (plain->file < 0 || fstat(plain->file, &stat) < 0)
        return rank_fail(crew, member, errno, "%s: %s", plain->path, strerror(errno));
    if (job->rw == WORKLOAD_READ && S_ISREG(stat.st_mode) && (uint64_t)stat.st_size < job->size)
        return rank_fail(crew, member, EINVAL, "%s holds %s, less than size=%s", plain->path,
                         human_bytes((uint64_t)stat.st_size).bytes,
                         human_bytes(job->size).bytes);
    if (job->rw == WORKLOAD_WRITE && S_ISREG(stat.st_mode) && fallocate(plain->file, 0, 0, (off_t)job->size) < 0 &&
        errno != EOPNOTSUPP)
        return rank_fail(crew, member, errno, "%s: room for %s: %s", plain->path, human_bytes(job->size).bytes, strerror(errno));
    return 0;
}

static int plain_open(struct crew *crew, unsigned member, void *context)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct plain *plain = context;
    int error;

    plain->file = -1;
    if (crew->job->filename)
        snprintf(plain->path, sizeof plain->path, "%s", crew->job->filename);
    else
        snprintf(plain->path, sizeof plain->path, "%s/%.100s.%u.0", crew->root, crew->job->name, member);
    outcome->wanted_direct = crew->job->is_direct;
    outcome->item_bytes = (uint32_t)crew->job->bs;
    outcome->depth = (uint32_t)crew->job->iodepth;
    outcome->submit_batch = crew->job->iodepth_batch ? (uint32_t)crew->job->iodepth_batch : 1;
    outcome->page_bytes = 4096;
    error = file_lay_out(crew, member, plain);
    if (error == 0)
        error = io_make(crew, member, plain);
    if (error == 0)
        error = buffers_make(crew, member, plain);
    if (error == 0)
        error = file_open(crew, member, plain);
    plain->measured_from = now_ns() + crew->job->ramp_ns;
    return error;
}

/* Transfers ---------------------------------------------------------------------------------------------------------- */

static unsigned level_of(uint64_t value)
{
    unsigned level = 0;

    while (level < DEPTH_LEVELS - 1 && value >= (uint64_t)2 << level)
        level++;
    return level;
}

/* fio's classes of batches: 0, up to 4, 8, 16, 32, 64, more. */
static unsigned batch_level_of(uint64_t value)
{
    unsigned level = value ? 1 : 0;

    while (level && level < DEPTH_LEVELS - 1 && value > (uint64_t)2 << level)
        level++;
    return level;
}

static void stamp_put(struct plain *plain, uint8_t *block, uint64_t bytes)
{
    for (uint64_t i = 0; i + 8 <= bytes; i += 4096) {
        plain->stamp += 0x9e3779b97f4a7c15u;
        memcpy(block + i, &plain->stamp, 8);
    }
}

static int transfer_begin(struct crew *crew, unsigned member, struct plain *plain, uint64_t offset)
{
    const struct job *job = crew->job;
    unsigned number = plain->idle[--plain->idle_count];
    struct outcome *outcome = outcome_of(crew, member);
    struct slot *slot = &plain->slots[number];
    uint64_t stride = (job->bs + 4095) & ~(uint64_t)4095;
    int error;

    slot->op = (struct op){ .kind = job->rw == WORKLOAD_READ ? OP_READ : OP_WRITE, .handle = plain->file, .file_offset = offset,
                            .memory = plain->memory + number * stride, .size = job->bs, .owner = slot };
    if (job->rw == WORKLOAD_WRITE)
        stamp_put(plain, slot->op.memory, job->bs);
    slot->called_ns = now_ns();
    error = io_submit(plain->io, &slot->op);
    slot->submitted_ns = now_ns();
    if (error < 0) {
        plain->idle[plain->idle_count++] = number;
        return rank_fail(crew, member, -error, "%s: %s at offset %llu: %s", plain->path, op_kind_name(slot->op.kind),
                         (unsigned long long)offset, strerror(-error));
    }
    plain->in_flight++;
    plain->batch++;
    outcome->depth_levels[level_of(plain->in_flight)]++;
    return 0;
}

/* Goes on where it was cut short, in the slot that was just given back. */
static int transfer_resume(struct plain *plain, struct slot *slot, size_t done)
{
    int error;

    slot->op.file_offset += done;
    slot->op.memory = (char *)slot->op.memory + done;
    slot->op.size -= done;
    error = io_submit(plain->io, &slot->op);
    if (error == 0) {
        plain->in_flight++;
        plain->idle_count--;
    }
    return error;
}

static int transfer_end(struct crew *crew, unsigned member, struct plain *plain, const struct completion *completion)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct slot *slot = completion->op->owner;
    uint64_t now = now_ns(), size = slot->op.size;

    plain->in_flight--;
    plain->idle[plain->idle_count++] = (unsigned)(slot - plain->slots);
    if (completion->result < 0 || (completion->result == 0 && slot->op.kind == OP_READ))
        return rank_fail(crew, member, completion->result ? (int)-completion->result : EIO, "%s: %s at offset %llu: %s",
                         plain->path,
                         op_kind_name(slot->op.kind), (unsigned long long)slot->op.file_offset,
                         completion->result ? strerror((int)-completion->result) : "the file ends here");
    if ((uint64_t)completion->result < size && transfer_resume(plain, slot, (size_t)completion->result) < 0)
        return rank_fail(crew, member, EIO, "%s: %s at offset %llu was cut short", plain->path, op_kind_name(slot->op.kind),
                         (unsigned long long)slot->op.file_offset);
    outcome->short_ios += (uint64_t)completion->result < size;
    atomic_fetch_add(&outcome->done_bytes, (uint64_t)completion->result);
    if (now < plain->measured_from)
        return 0;
    outcome->bytes += (uint64_t)completion->result;
    outcome->ios++;
    histogram_add(&outcome->slat, slot->submitted_ns - slot->called_ns);
    histogram_add(&outcome->clat, now > slot->submitted_ns ? now - slot->submitted_ns : 0);
    histogram_add(&outcome->lat, now - slot->called_ns);
    bandwidth_add(&outcome->bandwidth, now, (uint64_t)completion->result, 1);
    return 0;
}

/* How the transfers since the last wait went out: in batches as large as allowed, the rest with the wait. */
static void submits_count(struct outcome *outcome, unsigned *begun, unsigned batch)
{
    outcome->submits[batch_level_of(batch)] += *begun / batch;
    if (*begun % batch)
        outcome->submits[batch_level_of(*begun % batch)]++;
    *begun = 0;
}

static int completions_take(struct crew *crew, unsigned member, struct plain *plain, uint64_t until_ns)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct completion completions[BATCH];
    int count, error = 0;

    submits_count(outcome, &plain->batch, outcome->submit_batch);
    count = io_wait(plain->io, completions, BATCH, until_ns);
    if (count < 0)
        return rank_fail(crew, member, -count, "%s: %s", plain->path, strerror(-count));
    if (count > 0)
        outcome->completes[batch_level_of((uint64_t)count)]++; /* else it only waited for rate= or thinktime= */
    for (int i = 0; i < count; i++) {
        int one = transfer_end(crew, member, plain, &completions[i]);

        error = error ? error : one;
    }
    return error;
}

static int drain(struct crew *crew, unsigned member, struct plain *plain)
{
    int error = 0;

    while (plain->in_flight && error == 0)
        error = completions_take(crew, member, plain, IO_FOREVER);
    return error;
}

static int file_sync(struct crew *crew, unsigned member, struct plain *plain)
{
    struct op op = { .kind = OP_FSYNC, .handle = plain->file };
    int error = drain(crew, member, plain);
    uint64_t begun = now_ns();
    int64_t result;

    if (error < 0)
        return error;
    result = io_call(plain->io, &op);
    histogram_add(&outcome_of(crew, member)->sync, now_ns() - begun);
    plain->since_sync = 0;
    return result < 0 ? rank_fail(crew, member, (int)-result, "%s: fsync: %s", plain->path, strerror((int)-result)) : 0;
}

/* One pass ------------------------------------------------------------------------------------------------------------- */

static void pace(const struct job *job, struct plain *plain, uint64_t now)
{
    uint64_t from = plain->allowed_ns > now ? plain->allowed_ns : now;

    if (job->rate)
        plain->allowed_ns = from + (uint64_t)((double)job->bs * 1e9 / (double)job->rate);
    if (job->thinktime_ns)
        plain->allowed_ns = from + job->thinktime_ns;
}

static bool is_over(const struct job *job, const struct plain *plain)
{
    return job->runtime_ns && now_ns() >= plain->measured_from + job->runtime_ns;
}

static int pass(struct crew *crew, unsigned member, struct plain *plain)
{
    const struct job *job = crew->job;
    uint64_t blocks = job->size / job->bs, next = 0, now;
    int error = 0;

    while (error == 0 && (next < blocks || plain->in_flight)) {
        now = now_ns();
        if (crew_is_given_up(crew))
            return -ECANCELED;
        if (next < blocks && is_over(job, plain))
            blocks = next;
        while (error == 0 && next < blocks && plain->idle_count && plain->allowed_ns <= now) {
            error = transfer_begin(crew, member, plain, next++ * job->bs);
            pace(job, plain, now);
            if (error == 0 && job->fsync && job->rw == WORKLOAD_WRITE && ++plain->since_sync >= job->fsync)
                error = file_sync(crew, member, plain);
        }
        if (error == 0 && (plain->in_flight || plain->allowed_ns > now))
            error = completions_take(crew, member, plain, next < blocks && plain->idle_count && plain->allowed_ns < now + LOOK_NS
                                                              ? plain->allowed_ns : now + LOOK_NS);
    }
    return error;
}

static int plain_round(struct crew *crew, unsigned member, void *context, uint32_t number)
{
    struct outcome *outcome = outcome_of(crew, member);
    const struct job *job = crew->job;
    struct plain *plain = context;
    struct round round = { 0 };
    uint64_t begun, before = outcome->bytes;
    int error;

    atomic_store(&outcome->total_bytes, (job->loops > number ? job->loops : number + 1) * job->size);
    if (job->invalidate && job->rw == WORKLOAD_READ)
        cache_drop(plain->path);
    round.page_cache_bytes = job->rw == WORKLOAD_READ ? cached_bytes(plain->path) : 0;
    memory_prime(job->prime);
    begun = now_ns();
    bandwidth_begin(&outcome->bandwidth, begun);
    error = pass(crew, member, plain);
    if (error == 0 && job->rw == WORKLOAD_WRITE && job->end_fsync)
        error = file_sync(crew, member, plain);
    if (error < 0)
        return error;
    if (begun < plain->measured_from)
        begun = plain->measured_from < now_ns() ? plain->measured_from : now_ns();
    round.wall_ns = now_ns() - begun;
    round.bytes = outcome->bytes - before;
    if (job->rw == WORKLOAD_WRITE)
        round.page_cache_bytes = cached_bytes(plain->path);
    outcome->runtime_ns += round.wall_ns;
    if (number < ROUNDS_KEPT)
        outcome->rounds[number] = round;
    atomic_store(&outcome->rounds_done, number + 1);
    return 0;
}

static void plain_close(struct crew *crew, unsigned member, void *context)
{
    struct outcome *outcome = outcome_of(crew, member);
    struct plain *plain = context;

    io_destroy(plain->io);
    outcome->peak_bytes = status_bytes(getpid(), "VmHWM");
    usage_take(outcome);
    if (plain->file >= 0)
        close(plain->file);
    memory_unmap(plain->memory, plain->memory_bytes);
    free(plain->slots);
    free(plain->idle);
}

const struct workload_kind plain_kind = { sizeof(struct plain), plain_open, plain_round, plain_close };
