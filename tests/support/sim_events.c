/* support/sim_events.c - an op in flight is an event; its moment comes, it takes effect, faults bend it, and it ends. */
#include "sim_world.h"

#include <base/checked.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void event_destroy(struct sim_world *world, struct sim_event *event)
{
    object_release(world, event->object);
    object_release(world, event->to_object);
    for (unsigned i = 0; i < 3; i++)
        free(event->kept[i]);
    free(event);
}

void event_unlink(struct sim_event **list, struct sim_event *event)
{
    while (*list != event)
        list = &(*list)->next;
    *list = event->next;
    event->next = NULL;
}

void event_append(struct sim_event **list, struct sim_event *event)
{
    while (*list)
        list = &(*list)->next;
    *list = event;
}


/* Its submitter is gone or has its answer: names and bytes are copied, nobody waits for the result. */
void event_orphan(struct sim_event *event)
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

void event_trace(const struct sim_event *event, int64_t result)
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
    if (result < 0)
        fprintf(world->trace_file, " -> %s", strerrorname_np((int)-result));
    else
        fprintf(world->trace_file, " -> %" PRId64, result);
    if (event->fault)
        fprintf(world->trace_file, "  (fault %d)", event->fault->action);
    fprintf(world->trace_file, "%s\n", event->op ? "" : "  (nobody waits)");
}

void world_observed(struct sim_world *world, const struct sim_event *event, int64_t result)
{
    struct sim_seen seen = {
        .io = &event->io->io, .kind = event->request.kind, .number = event->number, .path = event->path,
        .to_path = event->to_path, .result = result, .size = event->request.size,
        .bytes = reads_memory(event->request.kind) ? verb_memory(event) : NULL,
    };

    if (world->look)
        world->look(world, &seen, world->look_context);
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
    if (event->request.kind == OP_LIST && result >= 0)
        io_list_free(event->request.list);
    return -error;
}

static void event_check_memory(struct sim_event *event)
{
    if (!event->op || event->io->doomed || !reads_memory(event->request.kind) || !verb_memory(event))
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

void event_run(struct sim_event *event)
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

struct sim_event *event_next(struct sim_world *world)
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
