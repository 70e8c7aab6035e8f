/* threads.c - the backend for machines without io_uring: pread and pwrite on the pool's threads, ppoll for the rest.
 *
 * Of equal rank: with 8 threads it writes within a few percent of io_uring. The poll set is built anew for each wait; it
 * holds the pool's event and a handful of sockets and pidfds.
 */
#include <assert.h>
#include <base/array.h>
#include <base/failure.h>
#include <errno.h>
#include <io/attempt.h>
#include <io/loop.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define DEFAULT_TRANSFER_THREADS 8u

struct threads {
    struct loop loop;      /* first: the loop's address is ours */
    struct pollfd *polls;  /* [0]: the pool's event; then the armed ops */
    struct op **armed;     /* polls[i] is of armed[i]; armed[0] is NULL */
    size_t count, poll_capacity, armed_capacity;
};

static struct threads *threads_of(struct loop *loop) { return (struct threads *)loop; }

static int threads_transfer(struct loop *loop, struct op *op)
{
    pool_submit(loop->pool, LANE_TRANSFERS, op);
    return 0;
}

static int threads_reserve(struct threads *threads, size_t count)
{
    int result = array_reserve((void **)&threads->polls, &threads->poll_capacity, count, sizeof *threads->polls);

    return result < 0 ? result : array_reserve((void **)&threads->armed, &threads->armed_capacity, count, sizeof *threads->armed);
}

static int threads_arm(struct loop *loop, struct op *op)
{
    struct threads *threads = threads_of(loop);
    int result = threads_reserve(threads, threads->count + 1);

    if (result < 0)
        return result;
    threads->polls[threads->count] = (struct pollfd){ .fd = op->handle, .events = attempt_events(op->kind) };
    threads->armed[threads->count++] = op;
    return 0;
}

/* The last one takes the freed place. */
static void threads_drop(struct threads *threads, size_t index)
{
    threads->count--;
    threads->polls[index] = threads->polls[threads->count];
    threads->armed[index] = threads->armed[threads->count];
}

static void threads_disarm(struct loop *loop, struct op *op)
{
    struct threads *threads = threads_of(loop);
    size_t index = 1;

    while (threads->armed[index] != op)
        index++;
    threads_drop(threads, index);
    loop_readied(loop, op, -ECANCELED);
}

static void threads_pool_event(struct threads *threads)
{
    uint64_t count;
    ssize_t got = read(threads->polls[0].fd, &count, sizeof count);

    assert(got == sizeof count); /* it polled readable and nobody else reads it */
    (void)got;
    loop_pool_done(&threads->loop);
}

/* Backwards: an op that is delivered leaves its place to the last one, which was looked at already, and what it makes the
 * loop arm is appended behind. */
static void threads_deliver(struct threads *threads)
{
    for (size_t i = threads->count; i-- > 1;) {
        struct op *op = threads->armed[i];

        if (!threads->polls[i].revents)
            continue;
        threads_drop(threads, i);
        loop_readied(&threads->loop, op, 0);
    }
    if (threads->polls[0].revents)
        threads_pool_event(threads);
}

static int threads_gather(struct loop *loop, uint64_t until_ns)
{
    struct threads *threads = threads_of(loop);
    uint64_t left_ns = loop_time_left(until_ns);
    struct timespec timeout = { .tv_sec = (time_t)(left_ns / 1000000000), .tv_nsec = (long)(left_ns % 1000000000) };
    int ready = ppoll(threads->polls, threads->count, until_ns == IO_FOREVER ? NULL : &timeout, NULL);

    if (ready < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : -errno;
    if (ready > 0)
        threads_deliver(threads);
    return 0;
}

static void threads_release(struct loop *loop)
{
    free(threads_of(loop)->polls);
    free(threads_of(loop)->armed);
}

static const struct loop_backend threads_backend = {
    .transfer = threads_transfer, .arm = threads_arm, .disarm = threads_disarm, .gather = threads_gather,
    .release = threads_release,
};

static unsigned transfer_threads_of(const struct io_settings *settings)
{
    unsigned depth = loop_depth_of(settings);

    if (settings->transfer_threads)
        return settings->transfer_threads;
    return depth < DEFAULT_TRANSFER_THREADS ? depth : DEFAULT_TRANSFER_THREADS;
}

static int threads_init(struct threads *threads, const struct io_settings *settings, struct tspool_failure *failure)
{
    if (threads_reserve(threads, 1) < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_AT(.operation = "poll set"), NULL);
    return loop_init(&threads->loop, "threads", &threads_backend, settings, transfer_threads_of(settings), failure);
}

int io_create_threads(const struct io_settings *settings, struct io **io, struct tspool_failure *failure)
{
    struct threads *threads = calloc(1, sizeof *threads);
    int result;

    if (!threads)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_AT(.operation = "threads"), NULL);
    result = threads_init(threads, settings, failure);
    if (result < 0) {
        threads_release(&threads->loop);
        free(threads);
        return result;
    }
    threads->polls[0] = (struct pollfd){ .fd = pool_event(threads->loop.pool), .events = POLLIN };
    threads->armed[0] = NULL;
    threads->count = 1;
    *io = &threads->loop.io;
    return 0;
}
