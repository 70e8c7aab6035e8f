/* save/stager.h - the threads that copy tensors into the arena.
 *
 * Saves stand in one line, in the order of submission, and chunks are taken from its front: chunk_order of the first,
 * then of the next. A chunk's slot is acquired when it is taken, one thread at a time, so slots are acquired in the line's
 * order too. That order is what rules out a deadlock: of two saves that each hold half of the arena, neither would end.
 *
 * `limit` threads copy at once; a caller that waits in submit (staging "now") is one of them.
 */
#ifndef SAVE_STAGER_H
#define SAVE_STAGER_H

#include <arena/arena.h>
#include <pthread.h>
#include <save/roster.h>
#include <stdbool.h>

#define STAGER_THREADS_MAX 64u

struct stager {
    struct roster *roster;              /* its lock guards everything below */
    struct arena *arena;
    pthread_cond_t work;
    uint32_t limit, working;
    bool acquiring;                     /* one thread is getting a slot; the others wait, for the order's sake */
    bool stopping;
    struct tspool_save *first, *last;   /* the line (next_in_line) */
    pthread_t threads[STAGER_THREADS_MAX];
    uint32_t thread_count;
};

int stager_init(struct stager *stager, struct roster *roster, struct arena *arena, uint32_t threads, const char *excluded_cpus,
                struct tspool_failure *failure);
void stager_deinit(struct stager *stager); /* joins; chunks in hand are finished first */

/* With the lock held. */
void stager_enter(struct stager *stager, struct tspool_save *save);  /* at the end of the line */
void stager_remove(struct stager *stager, struct tspool_save *save); /* fine when it is not in line */
/* The caller takes the front's next chunk and copies it, whole; it waits while another thread is getting a slot, and for the
 * slot. Gives the lock away meanwhile. False when nobody stands in line. */
bool stager_work(struct stager *stager);
/* The caller copies along until every chunk of `save` was taken. Gives the lock away while it works. */
void stager_help(struct stager *stager, struct tspool_save *save);

/* Fills [0, chunk size) of the slot, and zeroes what the writer's last item pads. Pure but for the tensors' memory. */
void chunk_fill(const struct tspool_save *save, uint32_t chunk, uint8_t *slot);
void chunk_pad(const struct tspool_save *save, uint32_t chunk, uint8_t *slot);

#endif
