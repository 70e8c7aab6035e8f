/* spool.c - Spool: one struct tspool. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

PyTypeObject *spool_type;

/* Opening ------------------------------------------------------------------------------------------------------------ */

struct opening {
    struct tspool_options options;
    char *root, *writer_path, *excluded_cpus;
    struct tspool *spool;
    struct tspool_failure failure;
    int error;
};

static void opening_work(void *argument)
{
    struct opening *opening = argument;

    opening->error = tspool_open(&opening->options, &opening->spool, &opening->failure);
}

static void opening_destroy(struct opening *opening)
{
    free(opening->root);
    free(opening->writer_path);
    free(opening->excluded_cpus);
    free(opening);
}

static void opening_abandon(void *argument)
{
    struct opening *opening = argument;

    if (opening->error == 0)
        tspool_close(opening->spool, 0, NULL);
    opening_destroy(opening);
}

/* Called by a thread of the library, which holds nothing of Python's. */
static int arena_hook(void *context, void *base, size_t bytes, int added)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *answer = PyObject_CallFunction(context, "NnO", PyLong_FromVoidPtr(base), (Py_ssize_t)bytes,
                                             added ? Py_True : Py_False);
    int error = answer ? 0 : EINVAL;

    if (!answer)
        PyErr_WriteUnraisable(context);
    Py_XDECREF(answer);
    PyGILState_Release(state);
    return error;
}

static int text_keep(const char *text, char **kept, const char **option)
{
    if (!text)
        return 0;
    *option = *kept = strdup(text);
    if (*kept)
        return 0;
    PyErr_NoMemory();
    return -1;
}

/* What the file says, where no argument says otherwise. */
static int settings_load(const char *path, struct tspool_options *options)
{
    struct tspool_options loaded = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = tspool_options_load(path, &loaded, &failure);

    if (error < 0) {
        failure_raise("open", error, &failure);
        return -1;
    }
    options->item_bytes = options->item_bytes ? options->item_bytes : loaded.item_bytes;
    options->depth = options->depth ? options->depth : loaded.depth;
    options->submit_batch = options->submit_batch ? options->submit_batch : loaded.submit_batch;
    options->staging_threads = options->staging_threads ? options->staging_threads : loaded.staging_threads;
    options->io = options->io != TSPOOL_IO_AUTO ? options->io : loaded.io;
    return 0;
}

static struct opening *opening_create(PyObject *arguments, PyObject *keywords, PyObject **on_arena)
{
    static char *names[] = { "root", "writer_path", "excluded_cpus", "arena_bytes", "item_bytes", "depth", "io", "isolation",
                             "bytes_per_second", "staging_threads", "hash_threads", "deadline_ns", "heartbeat_ns",
                             "start_timeout_ns", "shard_bytes", "rank", "world_size", "local_ranks", "buffered", "orphan_wait_ns",
                             "submit_batch", "settings", "keep", "on_arena", NULL };
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    const char *root, *writer_path, *excluded_cpus, *settings;
    unsigned long long arena_bytes, rate, deadline_ns, heartbeat_ns, start_timeout_ns, shard_bytes, orphan_wait_ns;
    int io, isolation, buffered;
    struct opening *opening;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "yyzKIIiiKIIKKKKIIIpKIyIO", names, &root, &writer_path, &excluded_cpus,
                                     &arena_bytes, &options.item_bytes, &options.depth, &io, &isolation, &rate,
                                     &options.staging_threads, &options.hash_threads, &deadline_ns, &heartbeat_ns,
                                     &start_timeout_ns, &shard_bytes, &options.rank, &options.world_size, &options.local_ranks,
                                     &buffered, &orphan_wait_ns, &options.submit_batch, &settings,
                                     &options.keep, on_arena))
        return NULL;
    options.io = (enum tspool_io)io;
    if (*settings && settings_load(settings, &options) < 0)
        return NULL;
    options.isolation = (enum tspool_isolation)isolation;
    options.arena_bytes = arena_bytes;
    options.bytes_per_second = rate;
    options.deadline_ns = deadline_ns;
    options.heartbeat_ns = heartbeat_ns;
    options.start_timeout_ns = start_timeout_ns;
    options.shard_bytes = shard_bytes;
    options.buffered = (uint8_t)buffered;
    options.orphan_wait_ns = orphan_wait_ns;
    if (*on_arena != Py_None) {
        options.on_arena = arena_hook;
        options.on_arena_context = *on_arena;
    }
    opening = calloc(1, sizeof *opening);
    if (!opening)
        return (struct opening *)PyErr_NoMemory();
    opening->options = options;
    opening->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    if (text_keep(root, &opening->root, &opening->options.root) < 0 ||
        text_keep(writer_path, &opening->writer_path, &opening->options.writer_path) < 0 ||
        text_keep(excluded_cpus, &opening->excluded_cpus, &opening->options.excluded_cpus) < 0) {
        opening_destroy(opening);
        return NULL;
    }
    return opening;
}

static PyObject *spool_make(PyTypeObject *type, struct tspool *opened, PyObject *on_arena)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    SpoolObject *spool = (SpoolObject *)allocate(type, 0);

    if (!spool)
        return NULL;
    spool->spool = opened;
    spool->owner = getpid();
    spool->on_arena = Py_NewRef(on_arena);
    gate_init(&spool->gate);
    return (PyObject *)spool;
}

static PyObject *spool_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *on_arena = Py_None, *made = NULL;
    struct opening *opening = opening_create(arguments, keywords, &on_arena);

    if (!opening)
        return NULL;
    if (on_arena != Py_None)
        Py_INCREF(on_arena); /* the arena keeps it from here on; a spool is opened once, so that this is never given back late */
    if (background_run(opening_work, NULL, opening_abandon, opening) < 0)
        return NULL;
    if (opening->error < 0)
        failure_raise("open", opening->error, &opening->failure);
    else
        made = spool_make(type, opening->spool, on_arena);
    if (on_arena != Py_None)
        Py_DECREF(on_arena);
    opening_destroy(opening);
    return made;
}

/* Using -------------------------------------------------------------------------------------------------------------- */

/* Holds its spool, so that Ctrl-C may leave it behind: a close then waits for it. */
struct reserving { SpoolObject *spool; uint64_t bytes; struct tspool_failure failure; int error; };

static void reserving_work(void *argument)
{
    struct reserving *reserving = argument;

    reserving->error = tspool_reserve(reserving->spool->spool, reserving->bytes, &reserving->failure);
}

static void reserving_destroy(struct reserving *reserving)
{
    gate_leave(&reserving->spool->gate);
    Py_DECREF(reserving->spool);
    free(reserving);
}

static void reserving_abandon(void *argument)
{
    PyGILState_STATE state = PyGILState_Ensure();

    reserving_destroy(argument);
    PyGILState_Release(state);
}

static PyObject *closed_raise(void) { return failure_raise("closed", -EINVAL, NULL); }

static struct reserving *reserving_create(SpoolObject *spool, uint64_t bytes)
{
    struct reserving *reserving = calloc(1, sizeof *reserving);

    if (!reserving)
        return (struct reserving *)PyErr_NoMemory();
    if (!gate_enter(&spool->gate)) {
        free(reserving);
        return (struct reserving *)closed_raise();
    }
    *reserving = (struct reserving){ .spool = (SpoolObject *)Py_NewRef((PyObject *)spool), .bytes = bytes,
                                     .failure = TSPOOL_FAILURE_INIT };
    return reserving;
}

static PyObject *spool_reserve(PyObject *self, PyObject *arguments)
{
    PyObject *answer = Py_None;
    struct reserving *reserving;
    unsigned long long bytes;

    if (!PyArg_ParseTuple(arguments, "K", &bytes) || !(reserving = reserving_create((SpoolObject *)self, bytes)))
        return NULL;
    if (background_run(reserving_work, NULL, reserving_abandon, reserving) < 0)
        return NULL;
    if (reserving->error < 0)
        answer = failure_raise("open", reserving->error, &reserving->failure);
    reserving_destroy(reserving);
    return answer == Py_None ? Py_NewRef(answer) : NULL;
}

static PyObject *spool_writer_pid(PyObject *self, void *unused)
{
    SpoolObject *spool = (SpoolObject *)self;
    int pid = 0;

    if (gate_enter(&spool->gate)) {
        pid = tspool_writer_pid(spool->spool);
        gate_leave(&spool->gate);
    }
    return pid < 0 ? failure_raise("open", pid, NULL) : PyLong_FromLong(pid);
}

/* (waited_ns, orphans_seen, orphans_finished, orphans_left, orphan_left) */
static PyObject *spool_open_report(PyObject *self, PyObject *unused)
{
    struct tspool_open_report report = TSPOOL_OPEN_REPORT_INIT;
    SpoolObject *spool = (SpoolObject *)self;
    int error;

    if (!gate_enter(&spool->gate))
        return closed_raise();
    error = tspool_open_report(spool->spool, &report);
    gate_leave(&spool->gate);
    if (error < 0)
        return failure_raise("open", error, NULL);
    return Py_BuildValue("KIIIs", report.waited_ns, report.orphans_seen, report.orphans_finished, report.orphans_left,
                         report.orphan_left);
}

static PyObject *spool_save_id(PyObject *self, PyObject *unused)
{
    SpoolObject *spool = (SpoolObject *)self;
    uint8_t id[TSPOOL_SAVE_ID_BYTES];
    int error;

    if (!gate_enter(&spool->gate))
        return closed_raise();
    error = tspool_save_id(spool->spool, id);
    gate_leave(&spool->gate);
    return error < 0 ? failure_raise("open", error, NULL) : PyBytes_FromStringAndSize((const char *)id, sizeof id);
}

/* Closing ------------------------------------------------------------------------------------------------------------ */

/* close(timeout_ns, abort) -> (published, failed, left, aborted, writer_pid). For waits that Ctrl-C may end, wait for the saves
 * first: this waits in one piece. */
static PyObject *spool_close(PyObject *self, PyObject *arguments)
{
    SpoolObject *spool = (SpoolObject *)self;
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    unsigned long long timeout_ns;
    struct tspool *closing;
    int aborts, error;

    if (!PyArg_ParseTuple(arguments, "Kp", &timeout_ns, &aborts))
        return NULL;
    if (spool->spool && spool->owner != getpid())
        return failure_raise("open", -EPERM, NULL);
    gate_close(&spool->gate);
    closing = spool->spool;
    if (!closing)
        Py_RETURN_NONE;
    saves_look(spool);
    spool->spool = NULL;
    report.mode = aborts ? TSPOOL_CLOSE_ABORT : TSPOOL_CLOSE_LEAVE;
    Py_BEGIN_ALLOW_THREADS
    error = tspool_close(closing, timeout_ns, &report);
    Py_END_ALLOW_THREADS
    saves_unpin(spool);
    Py_CLEAR(spool->on_arena);
    if (error < 0 && error != -ETIMEDOUT)
        return failure_raise("open", error, NULL);
    return Py_BuildValue("IIIIi", report.published, report.failed, report.left, report.aborted, report.writer_pid);
}

static void spool_dealloc(PyObject *self)
{
    SpoolObject *spool = (SpoolObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (spool->spool && spool->owner == getpid()) { /* its saves hold it: there are none */
        Py_BEGIN_ALLOW_THREADS
        tspool_close(spool->spool, 0, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_CLEAR(spool->on_arena);
    gate_deinit(&spool->gate);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef spool_methods[] = {
    { "reserve", spool_reserve, METH_VARARGS, "reserve(bytes): populates the arena" },
    { "open_report", spool_open_report, METH_NOARGS,
      "open_report() -> (waited_ns, orphans_seen, orphans_finished, orphans_left, orphan_left)" },
    { "save_id", spool_save_id, METH_NOARGS, "save_id() -> 16 fresh random bytes" },
    { "close", spool_close, METH_VARARGS, "close(timeout_ns, abort) -> (published, failed, left, aborted, writer_pid), or None" },
    { NULL, NULL, 0, NULL },
};
static PyGetSetDef spool_attributes[] = {
    { "writer_pid", spool_writer_pid, NULL, "of the writer that serves now; 0: none", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyType_Slot spool_slots[] = {
    { Py_tp_new, spool_new }, { Py_tp_dealloc, spool_dealloc }, { Py_tp_methods, spool_methods },
    { Py_tp_getset, spool_attributes }, { Py_tp_doc, "An open struct tspool." }, { 0, NULL },
};
static PyType_Spec spool_spec = { "tspool._tspool.Spool", sizeof(SpoolObject), 0, Py_TPFLAGS_DEFAULT, spool_slots };

PyTypeObject *spool_type_create(void) { return spool_type = (PyTypeObject *)PyType_FromSpec(&spool_spec); }
