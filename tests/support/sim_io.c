/* support/sim_io.c - the clock: ops go in, their moments come in an order that the seed chose, completions go out. */
#include "sim_world.h"

#include <assert.h>
#include <base/array.h>
#include <base/checked.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_NS 100000u /* completions that lie so close may come out of one wait(): batches of every length */

/* splitmix64 */
static uint64_t mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

uint64_t sim_random_next(struct sim_random *random) { return mix(random->state += 0x9e3779b97f4a7c15u); }

uint64_t sim_random_below(struct sim_random *random, uint64_t bound) { return bound ? sim_random_next(random) % bound : 0; }

void world_violation(struct sim_world *world, const char *what, ...)
{
    va_list arguments;

    if (world->violation[0])
        return;
    va_start(arguments, what);
    vsnprintf(world->violation, sizeof(world->violation), what, arguments);
    va_end(arguments);
}

const char *sim_world_violation(const struct sim_world *world) { return world->violation[0] ? world->violation : NULL; }

const char *sim_world_trace(const struct sim_world *world)
{
    if (!world->trace_file)
        return NULL;
    fflush(world->trace_file);
    return world->trace;
}

/* Events: one per op in flight ----------------------------------------------------------------------------------------- */

static void event_destroy(struct sim_world *world, struct sim_event *event)
{
    object_release(world, event->object);
    object_release(world, event->to_object);
    for (unsigned i = 0; i < 3; i++)
        free(event->kept[i]);
    free(event);
}

static void event_unlink(struct sim_event **list, struct sim_event *event)
{
    while (*list != event)
        list = &(*list)->next;
    *list = event->next;
    event->next = NULL;
}

static void event_append(struct sim_event **list, struct sim_event *event)
{
    while (*list)
        list = &(*list)->next;
    *list = event;
}

static bool is_transfer(enum op_kind kind) { return kind == OP_READ || kind == OP_WRITE; }
static bool reads_memory(enum op_kind kind) { return kind == OP_WRITE || kind == OP_SEND; }

/* Its submitter is gone or has its answer: names and bytes are copied, nobody waits for the result. */
static void event_orphan(struct sim_event *event)
{
    struct op *op = &event->request;

    if (op->name)
        op->name = event->kept[0] = strdup(op->name);
    if (op->to_name)
        op->to_name = event->kept[1] = strdup(op->to_name);
    if (reads_memory(op->kind)) {
        void *bytes = malloc(op->size + 1);

        if (!bytes)
            abort();
        memcpy(bytes, verb_memory(event), op->size);
        event->kept[2] = bytes;
    }
    event->op = NULL;
}

static void world_ready(struct sim_world *world, struct sim_io *io, struct op *op, int64_t result)
{
    struct sim_ready *ready = calloc(1, sizeof(*ready));

    if (!ready)
        abort();
    *ready = (struct sim_ready){ NULL, io, { op, result } };
    *world->ready_last = ready;
    world->ready_last = &ready->next;
}

static void event_trace(const struct sim_event *event, int64_t result)
{
    struct sim_world *world = event->io->world;
    const struct op *op = &event->request;

    if (!world->trace_file)
        return;
    fprintf(world->trace_file, "%10.3f us  %s #%" PRIu64 " %s", (double)world->now / 1000, event->io->name, event->number,
            op_kind_name(op->kind));
    if (event->path[0])
        fprintf(world->trace_file, " %s", event->path);
    if (event->to_path[0])
        fprintf(world->trace_file, " -> %s", event->to_path);
    if (is_transfer(op->kind))
        fprintf(world->trace_file, " @%" PRIu64 "+%zu", op->file_offset, op->size);
    else if (op->kind == OP_TRUNCATE || op->kind == OP_ALLOCATE)
        fprintf(world->trace_file, " %zu", op->size);
    fprintf(world->trace_file, result < 0 ? " -> %s" : "", result < 0 ? strerrorname_np((int)-result) : "");
    if (result >= 0)
        fprintf(world->trace_file, " -> %" PRId64, result);
    if (event->fault)
        fprintf(world->trace_file, "  (fault %d)", event->fault->action);
    fprintf(world->trace_file, "%s\n", event->op ? "" : "  (nobody waits)");
}

static void world_observed(struct sim_world *world, const struct sim_event *event, int64_t result)
{
    struct sim_seen seen = {
        .io = &event->io->io, .kind = event->request.kind, .number = event->number, .path = event->path,
        .to_path = event->to_path, .result = result, .size = event->request.size,
        .bytes = reads_memory(event->request.kind) ? verb_memory(event) : NULL,
    };

    if (world->look)
        world->look(world, &seen, world->look_context);
}

void sim_world_observe(struct sim_world *world, sim_look *look, void *context)
{
    world->look = look;
    world->look_context = context;
}

/* What success looks like of an op that is only said to be done. */
static int64_t success_of(const struct op *op) { return reads_memory(op->kind) || op->kind == OP_READ ? (int64_t)op->size : 0; }

static int64_t event_fail(struct sim_event *event, int error)
{
    if (event->request.kind == OP_FSYNC && event->object && event->object->kind == OBJECT_NODE)
        verb_sync_fails(event);
    if (event->request.kind == OP_CLOSE)
        handle_close(event->io, event->request.handle); /* Linux closes it whatever it reports */
    return -error;
}

static int64_t event_fail_after(struct sim_event *event, int error)
{
    int64_t result = verb_execute(event);

    if (result == SIM_AGAIN)
        return result;
    if (event->request.kind == OP_OPEN && result >= 0)
        handle_close(event->io, (int)result);
    return -error;
}

static void event_check_memory(struct sim_event *event)
{
    if (!event->op || !reads_memory(event->request.kind) || !verb_memory(event))
        return;
    if (!digest_equal(hash_bytes(verb_memory(event), event->request.size), event->memory))
        world_violation(event->io->world, "%s #%" PRIu64 " %s %s: the memory changed while the op was in flight", event->io->name,
                        event->number, op_kind_name(event->request.kind), event->path);
}

static int64_t event_execute(struct sim_event *event)
{
    enum sim_action action = event->fault ? event->fault->action : 0;

    event_check_memory(event);
    if (event->request.kind != OP_TIMER && event->request.kind != OP_COMPUTE && event->request.handle != IO_CWD && !event->object)
        return -EBADF;
    if (action == SIM_FAIL)
        return event_fail(event, event->fault->error);
    if (action == SIM_FAIL_AFTER)
        return event_fail_after(event, event->fault->error);
    if (event->op && (action == SIM_LIE || action == SIM_DEFER))
        return success_of(&event->request);
    return verb_execute(event);
}

/* Reported as done, but it waits until what it should have come before has taken effect. */
static void event_defer(struct sim_event *event)
{
    struct sim_world *world = event->io->world;

    event_orphan(event);
    event_append(&world->deferred, event);
}

static void deferred_execute(struct sim_world *world, const struct sim_event *after, int64_t result)
{
    for (struct sim_event *event = world->deferred, *next; event; event = next) {
        next = event->next;
        if (event == after || !fault_matches(&event->fault->until, after))
            continue;
        event_unlink(&world->deferred, event);
        event_trace(event, verb_execute(event));
        event_destroy(world, event);
        world_observed(world, after, result); /* the moment between the two was one to look at too */
    }
}

static bool is_cancellable(enum op_kind kind) { return kind == OP_RECV || kind == OP_SEND || kind == OP_WATCH || kind == OP_TIMER; }

/* When a parked op may be worth another try: a message that is under way. */
static uint64_t event_retry_at(const struct sim_event *event)
{
    const struct sim_message *message = event->request.kind == OP_RECV ? event->object->first : NULL;

    return message ? max_u64(message->visible_ns, event->io->world->now + 1) : SIM_PARKED;
}

static void event_end(struct sim_event *event, int64_t result)
{
    struct sim_world *world = event->io->world;
    const struct sim_fault *fault = event->fault;
    struct sim_io *io = event->io;
    enum op_kind kind = event->request.kind;
    bool deferred = event->op && fault && fault->action == SIM_DEFER && result >= 0;

    event_unlink(&world->events, event);
    event_trace(event, result);
    if (event->op)
        world_ready(world, io, event->op, result);
    world_observed(world, event, result);
    deferred_execute(world, event, result);
    if (deferred)
        event_defer(event);
    else
        event_destroy(world, event);
    if (kind == OP_SEND || kind == OP_RECV)
        world_wake(world); /* the next one of that socket */
    if (fault && fault->action == SIM_KILL)
        sim_io_kill(&io->io);
    if (fault && fault->action == SIM_POWER_CUT)
        world->power_cut = true;
}

/* Messages of one socket go out, and are taken, in the order of their submission. */
static bool is_behind_another(const struct sim_event *event)
{
    if (event->request.kind != OP_SEND && event->request.kind != OP_RECV)
        return false;
    for (const struct sim_event *other = event->io->world->events; other != event; other = other->next)
        if (other->io == event->io && other->object == event->object && other->request.kind == event->request.kind)
            return true;
    return false;
}

static void event_run(struct sim_event *event)
{
    struct sim_world *world = event->io->world;
    int64_t result;

    world->now = max_u64(world->now, event->due);
    if (is_behind_another(event)) {
        event->due = SIM_PARKED;
        return;
    }
    result = event->request.kind == OP_TIMER && event->cancelled ? -ECANCELED : event_execute(event);
    if (result == SIM_AGAIN && event->cancelled)
        result = -ECANCELED;
    if (result == SIM_AGAIN)
        event->due = event_retry_at(event);
    else
        event_end(event, result);
}

static struct sim_event *event_next(struct sim_world *world)
{
    struct sim_event *next = NULL;

    for (struct sim_event *event = world->events; event; event = event->next)
        if (event->due != SIM_PARKED && (!next || event->due < next->due))
            next = event;
    return next;
}

void world_wake_at(struct sim_world *world, uint64_t due)
{
    for (struct sim_event *event = world->events; event; event = event->next)
        if (event->due == SIM_PARKED)
            event->due = max_u64(due, world->now + 1 + sim_random_below(&event->random, 5000));
}

void world_wake(struct sim_world *world) { world_wake_at(world, world->now); }

/* The seam ---------------------------------------------------------------------------------------------------------- */

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
    event->random.state = mix(io->stream + event->number);
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

static unsigned ready_take(struct sim_io *io, struct completion *completions, unsigned capacity)
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
        hash = mix(hash + (uint8_t)*name);
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
    io->stream = mix(world->settings.seed ^ mix(name_hash(name) + before));
    io->random.state = mix(io->stream + UINT64_MAX / 2);
    io->next = world->processes;
    world->processes = io;
    return &io->io;
}

bool sim_io_is_dead(const struct io *io) { return sim_io_of(io)->dead; }
uint64_t sim_io_ops(const struct io *io) { return sim_io_of(io)->ops; }

void sim_io_kill(struct io *base)
{
    struct sim_io *io = sim_io_of(base);
    struct sim_world *world = io->world;

    if (io->dead)
        return;
    io->dead = true;
    for (struct sim_event *event; (event = event_of(io));) {
        bool lands = sim_random_below(&event->random, 2);

        if (lands && event->request.kind == OP_SEND) { /* before the death can be noticed, or never */
            int64_t result = verb_execute(event);

            event_trace(event, result);
            world_observed(world, event, result);
        }
        if (lands && verb_changes_disk(event->request.kind)) {
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

/* The world --------------------------------------------------------------------------------------------------------- */

struct sim_world *sim_world_create(const struct sim_settings *settings, struct sim_disk *disk)
{
    struct sim_world *world = calloc(1, sizeof(*world));

    if (!world)
        abort();
    world->settings = *settings;
    world->disk = disk ? disk : sim_disk_create(&settings->disk);
    world->now = 1000000000; /* zero is no time in the machines' records */
    world->ready_last = &world->ready;
    if (settings->trace && !(world->trace_file = open_memstream(&world->trace, &world->trace_size)))
        abort();
    return world;
}

static void objects_destroy(struct sim_world *world)
{
    for (struct sim_object *object = world->objects, *next; object; object = next) {
        next = object->next;
        for (struct sim_message *message = object->first, *after; message; message = after) {
            after = message->next;
            free(message);
        }
        free(object->bytes);
        free(object);
    }
}

static void processes_destroy(struct sim_world *world)
{
    for (struct sim_io *io = world->processes, *next; io; io = next) {
        next = io->next;
        assert(io->dead || io->destroyed);
        free(io->buffers);
        free(io);
    }
}

static void events_destroy(struct sim_world *world, struct sim_event *events)
{
    for (struct sim_event *event = events, *next; event; event = next) {
        next = event->next;
        event_destroy(world, event);
    }
}

void sim_world_destroy(struct sim_world *world)
{
    struct sim_event *events = world->events, *deferred = world->deferred;

    world->events = world->deferred = NULL;
    events_destroy(world, events);
    events_destroy(world, deferred);
    for (struct sim_ready *ready = world->ready, *next; ready; ready = next) {
        next = ready->next;
        free(ready);
    }
    processes_destroy(world);
    objects_destroy(world);
    for (unsigned i = 0; i < world->fault_count; i++)
        free(world->faults[i]);
    free(world->handles);
    sim_disk_destroy(world->disk);
    if (world->trace_file)
        fclose(world->trace_file);
    free(world->trace);
    free(world);
}

struct sim_disk *sim_world_disk(struct sim_world *world) { return world->disk; }
uint64_t sim_world_now(const struct sim_world *world) { return world->now; }

int sim_world_next(struct sim_world *world, uint64_t deadline_ns, struct io **io, struct completion *completion)
{
    while (!world->ready && !world->power_cut) {
        struct sim_event *event = event_next(world);

        if (!event && deadline_ns == IO_FOREVER)
            return -1;
        if (!event || event->due > max_u64(deadline_ns, world->now)) {
            world->now = max_u64(world->now, deadline_ns);
            return 0;
        }
        event_run(event);
    }
    if (world->power_cut)
        return -1;
    *io = &world->ready->io->io;
    return (int)ready_take(world->ready->io, completion, 1);
}

struct sim_disk *sim_world_disk_in_flight(struct sim_world *world)
{
    struct sim_disk *disk = sim_disk_clone(world->disk);

    for (const struct sim_event *event = world->events; event; event = event->next) {
        struct sim_event begun = *event;
        uint32_t opened;

        if (verb_changes_disk(event->request.kind) && (event->object || event->request.handle == IO_CWD)
            && !(event->fault && (event->fault->action == SIM_LIE || event->fault->action == SIM_DEFER)))
            verb_on_disk(&begun, disk, &opened);
    }
    return disk;
}
