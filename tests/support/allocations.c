/* support/allocations.c - preloaded into a program: its FAIL_ALLOCATIONth allocation fails, all others succeed.
 *
 * At the program's end FAIL_REPORT (a path) gets the number of allocations that it made: less than FAIL_ALLOCATION means
 * that none failed. strdup, open_memstream and their like allocate through these, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t align, size_t size);

static unsigned long made, failing;
static const char *report;

static __attribute__((constructor)) void begin(void)
{
    const char *number = getenv("FAIL_ALLOCATION");

    report = getenv("FAIL_REPORT");
    failing = number ? strtoul(number, NULL, 10) : 0;
}

static __attribute__((destructor)) void end(void)
{
    char text[32];
    int size = snprintf(text, sizeof(text), "%lu\n", made), fd = report ? open(report, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;

    if (fd < 0 || write(fd, text, (size_t)size) != size)
        return; /* a test that finds no report complains */
    close(fd);
}

static bool fails(void)
{
    if (failing == 0 || __atomic_add_fetch(&made, 1, __ATOMIC_RELAXED) != failing)
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) { return fails() ? NULL : __libc_calloc(count, size); }

void *realloc(void *old, size_t size) { return fails() ? NULL : __libc_realloc(old, size); }

void *memalign(size_t align, size_t size) { return fails() ? NULL : __libc_memalign(align, size); }

void *aligned_alloc(size_t align, size_t size) { return fails() ? NULL : __libc_memalign(align, size); }

int posix_memalign(void **memory, size_t align, size_t size)
{
    void *got = fails() ? NULL : __libc_memalign(align, size);

    if (!got)
        return ENOMEM;
    *memory = got;
    return 0;
}
