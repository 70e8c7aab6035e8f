/* support/sim_objects.c - what a handle can mean: open files, channel ends, eventfds, pidfds, memfds; and passing them. */
#include "sim_world.h"

#include <assert.h>
#include <base/array.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct sim_object *object_create(struct sim_world *world, enum object_kind kind)
{
    struct sim_object *object = calloc(1, sizeof(*object));

    if (!object)
        abort();
    object->kind = kind;
    object->references = 1;
    object->last = &object->first;
    object->next = world->objects;
    world->objects = object;
    return object;
}

struct sim_object *object_hold(struct sim_object *object)
{
    if (object)
        object->references++;
    return object;
}

static void message_destroy(struct sim_world *world, struct sim_message *message)
{
    for (unsigned i = 0; i < message->fd_count; i++)
        object_release(world, message->fds[i]);
    free(message);
}

static struct sim_message *channel_pop(struct sim_object *end)
{
    struct sim_message *message = end->first;

    if (!(end->first = message->next))
        end->last = &end->first;
    end->queued--;
    return message;
}

/* The object itself lives as long as the world: a late look at it is then a finding, not a crash of the test. */
void object_release(struct sim_world *world, struct sim_object *object)
{
    if (!object)
        return;
    assert(object->references > 0);
    if (--object->references)
        return;
    if (object->kind == OBJECT_NODE)
        sim_disk_release(world->disk, object->inode);
    object->locked = false;
    while (object->first)
        message_destroy(world, channel_pop(object));
    if (object->peer) {
        object->peer->peer = NULL;
        object->peer = NULL;
    }
    world_wake(world);
}

struct sim_object *handle_object(const struct sim_io *io, int handle)
{
    const struct sim_world *world = io->world;
    size_t number = (size_t)(handle - SIM_HANDLE_FIRST);

    if (handle < SIM_HANDLE_FIRST || number >= world->handle_count || world->handles[number].owner != io)
        return NULL;
    return world->handles[number].object;
}

/* Numbers are never used twice: a handle that is used after its close is always seen. */
int handle_create(struct sim_io *io, struct sim_object *object)
{
    struct sim_world *world = io->world;
    void *handles = world->handles;

    if (array_reserve(&handles, &world->handle_capacity, world->handle_count + 1, sizeof(struct sim_handle)))
        abort();
    world->handles = handles;
    world->handles[world->handle_count] = (struct sim_handle){ object, io };
    return SIM_HANDLE_FIRST + (int)world->handle_count++;
}

int handle_close(struct sim_io *io, int handle)
{
    struct sim_object *object = handle_object(io, handle);

    if (!object)
        return -EBADF;
    io->world->handles[handle - SIM_HANDLE_FIRST].object = NULL;
    object_release(io->world, object);
    return 0;
}

unsigned sim_handles(const struct io *owner)
{
    const struct sim_io *io = sim_io_of(owner);
    unsigned count = 0;

    for (size_t i = 0; i < io->world->handle_count; i++)
        count += io->world->handles[i].owner == io && io->world->handles[i].object;
    return count;
}

/* Channels ---------------------------------------------------------------------------------------------------------- */

bool channel_has_room(const struct sim_world *world, const struct sim_object *end)
{
    return !end->peer || end->peer->queued < (world->settings.channel_messages ? world->settings.channel_messages : 278);
}

int64_t channel_send(struct sim_world *world, struct sim_object *end, const void *bytes, size_t size,
                     struct sim_object *const *fds, unsigned fd_count, uint64_t delay_ns)
{
    struct sim_message *message;

    if (!end->peer)
        return -EPIPE;
    if (!channel_has_room(world, end))
        return SIM_AGAIN;
    if (!(message = calloc(1, sizeof(*message) + size)))
        abort();
    memcpy(message->bytes, bytes, message->size = size);
    for (; message->fd_count < fd_count; message->fd_count++)
        message->fds[message->fd_count] = object_hold(fds[message->fd_count]);
    message->visible_ns = world->now + delay_ns;
    for (struct sim_message *before = end->peer->first; before; before = before->next)
        if (before->visible_ns > message->visible_ns) /* one that is late holds up those behind it */
            message->visible_ns = before->visible_ns;
    *end->peer->last = message;
    end->peer->last = &message->next;
    end->peer->queued++;
    world_wake_at(world, message->visible_ns);
    return (int64_t)size;
}

/* SEQPACKET: a datagram is taken whole; what does not fit is cut off. 0 at end of stream, SIM_AGAIN when there is none. */
int64_t channel_take(struct sim_io *io, struct sim_object *end, bool all, void *bytes, size_t size, int *fds, unsigned *fd_count)
{
    struct sim_message *message = end->first;
    int64_t taken;

    if (!message)
        return end->peer ? SIM_AGAIN : 0;
    if (!all && message->visible_ns > io->world->now)
        return SIM_AGAIN;
    channel_pop(end);
    taken = (int64_t)(message->size < size ? message->size : size);
    memcpy(bytes, message->bytes, (size_t)taken);
    for (unsigned i = 0; i < message->fd_count; i++)
        fds[i] = handle_create(io, object_hold(message->fds[i]));
    *fd_count = message->fd_count;
    message_destroy(io->world, message);
    world_wake(io->world); /* a sender may wait for room */
    return taken;
}

int sim_channel_send(struct io *owner, int handle, const void *bytes, size_t size, const int *fds, unsigned fd_count)
{
    struct sim_io *io = sim_io_of(owner);
    struct sim_object *end = handle_object(io, handle), *objects[OP_FDS_MAX];
    int64_t sent;

    assert(end && end->kind == OBJECT_CHANNEL && fd_count <= OP_FDS_MAX);
    for (unsigned i = 0; i < fd_count; i++) {
        objects[i] = handle_object(io, fds[i]);
        assert(objects[i]);
    }
    sent = channel_send(io->world, end, bytes, size, objects, fd_count, 0);
    return sent == SIM_AGAIN ? -EAGAIN : sent < 0 ? (int)sent : 0;
}

int64_t sim_channel_take(struct io *owner, int handle, void *bytes, size_t size, int *fds, unsigned *fd_count)
{
    struct sim_io *io = sim_io_of(owner);
    struct sim_object *end = handle_object(io, handle);
    int64_t taken;

    assert(end && end->kind == OBJECT_CHANNEL);
    taken = channel_take(io, end, true, bytes, size, fds, fd_count);
    return taken == SIM_AGAIN ? 0 : taken;
}

/* Making objects ---------------------------------------------------------------------------------------------------- */

int sim_open(struct io *owner, const char *path)
{
    struct sim_io *io = sim_io_of(owner);
    struct sim_object *object;
    uint32_t inode;
    int error = sim_disk_walk(io->world->disk, SIM_ROOT, path, &inode);

    if (error)
        return error;
    object = object_create(io->world, OBJECT_NODE);
    object->inode = inode;
    object->flags = OPEN_READ;
    sim_disk_hold(io->world->disk, inode);
    return handle_create(io, object);
}

void sim_close(struct io *owner, int handle)
{
    if (handle_close(sim_io_of(owner), handle))
        world_violation(sim_io_of(owner)->world, "%s closes %d, which is not open", sim_io_of(owner)->name, handle);
}

int sim_share(struct io *from, int handle, struct io *to)
{
    struct sim_object *object = handle_object(sim_io_of(from), handle);

    return object ? handle_create(sim_io_of(to), object_hold(object)) : -EBADF;
}

void sim_channel(struct io *one, struct io *other, int ends[2])
{
    struct sim_world *world = sim_io_of(one)->world;
    struct sim_object *left = object_create(world, OBJECT_CHANNEL), *right = object_create(world, OBJECT_CHANNEL);

    left->peer = right;
    right->peer = left;
    ends[0] = handle_create(sim_io_of(one), left);
    ends[1] = handle_create(sim_io_of(other), right);
}

int sim_event(struct io *owner) { return handle_create(sim_io_of(owner), object_create(sim_io_of(owner)->world, OBJECT_EVENT)); }

void sim_event_raise(struct io *owner, int handle)
{
    struct sim_object *object = handle_object(sim_io_of(owner), handle);

    if (sim_io_of(owner)->dead)
        return;
    assert(object && object->kind == OBJECT_EVENT);
    object->raised++;
    world_wake(sim_io_of(owner)->world);
}

void sim_event_clear(struct io *owner, int handle)
{
    struct sim_object *object = handle_object(sim_io_of(owner), handle);

    assert(object && object->kind == OBJECT_EVENT);
    object->raised = 0;
}

int sim_process(struct io *owner, const struct io *watched)
{
    struct sim_object *object = object_create(sim_io_of(owner)->world, OBJECT_PROCESS);

    object->process = sim_io_of(watched);
    return handle_create(sim_io_of(owner), object);
}

int sim_memory(struct io *owner, uint64_t size)
{
    struct sim_object *object = object_create(sim_io_of(owner)->world, OBJECT_MEMORY);

    /* a mapping of its own: an arena slot has 16 MiB, of which a test touches a few pages */
    object->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (object->bytes == MAP_FAILED)
        abort();
    object->size = size;
    return handle_create(sim_io_of(owner), object);
}

int sim_memory_of(struct io *owner, void *bytes, uint64_t size)
{
    struct sim_object *object = object_create(sim_io_of(owner)->world, OBJECT_MEMORY);

    object->bytes = bytes;
    object->size = size;
    object->borrowed = true;
    return handle_create(sim_io_of(owner), object);
}

struct sim_object *object_of_descriptor(struct sim_world *world, int fd)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    struct sim_object *object;
    struct stat status;

    if (fstat(fd, &status) < 0 || (fcntl(fd, F_GET_SEALS) & seals) != seals)
        return NULL;
    object = object_create(world, OBJECT_MEMORY);
    object->size = (uint64_t)status.st_size;
    object->bytes = mmap(NULL, object->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (object->bytes == MAP_FAILED)
        abort();
    return object;
}

void *sim_memory_bytes(struct io *owner, int handle, uint64_t *size)
{
    struct sim_object *object = handle_object(sim_io_of(owner), handle);

    if (!object || object->kind != OBJECT_MEMORY)
        return NULL;
    *size = object->size;
    return object->bytes;
}
