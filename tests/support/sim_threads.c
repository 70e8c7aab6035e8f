/* support/sim_threads.c - see sim_threads.h. Each thread has a stack of its own; stacks are kept for the next run. */
#include "sim_threads.h"

#include "sim_world.h"

#include <arena/arena.h>
#include <errno.h>
#include <plan/plan.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>

#define STACK_BYTES (256u << 10)
#define THREADS_MAX 16u
#define COPY_NS 300000u      /* a piece of a tensor takes at most so long to copy */
#define NS_PER_S 1000000000u

struct sim_thread {
    struct sim_threads *threads;
    ucontext_t context;
    void *stack;
    void *(*run)(void *argument);
    void *argument;
    struct sim_random random;
    const void *condition;   /* what it waits for; NULL: it can run, or sleeps until `due` */
    uint64_t due;            /* 0: at once */
    bool over;
};

struct sim_threads {
    struct sim_world *world;
    struct sim_random random;
    ucontext_t scheduler;
    struct sim_thread *items[THREADS_MAX], *running;
    unsigned count;
    bool hastened;
};

static struct sim_threads *current;
static void *spare_stacks[THREADS_MAX];
static unsigned spare_count;

static void must(bool done)
{
    if (!done)
        abort();
}

/* Beginning and end ------------------------------------------------------------------------------------------------- */

struct sim_threads *sim_threads_create(struct sim_world *world, uint64_t seed)
{
    struct sim_threads *threads = calloc(1, sizeof(*threads));

    must(threads != NULL);
    threads->world = world;
    threads->random.state = sim_mix(seed ^ 0x7468726561647321u);
    return threads;
}

void sim_threads_destroy(struct sim_threads *threads)
{
    for (unsigned i = 0; i < threads->count; i++) {
        must(threads->items[i]->over);
        free(threads->items[i]);
    }
    free(threads);
}

void sim_threads_enter(struct sim_threads *threads) { current = threads; }
void sim_threads_leave(void) { current = NULL; }

/* Its frame is never left: the context ends here. */
static void thread_main(void)
{
    struct sim_thread *thread = current->running;

    thread->run(thread->argument);
    thread->over = true;
    sim_threads_raise(thread->threads, thread);
    swapcontext(&thread->context, &thread->threads->scheduler);
    abort();
}

struct sim_thread *sim_thread_start(struct sim_threads *threads, void *(*run)(void *argument), void *argument)
{
    struct sim_thread *thread = calloc(1, sizeof(*thread));

    must(thread && threads->count < THREADS_MAX);
    thread->threads = threads;
    thread->run = run;
    thread->argument = argument;
    thread->random.state = sim_mix(threads->random.state + threads->count + 1);
    thread->stack = spare_count ? spare_stacks[--spare_count] : malloc(STACK_BYTES);
    must(thread->stack && getcontext(&thread->context) == 0);
    thread->context.uc_stack.ss_sp = thread->stack;
    thread->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread->context, thread_main, 0);
    threads->items[threads->count++] = thread;
    return thread;
}

bool sim_thread_is_over(const struct sim_thread *thread) { return thread->over; }
void sim_threads_hasten(struct sim_threads *threads) { threads->hastened = true; }

/* Scheduling -------------------------------------------------------------------------------------------------------- */

static bool can_run(const struct sim_thread *thread)
{
    if (thread->over)
        return false;
    return thread->threads->hastened || (!thread->condition && !thread->due)
           || (thread->due && thread->due <= sim_world_now(thread->threads->world));
}

bool sim_threads_can_run(const struct sim_threads *threads)
{
    for (unsigned i = 0; i < threads->count; i++)
        if (can_run(threads->items[i]))
            return true;
    return false;
}

static struct sim_thread *thread_choose(struct sim_threads *threads)
{
    struct sim_thread *able[THREADS_MAX];
    unsigned count = 0;

    for (unsigned i = 0; i < threads->count; i++)
        if (can_run(threads->items[i]))
            able[count++] = threads->items[i];
    return count ? able[sim_random_below(&threads->random, count)] : NULL;
}

bool sim_threads_run(struct sim_threads *threads)
{
    struct sim_thread *thread = thread_choose(threads);

    if (!thread)
        return false;
    thread->condition = NULL;
    threads->running = thread;
    swapcontext(&threads->scheduler, &thread->context);
    threads->running = NULL;
    if (thread->over) {
        spare_stacks[spare_count++] = thread->stack;
        thread->stack = NULL;
    }
    return true;
}

uint64_t sim_threads_deadline(const struct sim_threads *threads)
{
    uint64_t deadline = SIM_NEVER;

    for (unsigned i = 0; i < threads->count; i++)
        if (!threads->items[i]->over && threads->items[i]->due && threads->items[i]->due < deadline)
            deadline = threads->items[i]->due;
    return deadline;
}

static void give_way(struct sim_thread *thread, const void *condition, uint64_t due)
{
    thread->condition = condition;
    thread->due = due == SIM_NEVER ? 0 : due;
    swapcontext(&thread->context, &thread->threads->scheduler);
    thread->due = 0;
}

void sim_thread_sleep(uint64_t ns) { give_way(current->running, NULL, sim_world_now(current->world) + ns + 1); }
uint64_t sim_thread_draw(uint64_t bound) { return sim_random_below(&current->running->random, bound); }
void sim_thread_await(const void *condition) { give_way(current->running, condition, SIM_NEVER); }

void sim_thread_join(struct sim_thread *thread)
{
    while (!thread->over)
        sim_thread_await(thread);
}

void sim_threads_raise(struct sim_threads *threads, const void *condition)
{
    for (unsigned i = 0; i < threads->count; i++)
        if (threads->items[i]->condition == condition) {
            threads->items[i]->condition = NULL;
            threads->items[i]->due = 0;
        }
}

/* What the engine calls, redirected by the linker --------------------------------------------------------------------- */

int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __real_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int __real_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);
int __real_pthread_cond_broadcast(pthread_cond_t *condition);
int __real_pthread_join(pthread_t thread, void **result);
int __real_thread_start(pthread_t *thread, const char *name, const char *excluded_cpus, void *(*run)(void *), void *argument);
void __real_tensor_copy(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, void *to);

int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until);
int __wrap_pthread_cond_broadcast(pthread_cond_t *condition);
int __wrap_pthread_join(pthread_t thread, void **result);
int __wrap_thread_start(pthread_t *thread, const char *name, const char *excluded_cpus, void *(*run)(void *), void *argument);
void __wrap_tensor_copy(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, void *to);

/* The calendar stands still: commit sequences, which must rise all the same, are then the same in every run. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    uint64_t now;

    if (!current)
        return __real_clock_gettime(clock, time);
    now = clock == CLOCK_MONOTONIC ? sim_world_now(current->world) : clock == CLOCK_REALTIME ? 1800000000ull * NS_PER_S : 0;
    *time = (struct timespec){ (time_t)(now / NS_PER_S), (long)(now % NS_PER_S) };
    return 0;
}

/* A spurious return is allowed, and is what a hastened thread gets. */
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    if (!current)
        return __real_pthread_cond_wait(condition, mutex);
    pthread_mutex_unlock(mutex);
    give_way(current->running, condition, SIM_NEVER);
    pthread_mutex_lock(mutex);
    return 0;
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    uint64_t due;

    if (!current)
        return __real_pthread_cond_timedwait(condition, mutex, until);
    due = (uint64_t)until->tv_sec * NS_PER_S + (uint64_t)until->tv_nsec;
    if (current->hastened || due <= sim_world_now(current->world))
        return ETIMEDOUT;
    pthread_mutex_unlock(mutex);
    give_way(current->running, condition, due);
    pthread_mutex_lock(mutex);
    return current->hastened || due <= sim_world_now(current->world) ? ETIMEDOUT : 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *condition)
{
    if (!current)
        return __real_pthread_cond_broadcast(condition);
    sim_threads_raise(current, condition);
    return 0;
}

int __wrap_thread_start(pthread_t *thread, const char *name, const char *excluded_cpus, void *(*run)(void *), void *argument)
{
    if (!current)
        return __real_thread_start(thread, name, excluded_cpus, run, argument);
    *thread = (pthread_t)sim_thread_start(current, run, argument);
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    if (!current)
        return __real_pthread_join(thread, result);
    sim_thread_join((struct sim_thread *)thread);
    return 0;
}

/* Long enough for anything to happen meanwhile. */
void __wrap_tensor_copy(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, void *to)
{
    if (current && current->running && !current->hastened)
        sim_thread_sleep(sim_thread_draw(COPY_NS));
    __real_tensor_copy(tensor, offset, size, to);
}
