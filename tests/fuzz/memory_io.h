/* fuzz/memory_io.h - the io of a reader whose only directory is in memory: a few files, no time, no threads, no faults.
 *
 * Every op ends at its submit; wait() hands it back. What a reader may never do ends the run: a handle that is not open, a
 * direct read that is not aligned, a handle left open when the io goes.
 */
#ifndef FUZZ_MEMORY_IO_H
#define FUZZ_MEMORY_IO_H

#include <io/io.h>

#define MEMORY_FILES_MAX 8u
#define MEMORY_DIRECTORY "c" /* its path */

struct memory_file { const char *name; uint8_t *bytes; size_t size; };

struct memory_io {
    struct io io;
    struct memory_file files[MEMORY_FILES_MAX]; /* the caller's */
    unsigned file_count;
    uint32_t direct_align;                      /* 0: O_DIRECT is refused */
    int open[1 + 2 * MEMORY_FILES_MAX];         /* by handle: how often */
    struct op *done_first, *done_last;
};

void memory_io_init(struct memory_io *memory);
struct memory_file *memory_io_find(struct memory_io *memory, const char *name);
/* Ends the run when a handle is open or a completion was not fetched. */
void memory_io_deinit(struct memory_io *memory);

#endif
