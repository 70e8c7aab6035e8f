/* support/sim_data.c - bytes of simulated files: sizes, sectors, holes, space. Each change is noted for sim_durable.c. */
#include "sim_disk_inside.h"

#include <base/checked.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void must(bool done)
{
    if (!done)
        abort();
}

void content_reserve(struct sim_content *content, uint64_t size)
{
    uint64_t grown = max_u64(align_up(size, SIM_SECTOR_BYTES), 2 * content->capacity);

    if (size <= content->capacity)
        return;
    must((content->bytes = realloc(content->bytes, grown)) != NULL);
    memset(content->bytes + content->capacity, 0, grown - content->capacity);
    content->capacity = grown;
}

void content_resize(struct sim_content *content, uint64_t size)
{
    if (size < content->size && size < content->capacity) /* what is cut off never shows again */
        memset(content->bytes + size, 0, content->capacity - size);
    content->size = size;
}

void content_copy(struct sim_content *to, const struct sim_content *from)
{
    memset(to, 0, sizeof(*to));
    content_reserve(to, min_u64(from->capacity, align_up(from->size, SIM_SECTOR_BYTES)));
    if (to->capacity)
        memcpy(to->bytes, from->bytes, min_u64(to->capacity, from->capacity));
    to->size = from->size;
}

int64_t sim_disk_read(const struct sim_disk *disk, uint32_t inode, uint64_t file_offset, void *bytes, size_t size)
{
    const struct sim_content *content = &disk->inodes[inode].now;
    uint64_t stored;

    if (disk->inodes[inode].is_directory)
        return -EISDIR;
    if (file_offset >= content->size)
        return 0;
    size = min_u64(size, content->size - file_offset);
    memset(bytes, 0, size); /* a hole reads as zeros */
    stored = file_offset < content->capacity ? min_u64(size, content->capacity - file_offset) : 0;
    if (stored)
        memcpy(bytes, content->bytes + file_offset, stored);
    return (int64_t)size;
}

void sim_disk_leave_free(struct sim_disk *disk, uint64_t free_bytes) { disk->settings.capacity = disk->used + free_bytes; }

/* Bytes up to `end` need space; 0 or -ENOSPC with *fits: where space ends. */
static int space_take(struct sim_disk *disk, struct sim_inode *node, uint64_t end, uint64_t *fits)
{
    uint64_t wanted = align_up(end, SIM_SECTOR_BYTES), left = disk->settings.capacity - disk->used;

    *fits = end;
    if (wanted <= node->allocated)
        return 0;
    if (wanted - node->allocated > left) {
        *fits = node->allocated + align_down(left, SIM_SECTOR_BYTES);
        return -ENOSPC;
    }
    disk->used += wanted - node->allocated;
    node->allocated = wanted;
    return 0;
}

static void size_change(struct sim_disk *disk, uint32_t inode, uint64_t size)
{
    content_resize(&disk->inodes[inode].now, size);
    effect_note(disk, EFFECT_SIZE, inode)->size = size;
}

static void sectors_note(struct sim_disk *disk, uint32_t inode, uint64_t begin, uint64_t end)
{
    for (uint64_t sector = begin / SIM_SECTOR_BYTES; sector * SIM_SECTOR_BYTES < end; sector++) {
        struct sim_effect *effect = effect_note(disk, EFFECT_SECTOR, inode);

        effect->sector = sector;
        must((effect->bytes = malloc(SIM_SECTOR_BYTES)) != NULL);
        memcpy(effect->bytes, disk->inodes[inode].now.bytes + sector * SIM_SECTOR_BYTES, SIM_SECTOR_BYTES);
    }
}

int64_t sim_disk_write(struct sim_disk *disk, uint32_t inode, uint64_t file_offset, const void *bytes, size_t size)
{
    struct sim_inode *node = &disk->inodes[inode];
    uint64_t end;

    if (node->is_directory)
        return -EBADF;
    if (size == 0)
        return 0;
    if (space_take(disk, node, file_offset + size, &end) && end <= file_offset)
        return -ENOSPC;
    content_reserve(&node->now, end);
    memcpy(node->now.bytes + file_offset, bytes, end - file_offset);
    sectors_note(disk, inode, file_offset, end);
    if (end > node->now.size)
        size_change(disk, inode, end);
    return (int64_t)(end - file_offset);
}

int sim_disk_resize(struct sim_disk *disk, uint32_t inode, uint64_t size)
{
    struct sim_inode *node = &disk->inodes[inode];

    if (node->is_directory)
        return -EISDIR;
    if (align_up(size, SIM_SECTOR_BYTES) < node->allocated) {
        disk->used -= node->allocated - align_up(size, SIM_SECTOR_BYTES);
        node->allocated = align_up(size, SIM_SECTOR_BYTES);
    }
    if (size != node->now.size)
        size_change(disk, inode, size);
    return 0;
}

int sim_disk_allocate(struct sim_disk *disk, uint32_t inode, uint64_t size)
{
    struct sim_inode *node = &disk->inodes[inode];
    uint64_t fits, before = node->now.size;

    if (node->is_directory)
        return -ENODEV;
    if (space_take(disk, node, size, &fits)) {
        if (fits > node->now.size) { /* ext4 leaves it grown, the backends cut it back: a power cut may find either */
            size_change(disk, inode, fits);
            size_change(disk, inode, before);
        }
        return -ENOSPC;
    }
    if (size > node->now.size)
        size_change(disk, inode, size);
    return 0;
}

void sim_disk_stat(const struct sim_disk *disk, uint32_t inode, struct io_stat *stat)
{
    const struct sim_inode *node = &disk->inodes[inode];

    stat->size = node->is_directory ? 4096 : node->now.size;
    stat->inode = inode;
    stat->device = 1;
    stat->links = node->is_directory ? 2 : node->links;
    stat->is_directory = node->is_directory;
    stat->is_regular = !node->is_directory;
    stat->free_bytes = disk->settings.capacity - disk->used;
}
