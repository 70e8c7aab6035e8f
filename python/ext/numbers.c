/* numbers.c - shapes, strides and offsets between Python's sequences and C's arrays. */
#include "binding.h"

#include <stdlib.h>

static int number_take(PyObject *sequence, Py_ssize_t index, uint64_t *number)
{
    PyObject *item = PySequence_GetItem(sequence, index);
    long long value = item ? PyLong_AsLongLong(item) : -1;

    Py_XDECREF(item);
    if (value == -1 && PyErr_Occurred())
        return -1;
    *number = (uint64_t)value; /* a negative stride is the library's to refuse */
    return 0;
}

int numbers_take(PyObject *sequence, uint64_t **numbers, Py_ssize_t *count)
{
    uint64_t *made;
    Py_ssize_t size;

    *numbers = NULL;
    *count = 0;
    if (!sequence || sequence == Py_None)
        return 0;
    size = PySequence_Size(sequence);
    if (size < 0)
        return -1;
    made = malloc(((size_t)size + 1) * sizeof *made);
    if (!made) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < size; i++)
        if (number_take(sequence, i, &made[i]) < 0) {
            free(made);
            return -1;
        }
    *numbers = made;
    *count = size;
    return 0;
}

PyObject *numbers_give(const uint64_t *numbers, uint32_t count)
{
    PyObject *tuple;

    if (!numbers && count)
        Py_RETURN_NONE;
    tuple = PyTuple_New(count);
    for (uint32_t i = 0; tuple && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[i]);

        if (!number || PyTuple_SetItem(tuple, i, number) < 0) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}
