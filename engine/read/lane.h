/* read/lane.h - what a checkpoint's calls run on: an io, and scratch memory that is kept from one call to the next.
 *
 * An io belongs to the thread that made it (io_uring insists), yet a checkpoint may be used from several threads and
 * after a fork. So the lane is entered under a mutex, keeps the io of the thread that came last, and makes a new one
 * when another thread, or a forked child, comes.
 */
#ifndef READ_LANE_H
#define READ_LANE_H

#include <io/io.h>
#include <pthread.h>
#include <sys/types.h>
#include <tspool/checkpoint.h>

struct lane {
    pthread_mutex_t mutex;
    struct io *io;
    bool borrowed;          /* the caller's io (checkpoint_open_on): used as it is, never destroyed */
    char backend[16];
    pid_t owner_process;
    uint64_t owner_thread;  /* number of the thread whose io it is: never given twice, unlike thread ids */
    enum tspool_io kind;
    unsigned depth, hash_threads;
    void *scratch;          /* the reader's job memory, made at the first read */
    void (*scratch_free)(void *scratch);
};

void lane_init(struct lane *lane, struct io *borrowed, enum tspool_io kind, unsigned depth, unsigned hash_threads);
void lane_deinit(struct lane *lane);
/* Locks the lane and makes sure that lane->io may be used by this thread. Nothing to leave after a failure. */
int lane_enter(struct lane *lane, struct tspool_failure *failure);
void lane_leave(struct lane *lane);
/* Ends an io that is beyond use, so that the next call makes a new one; the caller's is left to the caller. */
void lane_drop(struct lane *lane);

#endif
