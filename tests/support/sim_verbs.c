/* support/sim_verbs.c - what each op does when its moment has come. */
#include "sim_world.h"

#include <base/checked.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool verb_has_name(const struct op *op)
{
    return op->kind == OP_OPEN || op->kind == OP_MKDIR || op->kind == OP_UNLINK || op->kind == OP_RENAME || op->kind == OP_LINK
           || (op->kind == OP_STAT && op->name);
}

static uint32_t directory_of(const struct sim_object *object) { return object ? object->inode : SIM_ROOT; }

static void path_join(struct sim_event *event, const struct sim_object *directory, const char *name, char *path)
{
    char at[SIM_PATH_MAX - 300] = "";

    if (name[0] != '/')
        sim_disk_path(event->io->world->disk, directory_of(directory), at, sizeof(at));
    snprintf(path, SIM_PATH_MAX, "%s%s%.256s", strcmp(at, "/") == 0 ? "" : at, name[0] == '/' ? "" : "/", name);
}

void verb_paths(struct sim_event *event)
{
    const struct op *op = &event->request;

    if (verb_has_name(op))
        path_join(event, event->object, op->name, event->path);
    else if (event->object && event->object->kind == OBJECT_NODE)
        sim_disk_path(event->io->world->disk, event->object->inode, event->path, sizeof(event->path));
    if (op->kind == OP_RENAME || op->kind == OP_LINK)
        path_join(event, event->to_object, op->to_name, event->to_path);
}

/* NULL when the op names memory that is nobody's. */
void *verb_memory(const struct sim_event *event)
{
    const struct op *op = &event->request;

    if (event->kept[2])
        return event->kept[2];
    if (op->buffer == IO_NO_BUFFER)
        return op->memory;
    if (op->buffer > event->io->buffer_count || !event->io->buffers[op->buffer - 1].base
        || op->buffer_offset + op->size > event->io->buffers[op->buffer - 1].size)
        return NULL;
    return (uint8_t *)event->io->buffers[op->buffer - 1].base + op->buffer_offset;
}

/* Files ------------------------------------------------------------------------------------------------------------- */

static bool is_misaligned(const struct sim_event *event)
{
    const struct sim_settings *settings = &event->io->world->settings;
    const struct op *op = &event->request;

    if (!(event->object->flags & OPEN_DIRECT))
        return false;
    return op->size % settings->offset_align || op->file_offset % settings->offset_align
           || (!event->kept[2] && settings->memory_align && (uintptr_t)verb_memory(event) % settings->memory_align);
}

/* At least one block, at most all but one: a short transfer that moves nothing, or all, is none. */
static size_t short_size(struct sim_event *event, unsigned per_mille)
{
    const struct sim_settings *settings = &event->io->world->settings;
    size_t block = event->object->flags & OPEN_DIRECT ? settings->offset_align : 1, blocks = event->request.size / block;

    if (event->fault && event->fault->action == SIM_SHORT)
        return min_u64(event->fault->bytes, event->request.size);
    if (blocks < 2 || sim_random_below(&event->random, 1000) >= per_mille)
        return event->request.size;
    return block * (1 + sim_random_below(&event->random, blocks - 1));
}

static int64_t verb_write(struct sim_event *event, struct sim_disk *disk)
{
    size_t size;

    if (!(event->object->flags & OPEN_WRITE))
        return -EBADF;
    if (is_misaligned(event))
        return -EINVAL;
    size = short_size(event, event->io->world->settings.short_writes_per_mille);
    return sim_disk_write(disk, event->object->inode, event->request.file_offset, verb_memory(event), size);
}

static int64_t verb_read(struct sim_event *event, struct sim_disk *disk)
{
    size_t size;

    if (is_misaligned(event))
        return -EINVAL;
    size = short_size(event, event->io->world->settings.short_reads_per_mille);
    return sim_disk_read(disk, event->object->inode, event->request.file_offset, verb_memory(event), size);
}

static int64_t verb_resize(struct sim_event *event, struct sim_disk *disk)
{
    uint64_t size = event->request.size;

    if (!(event->object->flags & OPEN_WRITE))
        return -EINVAL; /* ftruncate's answer */
    if (event->request.kind == OP_TRUNCATE)
        return sim_disk_resize(disk, event->object->inode, size);
    if (!event->io->world->settings.allocate_unsupported)
        return sim_disk_allocate(disk, event->object->inode, size);
    return sim_disk_resize(disk, event->object->inode, size) ? -ENOSPC : 1;
}

static int64_t open_check(const struct sim_event *event, const struct sim_disk *disk, uint32_t inode)
{
    uint32_t flags = event->request.flags;

    if ((flags & OPEN_DIRECTORY) && !sim_disk_is_directory(disk, inode))
        return -ENOTDIR;
    if ((flags & OPEN_WRITE) && sim_disk_is_directory(disk, inode))
        return -EISDIR;
    return 0;
}

static int64_t verb_open(struct sim_event *event, struct sim_disk *disk, uint32_t *inode)
{
    const struct op *op = &event->request;
    int64_t error;

    if ((op->flags & OPEN_DIRECT) && !event->io->world->settings.offset_align)
        return -EINVAL;
    if (op->flags & OPEN_CREATE)
        return sim_disk_make(disk, directory_of(event->object), op->name, false, inode);
    if ((error = sim_disk_walk(disk, directory_of(event->object), op->name, inode)))
        return error;
    return open_check(event, disk, *inode);
}

static int64_t verb_link(struct sim_event *event, struct sim_disk *disk)
{
    const struct op *op = &event->request;
    uint32_t inode;
    int error = sim_disk_find(disk, event->object->inode, op->name, &inode);

    return error ? error : sim_disk_link(disk, inode, event->to_object->inode, op->to_name);
}

bool verb_changes_disk(enum op_kind kind)
{
    return kind == OP_WRITE || kind == OP_OPEN || kind == OP_ALLOCATE || kind == OP_TRUNCATE || kind == OP_MKDIR
           || kind == OP_RENAME || kind == OP_UNLINK || kind == OP_LINK;
}

int64_t verb_on_disk(struct sim_event *event, struct sim_disk *disk, uint32_t *opened)
{
    const struct op *op = &event->request;
    uint32_t made;

    switch (op->kind) {
    case OP_WRITE: return verb_write(event, disk);
    case OP_OPEN: return verb_open(event, disk, opened);
    case OP_ALLOCATE:
    case OP_TRUNCATE: return verb_resize(event, disk);
    case OP_MKDIR: return sim_disk_make(disk, event->object->inode, op->name, true, &made);
    case OP_RENAME:
        return sim_disk_rename(disk, event->object->inode, op->name, event->to_object->inode, op->to_name,
                               (enum rename_flags)op->flags);
    case OP_UNLINK: return sim_disk_unlink(disk, event->object->inode, op->name, op->flags & UNLINK_DIRECTORY);
    case OP_LINK: return verb_link(event, disk);
    default: return 0;
    }
}

static int64_t verb_open_handle(struct sim_event *event)
{
    struct sim_world *world = event->io->world;
    struct sim_object *object;
    uint32_t inode;
    int64_t error = verb_open(event, world->disk, &inode);

    if (error || !event->op)
        return error;
    object = object_create(world, OBJECT_NODE);
    object->inode = inode;
    object->flags = event->request.flags;
    sim_disk_hold(world->disk, inode);
    return handle_create(event->io, object);
}

static int64_t verb_stat(struct sim_event *event)
{
    struct sim_world *world = event->io->world;
    const struct op *op = &event->request;
    uint32_t inode = directory_of(event->object);
    struct io_stat stat = { .direct_memory_align = world->settings.memory_align,
                            .direct_offset_align = world->settings.offset_align };
    int error = op->name ? sim_disk_walk(world->disk, inode, op->name, &inode) : 0;

    if (error)
        return error;
    sim_disk_stat(world->disk, inode, &stat);
    stat.mtime_ns = world->settings.mtime_ns;
    snprintf(stat.filesystem, sizeof(stat.filesystem), "%s", world->settings.filesystem ? world->settings.filesystem : "ext4");
    *op->stat = stat;
    return 0;
}

static int64_t verb_sole(struct sim_event *event)
{
    for (struct sim_object *other = event->io->world->objects; other; other = other->next)
        if (other->kind == OBJECT_NODE && other != event->object && other->inode == event->object->inode)
            return -EWOULDBLOCK;
    return 0;
}

static int64_t verb_lock(struct sim_event *event)
{
    if (event->request.flags & LOCK_OP_SOLE)
        return verb_sole(event);
    for (struct sim_object *other = event->io->world->objects; other; other = other->next)
        if (other->locked && other != event->object && other->inode == event->object->inode)
            return -EWOULDBLOCK;
    event->object->locked = true;
    return 0;
}

/* A failed fsync marks the pages clean: part of them is on the disk, the rest never will be. */
static bool fell_on_disk(void *context) { return sim_random_below(context, 2); }

void verb_sync_fails(struct sim_event *event)
{
    sim_disk_sync_fails(event->io->world->disk, event->object->inode, event->moment, fell_on_disk, &event->random);
}

/* Channels and moments ---------------------------------------------------------------------------------------------- */

/* What goes along with a message, held until it was sent. */
static bool sent_hold(struct sim_event *event, struct sim_object **objects)
{
    const struct op *op = &event->request;

    for (unsigned i = 0; i < op->fd_count; i++) {
        objects[i] = op->fds[i] < SIM_HANDLE_FIRST ? object_of_descriptor(event->io->world, op->fds[i])
                                                   : object_hold(handle_object(event->io, op->fds[i]));
        if (!objects[i]) {
            world_violation(event->io->world, "%s #%" PRIu64 " sends %d, which is neither open nor a sealed memfd",
                            event->io->name, event->number, op->fds[i]);
            return false;
        }
    }
    return true;
}

static int64_t verb_send(struct sim_event *event)
{
    struct sim_world *world = event->io->world;
    struct op *op = &event->request;
    struct sim_object *objects[OP_FDS_MAX] = { NULL };
    int64_t sent = -EBADF;

    if (op->fd_count > OP_FDS_MAX)
        return -EINVAL;
    if (!channel_has_room(world, event->object))
        return SIM_AGAIN;
    if (sent_hold(event, objects))
        sent = channel_send(world, event->object, verb_memory(event), op->size, objects, op->fd_count,
                            sim_random_below(&event->random, 20000));
    for (unsigned i = 0; i < op->fd_count; i++)
        object_release(world, objects[i]);
    return sent;
}

static int64_t verb_receive(struct sim_event *event)
{
    struct op *op = event->op;
    /* one that is cancelled still brings what was sent before: a dead peer's channel is read out so */
    return channel_take(event->io, event->object, event->cancelled, verb_memory(event), op->size, op->fds, &op->fd_count);
}

static int64_t verb_watch(const struct sim_object *object)
{
    if (object->kind == OBJECT_PROCESS)
        return object->process->dead ? 0 : SIM_AGAIN;
    return object->raised ? 0 : SIM_AGAIN;
}

int64_t verb_execute(struct sim_event *event)
{
    struct sim_disk *disk = event->io->world->disk;
    uint32_t opened;

    switch (event->request.kind) {
    case OP_READ: return verb_read(event, disk);
    case OP_OPEN: return verb_open_handle(event);
    case OP_CLOSE: return handle_close(event->io, event->request.handle);
    case OP_STAT: return verb_stat(event);
    case OP_FSYNC: sim_disk_sync(disk, event->object->inode, event->moment); return 0;
    case OP_LOCK: return verb_lock(event);
    case OP_LIST: return sim_disk_list(disk, event->object->inode, event->request.list);
    case OP_SEND: return verb_send(event);
    case OP_RECV: return verb_receive(event);
    case OP_WATCH: return verb_watch(event->object);
    case OP_TIMER: return 0;
    case OP_COMPUTE: return event->request.compute(event->request.argument);
    default: return verb_on_disk(event, disk, &opened);
    }
}
