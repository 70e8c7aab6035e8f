/* checkpoint.c - Checkpoint: one struct tspool_checkpoint, and what reads it. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    struct tspool_checkpoint *checkpoint; /* NULL: closed */
    struct gate gate;
} CheckpointObject;

static bool checkpoint_is_open(CheckpointObject *self)
{
    if (self->checkpoint)
        return true;
    failure_raise("closed", -EINVAL, NULL);
    return false;
}

static bool checkpoint_enter(CheckpointObject *self)
{
    if (gate_enter(&self->gate))
        return true;
    failure_raise("closed", -EINVAL, NULL);
    return false;
}

/* Opening ------------------------------------------------------------------------------------------------------------ */

struct opening {
    char *path;
    struct tspool_checkpoint_options options;
    struct tspool_checkpoint *checkpoint;
    struct tspool_failure failure;
    int error;
};

static void opening_work(void *argument)
{
    struct opening *opening = argument;

    opening->error = tspool_checkpoint_open(opening->path, &opening->options, &opening->checkpoint, &opening->failure);
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
        tspool_checkpoint_close(opening->checkpoint);
    opening_destroy(opening);
}

static struct opening *opening_create(PyObject *arguments)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    int io, buffered, verified, tolerant;
    struct opening *opening;
    const char *path;

    if (!PyArg_ParseTuple(arguments, "yiIIIppp", &path, &io, &options.item_bytes, &options.depth, &options.hash_threads,
                          &buffered, &verified, &tolerant))
        return NULL;
    options.io = (enum tspool_io)io;
    options.buffered = (uint8_t)buffered;
    options.unverified = !verified;
    options.tolerant = (uint8_t)tolerant;
    opening = calloc(1, sizeof *opening);
    if (!opening || !(opening->path = strdup(path))) {
        free(opening);
        return (struct opening *)PyErr_NoMemory();
    }
    opening->options = options;
    opening->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    return opening;
}

/* Checkpoint(path, io, item_bytes, depth, hash_threads, buffered, verified, tolerant) */
static PyObject *checkpoint_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct opening *opening = opening_create(arguments);
    CheckpointObject *made = NULL;

    if (!opening || background_run(opening_work, NULL, opening_abandon, opening) < 0)
        return NULL;
    if (opening->error < 0)
        failure_raise("load", opening->error, &opening->failure);
    else if ((made = (CheckpointObject *)allocate(type, 0))) {
        made->checkpoint = opening->checkpoint;
        gate_init(&made->gate);
    }
    opening_destroy(opening);
    return (PyObject *)made;
}

static PyObject *checkpoint_close(PyObject *self, PyObject *unused)
{
    CheckpointObject *object = (CheckpointObject *)self;
    struct tspool_checkpoint *closing;

    gate_close(&object->gate);
    closing = object->checkpoint;
    object->checkpoint = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (closing)
        tspool_checkpoint_close(closing);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void checkpoint_dealloc(PyObject *self)
{
    CheckpointObject *object = (CheckpointObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (object->checkpoint)
        tspool_checkpoint_close(object->checkpoint);
    gate_deinit(&object->gate);
    release(self);
    Py_DECREF(type);
}

/* Contents ----------------------------------------------------------------------------------------------------------- */

static PyObject *checkpoint_info(PyObject *self, void *unused)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    CheckpointObject *object = (CheckpointObject *)self;

    if (!checkpoint_is_open(object))
        return NULL;
    tspool_checkpoint_info(object->checkpoint, &info);
    return Py_BuildValue("{s:i,s:N,s:y#,s:K,s:K,s:K,s:I,s:I,s:I,s:N,s:s}", "kind", (int)info.kind, "has_digests",
                         PyBool_FromLong(info.has_digests), "save_id", (const char *)info.save_id,
                         (Py_ssize_t)TSPOOL_SAVE_ID_BYTES, "sequence", info.sequence, "tensor_bytes", info.tensor_bytes,
                         "file_bytes", info.file_bytes, "files", info.files, "world_size", info.world_size, "format_version",
                         info.format_version, "direct", PyBool_FromLong(info.direct), "backend", info.backend);
}

static PyObject *text_give(const char *text) { return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape"); }

static PyObject *text_or_none(const char *text)
{
    if (!text)
        Py_RETURN_NONE;
    return text_give(text);
}

/* As xxhsum -H2 prints it; empty where none was recorded. */
static PyObject *digest_give(const struct tspool_tensor_info *info)
{
    static const char digits[] = "0123456789abcdef";
    char text[2 * sizeof info->digest];

    for (size_t i = 0; i < sizeof info->digest; i++) {
        text[2 * i] = digits[info->digest[i] >> 4];
        text[2 * i + 1] = digits[info->digest[i] & 15];
    }
    return PyUnicode_FromStringAndSize(text, info->has_digest ? (Py_ssize_t)sizeof text : 0);
}

/* (name, dtype, shape, global_shape, global_offsets, bytes, file, file_offset, tied_to, digest) */
static PyObject *entry_give(const struct tspool_tensor_info *info)
{
    return Py_BuildValue("NsNNNKNKNN", text_give(info->name), tspool_dtype_name(info->dtype),
                         numbers_give(info->shape, info->rank),
                         info->global_shape ? numbers_give(info->global_shape, info->rank) : text_or_none(NULL),
                         info->global_offsets ? numbers_give(info->global_offsets, info->rank) : text_or_none(NULL), info->bytes,
                         text_give(info->file), info->file_offset, text_or_none(info->tied_to), digest_give(info));
}

static PyObject *checkpoint_entries(PyObject *self, PyObject *unused)
{
    CheckpointObject *object = (CheckpointObject *)self;
    PyObject *list;
    size_t count;

    if (!checkpoint_is_open(object))
        return NULL;
    count = tspool_checkpoint_count(object->checkpoint);
    list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
        PyObject *entry;

        tspool_checkpoint_tensor(object->checkpoint, i, &info);
        entry = entry_give(&info);
        if (!entry || PyList_SetItem(list, (Py_ssize_t)i, entry) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* find(name) -> number of the first entry of that name, or None */
static PyObject *checkpoint_find(PyObject *self, PyObject *arguments)
{
    CheckpointObject *object = (CheckpointObject *)self;
    const char *name;
    size_t index;

    if (!PyArg_ParseTuple(arguments, "s", &name) || !checkpoint_is_open(object))
        return NULL;
    if (tspool_checkpoint_find(object->checkpoint, name, &index) < 0)
        Py_RETURN_NONE;
    return PyLong_FromSize_t(index);
}

static int pair_set(PyObject *dict, const char *key, const char *value)
{
    PyObject *name = text_give(key), *text = text_give(value);
    int error = name && text ? PyDict_SetItem(dict, name, text) : -1;

    Py_XDECREF(name);
    Py_XDECREF(text);
    return error;
}

static PyObject *checkpoint_metadata(PyObject *self, PyObject *unused)
{
    CheckpointObject *object = (CheckpointObject *)self;
    const char *key, *value;
    PyObject *dict;

    if (!checkpoint_is_open(object))
        return NULL;
    dict = PyDict_New();
    for (size_t i = 0; dict && tspool_checkpoint_metadata_at(object->checkpoint, i, &key, &value) == 0; i++)
        if (pair_set(dict, key, value) < 0)
            Py_CLEAR(dict);
    return dict;
}

/* objects() -> [(name, kind, size), ...] */
static PyObject *checkpoint_objects(PyObject *self, PyObject *unused)
{
    CheckpointObject *object = (CheckpointObject *)self;
    const char *name, *kind;
    PyObject *list;
    uint64_t size;

    if (!checkpoint_is_open(object))
        return NULL;
    list = PyList_New(0);
    for (size_t i = 0; list && tspool_checkpoint_object(object->checkpoint, i, &name, &kind, &size) == 0; i++) {
        PyObject *entry = Py_BuildValue("NNK", text_give(name), text_give(kind), size);

        if (!entry || PyList_Append(list, entry) < 0)
            Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

static PyObject *checkpoint_object_read(PyObject *self, PyObject *arguments)
{
    CheckpointObject *object = (CheckpointObject *)self;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    void *bytes = NULL;
    size_t size = 0;
    const char *name;
    PyObject *given;
    int error;

    if (!PyArg_ParseTuple(arguments, "s", &name) || !checkpoint_enter(object))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    error = tspool_checkpoint_object_read(object->checkpoint, name, &bytes, &size, &failure);
    Py_END_ALLOW_THREADS
    gate_leave(&object->gate);
    if (error < 0)
        return failure_raise("load", error, &failure);
    given = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size);
    free(bytes);
    return given;
}

/* Reading ------------------------------------------------------------------------------------------------------------ */

/* Ctrl-C is looked for between batches. Large enough that the disk hardly notices the gap, small enough for patience. Pieces of
 * a tensor are whole leaves. */
#define BATCH_BYTES ((uint64_t)512 << 20)

struct batch {
    struct tspool_read_request *requests;
    size_t count, capacity;
    uint64_t bytes;
};

static int batch_read(CheckpointObject *object, struct batch *batch)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    Py_BEGIN_ALLOW_THREADS
    error = tspool_checkpoint_read(object->checkpoint, batch->requests, batch->count, NULL, NULL, &failure);
    Py_END_ALLOW_THREADS
    batch->count = 0;
    batch->bytes = 0;
    if (error < 0) {
        failure_raise("load", error, &failure);
        return -1;
    }
    return PyErr_CheckSignals();
}

static int batch_add(CheckpointObject *object, struct batch *batch, const struct tspool_read_request *request)
{
    batch->requests[batch->count++] = *request;
    batch->bytes += request->bytes;
    return batch->bytes >= BATCH_BYTES || batch->count == batch->capacity ? batch_read(object, batch) : 0;
}

/* A whole tensor that is larger than a batch goes in pieces; a box does not. */
static int request_run(CheckpointObject *object, struct batch *batch, const struct tspool_read_request *whole)
{
    struct tspool_read_request piece = *whole;

    if (whole->start || whole->bytes <= BATCH_BYTES)
        return batch_add(object, batch, whole);
    piece.by_bytes = 1;
    for (uint64_t done = 0; done < whole->bytes; done += piece.bytes) {
        piece.first_byte = done;
        piece.bytes = whole->bytes - done < BATCH_BYTES ? whole->bytes - done : BATCH_BYTES;
        piece.data = (char *)whole->data + done;
        if (batch_add(object, batch, &piece) < 0)
            return -1;
    }
    return 0;
}

struct box { uint64_t *start, *extent; };

/* (entry, start, extent, address, bytes) */
static int request_take(PyObject *tuple, struct box *box, struct tspool_read_request *request)
{
    PyObject *start, *extent, *address;
    Py_ssize_t entry, starts, extents;
    unsigned long long bytes;

    *request = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
    if (!PyArg_ParseTuple(tuple, "nOOO!K", &entry, &start, &extent, &PyLong_Type, &address, &bytes))
        return -1;
    if (numbers_take(start, &box->start, &starts) < 0 || numbers_take(extent, &box->extent, &extents) < 0)
        return -1;
    request->tensor = (size_t)entry;
    request->start = box->start;
    request->extent = box->extent;
    request->data = PyLong_AsVoidPtr(address);
    request->bytes = bytes;
    return PyErr_Occurred() ? -1 : 0;
}

/* Boxes must live until their batch was read: all of them live until the end. */
static int requests_run(CheckpointObject *object, PyObject *list, struct batch *batch, struct box *boxes)
{
    Py_ssize_t count = PyList_Size(list);

    for (Py_ssize_t i = 0; i < count; i++) {
        struct tspool_read_request request;

        if (request_take(PyList_GetItem(list, i), &boxes[i], &request) < 0 || request_run(object, batch, &request) < 0)
            return -1;
    }
    return batch->count ? batch_read(object, batch) : 0;
}

/* read([(entry, start, extent, address, bytes), ...]): straight to the addresses. The caller keeps the memory. */
static PyObject *checkpoint_read(PyObject *self, PyObject *arguments)
{
    CheckpointObject *object = (CheckpointObject *)self;
    struct batch batch = { .capacity = 65536 };
    struct box *boxes;
    PyObject *list;
    size_t count;
    int error;

    if (!PyArg_ParseTuple(arguments, "O!", &PyList_Type, &list) || !checkpoint_enter(object))
        return NULL;
    count = (size_t)PyList_Size(list);
    if (batch.capacity > count)
        batch.capacity = count + 1;
    boxes = calloc(count + 1, sizeof *boxes);
    batch.requests = malloc(batch.capacity * sizeof *batch.requests);
    error = boxes && batch.requests ? requests_run(object, list, &batch, boxes) : (PyErr_NoMemory(), -1);
    gate_leave(&object->gate);
    for (size_t i = 0; boxes && i < count; i++) {
        free(boxes[i].start);
        free(boxes[i].extent);
    }
    free(boxes);
    free(batch.requests);
    if (error < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Verifying ---------------------------------------------------------------------------------------------------------- */

/* Holds its checkpoint, so that Ctrl-C may leave it behind: it then reads to its end, and nobody hears of what it finds. */
struct verification {
    CheckpointObject *object;
    PyObject *found;                     /* list of findings */
    PyObject *on_progress;               /* or NULL */
    struct tspool_verify_report report;
    struct tspool_failure failure;
    int error;
};

/* (kind, tensor, file, file_offset, bytes, reason) */
static int damage_take(void *context, const struct tspool_damage *damage)
{
    struct verification *verification = context;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *finding = Py_BuildValue("iNNKKs", (int)damage->kind, text_or_none(damage->tensor), text_or_none(damage->file),
                                      damage->file_offset, damage->bytes, damage->reason);
    bool stops = !finding || PyList_Append(verification->found, finding) < 0;

    Py_XDECREF(finding);
    PyErr_Clear();
    PyGILState_Release(state);
    return stops;
}

static void progress_take(void *context, uint64_t bytes_done, uint64_t bytes_total)
{
    struct verification *verification = context;
    PyGILState_STATE state;
    PyObject *answer;

    if (!verification->on_progress)
        return;
    state = PyGILState_Ensure();
    answer = PyObject_CallFunction(verification->on_progress, "KK", bytes_done, bytes_total);
    if (!answer)
        PyErr_WriteUnraisable(verification->on_progress);
    Py_XDECREF(answer);
    PyGILState_Release(state);
}

static void verification_work(void *argument)
{
    struct verification *verification = argument;

    verification->error = tspool_checkpoint_verify(verification->object->checkpoint, damage_take, progress_take, verification,
                                                   &verification->report, &verification->failure);
}

static void verification_destroy(struct verification *verification)
{
    gate_leave(&verification->object->gate);
    Py_DECREF(verification->object);
    Py_XDECREF(verification->found);
    Py_XDECREF(verification->on_progress);
    free(verification);
}

static void verification_abandon(void *argument)
{
    PyGILState_STATE state = PyGILState_Ensure();

    verification_destroy(argument);
    PyGILState_Release(state);
}

static struct verification *verification_create(CheckpointObject *object, PyObject *on_progress)
{
    struct verification *verification = calloc(1, sizeof *verification);

    if (!verification)
        return (struct verification *)PyErr_NoMemory();
    if (!checkpoint_enter(object)) {
        free(verification);
        return NULL;
    }
    verification->object = (CheckpointObject *)Py_NewRef((PyObject *)object);
    verification->found = PyList_New(0);
    verification->on_progress = on_progress == Py_None ? NULL : Py_NewRef(on_progress);
    verification->report = (struct tspool_verify_report)TSPOOL_VERIFY_REPORT_INIT;
    verification->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    return verification;
}

static PyObject *verification_give(const struct verification *verification)
{
    const struct tspool_verify_report *report = &verification->report;

    if (verification->error < 0 && verification->error != -EBADMSG && verification->error != -ENODATA)
        return failure_raise("load", verification->error, &verification->failure);
    return Py_BuildValue("iOKKKKKKs", -verification->error, verification->found, report->bytes, report->tensors, report->leaves,
                         report->damaged, report->missing, report->foreign, verification->failure.message);
}

/* verify(on_progress) -> (errno, findings, bytes, tensors, leaves, damaged, missing, foreign, message) */
static PyObject *checkpoint_verify(PyObject *self, PyObject *arguments)
{
    PyObject *on_progress = Py_None, *given;
    struct verification *verification;

    if (!PyArg_ParseTuple(arguments, "O", &on_progress))
        return NULL;
    verification = verification_create((CheckpointObject *)self, on_progress);
    if (!verification || background_run(verification_work, NULL, verification_abandon, verification) < 0)
        return NULL;
    given = verification->found ? verification_give(verification) : NULL;
    verification_destroy(verification);
    return given;
}

static PyMethodDef checkpoint_methods[] = {
    { "close", checkpoint_close, METH_NOARGS, "close()" },
    { "entries", checkpoint_entries, METH_NOARGS,
      "entries() -> [(name, dtype, shape, global_shape, global_offsets, bytes, file, file_offset, tied_to, digest), ...]" },
    { "find", checkpoint_find, METH_VARARGS, "find(name) -> number of the first entry of that name, or None" },
    { "metadata", checkpoint_metadata, METH_NOARGS, "metadata() -> dict" },
    { "objects", checkpoint_objects, METH_NOARGS, "objects() -> [(name, kind, size), ...]" },
    { "object_read", checkpoint_object_read, METH_VARARGS, "object_read(name) -> bytes" },
    { "read", checkpoint_read, METH_VARARGS, "read([(entry, start, extent, address, bytes), ...])" },
    { "verify", checkpoint_verify, METH_VARARGS,
      "verify(on_progress) -> (errno, findings, bytes, tensors, leaves, damaged, missing, foreign, message)" },
    { NULL, NULL, 0, NULL },
};
static PyGetSetDef checkpoint_attributes[] = {
    { "info", checkpoint_info, NULL, "dict", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyType_Slot checkpoint_slots[] = {
    { Py_tp_new, checkpoint_new }, { Py_tp_dealloc, checkpoint_dealloc }, { Py_tp_methods, checkpoint_methods },
    { Py_tp_getset, checkpoint_attributes }, { Py_tp_doc, "An open struct tspool_checkpoint." }, { 0, NULL },
};
static PyType_Spec checkpoint_spec = { "tspool._tspool.Checkpoint", sizeof(CheckpointObject), 0, Py_TPFLAGS_DEFAULT,
                                       checkpoint_slots };

PyTypeObject *checkpoint_type_create(void) { return (PyTypeObject *)PyType_FromSpec(&checkpoint_spec); }
