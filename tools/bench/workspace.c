/* bench/workspace.c - see workspace.h. */
#include "workspace.h"

#include "../commands/command.h"

#include <base/array.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static char **noted;
static size_t noted_count, noted_capacity;
static pid_t noted_by;

static int note(const char *path, struct complaint *complaint)
{
    char *kept = array_reserve((void **)&noted, &noted_capacity, noted_count + 1, sizeof *noted) < 0 ? NULL : strdup(path);

    if (!kept)
        return complaint_set(complaint, "out of memory");
    noted[noted_count++] = kept;
    noted_by = getpid();
    return 0;
}

int workspace_make(const char *directory, char *path, struct complaint *complaint)
{
    char absolute[4096];

    if (!realpath(directory ? directory : ".", absolute))
        return complaint_set(complaint, "directory %.200s: %s%s", directory ? directory : ".", strerror(errno),
                             errno == ENOENT ? "; make it first" : "");
    if (snprintf(path, 4096, "%s/tspool-bench-XXXXXX", absolute) >= 4096)
        return complaint_set(complaint, "directory %.200s: %s", directory, strerror(ENAMETOOLONG));
    if (!mkdtemp(path))
        return complaint_set(complaint, "directory %.300s: nothing can be made in it: %s", absolute, strerror(errno));
    if (note(path, complaint) < 0) {
        rmdir(path);
        return -1;
    }
    return 0;
}

bool workspace_owns(const char *path)
{
    for (size_t i = 0; i < noted_count; i++) {
        size_t size = strlen(noted[i]);

        if (strncmp(path, noted[i], size) == 0 && (path[size] == '\0' || path[size] == '/'))
            return true;
    }
    return false;
}

int workspace_claim(const char *path, struct complaint *complaint)
{
    struct stat stat;
    int fd;

    if (workspace_owns(path) || (lstat(path, &stat) == 0 && S_ISBLK(stat.st_mode))) /* of a device device_consent decides */
        return 0;
    if (lstat(path, &stat) == 0 && S_ISREG(stat.st_mode))
        return complaint_set(complaint, "%.300s is there already, and tspool bench writes only into files that it made: name "
                             "another, or remove it", path);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return complaint_set(complaint, "%.300s: %s", path, strerror(errno));
    close(fd);
    return note(path, complaint);
}

static int removed(const char *path, const struct stat *stat, int kind, struct FTW *at)
{
    if (remove(path) < 0)
        complain("bench", "%s could not be removed: %s", path, strerror(errno));
    return 0;
}

void directory_remove(const char *path) { nftw(path, removed, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT); }

void workspace_clean(bool keep)
{
    if (noted_by != getpid())
        return;
    for (size_t i = noted_count; i-- > 0;) {
        if (!keep)
            directory_remove(noted[i]);
        free(noted[i]);
    }
    free(noted);
    noted = NULL;
    noted_count = noted_capacity = 0;
}

int space_check(const char *path, uint64_t bytes, struct complaint *complaint)
{
    uint64_t wanted = bytes + bytes / 50 + (1 << 20), there;
    struct statvfs stat;

    if (statvfs(path, &stat) < 0)
        return complaint_set(complaint, "%.300s: %s", path, strerror(errno));
    there = (uint64_t)stat.f_bavail * stat.f_frsize;
    if (there < wanted)
        return complaint_set(complaint, "%.300s: %s are needed and %s are free: free some, or give a smaller size=, shape= or "
                             "scale=",
                             path, human_bytes(wanted).bytes, human_bytes(there).bytes);
    return 0;
}

/* Devices ------------------------------------------------------------------------------------------------------------ */

/* Mounted, or held by a volume manager, a swap area or anybody else: then O_EXCL is refused. A mounted partition makes its disk
 * refuse too. */
static bool device_is_used(const char *path)
{
    int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd < 0 && errno == EBUSY;
}

int device_consent(const struct job *job, const char *path, struct complaint *complaint)
{
    const char *consent = job->destroy_data_on ? job->destroy_data_on : "";
    bool used;
    struct stat stat;

    if (lstat(path, &stat) == 0 && S_ISLNK(stat.st_mode))
        return complaint_set(complaint, "%.300s is a symbolic link: name what it points to", path);
    if (lstat(path, &stat) < 0 || S_ISREG(stat.st_mode))
        return 0;
    if (!S_ISBLK(stat.st_mode))
        return complaint_set(complaint, "%.300s is neither a file nor a block device", path);
    used = device_is_used(path);
    if (used && (strncmp(consent, "mounted:", 8) != 0 || strcmp(consent + 8, path) != 0))
        return complaint_set(complaint, "%.200s is a block device that is mounted or in use: writing to it destroys what is "
                             "on it. "
                             "Unmount it; or, if you mean it, give destroy_data_on=mounted:%.200s", path, path);
    if (!used && strcmp(consent, path) != 0)
        return complaint_set(complaint, "%.200s is a block device: writing to it destroys what is on it. If you mean it, give "
                             "destroy_data_on=%.200s", path, path);
    return 0;
}
