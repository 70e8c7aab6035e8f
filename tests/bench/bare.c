/* bench/bare.c - see bare.h.
 *
 * fio's tuned job writes the same 8 MiB of buffers over and over. A save's bytes are spread over memory as large as the
 * state, which each write has to fetch, map and translate anew; this loop differs from fio in nothing else.
 */
#include "bare.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#define ITEM_BYTES ((uint64_t)512 << 10)

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void item_submit(struct io_uring *ring, int file, uint8_t *memory, uint64_t offset)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);

    io_uring_prep_write(entry, file, memory + offset, ITEM_BYTES, offset);
    io_uring_submit(ring);
}

static int items_reap(struct io_uring *ring, uint64_t *done)
{
    struct io_uring_cqe *completion;
    int error = io_uring_submit_and_wait(ring, 1);

    while (error >= 0 && io_uring_peek_cqe(ring, &completion) == 0) {
        if (completion->res != (int)ITEM_BYTES)
            error = completion->res < 0 ? completion->res : -EIO;
        io_uring_cqe_seen(ring, completion);
        *done += ITEM_BYTES;
    }
    return error < 0 ? error : 0;
}

static int items_write(struct io_uring *ring, int file, uint8_t *memory, uint64_t bytes, unsigned depth)
{
    uint64_t sent = 0, done = 0;
    int error = 0;

    while (done < bytes && error == 0) {
        while (sent < bytes && sent - done < depth * ITEM_BYTES) {
            item_submit(ring, file, memory, sent);
            sent += ITEM_BYTES;
        }
        error = items_reap(ring, &done);
    }
    return error;
}

double bare_write(const char *path, uint8_t *memory, uint64_t bytes, unsigned depth)
{
    double started = now_s(), elapsed;
    struct io_uring ring;
    int file, error = io_uring_queue_init(depth, &ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

    if (error < 0)
        return error;
    bytes -= bytes % ITEM_BYTES;
    file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
    if (file < 0 || fallocate(file, 0, 0, (off_t)bytes) < 0)
        error = -errno;
    if (error == 0)
        error = items_write(&ring, file, memory, bytes, depth);
    if (error == 0 && fsync(file) < 0)
        error = -errno;
    elapsed = now_s() - started;
    io_uring_queue_exit(&ring);
    if (file >= 0)
        close(file);
    unlink(path);
    return error < 0 ? error : elapsed;
}
