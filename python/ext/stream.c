/* stream.c - Stream: one struct tspool_stream. Calls take turns (a stream is one thread's at a time); a write is cut at the
 * library's blocks, so that Ctrl-C never waits for more than WAIT_SLICE_NS.
 */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    struct tspool_stream *stream; /* NULL: committed or aborted */
    uint64_t written;             /* when that was */
    pthread_mutex_t turn;
} StreamObject;

/* Turns ---------------------------------------------------------------------------------------------------------------------- */

static bool turn_wait(StreamObject *self)
{
    uint64_t until = monotonic_now() + WAIT_SLICE_NS;
    struct timespec deadline = { .tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u) };
    int error;

    Py_BEGIN_ALLOW_THREADS
    error = pthread_mutex_clocklock(&self->turn, CLOCK_MONOTONIC, &deadline);
    Py_END_ALLOW_THREADS
    return error == 0;
}

/* 0; -1 with an exception: it is closed, or Ctrl-C. */
static int turn_take(StreamObject *self)
{
    bool taken = pthread_mutex_trylock(&self->turn) == 0;

    while (!taken && !(taken = turn_wait(self)))
        if (PyErr_CheckSignals() < 0)
            return -1;
    if (self->stream)
        return 0;
    pthread_mutex_unlock(&self->turn);
    PyErr_SetString(PyExc_ValueError, "I/O operation on a closed stream");
    return -1;
}

static void turn_end(StreamObject *self) { pthread_mutex_unlock(&self->turn); }

/* Opening -------------------------------------------------------------------------------------------------------------------- */

struct opening {
    char *path;
    struct tspool_stream_options options;
    struct tspool_stream *stream;
    struct tspool_failure failure;
    int error;
};

static void opening_work(void *argument)
{
    struct opening *opening = argument;

    opening->error = tspool_stream_open(opening->path, &opening->options, &opening->stream, &opening->failure);
}

static void opening_destroy(struct opening *opening)
{
    free(opening->path);
    free(opening);
}

static void opening_abandon(void *argument)
{
    struct opening *opening = argument;

    if (opening->error == 0)
        tspool_stream_abort(opening->stream);
    opening_destroy(opening);
}

static struct opening *opening_create(PyObject *arguments)
{
    struct tspool_stream_options options = TSPOOL_STREAM_OPTIONS_INIT;
    unsigned long long expected_bytes;
    int io, keep, buffered;
    struct opening *opening;
    const char *path;

    if (!PyArg_ParseTuple(arguments, "yiIIKpp", &path, &io, &options.block_bytes, &options.depth, &expected_bytes, &keep,
                          &buffered))
        return NULL;
    options.io = (enum tspool_io)io;
    options.expected_bytes = expected_bytes;
    options.keep = (uint8_t)keep;
    options.buffered = (uint8_t)buffered;
    opening = calloc(1, sizeof *opening);
    if (!opening || !(opening->path = strdup(path))) {
        free(opening);
        return (struct opening *)PyErr_NoMemory();
    }
    opening->options = options;
    opening->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    return opening;
}

/* Stream(path, io, block_bytes, depth, expected_bytes, keep, buffered) */
static PyObject *stream_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct opening *opening = opening_create(arguments);
    StreamObject *made = NULL;

    if (!opening || background_run(opening_work, NULL, opening_abandon, opening) < 0)
        return NULL;
    if (opening->error < 0)
        failure_raise("stream", opening->error, &opening->failure);
    else if ((made = (StreamObject *)allocate(type, 0))) {
        made->stream = opening->stream;
        pthread_mutex_init(&made->turn, NULL);
    } else
        tspool_stream_abort(opening->stream);
    opening_destroy(opening);
    return (PyObject *)made;
}

/* Writing -------------------------------------------------------------------------------------------------------------------- */

/* One block's worth. Bytes taken, 0 when there was no room for a slice of time, or -errno. */
static int64_t piece_write(struct tspool_stream *stream, const char *data, Py_ssize_t size, struct tspool_failure *failure)
{
    int64_t room;

    Py_BEGIN_ALLOW_THREADS
    room = tspool_stream_room(stream, WAIT_SLICE_NS, failure);
    if (room > 0) {
        int error;

        room = room < size ? room : size;
        error = tspool_stream_write(stream, data, (size_t)room, failure);
        room = error < 0 ? error : room;
    }
    Py_END_ALLOW_THREADS
    return room;
}

static int bytes_write(StreamObject *self, const char *data, Py_ssize_t size)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    while (size) {
        int64_t taken = piece_write(self->stream, data, size, &failure);

        if (taken < 0) {
            failure_raise("stream", (int)taken, &failure);
            return -1;
        }
        data += taken;
        size -= taken;
        if (size && PyErr_CheckSignals() < 0)
            return -1;
    }
    return 0;
}

/* write(buffer) -> bytes written, which is all of them */
static PyObject *stream_write(PyObject *object, PyObject *buffer)
{
    StreamObject *self = (StreamObject *)object;
    Py_buffer view;
    Py_ssize_t size;
    int error;

    if (PyObject_GetBuffer(buffer, &view, 0) < 0) /* contiguous, as bytes */
        return NULL;
    size = view.len;
    error = turn_take(self);
    if (error == 0) {
        error = bytes_write(self, view.buf, size);
        turn_end(self);
    }
    PyBuffer_Release(&view);
    return error < 0 ? NULL : PyLong_FromSsize_t(size);
}

static PyObject *stream_tell(PyObject *object, PyObject *unused)
{
    StreamObject *self = (StreamObject *)object;

    return PyLong_FromUnsignedLongLong(self->stream ? tspool_stream_tell(self->stream) : self->written);
}

/* (direct, backend, writes, short_writes) */
static PyObject *stream_report(PyObject *object, PyObject *unused)
{
    struct tspool_stream_report report = TSPOOL_STREAM_REPORT_INIT;
    StreamObject *self = (StreamObject *)object;

    if (turn_take(self) < 0)
        return NULL;
    tspool_stream_report(self->stream, &report);
    turn_end(self);
    return Py_BuildValue("NsKK", PyBool_FromLong(report.direct), report.backend, report.writes, report.short_writes);
}

/* Sync, commit, abort -------------------------------------------------------------------------------------------------------- */

/* What Ctrl-C leaves behind: the call goes on by itself, and the stream is its own. */
struct ending {
    struct tspool_stream *stream; /* NULL when the call has freed it */
    struct tspool_failure failure;
    int error; /* or a result */
};

static void sync_work(void *argument)
{
    struct ending *ending = argument;

    ending->error = tspool_stream_sync(ending->stream, &ending->failure);
}

static void descriptor_work(void *argument)
{
    struct ending *ending = argument;

    ending->error = tspool_stream_fd(ending->stream, &ending->failure);
}

static void commit_work(void *argument)
{
    struct ending *ending = argument;

    ending->error = tspool_stream_commit(ending->stream, &ending->failure);
    ending->stream = NULL;
}

static void abort_work(void *argument)
{
    struct ending *ending = argument;

    tspool_stream_abort(ending->stream);
    ending->stream = NULL;
}

static void ending_abandon(void *argument)
{
    struct ending *ending = argument;

    tspool_stream_abort(ending->stream);
    free(ending);
}

/* With the turn. The object has no stream while the work runs, nor after Ctrl-C. */
static PyObject *ending_run(StreamObject *self, void (*work)(void *))
{
    struct ending *ending = calloc(1, sizeof *ending);
    PyObject *answer = NULL;

    if (!ending)
        return PyErr_NoMemory();
    *ending = (struct ending){ .stream = self->stream, .failure = TSPOOL_FAILURE_INIT };
    self->written = tspool_stream_tell(self->stream);
    self->stream = NULL;
    if (background_run(work, NULL, ending_abandon, ending) < 0)
        return NULL;
    self->stream = ending->stream;
    if (ending->error < 0)
        failure_raise("stream", ending->error, &ending->failure);
    else
        answer = PyLong_FromLong(ending->error);
    free(ending);
    return answer;
}

static PyObject *stream_end(PyObject *object, void (*work)(void *))
{
    StreamObject *self = (StreamObject *)object;
    PyObject *answer;

    if (turn_take(self) < 0)
        return NULL;
    answer = ending_run(self, work);
    turn_end(self);
    return answer;
}

static PyObject *none_of(PyObject *answer)
{
    if (!answer)
        return NULL;
    Py_DECREF(answer);
    Py_RETURN_NONE;
}

static PyObject *stream_sync(PyObject *self, PyObject *unused) { return none_of(stream_end(self, sync_work)); }
static PyObject *stream_fileno(PyObject *self, PyObject *unused) { return stream_end(self, descriptor_work); }
static PyObject *stream_commit(PyObject *self, PyObject *unused) { return none_of(stream_end(self, commit_work)); }
static PyObject *stream_abort(PyObject *self, PyObject *unused) { return none_of(stream_end(self, abort_work)); }

static void stream_dealloc(PyObject *object)
{
    StreamObject *self = (StreamObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (self->stream) {
        Py_BEGIN_ALLOW_THREADS
        tspool_stream_abort(self->stream);
        Py_END_ALLOW_THREADS
    }
    pthread_mutex_destroy(&self->turn);
    release(object);
    Py_DECREF(type);
}

static PyMethodDef stream_methods[] = {
    { "write", stream_write, METH_O, "write(buffer) -> bytes written, which is all of them" },
    { "tell", stream_tell, METH_NOARGS, "tell() -> bytes written so far" },
    { "report", stream_report, METH_NOARGS, "report() -> (direct, backend, writes, short_writes)" },
    { "sync", stream_sync, METH_NOARGS, "sync(): what was written is on the disk, under the hidden name" },
    { "fileno", stream_fileno, METH_NOARGS, "fileno() -> a descriptor for reading; what was written is on the disk" },
    { "commit", stream_commit, METH_NOARGS, "commit(): durable under its name; the stream is gone" },
    { "abort", stream_abort, METH_NOARGS, "abort(): as if it had never been; the stream is gone" },
    { NULL, NULL, 0, NULL },
};
static PyType_Slot stream_slots[] = {
    { Py_tp_new, stream_new }, { Py_tp_dealloc, stream_dealloc }, { Py_tp_methods, stream_methods },
    { Py_tp_doc, "Stream(path, io, block_bytes, depth, expected_bytes, keep, buffered)" }, { 0, NULL },
};
static PyType_Spec stream_spec = { "tspool._tspool.Stream", sizeof(StreamObject), 0, Py_TPFLAGS_DEFAULT, stream_slots };

PyTypeObject *stream_type_create(void) { return (PyTypeObject *)PyType_FromSpec(&stream_spec); }
