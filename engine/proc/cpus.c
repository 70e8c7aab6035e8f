/* proc/cpus.c - lists of CPUs, parsed and subtracted. */
#include <proc/cpus.h>

#include <dirent.h>
#include <errno.h>
#include <proc/proc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WORD_BITS (8 * sizeof(unsigned long))

/* The raw call: glibc's wrapper takes a cpu_set_t, and the kernel refuses one that is shorter than its own. */
static void thread_cpus_add(pid_t tid, struct cpus *cpus)
{
    struct cpus own = { { 0 } };
    long bytes = syscall(SYS_sched_getaffinity, tid, sizeof own, &own);

    for (size_t i = 0; bytes > 0 && i < sizeof own.bits / sizeof own.bits[0]; i++)
        cpus->bits[i] |= own.bits[i];
}

static void process_cpus(struct cpus *cpus)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;

    memset(cpus, 0, sizeof *cpus);
    thread_cpus_add(0, cpus);
    while (tasks && (task = readdir(tasks)))
        if (task->d_name[0] != '.')
            thread_cpus_add((pid_t)atol(task->d_name), cpus);
    if (tasks)
        closedir(tasks);
}

/* A number below CPUS_MAX at *text, which moves past it; or -1. */
static long cpu_number(const char **text)
{
    long number = 0;

    if (**text < '0' || **text > '9')
        return -1;
    for (; **text >= '0' && **text <= '9'; ++*text) {
        number = 10 * number + (**text - '0');
        if (number >= CPUS_MAX)
            return -1;
    }
    return number;
}

/* "0-3,8": takes each out of *cpus. */
static int cpus_exclude(const char *list, struct cpus *cpus)
{
    for (;;) {
        long first = cpu_number(&list), last = first;

        if (first >= 0 && *list == '-') {
            list++;
            last = cpu_number(&list);
        }
        if (first < 0 || last < first || (*list != '\0' && *list != ','))
            return -EINVAL;
        for (long cpu = first; cpu <= last; cpu++)
            cpus->bits[(size_t)cpu / WORD_BITS] &= ~(1ul << ((size_t)cpu % WORD_BITS));
        if (*list++ == '\0')
            return 0;
    }
}

int cpu_list_check(const char *list)
{
    struct cpus ignored = { { 0 } };

    return list ? cpus_exclude(list, &ignored) : 0;
}

int cpus_allowed(const char *excluded, struct cpus *cpus)
{
    struct cpus found;
    unsigned long any = 0;
    int error;

    process_cpus(&found);
    error = excluded ? cpus_exclude(excluded, &found) : 0;
    for (size_t i = 0; i < sizeof found.bits / sizeof found.bits[0]; i++)
        any |= found.bits[i];
    if (error == 0 && !any)
        error = -EINVAL;
    if (error == 0)
        *cpus = found;
    return error;
}

unsigned cpu_count(const char *excluded_cpus)
{
    struct cpus allowed;
    unsigned count = 0;

    if (cpus_allowed(excluded_cpus, &allowed) < 0)
        return 1;
    for (size_t i = 0; i < sizeof allowed.bits / sizeof allowed.bits[0]; i++)
        count += (unsigned)__builtin_popcountl(allowed.bits[i]);
    return count ? count : 1;
}
