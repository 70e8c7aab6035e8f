/* gate.c - a handle may not be closed while another thread is inside a call on it, with the GIL released. */
#include "binding.h"

#include <time.h>

void gate_init(struct gate *gate)
{
    *gate = (struct gate){ .users = 0 };
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->left, NULL);
}

void gate_deinit(struct gate *gate)
{
    pthread_cond_destroy(&gate->left);
    pthread_mutex_destroy(&gate->lock);
}

bool gate_enter(struct gate *gate)
{
    bool entered;

    pthread_mutex_lock(&gate->lock);
    entered = !gate->closed;
    gate->users += entered;
    pthread_mutex_unlock(&gate->lock);
    return entered;
}

void gate_leave(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->users--;
    pthread_cond_broadcast(&gate->left);
    pthread_mutex_unlock(&gate->lock);
}

void gate_close(struct gate *gate)
{
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&gate->lock);
    gate->closed = true;
    while (gate->users)
        pthread_cond_wait(&gate->left, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
    Py_END_ALLOW_THREADS
}

uint64_t monotonic_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int seconds_take(PyObject *seconds, uint64_t *nanoseconds)
{
    double value;

    *nanoseconds = UINT64_MAX;
    if (!seconds || seconds == Py_None)
        return 0;
    value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred())
        return -1;
    if (value < 1e10) /* three centuries are for ever; so is not a number */
        *nanoseconds = value > 0 ? (uint64_t)(value * 1e9) : 0;
    return 0;
}
