/* copy.c - copies many pieces of memory at once, by several threads, with the GIL released.
 *
 * One memcpy per tensor would leave one core to do it all, and Python to come back for each. Threads take runs of pieces, a few
 * MiB at a time: large tensors are shared among them, small ones come by the thousand.
 */
#include "binding.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#define RUN_BYTES (4u << 20)      /* what a thread takes at once */
#define THREAD_BYTES (8u << 20)   /* less than this is not worth a thread */
#define THREADS_MAX 64

struct piece { uint64_t to, from, bytes; };
_Static_assert(sizeof(struct piece) == 24, "array('Q') of triples");

struct copying {
    const struct piece *pieces;
    size_t count;
    unsigned threads;
    atomic_bool stopped; /* set by Ctrl-C, looked at between runs */
    pthread_mutex_t lock;
    size_t next;         /* the piece at which the next run begins, */
    uint64_t offset;     /* and where in it */
};

struct run { size_t first; uint64_t offset, bytes; };

static bool run_take(struct copying *copying, struct run *run)
{
    uint64_t left = RUN_BYTES;

    pthread_mutex_lock(&copying->lock);
    *run = (struct run){ .first = copying->next, .offset = copying->offset };
    while (left && copying->next < copying->count) {
        uint64_t rest = copying->pieces[copying->next].bytes - copying->offset, taken = rest < left ? rest : left;

        left -= taken;
        run->bytes += taken;
        copying->offset = taken == rest ? 0 : copying->offset + taken;
        copying->next += taken == rest;
    }
    pthread_mutex_unlock(&copying->lock);
    return run->bytes > 0;
}

static void run_copy(const struct piece *piece, struct run run)
{
    for (; run.bytes; piece++, run.offset = 0) {
        uint64_t rest = piece->bytes - run.offset, bytes = rest < run.bytes ? rest : run.bytes;

        memcpy((char *)(uintptr_t)piece->to + run.offset, (const char *)(uintptr_t)piece->from + run.offset, bytes);
        run.bytes -= bytes;
    }
}

static void *copying_main(void *argument)
{
    struct copying *copying = argument;
    struct run run;

    while (!atomic_load(&copying->stopped) && run_take(copying, &run))
        run_copy(copying->pieces + run.first, run);
    return NULL;
}

/* A thread that cannot be had is done without. */
static void copying_work(void *argument)
{
    struct copying *copying = argument;
    pthread_t helpers[THREADS_MAX];
    sigset_t all, before;
    unsigned count = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    while (count + 1 < copying->threads && pthread_create(&helpers[count], NULL, copying_main, copying) == 0)
        count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    copying_main(copying);
    while (count)
        pthread_join(helpers[--count], NULL);
}

static void copying_interrupt(void *argument) { atomic_store(&((struct copying *)argument)->stopped, true); }

static unsigned threads_worth(uint64_t bytes, unsigned wanted)
{
    uint64_t most = bytes / THREAD_BYTES + 1;

    if (wanted > THREADS_MAX)
        wanted = THREADS_MAX;
    return most < wanted ? (unsigned)most : wanted;
}

static uint64_t pieces_bytes(const struct piece *pieces, size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes += pieces[i].bytes;
    return bytes;
}

PyObject *copy(PyObject *module, PyObject *arguments)
{
    struct copying copying = { .lock = PTHREAD_MUTEX_INITIALIZER };
    unsigned wanted;
    Py_buffer view;
    int error;

    if (!PyArg_ParseTuple(arguments, "y*I", &view, &wanted))
        return NULL;
    if (view.len % (Py_ssize_t)sizeof(struct piece)) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "pieces are triples of 64 bits: to, from, bytes");
        return NULL;
    }
    copying.pieces = view.buf;
    copying.count = (size_t)view.len / sizeof(struct piece);
    copying.threads = threads_worth(pieces_bytes(copying.pieces, copying.count), wanted);
    error = background_run(copying_work, copying_interrupt, NULL, &copying);
    PyBuffer_Release(&view);
    if (error < 0)
        return NULL;
    Py_RETURN_NONE;
}
