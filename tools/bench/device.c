/* bench/device.c - see device.h: statfs, /proc/self/mountinfo, sysfs, /proc/diskstats. What cannot be told stays empty. */
#include "device.h"

#include <fcntl.h>
#include <inttypes.h>
#include <io/stat.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool line_read(const char *directory, const char *name, char *to, size_t size)
{
    char path[PATH_MAX];
    FILE *file;
    bool read;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    file = fopen(path, "re");
    read = file && fgets(to, (int)size, file);
    if (file)
        fclose(file);
    if (!read)
        *to = '\0';
    to[strcspn(to, "\n")] = '\0';
    for (size_t end = strlen(to); end > 0 && to[end - 1] == ' '; end--)
        to[end - 1] = '\0';
    return read;
}

static uint64_t number_read(const char *directory, const char *name)
{
    char text[64];

    return line_read(directory, name, text, sizeof text) ? strtoull(text, NULL, 10) : 0;
}

/* The part between brackets of "none [mq-deadline]". */
static void chosen_take(char *text)
{
    char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;

    if (!close)
        return;
    *close = '\0';
    memmove(text, open + 1, strlen(open + 1) + 1);
}

static void disk_look(struct device *device)
{
    char link[64], path[PATH_MAX], *name;

    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", device->major_number, device->minor_number);
    if (!realpath(link, path))
        return;
    snprintf(device->name, sizeof device->name, "%.63s", strrchr(path, '/') + 1);
    if (access(strcat(path, "/partition"), F_OK) == 0) { /* a partition's disk is the directory above */
        *strrchr(path, '/') = '\0';
        *strrchr(path, '/') = '\0';
    } else {
        *strrchr(path, '/') = '\0';
    }
    name = strrchr(path, '/') + 1;
    snprintf(device->disk, sizeof device->disk, "%.63s", name);
    device->disk_bytes = number_read(path, "size") * 512;
    device->logical_block = (uint32_t)number_read(path, "queue/logical_block_size");
    device->queue_depth = (uint32_t)number_read(path, "queue/nr_requests");
    device->is_rotational = number_read(path, "queue/rotational") != 0;
    device->has_discard = number_read(path, "queue/discard_max_bytes") != 0;
    line_read(path, "queue/write_cache", device->write_cache, sizeof device->write_cache);
    line_read(path, "device/model", device->model, sizeof device->model);
    line_read(path, "device/firmware_rev", device->firmware, sizeof device->firmware);
    if (line_read(path, "queue/scheduler", device->scheduler, sizeof device->scheduler))
        chosen_take(device->scheduler);
}

/* "36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/vda rw,..." */
static void mount_look(struct device *device)
{
    char line[4096], point[256], options[256], type[32];
    unsigned major_number, minor_number;
    FILE *file = fopen("/proc/self/mountinfo", "re");

    while (file && fgets(line, sizeof line, file)) {
        const char *rest = strstr(line, " - ");

        if (sscanf(line, "%*d %*d %u:%u %*s %255s %255s", &major_number, &minor_number, point, options) != 4 || !rest ||
            sscanf(rest, " - %31s", type) != 1 || major_number != device->major_number || minor_number != device->minor_number)
            continue;
        snprintf(device->mount_point, sizeof device->mount_point, "%s", point);
        snprintf(device->mount_options, sizeof device->mount_options, "%s", options);
        snprintf(device->filesystem, sizeof device->filesystem, "%s", type);
        break;
    }
    if (file)
        fclose(file);
}

void device_look(const char *path, struct device *device)
{
    struct io_stat facts = { 0 };
    struct stat stat_of_path;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), probe;

    *device = (struct device){ 0 };
    if (fd < 0)
        return;
    if (fstat(fd, &stat_of_path) == 0 && stat_handle(fd, &facts) == 0) {
        dev_t number = S_ISBLK(stat_of_path.st_mode) ? stat_of_path.st_rdev : stat_of_path.st_dev;

        device->major_number = major(number);
        device->minor_number = minor(number);
        device->free_bytes = facts.free_bytes;
        snprintf(device->filesystem, sizeof device->filesystem, "%s", S_ISBLK(stat_of_path.st_mode) ? "none" : facts.filesystem);
        if (!S_ISBLK(stat_of_path.st_mode))
            mount_look(device);
        disk_look(device);
        probe = facts.is_directory ? open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
        if (probe >= 0 && stat_handle(probe, &facts) == 0) { /* of a directory the file system says nothing */
            device->direct_memory_align = facts.direct_memory_align;
            device->direct_offset_align = facts.direct_offset_align;
        }
        if (probe >= 0)
            close(probe);
    }
    close(fd);
}

/* Load --------------------------------------------------------------------------------------------------------------- */

bool disk_load_read(const struct device *device, struct disk_load *load)
{
    FILE *file = *device->disk ? fopen("/proc/diskstats", "re") : NULL;
    char line[512], name[64];
    bool found = false;

    while (!found && file && fgets(line, sizeof line, file)) {
        struct disk_load read = { 0 };
        uint64_t sectors_read, sectors_written;

        if (sscanf(line, "%*u %*u %63s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
                   " %" SCNu64 " %*u %" SCNu64 " %" SCNu64, name, &read.reads, &read.read_merges, &sectors_read,
                   &read.read_ms, &read.writes,
                   &read.write_merges, &sectors_written, &read.write_ms, &read.busy_ms, &read.queue_ms) != 11 ||
            strcmp(name, device->disk) != 0)
            continue;
        read.read_bytes = sectors_read * 512;
        read.written_bytes = sectors_written * 512;
        *load = read;
        found = true;
    }
    if (file)
        fclose(file);
    return found;
}

struct disk_load disk_load_between(const struct disk_load *before, const struct disk_load *after)
{
    return (struct disk_load){
        after->reads - before->reads, after->read_merges - before->read_merges, after->read_bytes - before->read_bytes,
        after->read_ms - before->read_ms, after->writes - before->writes, after->write_merges - before->write_merges,
        after->written_bytes - before->written_bytes, after->write_ms - before->write_ms, after->queue_ms - before->queue_ms,
        after->busy_ms - before->busy_ms,
    };
}
