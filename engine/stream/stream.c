/* stream/stream.c - the stream that callers have: a ring of blocks between them and a thread that owns the io.
 *
 * A backend belongs to one thread, and a stream may be used by any, one after the other: so the io is its own thread's. The
 * caller copies into the block at hand and hands it over when it is full; the thread writes what it is handed, gives blocks
 * back, and answers requests (open, sync, commit, ...), one at a time, when everything handed over before has ended.
 *
 * Of a slot's memory there is one owner: the caller while it is FREE, the sink while it is TAKEN. Slots are filled in ring order.
 */
#include <tspool/stream.h>

#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <io/calls.h>
#include <proc/proc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <stream/sink.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_BLOCK_BYTES MIB(1)
#define DEFAULT_DEPTH 16u
#define BLOCK_ALIGN 4096u
#define COMPLETION_BATCH 32u
#define FORGOTTEN "the stream belongs to the process that opened it, and this is a fork of that"

enum slot_state {
    SLOT_FREE, /* the caller's: it fills the one at hand and hands it over */
    SLOT_TAKEN /* the thread's, until it is written or given up */
};
struct slot { struct sink_block block; uint8_t *memory; enum slot_state state; }; /* block first: a block is a slot */

/* The caller sets one and waits; the thread answers it by NONE. The last two end the thread. */
enum request { REQUEST_NONE, REQUEST_OPEN, REQUEST_SYNC, REQUEST_DESCRIPTOR, REQUEST_COMMIT, REQUEST_ABORT };

struct tspool_stream {
    pid_t owner;
    pthread_t thread;
    int wake;                       /* eventfd: the thread has something to look at */
    struct slot *slots;
    uint8_t *memory;
    uint32_t depth, block_bytes;

    uint32_t at_hand;               /* caller's: the slot that is filled next, */
    size_t fill;                    /* how much is in it, */
    uint64_t told;                  /* and bytes written so far */

    struct io *io;                  /* thread's, down to the lock */
    struct place place;
    struct sink sink;
    struct op watch;
    bool watching, broken;          /* broken: the io is beyond use */
    int descriptor;                 /* for others to read; -1: nobody asked */
    struct place_request wanted;    /* read by REQUEST_OPEN */
    uint64_t expected_bytes;

    pthread_mutex_t lock;           /* over what follows, and the slots' states */
    pthread_cond_t changed;
    struct slot *handed, *handed_last; /* linked by block.next */
    enum request request;           /* NONE again when it is answered */
    int answer;
    int error;                      /* -errno, the first; sticky */
    struct tspool_failure failure;
    struct tspool_stream_report report;
};

/* The thread ------------------------------------------------------------------------------------------------------- */

static void slot_written(void *context, struct sink_block *block)
{
    struct tspool_stream *stream = context;

    pthread_mutex_lock(&stream->lock);
    ((struct slot *)block)->state = SLOT_FREE;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

/* With the lock. */
static void error_tell(struct tspool_stream *stream)
{
    if (!stream->sink.error || stream->error)
        return;
    stream->error = stream->sink.error;
    stream->failure = stream->sink.failure;
    pthread_cond_broadcast(&stream->changed);
}

/* Takes over what was handed, and tells the caller how it goes. */
static enum request mail_exchange(struct tspool_stream *stream)
{
    struct slot *handed;
    enum request request;

    pthread_mutex_lock(&stream->lock);
    handed = stream->handed;
    stream->handed = stream->handed_last = NULL;
    request = stream->request;
    stream->report.writes = stream->sink.writes;
    stream->report.short_writes = stream->sink.short_writes;
    error_tell(stream);
    pthread_mutex_unlock(&stream->lock);
    while (handed) {
        struct slot *next = (struct slot *)handed->block.next;

        sink_push(&stream->sink, &handed->block);
        handed = next;
    }
    return request;
}

/* The io says that it is beyond use: what is in flight ends in its destruction, and nothing is written any more. */
static void thread_break(struct tspool_stream *stream, int error)
{
    io_destroy(stream->io);
    stream->io = stream->place.io = NULL;
    stream->broken = true;
    stream->watching = false;
    stream->sink.in_flight = 0;
    if (!stream->sink.error)
        stream->sink.error = place_refuse(&stream->place, TSPOOL_STAGE_WRITE, "wait", -error, TSPOOL_NO_OFFSET, NULL,
                                          &stream->sink.failure);
    sink_give_up(&stream->sink);
    pthread_mutex_lock(&stream->lock);
    stream->handed = stream->handed_last = NULL;
    error_tell(stream);
    for (uint32_t i = 0; i < stream->depth; i++)
        stream->slots[i].state = SLOT_FREE;
    pthread_mutex_unlock(&stream->lock);
}

static void broken_wait(struct tspool_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    while (stream->request == REQUEST_NONE)
        pthread_cond_wait(&stream->changed, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
}

/* 0, or -errno: a watch that fails would fail again at once, for ever, and what is in flight would never be heard of. */
static int thread_completion(struct tspool_stream *stream, const struct completion *completion)
{
    eventfd_t count;

    if (completion->op != &stream->watch) {
        sink_complete(&stream->sink, completion->op, completion->result);
        return 0;
    }
    stream->watching = false;
    eventfd_read(stream->wake, &count); /* does not block; empty is fine */
    return completion->result < 0 && completion->result != -ECANCELED ? (int)completion->result : 0;
}

static void thread_wait(struct tspool_stream *stream)
{
    struct completion completions[COMPLETION_BATCH];
    int count = 0, error = 0;

    if (!stream->watching) {
        stream->watch = (struct op){ .kind = OP_WATCH, .handle = stream->wake };
        count = io_submit(stream->io, &stream->watch);
        stream->watching = count == 0;
    }
    if (count == 0)
        count = io_wait(stream->io, completions, COMPLETION_BATCH, IO_FOREVER);
    for (int i = 0; i < count; i++)
        error = thread_completion(stream, &completions[i]) < 0 ? (int)completions[i].result : error;
    if (count < 0 || error < 0)
        thread_break(stream, count < 0 ? count : error);
}

/* Until nothing is in flight, as blocking calls want it. */
static void watch_end(struct tspool_stream *stream)
{
    if (stream->watching)
        io_cancel(stream->io, &stream->watch);
    while (stream->watching && !stream->broken)
        thread_wait(stream);
}

/* Writes until there is a request and all that was handed over before it has ended. */
static enum request thread_next(struct tspool_stream *stream)
{
    for (;;) {
        enum request request = mail_exchange(stream);

        stream->sink.ending |= request == REQUEST_COMMIT;
        if (request == REQUEST_ABORT || stream->broken)
            sink_give_up(&stream->sink);
        else
            sink_pump(&stream->sink);
        if (request != REQUEST_NONE && sink_is_idle(&stream->sink)) {
            if (!stream->broken)
                watch_end(stream);
            mail_exchange(stream);
            return request;
        }
        if (stream->broken)
            broken_wait(stream);
        else
            thread_wait(stream);
    }
}

/* Requests --------------------------------------------------------------------------------------------------------- */

static int request_open(struct tspool_stream *stream, struct tspool_failure *failure)
{
    int error = place_open(stream->io, &stream->wanted, &stream->place, failure);

    if (error < 0)
        return error;
    sink_init(&stream->sink, &stream->place, stream->expected_bytes);
    stream->sink.written = slot_written;
    stream->sink.context = stream;
    stream->report.direct = stream->place.direct;
    return 0;
}

/* An error of the file is the stream's for ever: what an fsync has lost no later one brings back. */
static int request_fail(struct tspool_stream *stream, enum tspool_stage stage, const char *operation, int error)
{
    struct sink *sink = &stream->sink;

    sink->error = place_refuse(&stream->place, stage, operation, -error, TSPOOL_NO_OFFSET, NULL, &sink->failure);
    return sink->error;
}

static int request_sync(struct tspool_stream *stream)
{
    int error = file_fsync(stream->io, stream->place.handle);

    return error < 0 ? request_fail(stream, TSPOOL_STAGE_SYNC, "fsync", error) : 0;
}

/* Who looks at the file finds it as long as it is: the space taken ahead goes, and is taken again by whatever is written next. */
static int request_descriptor(struct tspool_stream *stream)
{
    int error = file_truncate(stream->io, stream->place.handle, stream->told);

    if (error < 0)
        return request_fail(stream, TSPOOL_STAGE_SEAL, "truncate", error);
    stream->sink.allocated = align_down(stream->told, stream->place.align);
    error = request_sync(stream);
    if (error < 0 || stream->descriptor >= 0)
        return error;
    stream->descriptor = file_open(stream->io, stream->place.directory, stream->place.partial, OPEN_READ);
    return stream->descriptor < 0 ? request_fail(stream, TSPOOL_STAGE_OPEN, "open", stream->descriptor) : 0;
}

static int request_run(struct tspool_stream *stream, enum request request, struct tspool_failure *failure)
{
    int error = request == REQUEST_ABORT ? 0 : stream->sink.error;

    *failure = stream->sink.failure;
    if (error == 0 && request == REQUEST_OPEN)
        error = request_open(stream, failure);
    else if (error == 0 && request == REQUEST_SYNC)
        error = request_sync(stream);
    else if (error == 0 && request == REQUEST_DESCRIPTOR)
        error = request_descriptor(stream);
    else if (error == 0 && request == REQUEST_COMMIT)
        error = place_publish(&stream->place, stream->told, failure);
    if (error < 0 && (request == REQUEST_SYNC || request == REQUEST_DESCRIPTOR))
        *failure = stream->sink.failure;
    return error;
}

/* The io and all that stands on it; an io that broke has left the hidden file to the next stream of that name. */
static void thread_end(struct tspool_stream *stream)
{
    file_close(stream->io, stream->descriptor);
    place_abandon(&stream->place);
    io_destroy(stream->io);
    stream->io = NULL;
}

static bool request_ends(enum request request, int error)
{
    return request == REQUEST_COMMIT || request == REQUEST_ABORT || (request == REQUEST_OPEN && error < 0);
}

static void request_answer(struct tspool_stream *stream, int error, const struct tspool_failure *failure)
{
    pthread_mutex_lock(&stream->lock);
    stream->request = REQUEST_NONE;
    stream->answer = error;
    if (error < 0 && !stream->error) {
        stream->error = error;
        stream->failure = *failure;
    }
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

static void *thread_main(void *argument)
{
    struct tspool_stream *stream = argument;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    enum request request;
    bool ends;
    int error;

    do {
        request = thread_next(stream);
        error = request_run(stream, request, &failure);
        ends = request_ends(request, error);
        if (ends)
            thread_end(stream);
        request_answer(stream, error, &failure);
    } while (!ends);
    return NULL;
}

/* The caller ------------------------------------------------------------------------------------------------------- */

static bool is_forgotten(const struct tspool_stream *stream) { return stream->owner != getpid(); }

/* 0 when the caller may use it. */
static int stream_check(const struct tspool_stream *stream, struct tspool_failure *failure)
{
    if (!stream)
        return failure_set(failure, TSPOOL_STAGE_WRITE, EINVAL, FAILURE_AT(.operation = "write"), "there is no stream");
    if (is_forgotten(stream))
        return failure_set(failure, TSPOOL_STAGE_WRITE, EPERM, FAILURE_AT(.operation = "write"), FORGOTTEN);
    return 0;
}

/* With the lock. */
static int error_give(const struct tspool_stream *stream, struct tspool_failure *failure)
{
    if (stream->error && failure)
        *failure = stream->failure;
    return stream->error;
}

static void thread_wake(struct tspool_stream *stream)
{
    eventfd_write(stream->wake, 1); /* fails only when it is far beyond readable */
}

/* With the lock. What is short of a block's alignment is filled with zeros, which the next block or the cut takes away. */
static void slot_hand_over(struct tspool_stream *stream)
{
    struct slot *slot = &stream->slots[stream->at_hand];
    size_t size = align_up(stream->fill, stream->place.align);

    memset(slot->memory + stream->fill, 0, size - stream->fill);
    slot->block = (struct sink_block){ .op = { .memory = slot->memory, .size = size,
                                               .file_offset = stream->told - stream->fill } };
    slot->state = SLOT_TAKEN;
    if (stream->handed_last)
        stream->handed_last->block.next = &slot->block;
    else
        stream->handed = slot;
    stream->handed_last = slot;
}

static void slot_next(struct tspool_stream *stream)
{
    stream->at_hand = (stream->at_hand + 1) % stream->depth;
    stream->fill = 0;
}

/* What is in the block at hand goes first. It stays at hand, for what comes after a sync. */
static int request_make(struct tspool_stream *stream, enum request request, struct tspool_failure *failure)
{
    int error;

    pthread_mutex_lock(&stream->lock);
    if (stream->fill && request != REQUEST_ABORT && !stream->error)
        slot_hand_over(stream);
    stream->request = request;
    pthread_cond_broadcast(&stream->changed);
    thread_wake(stream);
    while (stream->request != REQUEST_NONE)
        pthread_cond_wait(&stream->changed, &stream->lock);
    error = stream->answer;
    if (error < 0)
        error = error_give(stream, failure);
    pthread_mutex_unlock(&stream->lock);
    return error;
}

/* True: the slot at hand is free, or an error waits. */
static bool slot_wait(struct tspool_stream *stream, uint64_t timeout_ns)
{
    uint64_t until;
    struct timespec deadline;
    int waited = 0;

    clock_gettime(CLOCK_MONOTONIC, &deadline);
    until = (uint64_t)deadline.tv_sec * 1000000000u + (uint64_t)deadline.tv_nsec;
    until = timeout_ns > INT64_MAX - until ? INT64_MAX : until + timeout_ns;
    deadline = (struct timespec){ .tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u) };
    while (stream->slots[stream->at_hand].state != SLOT_FREE && !stream->error && waited == 0)
        waited = pthread_cond_clockwait(&stream->changed, &stream->lock, CLOCK_MONOTONIC, &deadline);
    return waited == 0;
}

int64_t tspool_stream_room(struct tspool_stream *stream, uint64_t timeout_ns, struct tspool_failure *failure)
{
    int error = stream_check(stream, failure);
    bool free;

    if (error < 0)
        return error;
    pthread_mutex_lock(&stream->lock);
    free = stream->fill || slot_wait(stream, timeout_ns); /* a slot that was begun is ours */
    error = error_give(stream, failure);
    pthread_mutex_unlock(&stream->lock);
    return error < 0 ? error : free ? (int64_t)(stream->block_bytes - stream->fill) : 0;
}

static int slot_filled(struct tspool_stream *stream, struct tspool_failure *failure)
{
    int error;

    pthread_mutex_lock(&stream->lock);
    error = error_give(stream, failure);
    if (error == 0) {
        slot_hand_over(stream);
        thread_wake(stream);
    }
    pthread_mutex_unlock(&stream->lock);
    slot_next(stream);
    return error;
}

int tspool_stream_write(struct tspool_stream *stream, const void *data, size_t bytes, struct tspool_failure *failure)
{
    int error = stream_check(stream, failure);
    const uint8_t *from = data;

    if (error == 0 && bytes && !data)
        error = failure_set(failure, TSPOOL_STAGE_WRITE, EINVAL, FAILURE_AT(.operation = "write"), "there are no bytes to write");
    while (bytes && error == 0) {
        int64_t room = tspool_stream_room(stream, UINT64_MAX, failure);
        size_t size;

        if (room < 0)
            return (int)room;
        size = min_u64(bytes, (uint64_t)room);
        memcpy(stream->slots[stream->at_hand].memory + stream->fill, from, size);
        stream->fill += size;
        stream->told += size;
        from += size;
        bytes -= size;
        if (stream->fill == stream->block_bytes)
            error = slot_filled(stream, failure);
    }
    return error;
}

uint64_t tspool_stream_tell(const struct tspool_stream *stream) { return stream ? stream->told : 0; }

int tspool_stream_sync(struct tspool_stream *stream, struct tspool_failure *failure)
{
    int error = stream_check(stream, failure);

    return error < 0 ? error : request_make(stream, REQUEST_SYNC, failure);
}

int tspool_stream_fd(struct tspool_stream *stream, struct tspool_failure *failure)
{
    int error = stream_check(stream, failure);

    if (error == 0)
        error = request_make(stream, REQUEST_DESCRIPTOR, failure);
    return error < 0 ? error : stream->descriptor;
}

int tspool_stream_report(struct tspool_stream *stream, struct tspool_stream_report *report)
{
    int error = stream_check(stream, NULL);
    size_t size;

    if (error < 0 || !report)
        return error < 0 ? error : -EINVAL;
    size = report->size;
    if (size < sizeof report->size || size > sizeof *report)
        return -EINVAL;
    pthread_mutex_lock(&stream->lock);
    memcpy(report, &stream->report, size);
    pthread_mutex_unlock(&stream->lock);
    report->size = size;
    return 0;
}

/* Beginning and end ------------------------------------------------------------------------------------------------ */

/* Not mapped in forked children, which have no use for it: a page that both see would be copied when it is filled again. */
static int memory_map(struct tspool_stream *stream)
{
    size_t bytes = (size_t)stream->block_bytes * stream->depth;
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (mapped == MAP_FAILED)
        return -errno;
    madvise(mapped, bytes, MADV_DONTFORK);
    stream->memory = mapped;
    for (uint32_t i = 0; i < stream->depth; i++)
        stream->slots[i].memory = stream->memory + (size_t)i * stream->block_bytes;
    return 0;
}

/* In a child the mapping is not there, and its place may be another's. */
static void stream_free(struct tspool_stream *stream)
{
    if (stream->memory && !is_forgotten(stream))
        munmap(stream->memory, (size_t)stream->block_bytes * stream->depth);
    if (stream->wake >= 0)
        close(stream->wake);
    free(stream->slots);
    free(stream);
}

static int io_make(struct tspool_stream *stream, enum tspool_io kind, struct tspool_failure *failure)
{
    struct io_settings settings = { .depth = stream->depth, .verb_threads = 1, .compute_threads = 1,
                                    .thread_name = "tspool-f" };
    int error = -ENOSYS;

    if (kind != TSPOOL_IO_THREADS)
        error = io_create_uring(&settings, &stream->io, kind == TSPOOL_IO_URING ? failure : NULL);
    if (error < 0 && kind != TSPOOL_IO_URING)
        error = io_create_threads(&settings, &stream->io, failure);
    if (error == 0)
        snprintf(stream->report.backend, sizeof stream->report.backend, "%s", stream->io->backend);
    return error;
}

static int stream_refuse(const char *path, int error, const char *operation, const char *cause, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = operation, .path = path);

    return cause ? failure_set(failure, TSPOOL_STAGE_OPEN, error, at, "%s", cause)
                 : failure_set(failure, TSPOOL_STAGE_OPEN, error, at, NULL);
}

/* Memory, io, thread: all but the thread is undone by stream_free and io_destroy. */
static int stream_equip(struct tspool_stream *stream, const struct tspool_stream_options *options, struct tspool_failure *failure)
{
    const char *path = stream->wanted.path;
    int error;

    stream->slots = calloc(stream->depth, sizeof *stream->slots);
    if (!stream->slots || (error = memory_map(stream)) < 0)
        return stream_refuse(path, ENOMEM, "map", NULL, failure);
    stream->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (stream->wake < 0)
        return stream_refuse(path, errno, "eventfd", NULL, failure);
    error = io_make(stream, options->io, failure);
    if (error < 0)
        return error;
    error = thread_start(&stream->thread, "tspool-f", NULL, thread_main, stream);
    if (error == 0)
        return 0;
    io_destroy(stream->io);
    return stream_refuse(path, -error, "thread", NULL, failure);
}

/* Newer callers may know options that we do not; ours that they do not know are zero. */
static int options_take(const struct tspool_stream_options *given, struct tspool_stream_options *options)
{
    *options = (struct tspool_stream_options)TSPOOL_STREAM_OPTIONS_INIT;
    if (given && (given->size < sizeof given->size || given->size > sizeof *options))
        return -EINVAL;
    if (given)
        memcpy(options, given, given->size);
    options->block_bytes = options->block_bytes ? options->block_bytes : DEFAULT_BLOCK_BYTES;
    options->depth = options->depth ? options->depth : DEFAULT_DEPTH;
    return is_aligned(options->block_bytes, BLOCK_ALIGN) && options->block_bytes <= MIB(16) && options->depth >= 2 &&
           options->depth <= 256 && options->io <= TSPOOL_IO_THREADS ? 0 : -EINVAL;
}

static struct tspool_stream *stream_make(const char *path, const struct tspool_stream_options *options)
{
    struct tspool_stream *stream = calloc(1, sizeof *stream);

    if (!stream)
        return NULL;
    *stream = (struct tspool_stream){ .owner = getpid(), .wake = -1, .descriptor = -1, .depth = options->depth,
                                      .block_bytes = options->block_bytes,
                                      .wanted = { path, options->keep, options->buffered },
                                      .expected_bytes = options->expected_bytes, .failure = TSPOOL_FAILURE_INIT,
                                      .sink = { .failure = TSPOOL_FAILURE_INIT }, .report = TSPOOL_STREAM_REPORT_INIT };
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    return stream;
}

int tspool_stream_open(const char *path, const struct tspool_stream_options *given, struct tspool_stream **stream,
                       struct tspool_failure *failure)
{
    struct tspool_stream_options options;
    struct tspool_stream *made;
    int error = options_take(given, &options);

    if (!path || !stream)
        return stream_refuse(path, EINVAL, "open", "a path, and a place for the stream, are needed", failure);
    if (error < 0)
        return stream_refuse(path, -error, "open", "block_bytes must be a multiple of 4096 up to 16 MiB, depth 2..256, and size "
                             "that of the options", failure);
    if (!(made = stream_make(path, &options)))
        return stream_refuse(path, ENOMEM, "open", NULL, failure);
    error = stream_equip(made, &options, failure);
    if (error == 0) {
        error = request_make(made, REQUEST_OPEN, failure);
        if (error < 0)
            pthread_join(made->thread, NULL);
    }
    if (error < 0)
        stream_free(made);
    else
        *stream = made;
    return error;
}

static int stream_end(struct tspool_stream *stream, enum request request, struct tspool_failure *failure)
{
    int error = request_make(stream, request, failure);

    pthread_join(stream->thread, NULL);
    stream_free(stream);
    return error;
}

/* A child's copies of the descriptors keep the hidden file's lock for as long as they are open. */
static void stream_forget(struct tspool_stream *stream)
{
    file_close(NULL, stream->descriptor);
    file_close(NULL, stream->place.handle);
    file_close(NULL, stream->place.directory);
    free(stream->place.path);
    stream_free(stream);
}

int tspool_stream_commit(struct tspool_stream *stream, struct tspool_failure *failure)
{
    int error = stream_check(stream, failure);

    if (error == 0)
        return stream_end(stream, REQUEST_COMMIT, failure);
    if (stream)
        stream_forget(stream);
    return error;
}

void tspool_stream_abort(struct tspool_stream *stream)
{
    if (!stream)
        return;
    if (is_forgotten(stream))
        stream_forget(stream);
    else
        stream_end(stream, REQUEST_ABORT, NULL);
}
