/* support/scarce.c - see scarce.h: each function of the C library that allocates, behind a counter. */
#include "scarce.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
int __real_posix_memalign(void **memory, size_t align, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t size);
int vasprintf(char **text, const char *format, va_list arguments);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
int __wrap_posix_memalign(void **memory, size_t align, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t size);
int __wrap_asprintf(char **text, const char *format, ...) __attribute__((format(printf, 2, 3)));

static _Thread_local unsigned left; /* allocations until the one that fails, itself counted; 0: plenty */
static _Thread_local bool reached, paused;

void scarce_begin(unsigned number)
{
    left = number;
    reached = paused = false;
}

void scarce_pause(void) { paused = true; }
void scarce_resume(void) { paused = false; }

bool scarce_end(void)
{
    left = 0;
    return reached;
}

static bool fails(void)
{
    if (left == 0 || paused || --left > 0)
        return false;
    reached = true;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return fails() ? NULL : __real_calloc(count, size); }
void *__wrap_realloc(void *memory, size_t size) { return fails() ? NULL : __real_realloc(memory, size); }
void *__wrap_aligned_alloc(size_t align, size_t size) { return fails() ? NULL : __real_aligned_alloc(align, size); }
int __wrap_posix_memalign(void **memory, size_t align, size_t size)
{
    return fails() ? ENOMEM : __real_posix_memalign(memory, align, size);
}
char *__wrap_strdup(const char *text) { return fails() ? NULL : __real_strdup(text); }
char *__wrap_strndup(const char *text, size_t size) { return fails() ? NULL : __real_strndup(text, size); }

int __wrap_asprintf(char **text, const char *format, ...)
{
    va_list arguments;
    int length;

    if (fails())
        return -1;
    va_start(arguments, format);
    length = vasprintf(text, format, arguments);
    va_end(arguments);
    return length;
}
