/* memory.c - Memory: where an object keeps its elements, by the buffer protocol or by DLPack. The object is held, and its
 * memory pinned, for as long as the Memory lives. Nothing is copied.
 */
#include "binding.h"

/* DLPack's ABI (dmlc/dlpack, dlpack.h), the part before versions: what __dlpack__() without arguments gives. */
struct dl_tensor {
    void *data;
    struct { int32_t type, id; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct dl_managed {
    struct dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *);
};
enum { DL_CPU = 1, DL_CUDA_HOST = 3, DL_ROCM_HOST = 11 };

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    bool has_view;
    struct dl_managed *managed;
} MemoryObject;

static void memory_dealloc(PyObject *object)
{
    MemoryObject *memory = (MemoryObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (memory->has_view)
        PyBuffer_Release(&memory->view);
    if (memory->managed && memory->managed->deleter)
        memory->managed->deleter(memory->managed);
    release(object);
    Py_DECREF(type);
}

static int capsule_take(MemoryObject *memory, PyObject *capsule)
{
    struct dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
    int32_t device;

    if (!managed)
        return -1;
    device = managed->tensor.device.type;
    if (device != DL_CPU && device != DL_CUDA_HOST && device != DL_ROCM_HOST) {
        PyErr_SetString(PyExc_BufferError, "its memory is not the host's");
        return -1;
    }
    if (managed->tensor.dtype.lanes != 1) {
        PyErr_SetString(PyExc_BufferError, "its elements are vectors");
        return -1;
    }
    if (PyCapsule_SetName(capsule, "used_dltensor") < 0)
        return -1;
    memory->managed = managed;
    return 0;
}

/* Memory(object, writable=False) or Memory(capsule). */
static PyObject *memory_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = { "object", "writable", NULL };
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *object;
    MemoryObject *memory;
    int writable = 0, error;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O|p", names, &object, &writable))
        return NULL;
    memory = (MemoryObject *)allocate(type, 0);
    if (!memory)
        return NULL;
    if (PyCapsule_CheckExact(object)) {
        error = capsule_take(memory, object);
    } else {
        error = PyObject_GetBuffer(object, &memory->view, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0));
        memory->has_view = error == 0;
    }
    if (error < 0)
        Py_CLEAR(memory);
    return (PyObject *)memory;
}

static PyObject *memory_address(PyObject *self, void *unused)
{
    MemoryObject *memory = (MemoryObject *)self;
    void *data = memory->view.buf;

    if (memory->managed)
        data = (char *)memory->managed->tensor.data + memory->managed->tensor.byte_offset;
    return PyLong_FromVoidPtr(data);
}

static PyObject *extents_give(const int64_t *numbers, int count, Py_ssize_t unit)
{
    PyObject *tuple = PyTuple_New(count);

    for (int i = 0; tuple && i < count; i++) {
        PyObject *number = PyLong_FromLongLong(numbers[i] / unit);

        if (!number || PyTuple_SetItem(tuple, i, number) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *memory_shape(PyObject *self, void *unused)
{
    MemoryObject *memory = (MemoryObject *)self;

    _Static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "Linux on 64 bits");
    if (memory->managed)
        return extents_give(memory->managed->tensor.shape, memory->managed->tensor.ndim, 1);
    return extents_give((const int64_t *)memory->view.shape, memory->view.ndim, 1);
}

static bool strides_are_whole(const Py_buffer *view)
{
    for (int i = 0; i < view->ndim; i++)
        if (view->strides[i] % view->itemsize)
            return false;
    return true;
}

/* In elements; None: contiguous; False: steps that no number of elements makes (a field of packed records). */
static PyObject *memory_strides(PyObject *self, void *unused)
{
    MemoryObject *memory = (MemoryObject *)self;

    if (memory->managed ? !memory->managed->tensor.strides : memory->view.ndim == 0 || memory->view.itemsize == 0)
        Py_RETURN_NONE;
    if (memory->managed)
        return extents_give(memory->managed->tensor.strides, memory->managed->tensor.ndim, 1);
    if (!strides_are_whole(&memory->view))
        Py_RETURN_FALSE;
    return extents_give((const int64_t *)memory->view.strides, memory->view.ndim, memory->view.itemsize);
}

/* (format, bytes of an element) of a buffer; (code, bits) of a DLPack tensor. */
static PyObject *memory_element(PyObject *self, void *unused)
{
    MemoryObject *memory = (MemoryObject *)self;

    if (memory->managed)
        return Py_BuildValue("ii", memory->managed->tensor.dtype.code, memory->managed->tensor.dtype.bits);
    return Py_BuildValue("sn", memory->view.format ? memory->view.format : "B", memory->view.itemsize);
}

static PyGetSetDef memory_attributes[] = {
    { "address", memory_address, NULL, "of the first element", NULL },
    { "shape", memory_shape, NULL, "extents in elements", NULL },
    { "strides", memory_strides, NULL, "in elements; None: contiguous; False: not a number of elements", NULL },
    { "element", memory_element, NULL, "(format, bytes) of a buffer, (code, bits) of a DLPack tensor", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyType_Slot memory_slots[] = {
    { Py_tp_new, memory_new }, { Py_tp_dealloc, memory_dealloc }, { Py_tp_getset, memory_attributes },
    { Py_tp_doc, "Memory(object, writable=False): where an object keeps its elements. Pinned while this lives." }, { 0, NULL },
};
static PyType_Spec memory_spec = { "tspool._tspool.Memory", sizeof(MemoryObject), 0, Py_TPFLAGS_DEFAULT, memory_slots };

PyTypeObject *memory_type_create(void) { return (PyTypeObject *)PyType_FromSpec(&memory_spec); }
