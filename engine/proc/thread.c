/* proc/thread.c - guests in somebody's process: our threads take no signals, bear a name, and stay off excluded CPUs. */
#include <proc/proc.h>

#include <errno.h>
#include <proc/cpus.h>
#include <signal.h>

/* Attributes with the CPUs set from the start: the thread must not run a single instruction elsewhere. */
static int attributes_init(pthread_attr_t *attributes, const char *excluded_cpus)
{
    struct cpus cpus;
    int error = cpus_allowed(excluded_cpus, &cpus);

    if (error < 0)
        return error;
    error = -pthread_attr_init(attributes);
    if (error == 0)
        error = -pthread_attr_setaffinity_np(attributes, sizeof cpus, (const cpu_set_t *)&cpus);
    return error;
}

int thread_start(pthread_t *thread, const char *name, const char *excluded_cpus, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_t made;
    int error = attributes_init(&attributes, excluded_cpus);

    if (error < 0)
        return error;
    sigfillset(&all); /* inherited by the thread: blocked before it starts, or a handler could run in it */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = -pthread_create(&made, &attributes, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error < 0)
        return error;
    pthread_setname_np(made, name); /* fails only for a thread that is through already */
    *thread = made;
    return 0;
}
