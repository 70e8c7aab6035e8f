/* save.c - Save: one struct tspool_save, and the references that keep its tensors where they are until it is STAGED. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct SaveObject {
    PyObject_HEAD
    SpoolObject *spool;
    SaveObject *next, **link;         /* among the spool's */
    struct tspool_save *save;
    PyObject *pins;                   /* list of owners; NULL: let go */
    struct tspool_save_result last;   /* the spool is closed: what was known then */
    bool is_closed;
    bool has_fd;                      /* somebody polls */
};

static void save_unpin(SaveObject *save) { Py_CLEAR(save->pins); }

static bool outcome_is_final(enum tspool_outcome outcome) { return outcome != TSPOOL_OUTCOME_PENDING; }

static bool staging_is_over(const struct tspool_save_result *result)
{
    return result->level >= TSPOOL_STAGED || outcome_is_final(result->outcome);
}

/* Into the library: false with an exception when the spool is closed. */
static bool save_enter(SaveObject *save)
{
    if (!save->is_closed && gate_enter(&save->spool->gate))
        return true;
    failure_raise("closed", -EINVAL, NULL);
    return false;
}

static void save_leave(SaveObject *save) { gate_leave(&save->spool->gate); }

/* A resolved save's descriptor stays readable, however many look at it: each of them waits for the end. */
static void fd_raise(SaveObject *save)
{
    uint64_t one = 1;
    int fd = save->has_fd ? tspool_save_fd(save->save) : -1;

    if (fd >= 0 && write(fd, &one, sizeof one) < 0)
        return; /* full means readable */
}

static int save_look(SaveObject *save, struct tspool_save_result *result)
{
    int error = tspool_save_result(save->save, result);

    if (error == 0 && outcome_is_final(result->outcome))
        fd_raise(save);
    if (error == 0 && staging_is_over(result))
        save_unpin(save);
    return error;
}

void saves_look(SpoolObject *spool)
{
    for (SaveObject *save = spool->saves; save; save = save->next) {
        save->last = (struct tspool_save_result)TSPOOL_SAVE_RESULT_INIT;
        save->last.failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
        tspool_save_result(save->save, &save->last);
        save->is_closed = true;
        fd_raise(save); /* whoever waits hears no more */
    }
}

/* Dropping a tensor may run code that drops a save: never while the list is walked. */
void saves_unpin(SpoolObject *spool)
{
    PyObject *dropped = PyList_New(0);

    for (SaveObject *save = spool->saves; save; save = save->next)
        if (save->pins && dropped && PyList_Append(dropped, save->pins) == 0)
            save_unpin(save);
    PyErr_Clear();
    Py_XDECREF(dropped);
}

/* Beginning ---------------------------------------------------------------------------------------------------------- */

static void save_link(SaveObject *save, SpoolObject *spool)
{
    save->spool = (SpoolObject *)Py_NewRef((PyObject *)spool);
    save->next = spool->saves;
    if (save->next)
        save->next->link = &save->next;
    save->link = &spool->saves;
    spool->saves = save;
}

static void save_unlink(SaveObject *save)
{
    *save->link = save->next;
    if (save->next)
        save->next->link = save->link;
    Py_CLEAR(save->spool);
}

static int begin(SpoolObject *spool, const char *name, const struct tspool_save_options *options, struct tspool_save **save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    if (!gate_enter(&spool->gate)) {
        failure_raise("closed", -EINVAL, NULL);
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    error = tspool_save_begin(spool->spool, name, options, save, &failure);
    Py_END_ALLOW_THREADS
    gate_leave(&spool->gate);
    if (error == 0)
        return 0;
    failure_raise("save", error, &failure);
    return -1;
}

/* Save(spool, name, staging, replace, deadline_ns, save_id, check_torn) */
static PyObject *save_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    unsigned long long deadline_ns;
    Py_ssize_t id_size = 0;
    const char *name, *id;
    SpoolObject *spool;
    SaveObject *save;
    int staging, replaces, checks;

    if (!PyArg_ParseTuple(arguments, "O!sipKz#p", spool_type, &spool, &name, &staging, &replaces, &deadline_ns, &id, &id_size,
                          &checks))
        return NULL;
    if (id && id_size != TSPOOL_SAVE_ID_BYTES) {
        PyErr_SetString(PyExc_ValueError, "save_id has 16 bytes: Spool.save_id() makes one");
        return NULL;
    }
    options.staging = (enum tspool_staging)staging;
    options.guarded = options.staging == TSPOOL_STAGING_BACKGROUND;
    options.replace = (uint8_t)replaces;
    options.check_torn = (uint8_t)checks;
    options.deadline_ns = deadline_ns;
    options.save_id = (const uint8_t *)id;
    save = (SaveObject *)allocate(type, 0);
    if (!save)
        return NULL;
    save->pins = PyList_New(0);
    if (!save->pins || begin(spool, name, &options, &save->save) < 0) {
        Py_DECREF(save);
        return NULL;
    }
    save_link(save, spool);
    return (PyObject *)save;
}

/* The tensors may be let go only when nobody copies them any more. */
static void staging_await(SaveObject *save)
{
    int error;

    if (!save->pins || save->is_closed || save->spool->owner != getpid() || !gate_enter(&save->spool->gate))
        return;
    Py_BEGIN_ALLOW_THREADS
    error = tspool_save_wait(save->save, TSPOOL_STAGED, UINT64_MAX);
    Py_END_ALLOW_THREADS
    (void)error; /* resolved, or never submitted */
    save_leave(save);
}

static void save_dealloc(PyObject *self)
{
    SaveObject *save = (SaveObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (save->save) {
        staging_await(save);
        tspool_save_free(save->save);
        save_unlink(save);
    }
    save_unpin(save);
    release(self);
    Py_DECREF(type);
}

/* Declaring ---------------------------------------------------------------------------------------------------------- */

struct extents { uint64_t *shape, *strides, *global_shape, *global_offsets; };

static void extents_free(struct extents *extents)
{
    free(extents->shape);
    free(extents->strides);
    free(extents->global_shape);
    free(extents->global_offsets);
}

static int extents_take(struct extents *extents, PyObject *objects[4], Py_ssize_t *rank)
{
    uint64_t **arrays[4] = { &extents->shape, &extents->strides, &extents->global_shape, &extents->global_offsets };
    Py_ssize_t count;

    for (int i = 0; i < 4; i++) {
        if (numbers_take(objects[i], arrays[i], &count) < 0)
            return -1;
        if (i == 0)
            *rank = count;
        if (*arrays[i] && count != *rank) {
            PyErr_SetString(PyExc_ValueError, "shape, strides, global_shape and global_offsets differ in length");
            return -1;
        }
    }
    return 0;
}

static int add(SaveObject *save, const struct tspool_tensor *tensor)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    if (!save_enter(save))
        return -1;
    error = tspool_save_add(save->save, tensor, &failure);
    save_leave(save);
    if (error == 0)
        return 0;
    failure_raise("save", error, &failure);
    return -1;
}

/* add(name, dtype, shape, strides, address, owner, global_shape=None, global_offsets=None, untied=False) */
static PyObject *save_add(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct extents extents = { 0 };
    PyObject *objects[4] = { NULL }, *address, *owner;
    const char *dtype;
    Py_ssize_t rank = 0;
    int error, untied = 0;

    if (!PyArg_ParseTuple(arguments, "ssOOO!O|OOp", &tensor.name, &dtype, &objects[0], &objects[1], &PyLong_Type, &address, &owner,
                          &objects[2], &objects[3], &untied))
        return NULL;
    error = extents_take(&extents, objects, &rank);
    if (error == 0) {
        tensor.dtype = tspool_dtype_parse(dtype);
        tensor.rank = (uint32_t)rank;
        tensor.shape = extents.shape;
        tensor.strides = (const int64_t *)extents.strides;
        tensor.global_shape = extents.global_shape;
        tensor.global_offsets = extents.global_offsets;
        tensor.data = PyLong_AsVoidPtr(address);
        tensor.untied = (uint8_t)untied;
        error = PyErr_Occurred() || !save->pins ? -1 : PyList_Append(save->pins, owner);
    }
    if (error == 0)
        error = add(save, &tensor);
    extents_free(&extents);
    if (error == 0)
        Py_RETURN_NONE;
    return PyErr_Occurred() ? NULL : failure_raise("closed", -EINVAL, NULL);
}

/* add_object(name, kind, buffer): copied. */
static PyObject *save_add_object(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const char *name, *kind;
    Py_buffer bytes;
    int error;

    if (!PyArg_ParseTuple(arguments, "ssy*", &name, &kind, &bytes))
        return NULL;
    if (!save_enter(save)) {
        PyBuffer_Release(&bytes);
        return NULL;
    }
    error = tspool_save_add_object(save->save, name, kind, bytes.buf, (size_t)bytes.len, &failure);
    save_leave(save);
    PyBuffer_Release(&bytes);
    if (error < 0)
        return failure_raise("save", error, &failure);
    Py_RETURN_NONE;
}

static PyObject *save_metadata(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const char *key, *value;
    int error;

    if (!PyArg_ParseTuple(arguments, "ss", &key, &value) || !save_enter(save))
        return NULL;
    error = tspool_save_metadata(save->save, key, value, &failure);
    save_leave(save);
    if (error < 0)
        return failure_raise("save", error, &failure);
    Py_RETURN_NONE;
}

/* Submitting --------------------------------------------------------------------------------------------------------- */

/* The library tells a failure that nobody looked at to the next submit, which may then be made again. Here it is told by
 * Spool.begin, which keeps the list of saves: this submit is the same again at once. */
struct submission { struct tspool_save *save; struct tspool_failure failure; int error; };

static void submission_work(void *argument)
{
    struct submission *submission = argument;

    do
        submission->error = tspool_save_submit(submission->save, &submission->failure);
    while (submission->error == -ECANCELED && tspool_save_wait(submission->save, TSPOOL_STAGED, 0) == -EINVAL);
}

/* Planning cannot be given up, copying can. */
static void submission_interrupt(void *argument)
{
    struct submission *submission = argument;

    tspool_save_abort(submission->save);
}

/* submit(): with staging "now", Ctrl-C gives the save up. */
static PyObject *save_submit(PyObject *self, PyObject *unused)
{
    SaveObject *save = (SaveObject *)self;
    struct submission submission = { .save = save->save, .failure = TSPOOL_FAILURE_INIT };
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    int interrupted;

    if (!save_enter(save))
        return NULL;
    interrupted = background_run(submission_work, submission_interrupt, NULL, &submission);
    if (tspool_save_wait(save->save, TSPOOL_STAGED, 0) != -ETIMEDOUT)
        save_unpin(save); /* copied, resolved, or never begun */
    if (submission.error < 0)
        tspool_save_result(save->save, &result); /* looked at: it is raised here */
    save_leave(save);
    if (interrupted < 0)
        return NULL;
    if (submission.error < 0)
        return failure_raise("save", submission.error, &submission.failure);
    Py_RETURN_NONE;
}

/* Filling ------------------------------------------------------------------------------------------------------------ */

static PyObject *span_give(const struct tspool_span *span)
{
    return Py_BuildValue("NKnKK", PyLong_FromVoidPtr(span->data), span->bytes, (Py_ssize_t)span->tensor, span->tensor_offset,
                         span->token);
}

/* As tspool_save_next_span, but slice by slice. -EINTR: an exception is set. */
static int span_await(SaveObject *save, struct tspool_span *span, uint64_t timeout_ns)
{
    uint64_t now = monotonic_now(), deadline_ns = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns, left;
    int result;

    do {
        now = monotonic_now();
        left = deadline_ns > now ? deadline_ns - now : 0;
        if (!gate_enter(&save->spool->gate))
            return -ESHUTDOWN;
        Py_BEGIN_ALLOW_THREADS
        result = tspool_save_next_span(save->save, span, left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS);
        Py_END_ALLOW_THREADS
        save_leave(save);
        if (result != -ETIMEDOUT)
            return result;
        if (PyErr_CheckSignals() < 0)
            return -EINTR;
    } while (left > 0);
    return result;
}

struct spans { struct tspool_span *all; size_t count, capacity; };

static int spans_append(struct spans *spans, const struct tspool_span *span)
{
    size_t capacity = spans->capacity ? 2 * spans->capacity : 64;
    struct tspool_span *all = spans->all;

    if (spans->count == spans->capacity) {
        all = realloc(all, capacity * sizeof *all);
        if (!all)
            return -ENOMEM;
        spans->all = all;
        spans->capacity = capacity;
    }
    spans->all[spans->count++] = *span;
    return 0;
}

/* A span that nobody knows of would be waited for for ever: those are given back unfilled, and the save with them. */
static int spans_drop(SaveObject *save, struct spans *spans, const struct tspool_span *last)
{
    tspool_save_abort(save->save);
    tspool_save_filled(save->save, last);
    while (spans->count)
        tspool_save_filled(save->save, &spans->all[--spans->count]);
    return -ENOMEM;
}

/* Those that are there without waiting, up to `limit` bytes. A failure comes again when more is asked for. */
static int spans_collect(SaveObject *save, struct spans *spans, struct tspool_span *span, uint64_t limit)
{
    uint64_t bytes = 0;

    do {
        if (spans_append(spans, span) < 0)
            return spans_drop(save, spans, span);
        bytes += span->bytes;
    } while (bytes < limit && tspool_save_next_span(save->save, span, 0) == 1);
    return 0;
}

static PyObject *spans_give(SaveObject *save, struct spans *spans)
{
    PyObject *list = PyList_New((Py_ssize_t)spans->count);

    for (size_t i = 0; list && i < spans->count; i++) {
        PyObject *given = span_give(&spans->all[i]);

        if (!given || PyList_SetItem(list, (Py_ssize_t)i, given) < 0)
            Py_CLEAR(list);
    }
    if (!list && spans->count)
        spans_drop(save, spans, &spans->all[spans->count - 1]);
    return list;
}

/* next_spans(limit, timeout) -> [(address, bytes, tensor, tensor_offset, token)]; []: all were handed out; None: not in time.
 * OSError with the errno of the save's failure, which result() has. */
static PyObject *save_next_spans(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct spans spans = { 0 };
    PyObject *seconds = Py_None, *given = NULL;
    unsigned long long limit;
    uint64_t timeout_ns;
    int result;

    if (!PyArg_ParseTuple(arguments, "KO", &limit, &seconds) || seconds_take(seconds, &timeout_ns) < 0)
        return NULL;
    result = save->is_closed ? -ESHUTDOWN : span_await(save, &span, timeout_ns);
    if (result == -ETIMEDOUT)
        Py_RETURN_NONE;
    if (result == 1 && !save_enter(save))
        return NULL;
    if (result == 1) {
        result = spans_collect(save, &spans, &span, limit);
        given = result == 0 ? spans_give(save, &spans) : NULL;
        save_leave(save);
    } else if (result == 0) {
        given = PyList_New(0);
    }
    free(spans.all);
    errno = -result;
    return given || PyErr_Occurred() ? given : PyErr_SetFromErrno(PyExc_OSError);
}

/* filled(tokens) -> errno of the save's failure, or 0. All of them are given back, whatever has become of the save. */
static PyObject *save_filled(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    uint64_t *tokens = NULL;
    PyObject *sequence;
    Py_ssize_t count;
    int error = 0;

    if (!PyArg_ParseTuple(arguments, "O", &sequence) || numbers_take(sequence, &tokens, &count) < 0)
        return NULL;
    if (!tokens || !save_enter(save)) {
        free(tokens);
        return PyErr_Occurred() ? NULL : PyLong_FromLong(0);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        int result;

        span.token = tokens[i];
        result = tspool_save_filled(save->save, &span);
        error = error ? error : result;
    }
    save_leave(save);
    free(tokens);
    return PyLong_FromLong(-error);
}

/* Asking ------------------------------------------------------------------------------------------------------------- */

static int wait_slice(SaveObject *save, enum tspool_level level, uint64_t timeout_ns)
{
    int error;

    Py_BEGIN_ALLOW_THREADS
    error = tspool_save_wait(save->save, level, timeout_ns);
    Py_END_ALLOW_THREADS
    return error;
}

/* 1: reached; 0: not yet, or not in time; -errno. -EINTR: an exception is set. */
static int wait_level(SaveObject *save, enum tspool_level level, uint64_t timeout_ns)
{
    uint64_t now = monotonic_now(), deadline_ns = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns, left;
    int error;

    do {
        now = monotonic_now();
        left = deadline_ns > now ? deadline_ns - now : 0;
        if (!gate_enter(&save->spool->gate))
            return -EBADF;
        error = wait_slice(save, level, left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS);
        save_leave(save);
        if (error != -ETIMEDOUT)
            return error == 0 ? 1 : error;
        if (PyErr_CheckSignals() < 0)
            return -EINTR;
    } while (left > 0);
    return 0;
}

/* After the spool was closed: what was known then. */
static int wait_closed(const SaveObject *save, enum tspool_level level)
{
    const struct tspool_save_result *last = &save->last;

    if (last->level >= (uint32_t)level)
        return 1;
    if (last->outcome == TSPOOL_OUTCOME_UNKNOWN)
        return -ESTALE;
    return last->failure.error ? -last->failure.error : -EBADF;
}

/* wait(level, timeout) -> errno: 0 reached; ETIMEDOUT: not in time; ESHUTDOWN: the spool was closed before it was known; else
 * that of the failure, which result() has. */
static PyObject *save_wait(PyObject *self, PyObject *arguments)
{
    SaveObject *save = (SaveObject *)self;
    PyObject *seconds = Py_None;
    uint64_t timeout_ns;
    int level, answer;

    if (!PyArg_ParseTuple(arguments, "iO", &level, &seconds) || seconds_take(seconds, &timeout_ns) < 0)
        return NULL;
    answer = save->is_closed ? wait_closed(save, (enum tspool_level)level)
                             : wait_level(save, (enum tspool_level)level, timeout_ns);
    if (answer == -EBADF && save->is_closed)
        answer = wait_closed(save, (enum tspool_level)level);
    if (answer == -EINTR && PyErr_Occurred())
        return NULL;
    if (answer != 0 && answer != -EBADF)
        save_unpin(save); /* STAGED or past any copying */
    if (answer == -EBADF)
        answer = -ESHUTDOWN;
    return PyLong_FromLong(answer == 1 ? 0 : answer == 0 ? ETIMEDOUT : -answer);
}

static PyObject *failure_give(const struct tspool_failure *failure, enum tspool_outcome outcome)
{
    int error = outcome == TSPOOL_OUTCOME_UNKNOWN ? ESTALE : failure->error;

    if (!error)
        Py_RETURN_NONE;
    failure_raise("save", -error, failure);
    {
        PyObject *type, *value, *trace;

        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        Py_XDECREF(type);
        Py_XDECREF(trace);
        return value;
    }
}

static PyObject *result_give(const struct tspool_save_result *result)
{
    return Py_BuildValue(
        "{s:i,s:I,s:y#,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:I,s:N,s:N,s:N,s:N,s:I,s:I,s:I,s:K,s:K,s:K,s:K,s:i,s:s,"
        "s:s,s:s,s:K,s:K,s:i,s:s,s:N}",
        "outcome", (int)result->outcome, "level", result->level, "save_id", (const char *)result->save_id,
        (Py_ssize_t)TSPOOL_SAVE_ID_BYTES, "tensor_bytes", result->tensor_bytes, "file_bytes", result->file_bytes, "staged_bytes",
        result->staged_bytes, "written_bytes", result->written_bytes, "planned_ns", result->planned_ns, "stall_ns",
        result->stall_ns, "staged_ns", result->staged_ns, "written_ns", result->written_ns, "synced_ns", result->synced_ns,
        "durable_ns", result->durable_ns, "published_ns", result->published_ns, "files", result->files, "attempts",
        result->attempts, "replayable", PyBool_FromLong(result->replayable), "plan_reused", PyBool_FromLong(result->plan_reused),
        "direct", PyBool_FromLong(result->direct), "registered", PyBool_FromLong(result->registered), "item_bytes",
        result->item_bytes, "depth", result->depth, "page_bytes", result->page_bytes, "writes", result->writes, "short_writes",
        result->short_writes, "hash_cpu_ns", result->hash_cpu_ns, "stage_cpu_ns", result->stage_cpu_ns, "writer_pid",
        result->writer_pid, "backend", result->backend, "io_note", result->io_note, "retry_cause",
        result->retry_cause, "removed", result->removed, "removed_bytes", result->removed_bytes, "keep_error", result->keep_error,
        "keep_left", result->keep_left, "failure", failure_give(&result->failure, result->outcome));
}

static PyObject *save_result(PyObject *self, PyObject *unused)
{
    SaveObject *save = (SaveObject *)self;
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    int error;

    if (save->is_closed || !gate_enter(&save->spool->gate))
        return result_give(&save->last);
    result.failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    error = save_look(save, &result);
    save_leave(save);
    return error < 0 ? failure_raise("save", error, NULL) : result_give(&result);
}

static PyObject *save_fileno(PyObject *self, PyObject *unused)
{
    SaveObject *save = (SaveObject *)self;
    int fd;

    if (!save_enter(save))
        return NULL;
    fd = tspool_save_fd(save->save);
    save->has_fd |= fd >= 0;
    if (save->has_fd && tspool_save_wait(save->save, TSPOOL_PUBLISHED, 0) != -ETIMEDOUT)
        fd_raise(save); /* its news was taken before there was a descriptor */
    save_leave(save);
    return fd < 0 ? failure_raise("save", fd, NULL) : PyLong_FromLong(fd);
}

/* abort() -> whether there was something to give up. */
static PyObject *save_abort(PyObject *self, PyObject *unused)
{
    SaveObject *save = (SaveObject *)self;
    int error;

    if (!save_enter(save))
        return NULL;
    error = tspool_save_abort(save->save);
    save_leave(save);
    if (error < 0 && error != -EALREADY && error != -EINVAL)
        return failure_raise("save", error, NULL);
    return PyBool_FromLong(error == 0);
}

static PyMethodDef save_methods[] = {
    { "add", save_add, METH_VARARGS,
      "add(name, dtype, shape, strides, address, owner, global_shape=None, global_offsets=None, untied=False)" },
    { "add_object", save_add_object, METH_VARARGS, "add_object(name, kind, data)" },
    { "add_metadata", save_metadata, METH_VARARGS, "add_metadata(key, value)" },
    { "submit", save_submit, METH_NOARGS, "submit()" },
    { "next_spans", save_next_spans, METH_VARARGS,
      "next_spans(limit, timeout) -> [(address, bytes, tensor, tensor_offset, token)], [] at the end, None when not in time" },
    { "filled", save_filled, METH_VARARGS, "filled(tokens) -> errno of the save's failure, or 0" },
    { "wait", save_wait, METH_VARARGS, "wait(level, timeout) -> errno" },
    { "result", save_result, METH_NOARGS, "result() -> dict" },
    { "fileno", save_fileno, METH_NOARGS, "fileno() -> a descriptor that polls readable at news" },
    { "abort", save_abort, METH_NOARGS, "abort() -> bool" },
    { NULL, NULL, 0, NULL },
};
static PyType_Slot save_slots[] = {
    { Py_tp_new, save_new }, { Py_tp_dealloc, save_dealloc }, { Py_tp_methods, save_methods },
    { Py_tp_doc, "Save(spool, name, staging, replace, deadline_ns, save_id, check_torn)" }, { 0, NULL },
};
static PyType_Spec save_spec = { "tspool._tspool.Save", sizeof(SaveObject), 0, Py_TPFLAGS_DEFAULT, save_slots };

PyTypeObject *save_type_create(void) { return (PyTypeObject *)PyType_FromSpec(&save_spec); }
