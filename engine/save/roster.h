/* save/roster.h - what callers' threads, staging threads and the supervisor share: one lock, the list of saves in flight,
 * wishes to the supervisor and facts from it.
 *
 * There is no queue of work items that could overflow or need memory: a wish is a flag or a counter in the save or here,
 * set under the lock, followed by one wake. The supervisor looks at all of them when it wakes.
 */
#ifndef SAVE_ROSTER_H
#define SAVE_ROSTER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>
#include <wire/message.h>

struct tspool_save;

/* How the supervisor is woken: an eventfd with the real backends. */
struct wake {
    int handle;                                  /* becomes readable; the supervisor WATCHes it */
    void (*raise)(struct wake *wake);            /* any thread, never blocks */
    void (*clear)(struct wake *wake);            /* the supervisor */
};
int wake_init(struct wake *wake, struct tspool_failure *failure);
void wake_deinit(struct wake *wake);

enum writer_presence {
    WRITER_ABSENT,    /* nobody; a save that waits, or want_writer, starts one: see restart.h */
    WRITER_STARTING,
    WRITER_SERVING,
    WRITER_REFUSED    /* the last one refused to serve, or tspool_open's failed: `writer_failure` says why. The next
                       * wish tries again */
};

struct roster {
    pthread_mutex_t lock;
    pthread_cond_t changed;            /* CLOCK_MONOTONIC; any level, any resolution, any change of `presence` */
    struct wake wake;

    struct tspool_save *first, *last;  /* submitted and not resolved, in the order of submission (next_active) */
    struct tspool_save *unlooked;      /* failed, and nobody looked yet, oldest first (next_unlooked) */

    bool want_writer;                  /* tspool_open waits for the first one */
    bool want_close;                   /* tell the writer CLOSE once everything staged was sent */
    bool close_abandon;
    bool want_stop;                    /* the supervisor's thread ends */

    enum writer_presence presence;
    struct message_ready ready;        /* of the latest writer that came up */
    int writer_pid;                    /* 0: none, or a thread */
    struct tspool_failure writer_failure;
    bool close_sent;                   /* CLOSE is in the channel */
    bool broken;                       /* the supervisor's own I/O failed: nothing moves any more */
    uint64_t published, failed;        /* saves resolved so far, well and otherwise */
};
int roster_init(struct roster *roster, struct tspool_failure *failure);
void roster_deinit(struct roster *roster);

/* With the lock held: tells the supervisor to look; tells waiters to look. */
void roster_wake(struct roster *roster);
void roster_changed(struct roster *roster);
/* With the lock held: 0, or -ETIMEDOUT at deadline_ns (CLOCK_MONOTONIC; UINT64_MAX: never). */
int roster_wait(struct roster *roster, uint64_t deadline_ns);

uint64_t monotonic_ns(void);
/* now + timeout, where UINT64_MAX stays for ever. */
uint64_t deadline_after(uint64_t timeout_ns);

#endif
