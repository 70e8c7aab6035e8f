/* write/host.c - HELLO decides which io the machine stands on, so it is received before there is one: here, with plain calls.
 * Everything that can go wrong before the machine runs is said in a READY with an error, for the trainer's record.
 */
#include <write/host.h>

#include <arena/arena.h>
#include <base/failure.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <tspool/spool.h>
#include <tspool/version.h>
#include <unistd.h>

#define HELLO_TIMEOUT_NS ((uint64_t)60 * 1000000000)
#define BATCH 64

/* Shared memory ------------------------------------------------------------------------------------------------------ */

static int shared_attach(void *context, int handle, uint64_t bytes, void **base, struct tspool_failure *failure)
{
    return arena_attach(handle, bytes, base, failure);
}

static void shared_detach(void *context, void *base, uint64_t bytes) { arena_detach(base, bytes); }

static int shared_map(void *context, int handle, uint64_t bytes, const void **base, struct tspool_failure *failure)
{
    return sealed_map(handle, bytes, base, failure);
}

static void shared_unmap(void *context, const void *base, uint64_t bytes) { sealed_unmap(base, bytes); }

static uint64_t shared_cpu_ns(void *context)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

const struct writer_memory writer_memory_shared = {
    .attach = shared_attach, .detach = shared_detach, .map = shared_map, .unmap = shared_unmap, .cpu_ns = shared_cpu_ns,
};

/* HELLO ---------------------------------------------------------------------------------------------------------------- */

struct greeting {
    struct message_hello hello;
    int fds[OP_FDS_MAX];
    unsigned fd_count;
};

static void greeting_close(struct greeting *greeting)
{
    for (unsigned i = 0; i < greeting->fd_count; i++)
        close(greeting->fds[i]);
    greeting->fd_count = 0;
}

static void fds_take(struct greeting *greeting, struct msghdr *header)
{
    for (struct cmsghdr *control = CMSG_FIRSTHDR(header); control; control = CMSG_NXTHDR(header, control)) {
        size_t bytes = control->cmsg_len - CMSG_LEN(0);

        if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
            continue;
        memcpy(greeting->fds, CMSG_DATA(control), bytes);
        greeting->fd_count = (unsigned)(bytes / sizeof(int));
    }
}

static int greeting_check(struct greeting *greeting, const void *bytes, size_t size)
{
    struct message message;
    unsigned least, most;
    int error = message_decode(bytes, size, &message);

    if (error < 0)
        return error;
    message_fd_range(MESSAGE_HELLO, &least, &most);
    if (message.kind != MESSAGE_HELLO || greeting->fd_count < least || greeting->fd_count > most)
        return -EBADMSG;
    greeting->hello = message.hello;
    return 0;
}

static int greeting_receive(int channel, struct greeting *greeting)
{
    uint8_t bytes[sizeof(struct message) + 1];
    union { struct cmsghdr aligned; char bytes[CMSG_SPACE(sizeof(greeting->fds))]; } control;
    struct iovec place = { bytes, sizeof(bytes) };
    struct msghdr header = { .msg_iov = &place, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = sizeof(control) };
    ssize_t size = recvmsg(channel, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    int error;

    if (size < 0)
        return -errno;
    if (size == 0)
        return -EPIPE;
    fds_take(greeting, &header);
    error = header.msg_flags & MSG_TRUNC    ? -EBADMSG
            : header.msg_flags & MSG_CTRUNC ? -EMFILE /* no more come with a HELLO than there is room for: none was free here */
                                            : greeting_check(greeting, bytes, (size_t)size);
    if (error < 0)
        greeting_close(greeting);
    return error;
}

static int greeting_wait(const struct writer_host *host, struct greeting *greeting)
{
    uint64_t timeout_ns = host->hello_timeout_ns ? host->hello_timeout_ns : HELLO_TIMEOUT_NS;
    struct pollfd polled[2] = { { .fd = host->channel, .events = POLLIN }, { .fd = host->term, .events = POLLIN } };
    int count;

    do
        count = poll(polled, 2, (int)(timeout_ns / 1000000));
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return -errno;
    if (count == 0)
        return -ETIMEDOUT;
    return polled[0].revents ? greeting_receive(host->channel, greeting) : -ECANCELED;
}

/* Best effort: a trainer that is gone needs no answer. */
static void refuse(int channel, int error, const char *why)
{
    struct message message;

    message_init(&message, MESSAGE_READY, NULL);
    snprintf(message.ready.version, sizeof(message.ready.version), "%s", TSPOOL_VERSION);
    snprintf(message.ready.note, sizeof(message.ready.note), "%.159s", why);
    message.ready.pid = (int32_t)getpid();
    message.ready.error = error;
    if (send(channel, &message, message_size(MESSAGE_READY), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return;
}

/* The loop --------------------------------------------------------------------------------------------------------------- */

static int io_make(const struct writer_host *host, bool uring, const struct io_settings *settings, struct io **io,
                   struct tspool_failure *failure)
{
    if (host->io_create)
        return host->io_create(host->io_context, uring, settings, io, failure);
    return uring ? io_create_uring(settings, io, failure) : io_create_threads(settings, io, failure);
}

/* io_uring where the kernel allows it; else threads, with the reason in `note`. */
static int io_choose(const struct writer_host *host, const struct message_hello *hello, struct io **io,
                     struct tspool_failure *failure, char note[160])
{
    const struct io_settings settings = { .depth = hello->depth + PART_WRITES, .compute_threads = hello->hash_threads,
                                          .submit_batch = hello->submit_batch, .registered = hello->registered,
                                          .thread_name = "tspool" };
    int error;

    note[0] = '\0';
    if (hello->io == TSPOOL_IO_THREADS)
        return io_make(host, false, &settings, io, failure);
    error = io_make(host, true, &settings, io, failure);
    if (error == 0 || hello->io == TSPOOL_IO_URING)
        return error;
    snprintf(note, 160, "no io_uring: %.140s", failure->cause);
    return io_make(host, false, &settings, io, failure);
}

static int machine_turn(struct io *io, struct writer *writer)
{
    struct completion batch[BATCH];

    while (!writer_finished(writer)) {
        int count = io_wait(io, batch, BATCH, writer_deadline(writer));

        if (count < 0)
            return count;
        if (count == 0)
            writer_step(writer, NULL);
        for (int i = 0; i < count; i++)
            writer_step(writer, &batch[i]);
    }
    return 0;
}

static int machine_run(const struct writer_host *host, const struct greeting *greeting, struct io *io, const char *note,
                       struct keeper *keeper, struct tspool_failure *failure)
{
    const struct writer_settings settings = {
        .hello = greeting->hello, .channel = host->channel, .term = host->term, .arena = greeting->fds[HELLO_FD_ARENA],
        .root = greeting->fds[HELLO_FD_ROOT], .pid = (int32_t)getpid(), .note = note[0] ? note : NULL,
        .trainer = greeting->fd_count > HELLO_FD_TRAINER ? greeting->fds[HELLO_FD_TRAINER] : -1, .memory = &writer_memory_shared,
        .keeping = host->keeping, .keeper = keeper,
    };
    struct writer *writer = NULL;
    int error = writer_create(io, &settings, &writer, failure);

    if (error < 0) {
        refuse(host->channel, -error, failure->message);
        io_destroy(io);
        return error;
    }
    error = machine_turn(io, writer);
    io_destroy(io); /* first: an op in flight may still point into the writer */
    writer_destroy(writer);
    return error;
}

/* One of several ranks is enough. */
static int keeper_create(const struct writer_host *host, const struct greeting *greeting, struct keeper **keeper,
                         struct tspool_failure *failure)
{
    if (!greeting->hello.keep || greeting->hello.rank != 0)
        return 0;
    if (!host->keeping)
        return failure_set(failure, TSPOOL_STAGE_WRITER, ENOTSUP, FAILURE_AT(.operation = "keep"), NULL);
    return host->keeping->create(greeting->fds[HELLO_FD_ROOT], &greeting->hello, keeper, failure);
}

static int kept_run(const struct writer_host *host, const struct greeting *greeting, struct io *io, const char *note,
                    struct tspool_failure *failure)
{
    struct keeper *keeper = NULL;
    int error = keeper_create(host, greeting, &keeper, failure);

    if (error < 0) {
        refuse(host->channel, -error, failure->message);
        io_destroy(io);
        return error;
    }
    error = machine_run(host, greeting, io, note, keeper, failure);
    if (keeper)
        host->keeping->destroy(keeper);
    return error;
}

static int greeted(const struct writer_host *host, const struct greeting *greeting)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io *io = NULL;
    const char *reason = "";
    char note[160];
    int error = writer_hello_refusal(&greeting->hello, &reason);

    if (error) {
        refuse(host->channel, error, reason);
        return 0;
    }
    error = io_choose(host, &greeting->hello, &io, &failure, note);
    if (error < 0) {
        refuse(host->channel, -error, failure.message);
        return 0;
    }
    return kept_run(host, greeting, io, note, &failure);
}

int writer_host_run(const struct writer_host *host)
{
    struct greeting greeting = { .fd_count = 0 };
    int error = greeting_wait(host, &greeting);

    if (error < 0) {
        refuse(host->channel, -error, error == -EPROTO ? "library and tspool-writer are of different versions: install both"
                                                       : failure_likely_cause(-error));
        return error;
    }
    error = greeted(host, &greeting);
    greeting_close(&greeting);
    return error;
}
