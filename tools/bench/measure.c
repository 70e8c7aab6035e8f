/* bench/measure.c - see measure.h. */
#include "measure.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define WINDOW_NS 500000000u

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;

    return clock_gettime(clock, &time) == 0 ? (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec : 0;
}

uint64_t own_cpu_ns(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }

uint64_t process_cpu_ns(pid_t pid)
{
    clockid_t clock;

    return pid > 0 && clock_getcpuclockid(pid, &clock) == 0 ? clock_ns(clock) : 0;
}

/* The bytes in a "Key:   N kB" line. */
static uint64_t kilobyte_line(const char *path, const char *key)
{
    size_t size = strlen(key);
    uint64_t value = 0;
    char line[256];
    FILE *file = fopen(path, "re");

    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, size) == 0 && line[size] == ':')
            value = strtoull(line + size + 1, NULL, 10) * 1024;
    if (file)
        fclose(file);
    return value;
}

uint64_t meminfo_bytes(const char *key) { return kilobyte_line("/proc/meminfo", key); }

uint64_t status_bytes(pid_t pid, const char *key)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    return pid > 0 ? kilobyte_line(path, key) : 0;
}

/* Page cache --------------------------------------------------------------------------------------------------------- */

static uint64_t resident_pages(void *memory, size_t size)
{
    size_t pages = (size + 4095) / 4096;
    unsigned char *present = malloc(pages);
    uint64_t count = 0;

    if (present && mincore(memory, size, present) == 0)
        for (size_t i = 0; i < pages; i++)
            count += present[i] & 1;
    free(present);
    return count;
}

static uint64_t file_cached_bytes(int fd)
{
    struct stat stat;
    uint64_t pages = 0;
    void *memory;

    if (fstat(fd, &stat) < 0 || !S_ISREG(stat.st_mode) || stat.st_size == 0)
        return 0;
    memory = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) {
        pages = resident_pages(memory, (size_t)stat.st_size);
        munmap(memory, (size_t)stat.st_size);
    }
    return pages * 4096;
}

static uint64_t each_file(const char *path, uint64_t (*look)(int fd))
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), file;
    struct stat stat;
    struct dirent *entry;
    uint64_t total = 0;
    DIR *directory;

    if (fd < 0)
        return 0;
    if (fstat(fd, &stat) < 0 || !S_ISDIR(stat.st_mode)) {
        total = look(fd);
        close(fd);
        return total;
    }
    directory = fdopendir(fd);
    while (directory && (entry = readdir(directory)))
        if ((file = openat(fd, entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)) >= 0) {
            total += look(file);
            close(file);
        }
    if (directory)
        closedir(directory);
    return total;
}

static uint64_t file_drop(int fd)
{
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return 0;
}

uint64_t cached_bytes(const char *path) { return each_file(path, file_cached_bytes); }
void cache_drop(const char *path) { each_file(path, file_drop); }

/* Usage and bandwidth ------------------------------------------------------------------------------------------------ */

static uint64_t timeval_ns(struct timeval time) { return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_usec * 1000; }

void usage_take(struct outcome *outcome)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    outcome->user_ns = timeval_ns(usage.ru_utime);
    outcome->system_ns = timeval_ns(usage.ru_stime);
    outcome->switches = (uint64_t)(usage.ru_nvcsw + usage.ru_nivcsw);
    outcome->major_faults = (uint64_t)usage.ru_majflt;
    outcome->minor_faults = (uint64_t)usage.ru_minflt;
}

void bandwidth_begin(struct bandwidth *bandwidth, uint64_t now)
{
    bandwidth->window_ns = now;
    bandwidth->window_bytes = bandwidth->window_ios = 0;
}

void bandwidth_add(struct bandwidth *bandwidth, uint64_t now, uint64_t bytes, uint64_t ios)
{
    uint64_t elapsed = now - bandwidth->window_ns;

    bandwidth->window_bytes += bytes;
    bandwidth->window_ios += ios;
    if (elapsed < WINDOW_NS)
        return;
    moments_add(&bandwidth->kib, (uint64_t)((double)bandwidth->window_bytes * 1e9 / 1024 / (double)elapsed));
    moments_add(&bandwidth->ios, (uint64_t)((double)bandwidth->window_ios * 1e9 / (double)elapsed));
    bandwidth_begin(bandwidth, now);
}
