/* bench/workspace.h - where the benchmark may write: into directories that it made, and nowhere else without consent.
 *
 * All of it is removed at the end, however the run ends; only what was there before stays.
 */
#ifndef BENCH_WORKSPACE_H
#define BENCH_WORKSPACE_H

#include "job.h"

/* Makes "DIRECTORY/tspool-bench-XXXXXX" (NULL: the current one) and notes it for removal. `path` holds 4096 bytes. */
int workspace_make(const char *directory, char *path, struct complaint *complaint);
/* Notes a file that a job is about to make under a name of the user's, who must not have one there yet. */
int workspace_claim(const char *path, struct complaint *complaint);
/* Removes a directory and what is in it. */
void directory_remove(const char *path);
/* Whether this run made it. */
bool workspace_owns(const char *path);
/* Removes everything that was noted, unless `keep`. Only the process that made it does anything. */
void workspace_clean(bool keep);

/* Whether `bytes` more fit into the file system of `path`, with some air. */
int space_check(const char *path, uint64_t bytes, struct complaint *complaint);
/* A block device may be written only if the job spells its path out in destroy_data_on=, and one that is mounted, or in use, only
 * after "mounted:". 0 also for what is no device. */
int device_consent(const struct job *job, const char *path, struct complaint *complaint);

#endif
