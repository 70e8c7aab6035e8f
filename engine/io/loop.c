/* loop.c - the semantics of every op, once.
 *
 * An op goes: submit -> the pool | the backend (transfers) | the waiters (messages) | the timers -> ready -> wait.
 * loop_complete is the only way into `ready`, and each op passes it once.
 */
#include <assert.h>
#include <base/array.h>
#include <errno.h>
#include <io/attempt.h>
#include <io/loop.h>
#include <io/verbs.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#define DEFAULT_DEPTH 16u
#define DEFAULT_THREADS 2u

/* Of a waiter, kept in op->result until it has one: who may move it next. */
enum waiter_state {
    WAITER_QUEUED,  /* not looked at yet, or behind another of its handle and kind: waiters_advance() */
    WAITER_ARMED,   /* the backend's: loop_readied() */
    WAITER_LEAVING  /* the backend's, asked to give it up: loop_readied() */
};

static uint64_t monotonic_now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static struct loop *loop_of(struct io *io) { return (struct loop *)io; }

static bool is_transfer(const struct op *op) { return op->kind == OP_READ || op->kind == OP_WRITE; }
static bool is_message(const struct op *op) { return op->kind == OP_SEND || op->kind == OP_RECV; }
static bool is_waiter(const struct op *op) { return is_message(op) || op->kind == OP_WATCH; }

static void loop_complete(struct loop *loop, struct op *op, int64_t result)
{
    assert(loop->in_flight);
    loop->in_flight--;
    op->result = result;
    op_queue_push(&loop->ready, op);
}

/* Transfers */

static int transfer_start(struct loop *loop, struct op *op)
{
    int result;

    if (loop->transfers >= loop->depth)
        return -EBUSY;
    result = loop->backend->transfer(loop, op);
    if (result == 0)
        loop->transfers++;
    return result;
}

void loop_transferred(struct loop *loop, struct op *op, int64_t result)
{
    if (result == -EAGAIN || result == -EINTR) {
        int again = loop->backend->transfer(loop, op);
        if (again == 0)
            return;
        result = again;
    }
    if (op->kind == OP_WRITE && op->size && result == 0) /* a caller that advances by 0 would never end */
        result = -EIO;
    loop_complete(loop, op, result);
}

/* Messages and watches */

static struct op *waiter_first(const struct loop *loop, int handle, enum op_kind kind)
{
    struct op *op = loop->waiters.head;

    while (op && (op->handle != handle || op->kind != kind))
        op = op->next;
    return op;
}

static void waiter_finish(struct loop *loop, struct op *op, int64_t result)
{
    op_queue_remove(&loop->waiters, op);
    loop_complete(loop, op, result);
}

/* Attempts the waiters of one handle and kind in order, until one has to wait: that one is armed. */
static void waiters_advance(struct loop *loop, int handle, enum op_kind kind)
{
    struct op *op;
    int64_t result;

    while ((op = waiter_first(loop, handle, kind)) && op->result == WAITER_QUEUED) {
        result = attempt_run(op);
        if (result == -EAGAIN && (result = loop->backend->arm(loop, op)) == 0) {
            op->result = WAITER_ARMED;
            return;
        }
        waiter_finish(loop, op, result);
    }
}

void loop_readied(struct loop *loop, struct op *op, int error)
{
    bool leaving = op->result == WAITER_LEAVING;
    int handle = op->handle;
    enum op_kind kind = op->kind;

    if (leaving || error < 0)
        waiter_finish(loop, op, leaving ? -ECANCELED : error);
    else
        op->result = WAITER_QUEUED;
    waiters_advance(loop, handle, kind);
}

static void waiter_cancel(struct loop *loop, struct op *op)
{
    if (op->result == WAITER_QUEUED) {
        waiter_finish(loop, op, -ECANCELED);
    } else if (op->result == WAITER_ARMED) {
        op->result = WAITER_LEAVING;
        loop->backend->disarm(loop, op);
    }
}

/* Timers */

static void timer_insert(struct loop *loop, struct op *op)
{
    struct op **link = &loop->timers;

    while (*link && (*link)->deadline_ns <= op->deadline_ns)
        link = &(*link)->next;
    op->next = *link;
    *link = op;
}

static void timers_expire(struct loop *loop)
{
    uint64_t now = loop->timers ? monotonic_now() : 0;

    while (loop->timers && loop->timers->deadline_ns <= now) {
        struct op *op = loop->timers;
        loop->timers = op->next;
        loop_complete(loop, op, 0);
    }
}

static void timer_cancel(struct loop *loop, struct op *op)
{
    struct op **link = &loop->timers;

    while (*link && *link != op)
        link = &(*link)->next;
    if (!*link)
        return; /* expired already */
    *link = op->next;
    loop_complete(loop, op, -ECANCELED);
}

/* The pool */

void loop_pool_done(struct loop *loop)
{
    struct op_queue done = { 0 };

    pool_take(loop->pool, &done);
    for (struct op *op; (op = op_queue_pop(&done));) {
        if (is_transfer(op))
            loop_transferred(loop, op, op->result);
        else
            loop_complete(loop, op, op->result);
    }
}

/* Submit */

static int op_place_resolve(const struct loop *loop, struct op *op)
{
    const struct loop_buffer *buffer;

    if (op->buffer == IO_NO_BUFFER) {
        op->private_data = op->memory;
        return 0;
    }
    if (op->buffer > loop->buffer_count)
        return -EINVAL;
    buffer = &loop->buffers[op->buffer - 1];
    if (!buffer->base || op->buffer_offset > buffer->size || op->size > buffer->size - op->buffer_offset)
        return -EINVAL;
    op->private_data = buffer->base + op->buffer_offset;
    return 0;
}

static int op_check(const struct loop *loop, struct op *op)
{
    if (op->kind <= OP_NONE || op->kind > OP_COMPUTE)
        return -EINVAL;
    if (is_message(op) && op->size == 0) /* an empty message looks like the end of the stream */
        return -EINVAL;
    if (op->kind == OP_SEND && op->fd_count > OP_FDS_MAX)
        return -EINVAL;
    if (is_transfer(op) && op->file_offset > INT64_MAX) /* io_uring takes -1 for the handle's own position */
        return -EINVAL;
    return is_transfer(op) || is_message(op) ? op_place_resolve(loop, op) : 0;
}

static int loop_submit(struct io *io, struct op *op)
{
    struct loop *loop = loop_of(io);
    int result = op_check(loop, op);

    if (result == 0 && is_transfer(op))
        result = transfer_start(loop, op);
    if (result < 0)
        return result;
    loop->in_flight++;
    if (op->kind == OP_TIMER) {
        timer_insert(loop, op);
    } else if (is_waiter(op)) {
        op->result = WAITER_QUEUED;
        op_queue_push(&loop->waiters, op);
        waiters_advance(loop, op->handle, op->kind);
    } else if (!is_transfer(op)) {
        pool_submit(loop->pool, op->kind == OP_COMPUTE ? LANE_COMPUTE : LANE_VERBS, op);
    }
    return 0;
}

/* An op that is ready already keeps its result: it is in neither list, and both cancels then find nothing to do. */
static void op_cancel(struct loop *loop, struct op *op)
{
    struct op *waiter = loop->waiters.head;

    if (op->kind == OP_TIMER) {
        timer_cancel(loop, op);
        return;
    }
    while (waiter && waiter != op)
        waiter = waiter->next;
    if (waiter)
        waiter_cancel(loop, op);
}

static int loop_cancel(struct io *io, struct op *op)
{
    if (!is_waiter(op) && op->kind != OP_TIMER)
        return -EINVAL;
    op_cancel(loop_of(io), op);
    return 0;
}

/* Wait */

static int ready_return(struct loop *loop, struct completion *completions, unsigned capacity)
{
    unsigned count = 0;
    struct op *op;

    while (count < capacity && (op = op_queue_pop(&loop->ready))) {
        loop->transfers -= is_transfer(op);
        completions[count++] = (struct completion){ .op = op, .result = op->result };
    }
    return (int)count;
}

/* Gathers even when something is ready: else a caller whose ops complete at once would never hear of the others. */
static int loop_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct loop *loop = loop_of(io);
    uint64_t until_ns;
    int error;

    assert(capacity);
    for (;;) {
        timers_expire(loop);
        until_ns = loop->timers && loop->timers->deadline_ns < deadline_ns ? loop->timers->deadline_ns : deadline_ns;
        error = loop->backend->gather(loop, loop->ready.head ? 0 : until_ns);
        timers_expire(loop);
        if (loop->ready.head)
            return ready_return(loop, completions, capacity);
        if (error < 0)
            return error;
        if (deadline_ns != IO_FOREVER && monotonic_now() >= deadline_ns)
            return 0;
    }
}

uint64_t loop_time_left(uint64_t until_ns)
{
    uint64_t now = until_ns ? monotonic_now() : 0;

    return until_ns > now ? until_ns - now : 0;
}

/* Buffers */

static int loop_attach(struct io *io, void *base, size_t size)
{
    struct loop *loop = loop_of(io);
    size_t index = 0;
    int result;

    while (index < loop->buffer_count && loop->buffers[index].base)
        index++;
    result = array_reserve((void **)&loop->buffers, &loop->buffer_capacity, index + 1, sizeof *loop->buffers);
    if (result < 0)
        return result;
    if (index == loop->buffer_count)
        loop->buffer_count++;
    loop->buffers[index] = (struct loop_buffer){ .base = base, .size = size };
    if (loop->backend->attach)
        loop->io.registered = loop->backend->attach(loop, (uint32_t)index + 1, base, size);
    return (int)index + 1;
}

static void loop_detach(struct io *io, uint32_t buffer)
{
    struct loop *loop = loop_of(io);

    assert(buffer && buffer <= loop->buffer_count);
    if (loop->backend->detach)
        loop->backend->detach(loop, buffer);
    loop->buffers[buffer - 1] = (struct loop_buffer){ 0 };
}

static uint64_t loop_now(struct io *io) { return monotonic_now(); }

static void loop_random(struct io *io, void *bytes, size_t size)
{
    char *at = bytes;

    while (size) {
        ssize_t got = getrandom(at, size, 0);
        assert(got > 0 || errno == EINTR);
        if (got > 0) {
            at += got;
            size -= (size_t)got;
        }
    }
}

/* Nothing may touch the caller's memory afterwards: transfers and verbs run to their end, the rest is cancelled. */
static void loop_drain(struct loop *loop)
{
    while (loop->timers)
        timer_cancel(loop, loop->timers);
    for (struct op *op = loop->waiters.head, *next; op; op = next) {
        next = op->next;
        if (op->result == WAITER_QUEUED)
            waiter_cancel(loop, op);
    }
    for (struct op *op = loop->waiters.head, *next; op; op = next) {
        next = op->next;
        waiter_cancel(loop, op);
    }
    while (loop->in_flight && loop->backend->gather(loop, IO_FOREVER) == 0)
        ;
}

static void loop_destroy(struct io *io)
{
    struct loop *loop = loop_of(io);

    loop_drain(loop);
    loop->backend->release(loop);
    pool_destroy(loop->pool, &loop->ready);
    for (struct op *op; (op = op_queue_pop(&loop->ready));)
        verb_discard(op);
    free(loop->buffers);
    free(loop);
}

static const struct io_ops loop_ops = {
    .submit = loop_submit, .wait = loop_wait, .cancel = loop_cancel, .attach = loop_attach, .detach = loop_detach,
    .now = loop_now, .random = loop_random, .destroy = loop_destroy,
};

unsigned loop_depth_of(const struct io_settings *settings) { return settings->depth ? settings->depth : DEFAULT_DEPTH; }

int loop_init(struct loop *loop, const char *name, const struct loop_backend *backend, const struct io_settings *settings,
              unsigned transfer_threads, struct tspool_failure *failure)
{
    struct pool_settings pool = {
        .threads = { [LANE_VERBS] = settings->verb_threads ? settings->verb_threads : DEFAULT_THREADS,
                     [LANE_COMPUTE] = settings->compute_threads ? settings->compute_threads : DEFAULT_THREADS,
                     [LANE_TRANSFERS] = transfer_threads },
        .thread_name = settings->thread_name ? settings->thread_name : "tspool",
    };

    loop->io = (struct io){ .ops = &loop_ops, .backend = name };
    loop->backend = backend;
    loop->depth = loop_depth_of(settings);
    return pool_create(&pool, &loop->pool, failure);
}
