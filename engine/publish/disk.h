/* publish/disk.h - what this room needs beside the verbs of io/calls.h: all waited for, results or -errno. For this room only. */
#ifndef PUBLISH_DISK_H
#define PUBLISH_DISK_H

#include <io/calls.h>

int disk_open_directory(struct io *io, int directory, const char *name);
void disk_close(struct io *io, int *handle); /* -1 is fine; becomes -1 */
int disk_rename(struct io *io, int directory, const char *name, int to_directory, const char *to_name, uint32_t flags);
int disk_link(struct io *io, int directory, const char *name, int to_directory);
/* Exactly `size` bytes: -EBADMSG when the file is shorter. */
int disk_read(struct io *io, int handle, uint64_t file_offset, void *to, uint64_t size);
int disk_write(struct io *io, int handle, const void *bytes, uint64_t size);
/* A regular file of at most `most` bytes; *bytes is malloc'ed. -EFBIG beyond, -EBADMSG for what is no regular file. */
int disk_load_file(struct io *io, int directory, const char *name, uint64_t most, void **bytes, uint64_t *size);

#endif
