/* read/lane.c - which io a call runs on. See lane.h. */
#include <base/failure.h>
#include <errno.h>
#include <read/lane.h>
#include <read/read.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A number for the calling thread that no other thread of this process ever had. */
static uint64_t thread_number(void)
{
    static atomic_uint_least64_t last;
    static __thread uint64_t mine;

    if (!mine)
        mine = atomic_fetch_add_explicit(&last, 1, memory_order_relaxed) + 1;
    return mine;
}

int reader_io_create(enum tspool_io kind, const struct io_settings *settings, struct io **io, struct tspool_failure *failure)
{
    int error = -ENOSYS;

    if (kind != TSPOOL_IO_THREADS)
        error = io_create_uring(settings, io, kind == TSPOOL_IO_URING ? failure : NULL);
    if (error < 0 && kind != TSPOOL_IO_URING)
        error = io_create_threads(settings, io, failure);
    return error;
}

void lane_init(struct lane *lane, struct io *borrowed, enum tspool_io kind, unsigned depth, unsigned hash_threads)
{
    *lane = (struct lane){ .io = borrowed, .borrowed = borrowed != NULL, .kind = kind, .depth = depth,
                           .hash_threads = hash_threads };
    pthread_mutex_init(&lane->mutex, NULL);
    if (borrowed)
        snprintf(lane->backend, sizeof lane->backend, "%s", borrowed->backend);
}

/* In a forked child the parent's io is nobody's to destroy here: its threads are not in this process. It is forgotten. */
void lane_drop(struct lane *lane)
{
    if (lane->borrowed)
        return;
    if (lane->io && lane->owner_process == getpid())
        io_destroy(lane->io);
    lane->io = NULL;
}

void lane_deinit(struct lane *lane)
{
    if (lane->scratch)
        lane->scratch_free(lane->scratch);
    lane_drop(lane);
    pthread_mutex_destroy(&lane->mutex);
}

static bool lane_is_ours(const struct lane *lane)
{
    return lane->io && (lane->borrowed || (lane->owner_process == getpid() && lane->owner_thread == thread_number()));
}

static int lane_renew(struct lane *lane, struct tspool_failure *failure)
{
    struct io_settings settings = { .depth = lane->depth, .verb_threads = 1, .compute_threads = lane->hash_threads,
                                    .thread_name = "tspool-r" };
    struct io *io = NULL;
    int error;

    lane_drop(lane);
    error = reader_io_create(lane->kind, &settings, &io, failure);
    if (error < 0)
        return error;
    lane->io = io;
    lane->owner_process = getpid();
    lane->owner_thread = thread_number();
    snprintf(lane->backend, sizeof lane->backend, "%s", io->backend);
    return 0;
}

int lane_enter(struct lane *lane, struct tspool_failure *failure)
{
    int error = 0;

    pthread_mutex_lock(&lane->mutex);
    if (!lane_is_ours(lane))
        error = lane_renew(lane, failure);
    if (error < 0)
        pthread_mutex_unlock(&lane->mutex);
    return error;
}

void lane_leave(struct lane *lane) { pthread_mutex_unlock(&lane->mutex); }
