/* save/roster.c - see roster.h. */
#include <save/roster.h>

#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000u

static void eventfd_raise(struct wake *wake)
{
    uint64_t one = 1;

    /* EAGAIN means that it is raised already. */
    if (write(wake->handle, &one, sizeof(one)) < 0)
        return;
}

static void eventfd_clear(struct wake *wake)
{
    uint64_t count;

    if (read(wake->handle, &count, sizeof(count)) < 0)
        return;
}

int wake_init(struct wake *wake, struct tspool_failure *failure)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (fd < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, errno, FAILURE_AT(.operation = "eventfd"), NULL);
    *wake = (struct wake){ .handle = fd, .raise = eventfd_raise, .clear = eventfd_clear };
    return 0;
}

void wake_deinit(struct wake *wake)
{
    if (wake->raise == eventfd_raise)
        close(wake->handle);
    *wake = (struct wake){ .handle = -1 };
}

int roster_init(struct roster *roster, struct tspool_failure *failure)
{
    pthread_condattr_t attributes;
    int error;

    *roster = (struct roster){ .writer_failure = TSPOOL_FAILURE_INIT };
    error = wake_init(&roster->wake, failure);
    if (error < 0)
        return error;
    pthread_mutex_init(&roster->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&roster->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return 0;
}

void roster_deinit(struct roster *roster)
{
    pthread_cond_destroy(&roster->changed);
    pthread_mutex_destroy(&roster->lock);
    wake_deinit(&roster->wake);
}

void roster_wake(struct roster *roster) { roster->wake.raise(&roster->wake); }

void roster_changed(struct roster *roster) { pthread_cond_broadcast(&roster->changed); }

int roster_wait(struct roster *roster, uint64_t deadline_ns)
{
    struct timespec until = { .tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S) };

    if (deadline_ns == UINT64_MAX)
        return -pthread_cond_wait(&roster->changed, &roster->lock);
    return -pthread_cond_timedwait(&roster->changed, &roster->lock, &until);
}

uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

uint64_t deadline_after(uint64_t timeout_ns)
{
    uint64_t deadline;

    return checked_add(monotonic_ns(), timeout_ns, &deadline) ? deadline : UINT64_MAX;
}
