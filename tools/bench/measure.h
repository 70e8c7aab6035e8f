/* bench/measure.h - what the kernel tells of a process and its files: CPU, memory, page cache. */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include "outcome.h"

uint64_t own_cpu_ns(void);
uint64_t process_cpu_ns(pid_t pid);              /* of another; 0: gone */
uint64_t status_bytes(pid_t pid, const char *key); /* "VmHWM", "RssAnon" of /proc/PID/status; 0: gone */
uint64_t meminfo_bytes(const char *key);         /* "MemAvailable" */
/* How much of a file, or of all files in a directory, is in the page cache. */
uint64_t cached_bytes(const char *path);
/* Asks the kernel to forget what of it is clean. */
void cache_drop(const char *path);
/* User, system, switches and faults of this process since it began. */
void usage_take(struct outcome *outcome);
/* Samples of bandwidth: call it as often as you like. */
void bandwidth_begin(struct bandwidth *bandwidth, uint64_t now);
void bandwidth_add(struct bandwidth *bandwidth, uint64_t now, uint64_t bytes, uint64_t ios);

#endif
