/* commands/remover.c - see remover.h. Uses the base room for names and the format room for the manifest's list. */
#include "remover.h"

#include <base/names.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <format/manifest.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* "model-00001-of-00004.safetensors", "objects-00001.bin", ...: with or without ".partial". */
static bool is_our_name(const char *name)
{
    static const char *const patterns[] = { "model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors",
                                            "shard-[0-9]*-model-[0-9]*-of-[0-9]*.safetensors", "objects-[0-9]*.bin", INDEX_NAME,
                                            "tspool.*" };
    char *stem = strdup(name), *suffix;
    bool ours = false;

    if (!stem)
        return false;
    suffix = strlen(stem) > strlen(PARTIAL_SUFFIX) ? stem + strlen(stem) - strlen(PARTIAL_SUFFIX) : NULL;
    if (suffix && strcmp(suffix, PARTIAL_SUFFIX) == 0)
        *suffix = '\0';
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns && !ours; i++)
        ours = fnmatch(patterns[i], stem, 0) == 0;
    free(stem);
    return ours;
}

static char *manifest_read(int directory, size_t *size)
{
    int fd = openat(directory, MANIFEST_NAME, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat stat;
    char *json = NULL;

    if (fd < 0)
        return NULL;
    if (fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode) && stat.st_size <= (off_t)MANIFEST_MAX_BYTES)
        json = malloc((size_t)stat.st_size + 1);
    if (json && read(fd, json, (size_t)stat.st_size) != stat.st_size) {
        free(json);
        json = NULL;
    }
    *size = json ? (size_t)stat.st_size : 0;
    close(fd);
    return json;
}

/* Zero when there is no manifest that can be read: then names alone decide. */
static struct manifest manifest_get(int directory)
{
    struct manifest manifest = { 0 };
    const char *reason;
    size_t size = 0;
    char *json = manifest_read(directory, &size);

    if (!json || manifest_parse(json, size, &manifest, &reason) < 0)
        manifest = (struct manifest){ 0 };
    free(json);
    return manifest;
}

static bool is_listed(const struct manifest *manifest, const char *name)
{
    for (size_t i = 0; i < manifest->file_count; i++)
        if (strcmp(manifest->files[i].name, name) == 0)
            return true;
    for (size_t i = 0; i < manifest->digests_count; i++)
        if (strcmp(manifest->digests[i].name, name) == 0)
            return true;
    return strcmp(name, MANIFEST_NAME) == 0;
}

/* With a manifest, only what it lists is ours under a published name; a hidden directory is ours as a whole, but for
 * what has no second name. */
static bool is_ours(const struct removal *removal, const struct manifest *manifest, const char *name, const struct stat *stat)
{
    bool hidden = removal->name[0] == '.';

    if (!S_ISREG(stat->st_mode))
        return false;
    return is_listed(manifest, name) || (hidden && (is_our_name(name) || stat->st_nlink > 1));
}

static int file_add(struct removal *removal, const char *name, const struct stat *stat)
{
    char **grown = realloc(removal->files, (removal->count + 1) * sizeof *grown);
    char *copy = strdup(name);

    if (grown)
        removal->files = grown;
    if (!grown || !copy) {
        free(copy);
        return -ENOMEM;
    }
    grown[removal->count++] = copy;
    if (strcmp(name, MANIFEST_NAME) == 0) { /* first to go: without it nothing here is a checkpoint any more */
        grown[removal->count - 1] = grown[0];
        grown[0] = copy;
    }
    removal->bytes += stat->st_nlink == 1 ? (uint64_t)stat->st_size : 0;
    return 0;
}

static int entry_look(struct removal *removal, const struct manifest *manifest, const char *name)
{
    struct stat stat;

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return 0;
    if (fstatat(removal->directory, name, &stat, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (is_ours(removal, manifest, name, &stat))
        return file_add(removal, name, &stat);
    if (!removal->foreign)
        removal->foreign = strdup(name);
    return removal->foreign ? 0 : -ENOMEM;
}

static int entries_look(struct removal *removal, const struct manifest *manifest)
{
    int fd = dup(removal->directory), error = 0;
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;

    if (!stream) {
        error = -errno;
        if (fd >= 0)
            close(fd);
        return error;
    }
    while (error == 0 && (entry = readdir(stream)))
        error = entry_look(removal, manifest, entry->d_name);
    closedir(stream);
    return error;
}

int removal_begin(struct removal *removal, int parent, const char *name)
{
    struct manifest manifest;
    int error;

    *removal = (struct removal){ .parent = parent, .directory = -1, .name = strdup(name) };
    if (!removal->name)
        return -ENOMEM;
    removal->directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (removal->directory < 0)
        return -errno;
    manifest = manifest_get(removal->directory);
    error = entries_look(removal, &manifest);
    manifest_deinit(&manifest);
    return error;
}

int removal_run(const struct removal *removal)
{
    for (size_t i = 0; i < removal->count; i++) {
        if (unlinkat(removal->directory, removal->files[i], 0) < 0 && errno != ENOENT)
            return -errno;
        if (i == 0 && fsync(removal->directory) < 0)
            return -errno;
    }
    if (unlinkat(removal->parent, removal->name, AT_REMOVEDIR) < 0)
        return -errno;
    return fsync(removal->parent) < 0 ? -errno : 0;
}

void removal_end(struct removal *removal)
{
    for (size_t i = 0; i < removal->count; i++)
        free(removal->files[i]);
    free(removal->files);
    free(removal->foreign);
    free(removal->name);
    if (removal->directory >= 0)
        close(removal->directory);
}
