/* bench/device.h - what is known of the file system and the device beneath a directory. */
#ifndef BENCH_DEVICE_H
#define BENCH_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct device {
    char filesystem[32], mount_point[256], mount_options[256];
    char name[64];              /* "nvme0n1p1"; empty: no block device beneath (tmpfs, NFS, overlay) */
    char disk[64];              /* the whole disk */
    char model[96], firmware[32], scheduler[64], write_cache[32];
    uint64_t disk_bytes, free_bytes;
    uint32_t logical_block, queue_depth, direct_memory_align, direct_offset_align;
    bool is_rotational, has_discard;
    unsigned major_number, minor_number;
};

void device_look(const char *path, struct device *device);

/* Counters of /proc/diskstats. */
struct disk_load { uint64_t reads, read_merges, read_bytes, read_ms, writes, write_merges, written_bytes, write_ms, queue_ms,
                  busy_ms; };
/* False when the device is not listed there. */
bool disk_load_read(const struct device *device, struct disk_load *load);
struct disk_load disk_load_between(const struct disk_load *before, const struct disk_load *after);

#endif
