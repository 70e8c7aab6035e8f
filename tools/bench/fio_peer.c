/* bench/fio_peer.c - see fio_peer.h.
 *
 * Tuned: what the device gives to a job that does nothing but this (large blocks, O_DIRECT, io_uring with registered buffers and
 * files, one request a call, blocks preallocated). Default: what fio does when one only says how much. Both with end_fsync.
 */
#include "fio_peer.h"

#include <errno.h>
#include <fcntl.h>
#include <format/scan.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

#define REPORT_BYTES_MAX ((size_t)4 << 20)
#define ARGUMENTS_MAX 24u

/* The report ----------------------------------------------------------------------------------------------------------- */

struct found { bool reads, has_job; uint64_t milliseconds, bytes; };

static int direction_take(struct scan *scan, void *to)
{
    static const struct scan_member members[] = {
        { "runtime", scan_take_u64, true, offsetof(struct found, milliseconds) },
        { "io_bytes", scan_take_u64, true, offsetof(struct found, bytes) },
    };

    return scan_object(scan, members, 2, to);
}

static int job_member_take(struct scan *scan, struct scan_token key, void *context)
{
    struct found *found = context;

    return scan_token_is(key, found->reads ? "read" : "write") ? direction_take(scan, found) : scan_skip(scan);
}

static int job_take(struct scan *scan, void *context)
{
    struct found *found = context;

    if (found->has_job)
        return scan_skip(scan);
    found->has_job = true;
    return scan_map(scan, job_member_take, found);
}

static int report_member_take(struct scan *scan, struct scan_token key, void *context)
{
    return scan_token_is(key, "jobs") ? scan_array(scan, job_take, context) : scan_skip(scan);
}

int fio_report_parse(const char *text, size_t size, bool reads, uint64_t *milliseconds, uint64_t *bytes)
{
    const char *brace = memchr(text, '{', size); /* notes may stand before it */
    struct found found = { .reads = reads };
    struct pool pool = { 0 };
    struct scan scan;
    int error = brace ? scan_init(&scan, brace, size - (size_t)(brace - text), &pool) : -EBADMSG;

    if (error == 0)
        error = scan_map(&scan, report_member_take, &found);
    pool_deinit(&pool);
    if (error < 0 || !found.has_job)
        return -1;
    *milliseconds = found.milliseconds;
    *bytes = found.bytes;
    return 0;
}

/* Running it ----------------------------------------------------------------------------------------------------------- */

struct arguments { char *list[ARGUMENTS_MAX + 1]; unsigned count; char texts[ARGUMENTS_MAX][4200]; };

static void argument_add(struct arguments *arguments, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void argument_add(struct arguments *arguments, const char *format, ...)
{
    va_list values;

    if (arguments->count == ARGUMENTS_MAX)
        return;
    va_start(values, format);
    vsnprintf(arguments->texts[arguments->count], sizeof arguments->texts[0], format, values);
    va_end(values);
    arguments->list[arguments->count] = arguments->texts[arguments->count];
    arguments->count++;
}

static void arguments_make(struct arguments *arguments, const struct job *job, enum fio_kind kind, const char *path,
                           uint64_t bytes)
{
    uint64_t block = job->bs ? job->bs : (uint64_t)512 << 10;
    bool reads = job_is_reading(job);

    bytes = bytes < 4096 ? 4096 : bytes / 4096 * 4096;
    block = block < bytes ? block : bytes; /* fio refuses less than one block */
    argument_add(arguments, "fio");
    argument_add(arguments, "--name=fio");
    argument_add(arguments, "--rw=%s", reads ? "read" : "write");
    argument_add(arguments, "--size=%" PRIu64, bytes);
    argument_add(arguments, job->numjobs > 1 ? "--directory=%s" : "--filename=%s", path);
    argument_add(arguments, "--numjobs=%" PRIu64, job->numjobs);
    argument_add(arguments, "--group_reporting=1");
    argument_add(arguments, "--output-format=json");
    if (!reads)
        argument_add(arguments, "--end_fsync=1");
    if (kind == FIO_DEFAULT)
        return;
    argument_add(arguments, "--bs=%" PRIu64, block);
    argument_add(arguments, "--iodepth=%" PRIu64, job->iodepth ? job->iodepth : reads ? 32 : 16);
    argument_add(arguments, "--direct=%d", job->is_direct);
    argument_add(arguments, "--ioengine=io_uring");
    argument_add(arguments, "--fixedbufs=1");
    argument_add(arguments, "--registerfiles=1");
    argument_add(arguments, "--iodepth_batch=1");
    argument_add(arguments, "--fallocate=native");
}

static int fio_spawn(struct arguments *arguments, int output, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);

    if (error == 0)
        error = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    if (error == 0)
        error = posix_spawnp(pid, "fio", &actions, NULL, arguments->list, environ);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

static size_t pipe_read(int fd, char *text)
{
    size_t size = 0;
    ssize_t one;

    while (size < REPORT_BYTES_MAX && (one = TEMP_FAILURE_RETRY(read(fd, text + size, REPORT_BYTES_MAX - size))) > 0)
        size += (size_t)one;
    return size;
}

static int fio_run(struct arguments *arguments, char *text, size_t *size, struct complaint *complaint)
{
    int ends[2], status = 0, error;
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return complaint_set(complaint, "fio: %s", strerror(errno));
    error = fio_spawn(arguments, ends[1], &pid);
    close(ends[1]);
    if (error == 0) {
        *size = pipe_read(ends[0], text);
        TEMP_FAILURE_RETRY(waitpid(pid, &status, 0));
    }
    close(ends[0]);
    if (error == ENOENT)
        return complaint_set(complaint, "fio is not on the PATH: install it (apt-get install fio), or leave it out of --compare");
    if (error)
        return complaint_set(complaint, "fio: %s", strerror(error));
    return status ? complaint_set(complaint, "fio failed with status %d; what it said stands above", WEXITSTATUS(status)) : 0;
}

int fio_measure(const struct job *job, enum fio_kind kind, const char *path, uint64_t bytes, double *seconds, uint64_t *moved,
                struct complaint *complaint)
{
    struct arguments *arguments = calloc(1, sizeof *arguments);
    char *text = malloc(REPORT_BYTES_MAX);
    uint64_t milliseconds = 0;
    size_t size = 0;
    int status;

    if (!arguments || !text) {
        status = complaint_set(complaint, "out of memory");
    } else {
        arguments_make(arguments, job, kind, path, bytes);
        status = fio_run(arguments, text, &size, complaint);
    }
    if (status == 0 && fio_report_parse(text, size, job_is_reading(job), &milliseconds, moved) < 0)
        status = complaint_set(complaint, "fio's report was not understood");
    if (status == 0)
        *seconds = milliseconds ? (double)milliseconds / 1e3 : 0.0005; /* it counts whole milliseconds */
    free(text);
    free(arguments);
    return status;
}
