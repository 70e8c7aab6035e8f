/* write/host.h - runs the writer's machine for real: it takes HELLO, makes the io that HELLO asks for, and turns the loop.
 *
 * Used by tools/tspool-writer.c, and by thread isolation, where a thread of the trainer calls writer_run.
 */
#ifndef WRITE_HOST_H
#define WRITE_HOST_H

#include <io/io.h>
#include <write/writer.h>

extern const struct writer_memory writer_memory_shared; /* sealed memfds and the arena */

struct writer_host {
    int channel;                   /* the writer's end; stays the caller's */
    int term;                      /* readable when SIGTERM came; -1: none. Stays the caller's */
    const struct keeping *keeping; /* who keeps the newest checkpoints, where HELLO asks for it; NULL: such a HELLO is refused */
    uint64_t hello_timeout_ns;     /* how long to wait for HELLO; 0: 60 s */
    /* NULL: io_create_uring and io_create_threads. Tests put themselves between. */
    int (*io_create)(void *context, bool uring, const struct io_settings *settings, struct io **io,
                     struct tspool_failure *failure);
    void *io_context;
};

/* Returns when the writer has ended: 0 in order, also when it told the trainer that it cannot serve; else -errno. */
int writer_host_run(const struct writer_host *host);

#endif
