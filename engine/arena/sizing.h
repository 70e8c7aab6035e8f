/* arena/sizing.h - how much memory may be taken, and which limit says so. Reads files of the kernel, changes nothing.
 *
 * Shared memory is charged to the cgroup of the process that first touches it and is never given back while the arena
 * lives, so the question is asked before the first byte: an answer with figures is better than the OOM killer.
 */
#ifndef ARENA_SIZING_H
#define ARENA_SIZING_H

#include <arena/arena.h>

struct memory_room {
    uint64_t bytes;  /* that can still be taken; UINT64_MAX: no limit could be read */
    char limit[256]; /* the file that sets it */
};

/* Fills *room. A reader of its own is given by tests. */
typedef void (*memory_room_reader)(void *context, struct memory_room *room);

/* Where the kernel tells it; tests point these at a tree of their own. */
struct memory_places {
    const char *meminfo;     /* "/proc/meminfo" */
    const char *own_cgroups; /* "/proc/self/cgroup" */
    const char *cgroup_root; /* "/sys/fs/cgroup" */
};

/* The tightest of: MemAvailable; of this process's cgroup and every one above it, memory.max and memory.high (v2) or
 * memory.limit_in_bytes (v1), less what is used there and cannot be reclaimed. `places` NULL: the kernel's. */
void memory_room_read(const struct memory_places *places, struct memory_room *room);

/* Of `room`, what an arena may take: all but a sixteenth, at most 512 MiB of margin, for what else the machine does. */
uint64_t memory_room_usable(const struct memory_room *room);
/* The cap of an arena that nobody gave a size: half of the room, shared by the machine's ranks; whole slots. */
uint64_t memory_room_default_cap(const struct memory_room *room, uint32_t local_ranks);

/* arena_create with a reader of one's own. */
int arena_create_sized(const struct arena_settings *settings, memory_room_reader reader, void *context,
                       struct arena **arena, struct tspool_failure *failure);

#endif
