/* pool.c - threads that run blocking ops.
 *
 * A thread sleeps in its lane's condition until an op is queued, runs it, and hands it to the done list. The eventfd is
 * raised only when the list was empty: the loop takes the whole list at once.
 */
#include <assert.h>
#include <base/failure.h>
#include <errno.h>
#include <io/pool.h>
#include <io/verbs.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#define COMPUTE_NICE 10 /* added: hashing yields to the trainer and to the loop */

struct lane {
    struct pool *pool;
    pthread_mutex_t mutex;  /* guards queue, idle and stopping */
    pthread_cond_t wake;
    struct op_queue queue;
    unsigned idle;
    bool stopping;
    bool lowered;           /* its threads are COMPUTE_NICE nicer than the one that started them */
    pthread_t *threads;
    unsigned thread_count;
};

struct pool {
    struct lane lanes[LANE_COUNT];
    pthread_mutex_t mutex;  /* guards done */
    struct op_queue done;
    int event;
};

static struct op *lane_next(struct lane *lane)
{
    struct op *op;

    pthread_mutex_lock(&lane->mutex);
    lane->idle++;
    while (!(op = op_queue_pop(&lane->queue)) && !lane->stopping)
        pthread_cond_wait(&lane->wake, &lane->mutex);
    lane->idle--;
    pthread_mutex_unlock(&lane->mutex);
    return op;
}

static void pool_raise(const struct pool *pool)
{
    uint64_t one = 1;
    ssize_t written;

    do
        written = write(pool->event, &one, sizeof one);
    while (written < 0 && errno == EINTR);
    assert(written == sizeof one); /* the counter holds 2^64 - 2 */
}

static void pool_done(struct pool *pool, struct op *op)
{
    bool was_empty;

    pthread_mutex_lock(&pool->mutex);
    was_empty = !pool->done.head;
    op_queue_push(&pool->done, op);
    pthread_mutex_unlock(&pool->mutex);
    if (was_empty)
        pool_raise(pool);
}

/* On Linux a thread has a nice value of its own. The kernel stops at 19. */
static void thread_lower(void)
{
    id_t thread = (id_t)gettid();

    setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + COMPUTE_NICE);
}

static void *lane_run(void *argument)
{
    struct lane *lane = argument;
    struct op *op;

    if (lane->lowered)
        thread_lower();
    while ((op = lane_next(lane))) {
        op->result = verb_run(op);
        pool_done(lane->pool, op);
    }
    return NULL;
}

static void thread_label(pthread_t thread, const char *prefix, enum pool_lane kind, unsigned number)
{
    static const char *const words[LANE_COUNT] = { "verb", "work", "xfer" };
    char name[16];

    snprintf(name, sizeof name, "%.8s-%s%u", prefix, words[kind], number % 100);
    pthread_setname_np(thread, name); /* a label: nothing depends on it */
}

/* The threads inherit a full signal mask: a signal of the application must never be delivered to one of ours. */
static int lane_start(struct lane *lane, enum pool_lane kind, const struct pool_settings *settings)
{
    unsigned count = settings->threads[kind];
    sigset_t all, before;
    int error = 0;

    lane->threads = calloc(count ? count : 1, sizeof *lane->threads);
    if (!lane->threads)
        return -ENOMEM;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!error && lane->thread_count < count) {
        error = pthread_create(&lane->threads[lane->thread_count], NULL, lane_run, lane);
        if (!error) {
            thread_label(lane->threads[lane->thread_count], settings->thread_name, kind, lane->thread_count);
            lane->thread_count++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

static void lane_stop(struct lane *lane)
{
    pthread_mutex_lock(&lane->mutex);
    lane->stopping = true;
    pthread_cond_broadcast(&lane->wake);
    pthread_mutex_unlock(&lane->mutex);
    for (unsigned i = 0; i < lane->thread_count; i++)
        pthread_join(lane->threads[i], NULL);
    free(lane->threads);
    pthread_cond_destroy(&lane->wake);
    pthread_mutex_destroy(&lane->mutex);
}

static struct pool *pool_allocate(void)
{
    struct pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    for (unsigned i = 0; i < LANE_COUNT; i++) {
        pool->lanes[i].pool = pool;
        pool->lanes[i].lowered = i == LANE_COMPUTE;
        pthread_mutex_init(&pool->lanes[i].mutex, NULL);
        pthread_cond_init(&pool->lanes[i].wake, NULL);
    }
    pool->event = eventfd(0, EFD_CLOEXEC);
    return pool;
}

int pool_create(const struct pool_settings *settings, struct pool **pool, struct tspool_failure *failure)
{
    struct pool *made = pool_allocate();
    struct op_queue none = { 0 };
    int result = 0;

    if (!made)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_AT(.operation = "pool"), NULL);
    if (made->event < 0)
        result = failure_set(failure, TSPOOL_STAGE_OPEN, errno, FAILURE_AT(.operation = "eventfd"), NULL);
    for (unsigned i = 0; i < LANE_COUNT && !result; i++) {
        result = lane_start(&made->lanes[i], i, settings);
        if (result < 0)
            failure_set(failure, TSPOOL_STAGE_OPEN, -result, FAILURE_AT(.operation = "pthread_create"),
                        "no thread could be started: look at RLIMIT_NPROC (ulimit -u), the cgroup's pids.max and RLIMIT_AS "
                        "(ulimit -v)");
    }
    if (result < 0) {
        pool_destroy(made, &none);
        return result;
    }
    *pool = made;
    return 0;
}

void pool_destroy(struct pool *pool, struct op_queue *done)
{
    if (!pool)
        return;
    for (unsigned i = 0; i < LANE_COUNT; i++)
        lane_stop(&pool->lanes[i]);
    pool_take(pool, done);
    if (pool->event >= 0)
        close(pool->event);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}

void pool_submit(struct pool *pool, enum pool_lane kind, struct op *op)
{
    struct lane *lane = &pool->lanes[kind];
    bool wake;

    assert(lane->thread_count);
    pthread_mutex_lock(&lane->mutex);
    op_queue_push(&lane->queue, op);
    wake = lane->idle > 0;
    pthread_mutex_unlock(&lane->mutex);
    if (wake)
        pthread_cond_signal(&lane->wake);
}

void pool_take(struct pool *pool, struct op_queue *done)
{
    struct op_queue taken;

    pthread_mutex_lock(&pool->mutex);
    taken = pool->done;
    pool->done = (struct op_queue){ 0 };
    pthread_mutex_unlock(&pool->mutex);
    for (struct op *op; (op = op_queue_pop(&taken));)
        op_queue_push(done, op);
}

int pool_event(const struct pool *pool) { return pool->event; }
