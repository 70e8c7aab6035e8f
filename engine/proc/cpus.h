/* proc/cpus.h - which CPUs the library's threads and the writer may run on. */
#ifndef PROC_CPUS_H
#define PROC_CPUS_H

#include <sched.h>
#include <stddef.h>

#define CPUS_MAX 8192 /* the most that Linux is built for; cpu_set_t alone ends at 1024 */

struct cpus { unsigned long bits[CPUS_MAX / (8 * sizeof(unsigned long))]; };

/* What this process was given, less `excluded` ("0-3,8"; NULL: none). "Given" is the union over its threads: a thread that
 * OMP_PROC_BIND tied to one core must not tie our threads to the very core it computes on, and a process that taskset or
 * numactl confined stays confined. 0; -EINVAL for a bad list, or one that leaves no CPU. */
int cpus_allowed(const char *excluded, struct cpus *cpus);

#endif
