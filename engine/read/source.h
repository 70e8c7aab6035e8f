/* read/source.h - one file of a checkpoint as its reader holds it: opened once, never trusted, never followed. */
#ifndef READ_SOURCE_H
#define READ_SOURCE_H

#include <io/calls.h>
#include <io/io.h>
#include <stdbool.h>
#include <stdint.h>

struct source {
    char *name;                          /* relative to the checkpoint */
    char *path;                          /* as shown to people: the checkpoint's path as given, and the name */
    int handle;                          /* -1: not open */
    uint64_t size;
    bool direct;                         /* reads go past the page cache, by the file system's own word */
    uint32_t offset_align, memory_align; /* of reads; powers of two; 1 when buffered */
};

/* Opens `name` in `directory`: regular files only (a pipe would block, a device is no checkpoint), O_DIRECT where the
 * file system takes it. On failure *source holds only its names; source_close is right in any case. */
int source_open(struct io *io, int directory, const char *name, const char *path, bool buffered, struct source *source,
                struct tspool_failure *failure);
/* 0 when it has the size that the manifest lists, else -EBADMSG with the place from which on they differ. */
int source_check_size(const struct source *source, uint64_t listed, struct tspool_failure *failure);
void source_close(struct io *io, struct source *source); /* io NULL: handles are descriptors and are closed as such */

/* Reads [file_offset, file_offset + size) to memory of any alignment, one request after the other: for headers, texts
 * and objects. -EBADMSG when the file ends before. */
int source_read(struct io *io, const struct source *source, uint64_t file_offset, void *to, uint64_t size,
                struct tspool_failure *failure);
/* The same into fresh memory, which the file's size bounds; *bytes has one NUL more than asked for. */
int source_load(struct io *io, const struct source *source, uint64_t file_offset, uint64_t size, void **bytes,
                struct tspool_failure *failure);

/* "<directory>/<name>", malloc'ed; NULL: no memory. */
char *path_join(const char *directory, const char *name);

#endif
