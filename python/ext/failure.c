/* failure.c - failure records as exceptions. Which class a record becomes is decided in tspool/_errors.py. */
#include "binding.h"

#include <errno.h>
#include <string.h>

static PyObject *offset_give(uint64_t file_offset)
{
    if (file_offset == TSPOOL_NO_OFFSET)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(file_offset);
}

/* Records hold UTF-8 where they hold names, and whatever the file system has where they hold paths. */
static PyObject *text_give(const char *text) { return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace"); }

static PyObject *exception_make(const char *kind, int error, const struct tspool_failure *failure)
{
    PyObject *errors = PyImport_ImportModule("tspool._errors"), *made = NULL;

    if (errors)
        made = PyObject_CallMethod(errors, "of_record", "siNNNNNNN", kind, -error, text_give(tspool_stage_name(failure->stage)),
                                   text_give(failure->operation), text_give(failure->tensor), text_give(failure->path),
                                   offset_give(failure->file_offset), text_give(failure->cause), text_give(failure->message));
    Py_XDECREF(errors);
    return made;
}

PyObject *failure_raise(const char *kind, int error, const struct tspool_failure *failure)
{
    struct tspool_failure none = TSPOOL_FAILURE_INIT;
    PyObject *exception;

    if (error == -ENOMEM && (!failure || !failure->message[0]))
        return PyErr_NoMemory();
    exception = exception_make(kind, error, failure ? failure : &none);
    if (exception)
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    return NULL;
}
