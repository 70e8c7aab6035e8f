/* io/stat.h - what OP_STAT reports: size and identity, the alignment that O_DIRECT needs, the file system and its space. */
#ifndef IO_STAT_H
#define IO_STAT_H

#include <io/io.h>

/* 0 or -errno; *stat changes only on success. A symlink is described, not followed. */
int stat_handle(int handle, struct io_stat *stat);
int stat_name(int directory, const char *name, struct io_stat *stat);

#endif
