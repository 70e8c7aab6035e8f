/* publish/disk.h - one verb each, waited for: publishing has nothing to do beside. All return a result or -errno. For this
 * room only. */
#ifndef PUBLISH_DISK_H
#define PUBLISH_DISK_H

#include <io/io.h>

int disk_open(struct io *io, int directory, const char *name, uint32_t flags);
int disk_open_directory(struct io *io, int directory, const char *name);
void disk_close(struct io *io, int *handle); /* -1 is fine; becomes -1 */
int disk_stat(struct io *io, int handle, const char *name, struct io_stat *stat);
int disk_list(struct io *io, int directory, struct io_list *list);
int disk_rename(struct io *io, int directory, const char *name, int to_directory, const char *to_name, uint32_t flags);
int disk_link(struct io *io, int directory, const char *name, int to_directory);
int disk_unlink(struct io *io, int directory, const char *name, uint32_t flags);
int disk_sync(struct io *io, int handle);
int disk_lock(struct io *io, int handle);
void disk_pause(struct io *io, uint64_t duration_ns);
/* Exactly `size` bytes: -EBADMSG when the file is shorter. */
int disk_read(struct io *io, int handle, uint64_t file_offset, void *to, uint64_t size);
int disk_write(struct io *io, int handle, const void *bytes, uint64_t size);
/* A regular file of at most `most` bytes; *bytes is malloc'ed. -EFBIG beyond, -EBADMSG for what is no regular file. */
int disk_load(struct io *io, int directory, const char *name, uint64_t most, void **bytes, uint64_t *size);

#endif
