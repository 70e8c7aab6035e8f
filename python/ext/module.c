/* module.c - tspool._tspool: the types and the few functions that belong to none of them. */
#include "binding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct search { char *root, *path; uint64_t timeout_ns; struct tspool_failure failure; int error; };

static void search_work(void *argument)
{
    struct search *search = argument;

    search->error = tspool_latest_wait(search->root, search->timeout_ns, &search->path, NULL, &search->failure);
}

static void search_abandon(void *argument)
{
    struct search *search = argument;

    free(search->path);
    free(search->root);
    free(search);
}

static PyObject *search_give(const struct search *search)
{
    if (search->error == -ENOENT && !search->path)
        Py_RETURN_NONE;
    if (search->error < 0)
        return failure_raise("load", search->error, &search->failure);
    return PyUnicode_DecodeFSDefault(search->path);
}

/* latest(root, timeout) -> path or None. It may wait for a writer that finishes what its dead trainer left. */
static PyObject *latest(PyObject *self, PyObject *arguments)
{
    struct search *search;
    PyObject *given, *timeout;
    uint64_t timeout_ns;
    const char *root;

    if (!PyArg_ParseTuple(arguments, "yO", &root, &timeout) || seconds_take(timeout, &timeout_ns) < 0)
        return NULL;
    search = calloc(1, sizeof *search);
    if (!search || !(search->root = strdup(root))) {
        free(search);
        return PyErr_NoMemory();
    }
    search->timeout_ns = timeout_ns;
    search->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    if (background_run(search_work, NULL, search_abandon, search) < 0)
        return NULL;
    given = search_give(search);
    search_abandon(search);
    return given;
}

struct publishing { char *root, *name; uint8_t save_id[TSPOOL_SAVE_ID_BYTES]; uint32_t world_size; struct tspool_failure failure;
                    int error; };

static void publishing_work(void *argument)
{
    struct publishing *publishing = argument;

    publishing->error = tspool_publish(publishing->root, publishing->name, publishing->save_id, publishing->world_size,
                                       &publishing->failure);
}

static void publishing_destroy(void *argument)
{
    struct publishing *publishing = argument;

    free(publishing->root);
    free(publishing->name);
    free(publishing);
}

static struct publishing *publishing_create(PyObject *arguments)
{
    struct publishing *publishing;
    const char *root, *name, *id;
    unsigned world_size;
    Py_ssize_t id_size;

    if (!PyArg_ParseTuple(arguments, "ysy#I", &root, &name, &id, &id_size, &world_size))
        return NULL;
    if (id_size != TSPOOL_SAVE_ID_BYTES) {
        PyErr_SetString(PyExc_ValueError, "save_id has 16 bytes: Spool.save_id() makes one");
        return NULL;
    }
    publishing = calloc(1, sizeof *publishing);
    if (!publishing || !(publishing->root = strdup(root)) || !(publishing->name = strdup(name))) {
        if (publishing)
            publishing_destroy(publishing);
        return (struct publishing *)PyErr_NoMemory();
    }
    memcpy(publishing->save_id, id, sizeof publishing->save_id);
    publishing->world_size = world_size;
    publishing->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    return publishing;
}

/* publish(root, name, save_id, world_size). Ctrl-C leaves it to its end: it may be called again at any time. */
static PyObject *publish(PyObject *self, PyObject *arguments)
{
    struct publishing *publishing = publishing_create(arguments);
    PyObject *answer = Py_None;

    if (!publishing || background_run(publishing_work, NULL, publishing_destroy, publishing) < 0)
        return NULL;
    if (publishing->error < 0)
        answer = failure_raise("save", publishing->error, &publishing->failure);
    publishing_destroy(publishing);
    return answer ? Py_NewRef(answer) : NULL;
}

/* dtype_bits(name) -> bits of an element; 0: not a dtype */
static PyObject *dtype_bits(PyObject *self, PyObject *arguments)
{
    const char *name;

    if (!PyArg_ParseTuple(arguments, "s", &name))
        return NULL;
    return PyLong_FromUnsignedLong(tspool_dtype_bits(tspool_dtype_parse(name)));
}

static PyObject *version(PyObject *self, PyObject *unused) { return PyUnicode_FromString(tspool_version()); }

static PyMethodDef module_functions[] = {
    { "latest", latest, METH_VARARGS, "latest(root, timeout) -> path or None" },
    { "publish", publish, METH_VARARGS, "publish(root, name, save_id, world_size)" },
    { "dtype_bits", dtype_bits, METH_VARARGS, "dtype_bits(name) -> bits of an element; 0: not a dtype" },
    { "copy", copy, METH_VARARGS, "copy(pieces, threads): pieces are 64-bit triples: to, from, bytes" },
    { "version", version, METH_NOARGS, "version() -> that of the library" },
    { NULL, NULL, 0, NULL },
};
static struct PyModuleDef module_definition = { .m_base = PyModuleDef_HEAD_INIT, .m_name = "tspool._tspool",
                                                .m_doc = "The C library's handles.", .m_size = -1,
                                                .m_methods = module_functions };

static int type_add(PyObject *module, const char *name, PyTypeObject *type)
{
    return type ? PyModule_AddObject(module, name, (PyObject *)type) : -1;
}

PyMODINIT_FUNC PyInit__tspool(void);
PyMODINIT_FUNC PyInit__tspool(void)
{
    PyObject *module = PyModule_Create(&module_definition);

    if (module && (type_add(module, "Spool", spool_type_create()) < 0 || type_add(module, "Save", save_type_create()) < 0 ||
                   type_add(module, "Checkpoint", checkpoint_type_create()) < 0 ||
                   type_add(module, "Memory", memory_type_create()) < 0 || type_add(module, "Stream", stream_type_create()) < 0))
        Py_CLEAR(module);
    return module;
}
