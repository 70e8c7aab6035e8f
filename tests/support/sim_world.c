/* support/sim_world.c - the world that processes share: its beginning, its end, its randomness, and stepping through it. */
#include "sim_world.h"

#include <assert.h>
#include <base/checked.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* splitmix64 */
uint64_t sim_mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

uint64_t sim_random_next(struct sim_random *random) { return sim_mix(random->state += 0x9e3779b97f4a7c15u); }

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

void sim_world_observe(struct sim_world *world, sim_look *look, void *context)
{
    world->look = look;
    world->look_context = context;
}

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
        if (object->bytes && !object->borrowed)
            munmap(object->bytes, object->size);
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
