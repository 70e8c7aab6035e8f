/* io/loop.h - what both backends share, which is nearly everything: so that they cannot differ in meaning.
 *
 * The loop checks and takes ops, runs the pool, timers and messages, counts what is in flight and returns completions. A
 * backend only knows how to move bytes of files and how to learn that a descriptor became ready.
 */
#ifndef IO_LOOP_H
#define IO_LOOP_H

#include <io/pool.h>

struct loop;

struct loop_backend {
    /* Starts a READ or WRITE; loop_transferred() follows from gather(). 0 or -errno (then not taken). */
    int (*transfer)(struct loop *loop, struct op *op);
    /* Waits for attempt_events(op->kind) on op->handle; loop_readied() follows from gather(), once. 0, or -errno. */
    int (*arm)(struct loop *loop, struct op *op);
    /* Gives an armed op up; loop_readied() follows, at once or from gather(). */
    void (*disarm)(struct loop *loop, struct op *op);
    /* Delivers whatever is ready; with nothing ready waits until now() reaches until_ns, or something is. It may return
     * early. 0, or -errno when the backend is beyond use. */
    int (*gather)(struct loop *loop, uint64_t until_ns);
    /* A buffer was attached (true: it and all before it are registered), or goes; NULL where the backend need not know. */
    bool (*attach)(struct loop *loop, uint32_t buffer, void *base, size_t size);
    void (*detach)(struct loop *loop, uint32_t buffer);
    /* Frees what the backend added to the loop; nothing is in flight and the pool still stands. */
    void (*release)(struct loop *loop);
};

struct loop_buffer {
    char *base;        /* NULL: detached */
    size_t size;
    uint32_t slot;     /* the backend's; 0 at first */
};

struct loop {
    struct io io;             /* first: a loop is an io */
    const struct loop_backend *backend;
    struct pool *pool;
    struct op_queue ready;    /* completed, not yet returned by wait() */
    struct op_queue waiters;  /* SEND, RECV, WATCH in order of submission; of one handle and kind only the first is armed */
    struct op *timers;        /* by deadline, equal ones by submission */
    unsigned in_flight;       /* taken and not yet ready */
    unsigned transfers;       /* READ and WRITE taken and not yet returned by wait() */
    unsigned depth;           /* most transfers */
    struct loop_buffer *buffers; /* buffer n is buffers[n - 1] */
    size_t buffer_count, buffer_capacity;
};

/* Fills a zeroed loop and starts its pool with `transfer_threads` threads for transfers. 0 or -errno, then nothing stands. */
int loop_init(struct loop *loop, const char *name, const struct loop_backend *backend, const struct io_settings *settings,
              unsigned transfer_threads, struct tspool_failure *failure);
unsigned loop_depth_of(const struct io_settings *settings);

/* A backend's deliveries. */
void loop_transferred(struct loop *loop, struct op *op, int64_t result);
void loop_readied(struct loop *loop, struct op *op, int error); /* 0: ready; or why it is not watched any more */
void loop_pool_done(struct loop *loop);                         /* the pool's event was read */
/* For gather(): nanoseconds from now until until_ns, 0 when it has passed. */
uint64_t loop_time_left(uint64_t until_ns);

#endif
