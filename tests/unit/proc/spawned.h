/* Spawning tests/support/child_reporter.c and talking to it. */
#ifndef TESTS_UNIT_PROC_SPAWNED_H
#define TESTS_UNIT_PROC_SPAWNED_H

#include <proc/proc.h>

#define REPORT_MAX 16384

struct spawned { struct child child; int channel; char report[REPORT_MAX]; };

void reporter_path(char *path);                                /* PATH_MAX bytes */
void spawned_start(struct spawned *spawned, const char *excluded_cpus); /* and receives the first report */
void spawned_tell(struct spawned *spawned, const char *command);
void spawned_listen(struct spawned *spawned);                  /* receives a report */
void child_await_death(const struct child *child);             /* through the pidfd; at most 10 s */
void spawned_end(struct spawned *spawned);                     /* kills and releases */
/* The line of the report that starts with `key`; static. */
const char *report_line(const struct spawned *spawned, const char *key);

#endif
