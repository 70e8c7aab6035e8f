/* support/sim_io.c - what a process sees: ops go in, completions come out, in an order that the seed chose. And its death. */
#include "sim_world.h"

#include <base/array.h>
#include <base/checked.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_NS 100000u /* completions that lie so close may come out of one wait(): batches of every length */

static uint64_t duration_of(struct sim_event *event)
{
    uint64_t longest = event->io->world->settings.duration_ns ? event->io->world->settings.duration_ns : 1000000;
    uint64_t duration = 1 + sim_random_below(&event->random, longest);

    if (sim_random_below(&event->random, 16) == 0)
        duration *= 16; /* stragglers: what comes after them overtakes them by a lot */
    if (event->fault && event->fault->action == SIM_DELAY)
        duration += event->fault->delay_ns;
    return duration;
}

static void event_bind(struct sim_event *event)
{
    const struct op *op = &event->request;
    struct sim_io *io = event->io;

    if (op->kind == OP_TIMER || op->kind == OP_COMPUTE)
        return;
    event->object = object_hold(handle_object(io, op->handle));
    if (op->kind == OP_RENAME || op->kind == OP_LINK)
        event->to_object = object_hold(handle_object(io, op->to_handle));
    if (!event->object && op->handle != IO_CWD)
        world_violation(io->world, "%s #%" PRIu64 " %s: %d is no open handle", io->name, event->number, op_kind_name(op->kind),
                        op->handle);
}

/* A handle that closes under an op in flight is a race in every real backend. */
static void event_check_close(const struct sim_event *event)
{
    if (event->request.kind != OP_CLOSE)
        return;
    for (const struct sim_event *other = event->io->world->events; other; other = other->next)
        if (other->op && other->io == event->io && other->request.kind != OP_COMPUTE && other->request.kind != OP_TIMER
            && other->request.handle == event->request.handle)
            world_violation(event->io->world, "%s #%" PRIu64 " closes %s while %s is in flight on it", event->io->name,
                            event->number, event->path, op_kind_name(other->request.kind));
}

static struct sim_event *event_create(struct sim_io *io, struct op *op)
{
    struct sim_event *event = calloc(1, sizeof(*event));

    if (!event)
        abort();
    event->io = io;
    event->op = op;
    event->request = *op;
    event->number = ++io->ops;
    event->random.state = sim_mix(io->stream + event->number);
    event->moment = sim_disk_moment(io->world->disk);
    event_bind(event);
    if (io->world->trace_file || io->world->fault_count || io->world->look)
        verb_paths(event);
    event->fault = fault_choose(io->world, event);
    event->due = io->world->now + duration_of(event);
    if (op->kind == OP_TIMER)
        event->due = max_u64(op->deadline_ns, io->world->now + 1);
    return event;
}

static int sim_submit(struct io *base, struct op *op)
{
    struct sim_io *io = sim_io_of(base);
    struct sim_event *event;

    if (io->dead || io->world->power_cut)
        return -ESHUTDOWN;
    if (is_transfer(op->kind) && io->transfers >= io->depth)
        return -EBUSY;
    event = event_create(io, op);
    event_check_close(event);
    if ((is_transfer(op->kind) || op->kind == OP_SEND || op->kind == OP_RECV) && !verb_memory(event)) {
        world_violation(io->world, "%s #%" PRIu64 " %s: no such memory", io->name, event->number, op_kind_name(op->kind));
        event_destroy(io->world, event);
        return -EFAULT;
    }
    if (reads_memory(op->kind))
        event->memory = hash_bytes(verb_memory(event), op->size);
    io->transfers += is_transfer(op->kind);
    event_append(&io->world->events, event);
    return 0;
}

unsigned ready_take(struct sim_io *io, struct completion *completions, unsigned capacity)
{
    struct sim_world *world = io->world;
    unsigned count = 0;

    for (struct sim_ready **at = &world->ready; *at && count < capacity;) {
        struct sim_ready *ready = *at;

        if (ready->io != io) {
            at = &ready->next;
            continue;
        }
        completions[count++] = ready->completion;
        io->transfers -= is_transfer(ready->completion.op->kind);
        if (!(*at = ready->next))
            world->ready_last = at;
        free(ready);
    }
    return count;
}

static bool ready_has(const struct sim_io *io)
{
    for (const struct sim_ready *ready = io->world->ready; ready; ready = ready->next)
        if (ready->io == io)
            return true;
    return false;
}

static bool is_cancellable(enum op_kind kind)
{
    return kind == OP_RECV || kind == OP_SEND || kind == OP_WATCH || kind == OP_TIMER;
}

static int wait_until_deadline(struct sim_io *io, uint64_t deadline_ns)
{
    if (deadline_ns == IO_FOREVER) {
        world_violation(io->world, "%s waits for what can never happen", io->name);
        return -EDEADLK;
    }
    io->world->now = max_u64(io->world->now + 1000, deadline_ns); /* a loop that only polls must not stop the clock */
    return 0;
}

static int sim_wait(struct io *base, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct sim_io *io = sim_io_of(base);
    struct sim_world *world = io->world;

    while (!world->power_cut && !io->dead) {
        struct sim_event *event = event_next(world);

        bool soon = event && event->due <= world->now + BATCH_NS;

        if (ready_has(io) && (!soon || sim_random_below(&io->random, 2)))
            return (int)ready_take(io, completions, capacity);
        if (!event || event->due > max_u64(deadline_ns, world->now))
            return ready_has(io) ? (int)ready_take(io, completions, capacity) : wait_until_deadline(io, deadline_ns);
        event_run(event);
    }
    return -ESHUTDOWN;
}

static int sim_cancel(struct io *base, struct op *op)
{
    struct sim_io *io = sim_io_of(base);

    for (struct sim_event *event = io->world->events; event; event = event->next) {
        if (event->op != op)
            continue;
        if (!is_cancellable(op->kind))
            return -EINVAL;
        event->cancelled = true;
        if (event->due == SIM_PARKED || op->kind == OP_TIMER)
            event->due = io->world->now + 1 + sim_random_below(&event->random, 5000);
        return 0;
    }
    return -ENOENT;
}

static int sim_attach(struct io *base, void *memory, size_t size)
{
    struct sim_io *io = sim_io_of(base);
    void *buffers = io->buffers;

    if (array_reserve(&buffers, &io->buffer_capacity, io->buffer_count + 1, sizeof(*io->buffers)))
        abort();
    io->buffers = buffers;
    io->buffers[io->buffer_count].base = memory;
    io->buffers[io->buffer_count].size = size;
    return (int)++io->buffer_count;
}

static void sim_detach(struct io *base, uint32_t buffer)
{
    struct sim_io *io = sim_io_of(base);

    for (const struct sim_event *event = io->world->events; event; event = event->next)
        if (event->op && event->io == io && event->request.buffer == buffer && is_transfer(event->request.kind))
            world_violation(io->world, "%s detaches buffer %u under an op in flight", io->name, buffer);
    io->buffers[buffer - 1].base = NULL;
}

static uint64_t sim_now(struct io *base) { return sim_io_of(base)->world->now; }

static void sim_random(struct io *base, void *bytes, size_t size)
{
    struct sim_io *io = sim_io_of(base);

    for (size_t i = 0; i < size; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)sim_random_next(&io->random);
}

static struct sim_event *event_of(struct sim_io *io)
{
    for (struct sim_event *event = io->world->events; event; event = event->next)
        if (event->op && event->io == io)
            return event;
    return NULL;
}

/* What nobody was told about is released. (A killed process loses all its handles anyway.) */
static void completion_release(struct sim_io *io, const struct completion *completion)
{
    const struct op *op = completion->op;

    if (op->kind == OP_OPEN && completion->result >= 0)
        handle_close(io, (int)completion->result);
    if (op->kind == OP_RECV && completion->result > 0)
        for (unsigned i = 0; i < op->fd_count; i++)
            handle_close(io, op->fds[i]);
    if (op->kind == OP_LIST && completion->result >= 0)
        io_list_free(op->list);
}

static void ready_drop(struct sim_io *io)
{
    struct completion dropped;

    while (ready_take(io, &dropped, 1))
        completion_release(io, &dropped);
}

/* The rest of what was in flight takes effect now, in order; what only waited ends. */
static void sim_destroy(struct io *base)
{
    struct sim_io *io = sim_io_of(base);

    for (struct sim_event *event; (event = event_of(io));) {
        event->due = io->world->now;
        event->cancelled = true;
        event_run(event);
    }
    ready_drop(io);
    free(io->buffers);
    io->buffers = NULL;
    io->buffer_count = 0;
    io->destroyed = true;
}

static const struct io_ops sim_ops = {
    .submit = sim_submit, .wait = sim_wait, .cancel = sim_cancel, .attach = sim_attach, .detach = sim_detach,
    .now = sim_now, .random = sim_random, .destroy = sim_destroy,
};

/* Processes --------------------------------------------------------------------------------------------------------- */

static uint64_t name_hash(const char *name)
{
    uint64_t hash = 0;

    for (; *name; name++)
        hash = sim_mix(hash + (uint8_t)*name);
    return hash;
}

struct io *sim_io_create(struct sim_world *world, const char *name, unsigned depth)
{
    struct sim_io *io = calloc(1, sizeof(*io));
    uint64_t before = 0;

    if (!io)
        abort();
    for (const struct sim_io *other = world->processes; other; other = other->next)
        before += strcmp(other->name, name) == 0; /* a restarted writer has a stream of its own */
    io->io = (struct io){ .ops = &sim_ops, .backend = "simulated" };
    io->world = world;
    io->name = name;
    io->depth = depth ? depth : 16;
    io->stream = sim_mix(world->settings.seed ^ sim_mix(name_hash(name) + before));
    io->random.state = sim_mix(io->stream + UINT64_MAX / 2);
    io->next = world->processes;
    world->processes = io;
    return &io->io;
}

void sim_io_doom(struct io *io) { sim_io_of(io)->doomed = true; }
bool sim_io_is_dead(const struct io *io) { return sim_io_of(io)->dead; }
uint64_t sim_io_ops(const struct io *io) { return sim_io_of(io)->ops; }

static bool event_can_land(const struct sim_event *event)
{
    const struct sim_fault *fault = event->fault;

    if (fault && (fault->action == SIM_FAIL || fault->action == SIM_LIE || fault->action == SIM_DEFER))
        return false;
    return event->object && (event->request.kind == OP_SEND || verb_changes_disk(event->request.kind));
}

static void event_land(struct sim_event *event)
{
    int64_t result = verb_execute(event);

    if (result == SIM_AGAIN)
        return;
    event_trace(event, result);
    world_observed(event->io->world, event, result);
}

void sim_io_kill(struct io *base)
{
    struct sim_io *io = sim_io_of(base);
    struct sim_world *world = io->world;

    if (io->dead)
        return;
    io->dead = true;
    for (struct sim_event *event; (event = event_of(io));) {
        bool lands = event_can_land(event) && sim_random_below(&event->random, 2);

        if (lands && event->request.kind != OP_WRITE)
            event_land(event);
        if (lands && event->request.kind == OP_WRITE) {
            event_orphan(event);
        } else {
            event_unlink(&world->events, event);
            event_destroy(world, event);
        }
    }
    ready_drop(io);
    for (size_t i = 0; i < world->handle_count; i++)
        if (world->handles[i].owner == io && world->handles[i].object)
            handle_close(io, SIM_HANDLE_FIRST + (int)i);
    world_wake(world);
}

