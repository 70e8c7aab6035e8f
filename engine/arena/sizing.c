/* arena/sizing.c - the tightest memory limit above this process.
 *
 * Nothing here fails: a file that is missing or odd sets no limit. In containers the cgroup's path is often written as
 * the host sees it while the mount shows only the container's own part; walking up from a path that does not exist ends
 * at the mount's top, which then is the container's cgroup.
 */
#include <arena/sizing.h>

#include <base/checked.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_MAX 16384              /* memory.stat and meminfo take about 2 KiB */
#define FILE_PATH_MAX (PATH_MAX + 32) /* a directory's path and the name of one of the kernel's files */

/* Reads a small file as a string; false when it cannot be read. */
static bool text_read(const char *path, char text[TEXT_MAX])
{
    size_t used = 0;
    ssize_t got;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    while (used < TEXT_MAX - 1 && (got = read(fd, text + used, TEXT_MAX - 1 - used)) != 0) {
        if (got < 0 && errno != EINTR)
            break;
        used += got > 0 ? (size_t)got : 0;
    }
    close(fd);
    text[used] = '\0';
    return used > 0;
}

/* The number behind `key` at the start of a line, or `otherwise`. */
static uint64_t line_number(const char *text, const char *key, uint64_t otherwise)
{
    size_t length = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, length) == 0 && strchr(" \t:", line[length]))
            return strtoull(line + length + strspn(line + length, " \t:"), NULL, 10);
    }
    return otherwise;
}

/* The number that a one-line file holds; UINT64_MAX for "max", absent or odd. */
static uint64_t file_number(const char *path)
{
    char text[TEXT_MAX];

    if (!text_read(path, text) || text[0] < '0' || text[0] > '9')
        return UINT64_MAX;
    return strtoull(text, NULL, 10);
}

static void room_tighten(struct memory_room *room, uint64_t bytes, const char *limit)
{
    if (bytes >= room->bytes)
        return;
    room->bytes = bytes;
    snprintf(room->limit, sizeof room->limit, "%.*s", (int)sizeof room->limit - 1, limit);
}

struct cgroup_files { const char *limits[2], *usage, *reclaimable; };
static const struct cgroup_files cgroup_v2 = { { "memory.max", "memory.high" }, "memory.current", "inactive_file" };
static const struct cgroup_files cgroup_v1 = { { "memory.limit_in_bytes", NULL }, "memory.usage_in_bytes",
                                               "total_inactive_file" };

/* What `directory` uses and cannot give back: clean page cache counts as used in a cgroup, but it yields. */
static uint64_t cgroup_held(const char *directory, const struct cgroup_files *files)
{
    char path[FILE_PATH_MAX], text[TEXT_MAX];
    uint64_t used, reclaimable = 0;

    snprintf(path, sizeof path, "%s/%s", directory, files->usage);
    used = file_number(path);
    snprintf(path, sizeof path, "%s/memory.stat", directory);
    if (text_read(path, text))
        reclaimable = line_number(text, files->reclaimable, 0);
    return used == UINT64_MAX ? 0 : used - min_u64(used, reclaimable);
}

static void cgroup_tighten(struct memory_room *room, const char *directory, const struct cgroup_files *files)
{
    char path[FILE_PATH_MAX];

    for (int i = 0; i < 2 && files->limits[i]; i++) {
        uint64_t limit, held;

        snprintf(path, sizeof path, "%s/%s", directory, files->limits[i]);
        limit = file_number(path);
        if (limit >= INT64_MAX / 4096 * 4096) /* v1 writes "no limit" as a number near the largest */
            continue;
        held = cgroup_held(directory, files);
        room_tighten(room, limit - min_u64(limit, held), path);
    }
}

/* From root + path up to root. */
static void cgroup_climb(struct memory_room *room, const char *root, const char *path, const struct cgroup_files *files)
{
    char directory[PATH_MAX];
    size_t floor = strlen(root);
    int length = snprintf(directory, sizeof directory, "%s%s", root, path);

    if (length < 0 || (size_t)length >= sizeof directory)
        return;
    for (;;) {
        char *slash;

        cgroup_tighten(room, directory, files);
        slash = strrchr(directory + floor, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

/* A line of /proc/self/cgroup: "0::/path" (v2, mounted at the root or, beside v1, at root/unified) or "4:memory:/path". */
static void cgroup_line(struct memory_room *room, const char *root, char *line)
{
    char below[PATH_MAX];
    char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;

    if (!path)
        return;
    *path++ = '\0';
    controllers++;
    if (*controllers == '\0') {
        cgroup_climb(room, root, path, &cgroup_v2);
        snprintf(below, sizeof below, "%s/unified", root);
        cgroup_climb(room, below, path, &cgroup_v2);
    } else if (strcmp(controllers, "memory") == 0) {
        snprintf(below, sizeof below, "%s/memory", root);
        cgroup_climb(room, below, path, &cgroup_v1);
    }
}

void memory_room_read(const struct memory_places *places, struct memory_room *room)
{
    static const struct memory_places kernel = { "/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup" };
    char text[TEXT_MAX], *rest = NULL;

    if (!places)
        places = &kernel;
    *room = (struct memory_room){ .bytes = UINT64_MAX, .limit = "no limit known" };
    if (text_read(places->meminfo, text)) {
        uint64_t kib = line_number(text, "MemAvailable", UINT64_MAX), bytes;

        if (checked_mul(kib, 1024, &bytes))
            room_tighten(room, bytes, "MemAvailable");
    }
    if (text_read(places->own_cgroups, text))
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
            cgroup_line(room, places->cgroup_root, line);
}

uint64_t memory_room_usable(const struct memory_room *room)
{
    if (room->bytes == UINT64_MAX)
        return UINT64_MAX;
    return room->bytes - min_u64(room->bytes / 16, MIB(512));
}

uint64_t memory_room_default_cap(const struct memory_room *room, uint32_t local_ranks)
{
    uint64_t bytes = room->bytes == UINT64_MAX ? GIB(2) : room->bytes / 2;

    return align_down(bytes / (local_ranks ? local_ranks : 1), ARENA_SLOT_BYTES);
}
