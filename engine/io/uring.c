/* uring.c - the backend on io_uring; the sole user of liburing.
 *
 * The ring moves bytes of files and polls descriptors; the pool's event is read through it too, so that everything ends in
 * one wait. Unless told otherwise each transfer has an io_uring_enter of its own: a batch in one enter is merged by the block layer's plug into
 * few large requests, which costs a quarter to a third of the throughput. Only the thread that enabled the ring may submit
 * (SINGLE_ISSUER), so it is created disabled and enabled by the first use.
 */
#include <base/failure.h>
#include <errno.h>
#include <io/attempt.h>
#include <io/loop.h>
#include <io/uring_refusal.h>
#include <io/verbs.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A registered buffer of the kernel is at most 1 GiB: a buffer of ours takes adjacent slots of that size. */
#define SLOT_BYTES ((size_t)1 << 30)
#define SLOT_COUNT 1024u

#define SPARE_ENTRIES 32u /* beside the transfers: polls, cancels, the pool's event */

/* user_data of what is not an op (an op's is its address). */
enum { TAG_CANCEL = 1, TAG_POOL_EVENT = 2 };

struct uring {
    struct loop loop;            /* first: the loop's address is ours */
    struct io_uring ring;
    bool is_enabled;             /* a thread is bound to it */
    bool is_closing;             /* the pool's event is not read again */
    bool pool_event_armed;
    unsigned batch, unsent;      /* transfers to an enter; those that wait for theirs */
    int broken;                  /* -errno once the kernel refused the ring itself; 0 before */
    uint64_t pool_event_count;   /* read into by the ring */
    bool may_register, was_refused;
    bool slot_used[SLOT_COUNT];
};

static struct uring *uring_of(struct loop *loop) { return (struct uring *)loop; }

/* Transient refusals leave the entries in the submission queue for the next enter. */
static int uring_entered(struct uring *uring, int result)
{
    if (result >= 0 || result == -EAGAIN || result == -EBUSY || result == -EINTR || result == -ETIME)
        return 0;
    return uring->broken = result;
}

/* A free entry, making room by submitting; NULL when the ring is beyond use. */
static struct io_uring_sqe *uring_entry(struct uring *uring)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&uring->ring);

    if (!entry && uring_entered(uring, io_uring_submit(&uring->ring)) == 0)
        entry = io_uring_get_sqe(&uring->ring);
    if (!entry && !uring->broken)
        uring->broken = -EBUSY;
    return entry;
}

static void uring_arm_pool_event(struct uring *uring)
{
    struct io_uring_sqe *entry = uring_entry(uring);

    if (!entry)
        return;
    io_uring_prep_read(entry, pool_event(uring->loop.pool), &uring->pool_event_count, sizeof uring->pool_event_count, 0);
    io_uring_sqe_set_data64(entry, TAG_POOL_EVENT);
    uring->pool_event_armed = true;
}

/* Binds the ring to the calling thread, once. liburing 2.3 declares io_uring_enable_rings and does not export it. */
static int uring_enable(struct uring *uring)
{
    if (uring->is_enabled || uring->broken)
        return uring->broken;
    if (uring->ring.flags & IORING_SETUP_R_DISABLED)
        uring->broken = io_uring_register((unsigned)uring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    uring->is_enabled = !uring->broken;
    if (uring->is_enabled)
        uring_arm_pool_event(uring);
    return uring->broken;
}

/* The slot that holds all of the op's bytes, or -1: not registered, or across the edge of two slots. */
static int slot_of(const struct uring *uring, const struct op *op, size_t size)
{
    uint32_t slot = op->buffer == IO_NO_BUFFER ? 0 : uring->loop.buffers[op->buffer - 1].slot;
    size_t within = op->buffer_offset / SLOT_BYTES;

    if (!slot || within != (op->buffer_offset + size - 1) / SLOT_BYTES)
        return -1;
    return (int)(slot - 1 + within);
}

static void transfer_prepare(const struct uring *uring, struct io_uring_sqe *entry, const struct op *op)
{
    unsigned size = (unsigned)(op->size < TRANSFER_BYTES_MAX ? op->size : TRANSFER_BYTES_MAX);
    int slot = size ? slot_of(uring, op, size) : -1;

    if (op->kind == OP_READ && slot >= 0)
        io_uring_prep_read_fixed(entry, op->handle, op_place(op), size, op->file_offset, slot);
    else if (op->kind == OP_READ)
        io_uring_prep_read(entry, op->handle, op_place(op), size, op->file_offset);
    else if (slot >= 0)
        io_uring_prep_write_fixed(entry, op->handle, op_place(op), size, op->file_offset, slot);
    else
        io_uring_prep_write(entry, op->handle, op_place(op), size, op->file_offset);
    io_uring_sqe_set_data(entry, (void *)op);
}

/* Once an entry is filled the op is taken, whatever the enter says: a ring beyond use shows in gather(). */
static int uring_transfer(struct loop *loop, struct op *op)
{
    struct uring *uring = uring_of(loop);
    struct io_uring_sqe *entry;

    if (uring_enable(uring) < 0 || !(entry = uring_entry(uring)))
        return uring->broken;
    transfer_prepare(uring, entry, op);
    if (++uring->unsent >= uring->batch) {
        uring->unsent = 0;
        uring_entered(uring, io_uring_submit(&uring->ring));
    }
    return 0;
}

/* Goes out with the next enter: the loop is on its way to wait. */
static int uring_arm(struct loop *loop, struct op *op)
{
    struct uring *uring = uring_of(loop);
    struct io_uring_sqe *entry;

    if (uring_enable(uring) < 0 || !(entry = uring_entry(uring)))
        return uring->broken;
    io_uring_prep_poll_add(entry, op->handle, (unsigned)attempt_events(op->kind));
    io_uring_sqe_set_data(entry, op);
    return 0;
}

/* Not POLL_REMOVE: it gives up (EALREADY) on a poll that was just woken, and if what woke it is gone again by the time the
 * kernel looks, that poll goes on for ever. */
static void uring_disarm(struct loop *loop, struct op *op)
{
    struct io_uring_sqe *entry = uring_entry(uring_of(loop));

    if (!entry)
        return; /* beyond use: gather() says so */
    io_uring_prep_cancel64(entry, (uint64_t)(uintptr_t)op, 0);
    io_uring_sqe_set_data64(entry, TAG_CANCEL);
}

static void uring_pool_event(struct uring *uring)
{
    uring->pool_event_armed = false;
    if (!uring->is_closing)
        uring_arm_pool_event(uring);
    loop_pool_done(&uring->loop);
}

/* Where the file cannot do a transfer without waiting the kernel hands it to a worker of its own, and cancels it when
 * RLIMIT_NPROC or pids.max allows none. Nobody here ever cancels one: it is done by a thread that we have. */
static void uring_transferred(struct uring *uring, struct op *op, int result)
{
    if (result == -ECANCELED)
        pool_submit(uring->loop.pool, LANE_VERBS, op);
    else
        loop_transferred(&uring->loop, op, result);
}

static void uring_deliver(struct uring *uring, uint64_t tag, int result)
{
    struct op *op = (struct op *)(uintptr_t)tag;

    if (tag == TAG_CANCEL)
        return;
    if (tag == TAG_POOL_EVENT)
        uring_pool_event(uring);
    else if (op->kind == OP_READ || op->kind == OP_WRITE)
        uring_transferred(uring, op, result);
    else
        loop_readied(&uring->loop, op, result < 0 ? result : 0);
}

/* Copied and marked seen before acting: delivering may submit, and the kernel may reuse the entry. */
static void uring_drain(struct uring *uring)
{
    struct io_uring_cqe *completion;

    while (io_uring_peek_cqe(&uring->ring, &completion) == 0) {
        uint64_t tag = completion->user_data;
        int result = completion->res;

        io_uring_cqe_seen(&uring->ring, completion);
        uring_deliver(uring, tag, result);
    }
}

static int uring_wait(struct uring *uring, uint64_t until_ns)
{
    uint64_t left_ns = loop_time_left(until_ns);
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(left_ns / 1000000000), .tv_nsec = (long long)(left_ns % 1000000000),
    };
    struct io_uring_cqe *completion;

    if (!left_ns)
        return io_uring_submit_and_get_events(&uring->ring);
    return io_uring_submit_and_wait_timeout(&uring->ring, &completion, 1, until_ns == IO_FOREVER ? NULL : &timeout, NULL);
}

static int uring_gather(struct loop *loop, uint64_t until_ns)
{
    struct uring *uring = uring_of(loop);
    int result = uring_enable(uring);

    if (result < 0)
        return result;
    uring->unsent = 0; /* waiting sends what is left */
    result = uring_entered(uring, uring_wait(uring, until_ns));
    uring_drain(uring);
    return result;
}

/* Registered buffers */

/* How many slots a buffer takes; SLOT_COUNT, which never fits, for what is empty or too large. */
static unsigned slots_of(size_t size)
{
    size_t count = size / SLOT_BYTES + (size % SLOT_BYTES != 0);

    return count && count < SLOT_COUNT ? (unsigned)count : SLOT_COUNT;
}

/* The first of `count` adjacent free slots, or SLOT_COUNT. */
static unsigned slots_find(const struct uring *uring, unsigned count)
{
    unsigned run = 0, slot = 0;

    while (slot < SLOT_COUNT && run < count)
        run = uring->slot_used[slot++] ? 0 : run + 1;
    return run == count && count < SLOT_COUNT ? slot - count : SLOT_COUNT;
}

/* Sets or, with base NULL, empties the slots [first, first + count). */
static int slots_update(struct uring *uring, unsigned first, unsigned count, char *base, size_t size)
{
    int result = 1;

    for (unsigned i = 0; i < count && result == 1; i++) {
        size_t left = size - i * SLOT_BYTES;
        struct iovec place = { base ? base + i * SLOT_BYTES : NULL, base ? (left < SLOT_BYTES ? left : SLOT_BYTES) : 0 };
        result = io_uring_register_buffers_update_tag(&uring->ring, first + i, &place, NULL, 1);
    }
    return result == 1 ? 0 : result;
}

static bool uring_register(struct uring *uring, uint32_t buffer, char *base, size_t size)
{
    unsigned count = slots_of(size), first = slots_find(uring, count);

    if (first == SLOT_COUNT)
        return false;
    if (slots_update(uring, first, count, base, size) < 0) { /* RLIMIT_MEMLOCK, or a read-only mapping */
        slots_update(uring, first, count, NULL, 0);
        return false;
    }
    memset(&uring->slot_used[first], true, count);
    uring->loop.buffers[buffer - 1].slot = first + 1;
    return true;
}

static bool uring_attach(struct loop *loop, uint32_t buffer, void *base, size_t size)
{
    struct uring *uring = uring_of(loop);

    if (!uring->may_register || !uring_register(uring, buffer, base, size))
        uring->was_refused = true;
    return !uring->was_refused;
}

static void uring_detach(struct loop *loop, uint32_t buffer)
{
    struct uring *uring = uring_of(loop);
    const struct loop_buffer *known = &loop->buffers[buffer - 1];
    unsigned count = slots_of(known->size);

    if (!known->slot)
        return;
    slots_update(uring, known->slot - 1, count, NULL, 0);
    memset(&uring->slot_used[known->slot - 1], false, count);
}

/* io_uring_queue_exit would return with the read of the pool's event in flight, into memory that is then freed. */
static void uring_release(struct loop *loop)
{
    struct uring *uring = uring_of(loop);
    uint64_t one = 1;

    uring->is_closing = true;
    if (uring->pool_event_armed && write(pool_event(loop->pool), &one, sizeof one) == sizeof one)
        while (uring->pool_event_armed && uring_gather(loop, IO_FOREVER) == 0)
            ;
    io_uring_queue_exit(&uring->ring);
}

static const struct loop_backend uring_backend = {
    .transfer = uring_transfer, .arm = uring_arm, .disarm = uring_disarm, .gather = uring_gather, .attach = uring_attach,
    .detach = uring_detach, .release = uring_release,
};

/* Creation */

/* Kernels from 6.1 take the first, from 6.0 the second, from 5.19 the third. */
#define BOUND_FLAGS (IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER)
static const unsigned setup_flags[] = {
    BOUND_FLAGS | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN,
    BOUND_FLAGS | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_CLAMP | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_COOP_TASKRUN,
    IORING_SETUP_CLAMP,
};

static int ring_setup(struct io_uring *ring, unsigned entries)
{
    int result = -EINVAL;

    for (unsigned i = 0; i < sizeof setup_flags / sizeof *setup_flags && result == -EINVAL; i++)
        result = io_uring_queue_init(entries, ring, setup_flags[i]);
    return result;
}

/* EXT_ARG (5.11): a wait with a timeout needs no entry of its own. NODROP: no completion is ever lost. */
static bool ring_suffices(const struct io_uring *ring)
{
    return (ring->features & IORING_FEAT_EXT_ARG) && (ring->features & IORING_FEAT_NODROP);
}

static int ring_create(struct io_uring *ring, unsigned depth, struct tspool_failure *failure)
{
    int result = ring_setup(ring, depth + SPARE_ENTRIES);
    char cause[256];

    if (result == 0 && !ring_suffices(ring)) {
        io_uring_queue_exit(ring);
        result = -EOPNOTSUPP;
    }
    if (result < 0) {
        uring_refusal_describe(-result, cause, sizeof cause);
        return failure_set(failure, TSPOOL_STAGE_OPEN, -result, FAILURE_AT(.operation = "io_uring_setup"), "%s", cause);
    }
    io_uring_ring_dontfork(ring); /* a forked child gets no window into our queue */
    return 0;
}

static int uring_init(struct uring *uring, const struct io_settings *settings, struct tspool_failure *failure)
{
    struct op_queue none = { 0 };
    int result = loop_init(&uring->loop, "uring", &uring_backend, settings, 0, failure);

    if (result < 0)
        return result;
    result = ring_create(&uring->ring, uring->loop.depth, failure);
    if (result < 0) {
        pool_destroy(uring->loop.pool, &none);
        return result;
    }
    uring->batch = settings->submit_batch ? settings->submit_batch : 1;
    uring->may_register = settings->registered && io_uring_register_buffers_sparse(&uring->ring, SLOT_COUNT) == 0;
    return 0;
}

int io_create_uring(const struct io_settings *settings, struct io **io, struct tspool_failure *failure)
{
    struct uring *uring = calloc(1, sizeof *uring);
    int result;

    if (!uring)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_AT(.operation = "io_uring_setup"), NULL);
    result = uring_init(uring, settings, failure);
    if (result < 0) {
        free(uring);
        return result;
    }
    *io = &uring->loop.io;
    return 0;
}
