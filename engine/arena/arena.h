/* arena/arena.h - the shared memory: one sealed memfd, populated by extents, handed out in slots of CHUNK_BYTES.
 *
 * Bytes only: no pointers, no flags, no atomics live in it. The trainer maps it writable and populates it (memory charge
 * and NUMA first touch are the trainer's); the writer maps the same memfd read-only (F_SEAL_FUTURE_WRITE enforces it).
 * Order per extent: touch one byte per 2 MiB, MADV_COLLAPSE (huge pages even where shmem_enabled=never; kernel 6.1),
 * small pages where that failed, then the on_arena hook. The mapping is MADV_DONTFORK and MADV_DONTDUMP.
 *
 * Threads: all functions of the trainer's side may be called from any thread.
 */
#ifndef ARENA_ARENA_H
#define ARENA_ARENA_H

#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>
#include <tspool/spool.h>

#define ARENA_SLOT_BYTES ((uint64_t)16 << 20) /* equals CHUNK_BYTES; checked by an assertion where both are seen */
#define ARENA_EXTENT_BYTES ((uint64_t)1 << 30)
#define ARENA_NO_SLOT UINT32_MAX

struct arena;

struct arena_settings {
    uint64_t bytes;          /* cap; 0: sized from cgroup and MemAvailable */
    uint32_t local_ranks;    /* 0: 1 */
    tspool_arena_hook hook;
    void *hook_context;
};
int arena_create(const struct arena_settings *settings, struct arena **arena, struct tspool_failure *failure);
void arena_destroy(struct arena *arena); /* calls the hook for each extent, unmaps */

int arena_fd(const struct arena *arena);
uint64_t arena_bytes(const struct arena *arena);      /* the cap */
uint32_t arena_page_bytes(const struct arena *arena); /* 2 MiB or 4096: what really backs the populated part */

/* Populates until at least `bytes` are usable (capped by the cap: -EFBIG). Never triggers the OOM killer on purpose:
 * checks MemAvailable and the cgroup's headroom first; -ENOMEM with needed, available and the limit's name. */
int arena_populate(struct arena *arena, uint64_t bytes, struct tspool_failure *failure);

/* Slots. acquire hands out a free populated slot, populating one more extent when there is none and room under the cap;
 * with all in use it waits until deadline_ns (CLOCK_MONOTONIC; UINT64_MAX: for ever): -ETIMEDOUT. -ECANCELED after
 * arena_wake was called with *cancelled true (store it atomically, or with release order, before arena_wake). -ENOMEM
 * when the cap has room but memory has not. */
int arena_acquire(struct arena *arena, uint64_t deadline_ns, const bool *cancelled, uint32_t *slot,
                  struct tspool_failure *failure);
/* A run of `count` adjacent slots, all free, without waiting for a release: 0, or -EAGAIN. *first is the lowest.
 * Populates what is missing when the cap has room: then also -ENOMEM, or the hook's error, with the record. */
int arena_acquire_run(struct arena *arena, uint32_t count, uint32_t *first, struct tspool_failure *failure);
void arena_release(struct arena *arena, uint32_t slot);
void arena_wake(struct arena *arena); /* waiters look at their *cancelled again */
void *arena_slot(struct arena *arena, uint32_t slot);
uint32_t arena_slot_count(const struct arena *arena);

/* The writer's side: maps the memfd read-only, after checking its seals and size; the seal refuses anything more. */
int arena_attach(int fd, uint64_t bytes, void **base, struct tspool_failure *failure);
void arena_detach(void *base, uint64_t bytes);

/* Small sealed memfds: the sheets. create fills and seals one (F_SEAL_WRITE and all others); map maps one read-only after
 * checking its seals and size: a page of it can neither change nor vanish. */
int sealed_create(const char *name, const void *bytes, uint64_t size, int *fd, struct tspool_failure *failure);
int sealed_map(int fd, uint64_t size, const void **bytes, struct tspool_failure *failure);
void sealed_unmap(const void *bytes, uint64_t size);

#endif
