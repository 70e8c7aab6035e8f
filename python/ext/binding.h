/* binding.h - the extension module tspool._tspool: handles of the C library as Python objects, and nothing that the library
 * does not do. Python's limited API of 3.10, so that one binary serves every later version.
 *
 * The GIL is released around every call that waits, copies or does I/O. Objects are used by several threads; a handle is
 * closed only when no other thread is inside a call on it: see gate.c.
 */
#ifndef BINDING_H
#define BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdbool.h>
#include <tspool/tspool.h>

#if defined(Py_LIMITED_API) && Py_LIMITED_API < 0x030b0000
/* The buffer protocol joined the limited API in 3.11, as it had been since 3.0: same struct, same exported functions. */
typedef struct {
    void *buf;
    PyObject *obj;
    Py_ssize_t len, itemsize;
    int readonly, ndim;
    char *format;
    Py_ssize_t *shape, *strides, *suboffsets;
    void *internal;
} Py_buffer;
PyAPI_FUNC(int) PyObject_GetBuffer(PyObject *object, Py_buffer *view, int flags);
PyAPI_FUNC(void) PyBuffer_Release(Py_buffer *view);
#define PyBUF_WRITABLE 0x0001
#define PyBUF_FORMAT 0x0004
#define PyBUF_STRIDES (0x0010 | 0x0008)
#endif

#define WAIT_SLICE_NS 50000000u /* how long Ctrl-C may wait for us */

/* failure.c: sets the exception that tspool._errors makes of a record; `error` is -errno, `kind` the call that failed ("open",
 * "save", "load"). NULL always. */
PyObject *failure_raise(const char *kind, int error, const struct tspool_failure *failure);

/* background.c: runs `work` with the GIL released. In the process's first thread, where Python handles signals, it runs on a
 * thread of its own while this one looks for signals every WAIT_SLICE_NS.
 * 0: it has run. -1 with an exception set, by Ctrl-C mostly:
 *   with `abandon`, the work goes on, `abandon` is called after it, and the caller must not touch `argument` again;
 *   without, `interrupt` was called, more than once perhaps, to hasten its end, and it has ended. */
int background_run(void (*work)(void *), void (*interrupt)(void *), void (*abandon)(void *), void *argument);

/* gate.c: who is inside a handle. Counted with the GIL held; waited for with the GIL released. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t left;
    unsigned users;
    bool closed;
};
void gate_init(struct gate *gate);
void gate_deinit(struct gate *gate);
bool gate_enter(struct gate *gate); /* false: closed */
void gate_leave(struct gate *gate);
void gate_close(struct gate *gate); /* nobody enters any more; returns when all have left */

/* Seconds or None as nanoseconds: None is for ever. Negative is 0. -1 with an exception when it is no number. */
int seconds_take(PyObject *seconds, uint64_t *nanoseconds);
uint64_t monotonic_now(void);

/* numbers.c: a sequence of integers as an array (malloc'ed, at least one element); None gives NULL. -1 with an exception. */
int numbers_take(PyObject *sequence, uint64_t **numbers, Py_ssize_t *count);
PyObject *numbers_give(const uint64_t *numbers, uint32_t count); /* a tuple; None for NULL */

/* copy.c: copy(pieces, threads). `pieces` is a buffer of 64-bit triples: to, from, bytes. Whoever calls it vouches for them. */
PyObject *copy(PyObject *module, PyObject *arguments);

typedef struct SaveObject SaveObject;
typedef struct {
    PyObject_HEAD
    struct tspool *spool;   /* NULL: closed */
    struct gate gate;
    PyObject *on_arena;
    SaveObject *saves;      /* those with a handle, linked by next */
    pid_t owner;
} SpoolObject;

extern PyTypeObject *spool_type;
PyTypeObject *spool_type_create(void), *save_type_create(void), *checkpoint_type_create(void), *memory_type_create(void), *stream_type_create(void);
/* save.c: takes a last look at each save of a spool that is about to close, and lets go of what was pinned after it. */
void saves_look(SpoolObject *spool);
void saves_unpin(SpoolObject *spool);

#endif
