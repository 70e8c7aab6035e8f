/* io/calls.h - verbs with a waiting call each, for callers with nothing else in flight: results as the op's, or -errno. */
#ifndef IO_CALLS_H
#define IO_CALLS_H

#include <io/io.h>

int file_stat(struct io *io, int directory, const char *name, struct io_stat *stat);
int file_open(struct io *io, int directory, const char *name, uint32_t flags);
void file_close(struct io *io, int handle); /* -1 is fine; io NULL: handles are descriptors and are closed as such */
int directory_list(struct io *io, int directory, struct io_list *list);
int file_fsync(struct io *io, int handle);
int file_truncate(struct io *io, int handle, uint64_t size);
int file_unlink(struct io *io, int directory, const char *name, uint32_t flags);
int file_lock(struct io *io, int handle, uint32_t flags);
/* Inside one directory. */
int file_rename(struct io *io, int directory, const char *name, const char *to_name, enum rename_flags flags);
void pause_for(struct io *io, uint64_t duration_ns);

#endif
