/* stat.c - what a file is, how O_DIRECT must address it, and how much room its file system has.
 *
 * Alignment comes from STATX_DIOALIGN (kernel 6.1), never from a constant; file systems that do not report it (btrfs,
 * tmpfs) leave 0: an O_DIRECT open may succeed there and still go through the page cache.
 */
#include <errno.h>
#include <fcntl.h>
#include <io/stat.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* glibc 2.36 has neither the constant nor the fields. The kernel's struct statx is 256 bytes for ever; the two u32 fields
 * stand behind stx_mnt_id, at bytes 152 and 156 (include/uapi/linux/stat.h). */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000U
#endif
#define STATX_DIO_MEM_ALIGN_AT 152
#define STATX_DIO_OFFSET_ALIGN_AT 156
_Static_assert(sizeof(struct statx) == 256, "struct statx is 256 bytes in the kernel's ABI");

static uint32_t field_u32(const struct statx *raw, size_t at)
{
    uint32_t value;

    memcpy(&value, (const char *)raw + at, sizeof value);
    return value;
}

static void stat_take_inode(struct io_stat *stat, const struct statx *raw)
{
    bool aligned = (raw->stx_mask & STATX_DIOALIGN) && S_ISREG(raw->stx_mode);

    stat->size = raw->stx_size;
    stat->inode = raw->stx_ino;
    stat->device = makedev(raw->stx_dev_major, raw->stx_dev_minor);
    stat->links = raw->stx_nlink;
    stat->mtime_ns = raw->stx_mtime.tv_sec * 1000000000 + raw->stx_mtime.tv_nsec;
    stat->is_directory = S_ISDIR(raw->stx_mode);
    stat->is_regular = S_ISREG(raw->stx_mode);
    stat->direct_memory_align = aligned ? field_u32(raw, STATX_DIO_MEM_ALIGN_AT) : 0;
    stat->direct_offset_align = aligned ? field_u32(raw, STATX_DIO_OFFSET_ALIGN_AT) : 0;
}

static const struct { uint32_t magic; const char *name; } filesystems[] = { /* linux/magic.h and the file systems' own */
    { 0xef53, "ext4" }, { 0x58465342, "xfs" }, { 0x9123683e, "btrfs" }, { 0x6969, "nfs" }, { 0x01021994, "tmpfs" },
    { 0x794c7630, "overlay" }, { 0x858458f6, "ramfs" }, { 0xf2f52010, "f2fs" }, { 0x2fc12fc1, "zfs" },
    { 0xca451a4e, "bcachefs" }, { 0x65735546, "fuse" }, { 0xff534d42, "cifs" }, { 0xfe534d42, "smb2" }, { 0x01021997, "9p" },
    { 0x00c36400, "ceph" }, { 0x0bd00bd0, "lustre" }, { 0x47504653, "gpfs" }, { 0x19830326, "beegfs" },
};

static void stat_take_filesystem(struct io_stat *stat, const struct statfs *raw)
{
    uint64_t block_bytes = raw->f_frsize > 0 ? (uint64_t)raw->f_frsize : (uint64_t)raw->f_bsize;
    uint32_t magic = (uint32_t)raw->f_type;

    if (__builtin_mul_overflow((uint64_t)raw->f_bavail, block_bytes, &stat->free_bytes))
        stat->free_bytes = UINT64_MAX;
    snprintf(stat->filesystem, sizeof stat->filesystem, "0x%x", magic);
    for (size_t i = 0; i < sizeof filesystems / sizeof *filesystems; i++)
        if (filesystems[i].magic == magic)
            snprintf(stat->filesystem, sizeof stat->filesystem, "%s", filesystems[i].name);
}

int stat_handle(int handle, struct io_stat *stat)
{
    struct statx inode;
    struct statfs filesystem;
    struct io_stat filled = { 0 };

    if (statx(handle, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &inode) < 0)
        return -errno;
    if (fstatfs(handle, &filesystem) < 0)
        return -errno;
    stat_take_inode(&filled, &inode);
    stat_take_filesystem(&filled, &filesystem);
    *stat = filled;
    return 0;
}

int stat_name(int directory, const char *name, struct io_stat *stat)
{
    int handle = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), result;

    if (handle < 0)
        return -errno;
    result = stat_handle(handle, stat);
    close(handle);
    return result;
}
