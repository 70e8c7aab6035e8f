/* background.c - calls that can last, and Ctrl-C. Python runs signal handlers in the process's first thread only, and only
 * when that thread comes back to it: so the call is made by another thread, and the first one looks for signals meanwhile.
 */
#include "binding.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct background {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool done, abandoned;
    void (*work)(void *);
    void (*abandon)(void *);
    void *argument;
};

static struct background *background_create(void (*work)(void *), void (*abandon)(void *), void *argument)
{
    struct background *background = malloc(sizeof *background);
    pthread_condattr_t attributes;

    if (!background)
        return NULL;
    *background = (struct background){ .work = work, .abandon = abandon, .argument = argument };
    pthread_mutex_init(&background->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&background->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    return background;
}

static void background_destroy(struct background *background)
{
    pthread_cond_destroy(&background->ended);
    pthread_mutex_destroy(&background->lock);
    free(background);
}

static void *background_main(void *argument)
{
    struct background *background = argument;
    bool abandoned;

    background->work(background->argument);
    pthread_mutex_lock(&background->lock);
    background->done = true;
    abandoned = background->abandoned;
    pthread_cond_signal(&background->ended);
    pthread_mutex_unlock(&background->lock);
    if (abandoned) {
        background->abandon(background->argument);
        background_destroy(background);
    }
    return NULL;
}

/* Signals are for the thread that handles them. */
static int thread_begin(pthread_t *thread, struct background *background)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    error = pthread_create(thread, NULL, background_main, background);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static bool wait_slice(struct background *background)
{
    uint64_t until = monotonic_now() + WAIT_SLICE_NS;
    struct timespec deadline = { .tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u) };
    bool done;
    int waited = 0;

    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&background->lock);
    while (!background->done && waited == 0)
        waited = pthread_cond_timedwait(&background->ended, &background->lock, &deadline);
    done = background->done;
    pthread_mutex_unlock(&background->lock);
    Py_END_ALLOW_THREADS
    return done;
}

/* True when the work had ended before it could be abandoned. */
static bool background_abandon(struct background *background)
{
    bool done;

    pthread_mutex_lock(&background->lock);
    done = background->done;
    background->abandoned = !done;
    pthread_mutex_unlock(&background->lock);
    return done;
}

static void background_join(struct background *background, pthread_t thread)
{
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    background_destroy(background);
}

static int interrupted(struct background *background, pthread_t thread, void (*interrupt)(void *))
{
    void (*abandon)(void *) = background->abandon;
    void *argument = background->argument;

    if (!abandon) {
        do /* again: what comes too early is not heard */
            interrupt(argument);
        while (!wait_slice(background));
        background_join(background, thread);
    } else if (background_abandon(background)) {
        background_join(background, thread);
        abandon(argument);
    } else {
        pthread_detach(thread);
    }
    return -1;
}

static int run_here(void (*work)(void *), void *argument)
{
    Py_BEGIN_ALLOW_THREADS
    work(argument);
    Py_END_ALLOW_THREADS
    return 0;
}

int background_run(void (*work)(void *), void (*interrupt)(void *), void (*abandon)(void *), void *argument)
{
    struct background *background;
    pthread_t thread;

    if ((pid_t)syscall(SYS_gettid) != getpid() || !(background = background_create(work, abandon, argument)))
        return run_here(work, argument);
    if (thread_begin(&thread, background) != 0) {
        background_destroy(background);
        return run_here(work, argument);
    }
    while (!wait_slice(background))
        if (PyErr_CheckSignals() < 0)
            return interrupted(background, thread, interrupt);
    background_join(background, thread);
    return 0;
}
