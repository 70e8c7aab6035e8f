/* arena/arena.c - slots of the shared memory, handed out and taken back; memory added extent by extent.
 *
 * The populated part is a prefix of the cap and only grows. A slot is free or taken; nobody moves it by itself. One
 * mutex guards all of it, and is not held while memory is populated: that takes up to seconds, and slots released
 * meanwhile serve those who wait.
 */
#include <arena/arena.h>
#include <arena/mapping.h>
#include <arena/sizing.h>

#include <assert.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct extent { uint64_t arena_offset, bytes; };

struct arena {
    int fd;
    uint8_t *base;
    uint64_t bytes;              /* the cap */
    tspool_arena_hook hook;
    void *hook_context;
    memory_room_reader room_reader;
    void *room_context;

    pthread_mutex_t mutex;       /* guards everything below */
    pthread_cond_t changed;      /* a slot was released, memory was added, or arena_wake */
    bool growing;                /* one thread populates, without the mutex; only it touches `backed` and the extents */
    bool huge;                   /* all of the backed part has 2 MiB pages */
    uint64_t backed;             /* has memory; beyond `populated` only after a hook refused */
    uint64_t populated;          /* usable: [0, populated) */
    struct extent *extents;
    uint32_t extent_count, extent_room;
    uint8_t *taken;              /* one byte per slot of the cap */
    uint32_t lowest_free;        /* no slot below it is free */
};

static const struct arena_settings no_settings;

static uint64_t slots_of(uint64_t bytes) { return bytes / ARENA_SLOT_BYTES; }

/* Making and ending ----------------------------------------------------------------------------------------------- */
static void kernel_room(void *context, struct memory_room *room)
{
    (void)context;
    memory_room_read(NULL, room);
}

static int cap_decide(const struct arena *arena, const struct arena_settings *settings, uint64_t *cap,
                      struct tspool_failure *failure)
{
    struct memory_room room;

    if (settings->bytes > INT64_MAX - ARENA_SLOT_BYTES || slots_of(settings->bytes) >= ARENA_NO_SLOT)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EFBIG, FAILURE_AT(.operation = "arena"),
                           "arena_bytes is beyond what an arena can have");
    if (settings->bytes) {
        *cap = max_u64(align_up(settings->bytes, ARENA_SLOT_BYTES), 2 * ARENA_SLOT_BYTES);
        return 0;
    }
    arena->room_reader(arena->room_context, &room);
    *cap = memory_room_default_cap(&room, settings->local_ranks);
    if (*cap < 2 * ARENA_SLOT_BYTES)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, ENOMEM, FAILURE_AT(.operation = "arena", .path = room.limit),
                           "half of the %llu MiB that this limit leaves, divided by %u local ranks, is less than the 32 MiB "
                           "that an arena needs", (unsigned long long)(room.bytes >> 20),
                           settings->local_ranks ? settings->local_ranks : 1);
    return 0;
}

static void lock_init(struct arena *arena)
{
    pthread_condattr_t attributes;

    pthread_mutex_init(&arena->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&arena->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

int arena_create_sized(const struct arena_settings *settings, memory_room_reader reader, void *context,
                       struct arena **arena, struct tspool_failure *failure)
{
    struct arena *made = calloc(1, sizeof *made);
    int error;

    if (!made)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, ENOMEM, FAILURE_AT(.operation = "arena"), NULL);
    if (!settings)
        settings = &no_settings;
    *made = (struct arena){ .fd = -1, .hook = settings->hook, .hook_context = settings->hook_context,
                            .room_reader = reader, .room_context = context, .huge = true };
    lock_init(made);
    error = cap_decide(made, settings, &made->bytes, failure);
    if (error == 0)
        error = mapping_create(made->bytes, &made->fd, &made->base, failure);
    if (error == 0 && !(made->taken = calloc(slots_of(made->bytes), 1)))
        error = failure_set(failure, TSPOOL_STAGE_RESERVE, ENOMEM, FAILURE_AT(.operation = "arena"), NULL);
    if (error < 0) {
        arena_destroy(made);
        return error;
    }
    *arena = made;
    return 0;
}

int arena_create(const struct arena_settings *settings, struct arena **arena, struct tspool_failure *failure)
{
    return arena_create_sized(settings, kernel_room, NULL, arena, failure);
}

void arena_destroy(struct arena *arena)
{
    if (!arena)
        return;
    assert(!arena->growing);
    for (uint32_t i = arena->extent_count; i-- > 0;)
        if (arena->hook)
            arena->hook(arena->hook_context, arena->base + arena->extents[i].arena_offset, arena->extents[i].bytes, 0);
    mapping_destroy(arena->fd, arena->base, arena->bytes);
    pthread_cond_destroy(&arena->changed);
    pthread_mutex_destroy(&arena->mutex);
    free(arena->extents);
    free(arena->taken);
    free(arena);
}

/* Growing --------------------------------------------------------------------------------------------------------- */
static int room_check(const struct arena *arena, uint64_t target, struct tspool_failure *failure)
{
    uint64_t needed = target - min_u64(target, arena->backed);
    struct memory_room room;

    arena->room_reader(arena->room_context, &room);
    if (needed <= memory_room_usable(&room))
        return 0;
    return failure_set(failure, TSPOOL_STAGE_RESERVE, ENOMEM, FAILURE_AT(.operation = "populate", .path = room.limit),
                       "the arena needs %llu MiB more, this limit leaves %llu MiB, %llu of them usable; the arena has %llu MiB. "
                       "Set arena_bytes lower (a larger state is then saved in passes) or give the job more memory",
                       (unsigned long long)(needed >> 20), (unsigned long long)(room.bytes >> 20),
                       (unsigned long long)(memory_room_usable(&room) >> 20), (unsigned long long)(arena->backed >> 20));
}

static int extents_make_room(struct arena *arena)
{
    uint32_t room = arena->extent_room ? 2 * arena->extent_room : 8;
    struct extent *moved;

    if (arena->extent_count < arena->extent_room)
        return 0;
    moved = realloc(arena->extents, room * sizeof *moved);
    if (!moved)
        return -ENOMEM;
    arena->extents = moved;
    arena->extent_room = room;
    return 0;
}

/* Backs [populated, end) and shows it to the hook. Runs without the mutex, in the one thread that set `growing`. */
static int extent_add(struct arena *arena, uint64_t end, struct tspool_failure *failure)
{
    struct extent extent = { arena->populated, end - arena->populated };
    bool huge = true;
    int error = extents_make_room(arena);

    if (error == 0 && end > arena->backed)
        error = mapping_back(arena->base + arena->backed, end - arena->backed, &huge);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "populate"), NULL);
    pthread_mutex_lock(&arena->mutex);
    arena->huge &= huge;
    arena->backed = max_u64(arena->backed, end); /* seals forbid punching it out again if the hook refuses */
    pthread_mutex_unlock(&arena->mutex);
    error = arena->hook ? arena->hook(arena->hook_context, arena->base + extent.arena_offset, extent.bytes, 1) : 0;
    if (error != 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, abs(error), FAILURE_AT(.operation = "on_arena"),
                           "the on_arena hook refused %llu MiB of arena", (unsigned long long)(extent.bytes >> 20));
    arena->extents[arena->extent_count++] = extent;
    return 0;
}

/* With the mutex held, which it gives away while it works. Several may ask at once: one populates, the others wait. */
static int grow_locked(struct arena *arena, uint64_t target, struct tspool_failure *failure)
{
    int error = 0;

    while (arena->growing)
        pthread_cond_wait(&arena->changed, &arena->mutex);
    if (arena->populated >= target)
        return 0;
    arena->growing = true;
    while (error == 0 && arena->populated < target) {
        uint64_t end = min_u64(target, arena->populated + ARENA_EXTENT_BYTES);

        pthread_mutex_unlock(&arena->mutex);
        error = room_check(arena, target, failure);
        if (error == 0)
            error = extent_add(arena, end, failure);
        pthread_mutex_lock(&arena->mutex);
        if (error == 0)
            arena->populated = end;
        pthread_cond_broadcast(&arena->changed);
    }
    arena->growing = false;
    pthread_cond_broadcast(&arena->changed);
    return error;
}

int arena_populate(struct arena *arena, uint64_t bytes, struct tspool_failure *failure)
{
    int error;

    if (bytes > arena->bytes)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EFBIG, FAILURE_AT(.operation = "populate"),
                           "%llu MiB are beyond the arena's cap of %llu MiB (arena_bytes)", (unsigned long long)(bytes >> 20),
                           (unsigned long long)(arena->bytes >> 20));
    pthread_mutex_lock(&arena->mutex);
    error = grow_locked(arena, align_up(bytes, ARENA_SLOT_BYTES), failure);
    pthread_mutex_unlock(&arena->mutex);
    return error;
}

/* Slots ----------------------------------------------------------------------------------------------------------- */
static uint32_t slot_find(struct arena *arena)
{
    uint64_t count = slots_of(arena->populated);

    while (arena->lowest_free < count && arena->taken[arena->lowest_free])
        arena->lowest_free++;
    return arena->lowest_free < count ? arena->lowest_free : ARENA_NO_SLOT;
}

/* What to populate when slots run out and the caller named no amount: doubling keeps a small arena small and makes few
 * extents of a large one. */
static uint64_t next_target(const struct arena *arena)
{
    uint64_t step = max_u64(ARENA_SLOT_BYTES, min_u64(arena->populated, ARENA_EXTENT_BYTES));

    return min_u64(arena->bytes, arena->populated + step);
}

static int changed_wait(struct arena *arena, uint64_t deadline_ns)
{
    struct timespec until = { (time_t)(deadline_ns / 1000000000), (long)(deadline_ns % 1000000000) };

    if (deadline_ns == UINT64_MAX)
        return -pthread_cond_wait(&arena->changed, &arena->mutex);
    return -pthread_cond_timedwait(&arena->changed, &arena->mutex, &until);
}

/* One round for someone who wants a slot: 0 with *slot, -EAGAIN to look again, or the error. */
static int acquire_round(struct arena *arena, uint64_t deadline_ns, const bool *cancelled, uint32_t *slot,
                         struct tspool_failure *failure)
{
    int error;

    /* Pairs with the store that the canceller makes before arena_wake. */
    if (cancelled && __atomic_load_n(cancelled, __ATOMIC_ACQUIRE))
        return failure_set(failure, TSPOOL_STAGE_RESERVE, ECANCELED, FAILURE_AT(.operation = "acquire"),
                           "the save was given up while it waited for arena memory");
    *slot = slot_find(arena);
    if (*slot != ARENA_NO_SLOT)
        return 0;
    if (arena->populated < arena->bytes && !arena->growing) {
        error = grow_locked(arena, next_target(arena), failure);
        return error ? error : -EAGAIN;
    }
    error = changed_wait(arena, deadline_ns);
    if (error == -ETIMEDOUT && slot_find(arena) == ARENA_NO_SLOT)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, ETIMEDOUT, FAILURE_AT(.operation = "acquire"),
                           "all %llu MiB of the arena hold data that is not yet written",
                           (unsigned long long)(arena->populated >> 20));
    return -EAGAIN;
}

int arena_acquire(struct arena *arena, uint64_t deadline_ns, const bool *cancelled, uint32_t *slot,
                  struct tspool_failure *failure)
{
    uint32_t found = ARENA_NO_SLOT;
    int error;

    pthread_mutex_lock(&arena->mutex);
    do
        error = acquire_round(arena, deadline_ns, cancelled, &found, failure);
    while (error == -EAGAIN);
    if (error == 0) {
        arena->taken[found] = 1;
        *slot = found;
    }
    pthread_mutex_unlock(&arena->mutex);
    return error;
}

/* The lowest run of `count` free slots among the first `end`; free slots at the end are a run of *tail. */
static uint32_t run_find(const struct arena *arena, uint32_t count, uint32_t end, uint32_t *tail)
{
    uint32_t run = 0;

    for (uint32_t slot = 0; slot < end; slot++) {
        run = arena->taken[slot] ? 0 : run + 1;
        if (run == count)
            return slot + 1 - count;
    }
    *tail = run;
    return ARENA_NO_SLOT;
}

int arena_acquire_run(struct arena *arena, uint32_t count, uint32_t *first, struct tspool_failure *failure)
{
    uint32_t found, tail = 0;
    int error = 0;

    assert(count > 0);
    pthread_mutex_lock(&arena->mutex);
    for (;;) {
        uint64_t target;

        found = run_find(arena, count, (uint32_t)slots_of(arena->populated), &tail);
        if (found != ARENA_NO_SLOT)
            break;
        target = arena->populated + (uint64_t)(count - tail) * ARENA_SLOT_BYTES;
        error = target > arena->bytes ? -EAGAIN : grow_locked(arena, target, failure);
        if (error < 0)
            break; /* otherwise look again: others may have taken what was free before */
    }
    if (error == 0) {
        memset(arena->taken + found, 1, count);
        *first = found;
    }
    pthread_mutex_unlock(&arena->mutex);
    return error;
}

void arena_release(struct arena *arena, uint32_t slot)
{
    pthread_mutex_lock(&arena->mutex);
    assert(slot < slots_of(arena->populated) && arena->taken[slot]);
    arena->taken[slot] = 0;
    arena->lowest_free = slot < arena->lowest_free ? slot : arena->lowest_free;
    pthread_cond_broadcast(&arena->changed); /* a single signal could reach one who is just timing out, and be lost */
    pthread_mutex_unlock(&arena->mutex);
}

void arena_wake(struct arena *arena)
{
    pthread_mutex_lock(&arena->mutex);
    pthread_cond_broadcast(&arena->changed);
    pthread_mutex_unlock(&arena->mutex);
}

/* What it is ------------------------------------------------------------------------------------------------------ */
int arena_fd(const struct arena *arena) { return arena->fd; }

uint64_t arena_bytes(const struct arena *arena) { return arena->bytes; }

uint32_t arena_slot_count(const struct arena *arena) { return (uint32_t)slots_of(arena->bytes); }

void *arena_slot(struct arena *arena, uint32_t slot)
{
    assert(slot < slots_of(arena->bytes));
    return arena->base + slot * ARENA_SLOT_BYTES;
}

uint32_t arena_page_bytes(const struct arena *arena)
{
    struct arena *unlocked = (struct arena *)(uintptr_t)arena;
    bool huge;

    pthread_mutex_lock(&unlocked->mutex);
    huge = arena->huge && arena->backed > 0;
    pthread_mutex_unlock(&unlocked->mutex);
    return huge ? (uint32_t)HUGE_PAGE_BYTES : 4096;
}
