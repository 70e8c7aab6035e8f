/* proc/channel.c - where the writer's program is, and the socket pair that leads to it. */
#include <proc/proc.h>

#include <base/failure.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WRITER_NAME "tspool-writer"

int channel_create(int ends[2], struct tspool_failure *failure)
{
    int made[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, made) < 0)
        return failure_set(failure, TSPOOL_STAGE_WRITER, errno, FAILURE_AT(.operation = "socketpair"), NULL);
    memcpy(ends, made, sizeof made);
    return 0;
}

/* The directory of the file that holds this very code: the shared library, or a program with the engine linked in. */
static bool own_directory(char directory[PATH_MAX])
{
    Dl_info self;
    char *slash;

    if (!dladdr((void *)(uintptr_t)own_directory, &self) || !self.dli_fname || !realpath(self.dli_fname, directory))
        return false;
    slash = strrchr(directory, '/');
    if (!slash)
        return false;
    *slash = '\0';
    return true;
}

/* True when directory/below is executable; *out is then its absolute path, which outlives a chdir of the application. */
static bool candidate(const char *directory, const char *below, char *out)
{
    char path[2 * PATH_MAX], resolved[PATH_MAX];

    snprintf(path, sizeof path, "%s%s", directory, below);
    if (!realpath(path, resolved) || access(resolved, X_OK) < 0)
        return false;
    strcpy(out, resolved);
    return true;
}

int writer_path_find(const char *given, char *out, struct tspool_failure *failure)
{
    /* lib/ or bin/, a Debian multiarch directory below lib/, a Python package that carries both */
    static const char *const beside[] = { "/../libexec/tspool/" WRITER_NAME, "/../../libexec/tspool/" WRITER_NAME,
                                          "/" WRITER_NAME };
    char directory[PATH_MAX];

    if (given) {
        if (candidate("", given, out))
            return 0;
        return failure_set(failure, TSPOOL_STAGE_WRITER, errno, FAILURE_AT(.operation = "exec", .path = given),
                           "writer_path names no executable file");
    }
    if (candidate(TSPOOL_LIBEXECDIR, "/" WRITER_NAME, out))
        return 0;
    if (own_directory(directory))
        for (size_t i = 0; i < sizeof beside / sizeof beside[0]; i++)
            if (candidate(directory, beside[i], out))
                return 0;
    return failure_set(failure, TSPOOL_STAGE_WRITER, ENOENT,
                       FAILURE_AT(.operation = "exec", .path = TSPOOL_LIBEXECDIR "/" WRITER_NAME),
                       "the writer program is not installed there nor next to the library: run `meson install`, or name it in "
                       "writer_path");
}
