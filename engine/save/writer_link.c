/* save/writer_link.c - see writer_link.h. */
#include <save/writer_link.h>

#include <base/failure.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_NS (10 * (uint64_t)1000000000) /* for a killed writer to die: longer means D state */

/* Processes -------------------------------------------------------------------------------------------------------- */

static int process_start(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure)
{
    int ends[2], error = channel_create(ends, failure);

    if (error < 0)
        return error;
    error = child_spawn(launcher->path, ends[1], launcher->excluded_cpus, &handle->child, failure);
    close(ends[1]);
    if (error < 0) {
        close(ends[0]);
        return error;
    }
    handle->channel = ends[0];
    handle->death = handle->child.pidfd;
    handle->pid = handle->child.pid;
    return 0;
}

static void process_kill(struct writer_launcher *launcher, struct writer_handle *handle) { child_kill(&handle->child); }

static void process_release(struct writer_launcher *launcher, struct writer_handle *handle, char *how, size_t how_size)
{
    int status = -1;

    close(handle->channel);
    if (!child_is_dead(&handle->child))
        snprintf(how, how_size, "was killed, but hangs in the kernel");
    child_release(&handle->child, &status);
    if (!*how)
        child_describe(status, how, how_size);
}

void launcher_init_process(struct writer_launcher *launcher, const char *path, const char *excluded_cpus)
{
    *launcher = (struct writer_launcher){ .start = process_start, .kill = process_kill, .release = process_release,
                                          .path = path, .excluded_cpus = excluded_cpus };
}

/* Threads ---------------------------------------------------------------------------------------------------------- */

/* The thread's own: it may outlive the link when it hangs. */
struct writer_thread { int (*writer_run)(int channel); int channel, death; };

static void *thread_main(void *argument)
{
    struct writer_thread thread = *(struct writer_thread *)argument;
    uint64_t one = 1;

    free(argument);
    thread.writer_run(thread.channel);
    close(thread.channel);
    if (write(thread.death, &one, sizeof(one)) < 0)
        abort(); /* an eventfd with room cannot refuse */
    close(thread.death);
    return NULL;
}

static int thread_launch(struct writer_launcher *launcher, struct writer_handle *handle, const int ends[2])
{
    struct writer_thread *thread = malloc(sizeof(*thread));
    int death = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), error = -ENOMEM;

    if (thread && death >= 0) {
        *thread = (struct writer_thread){ launcher->writer_run, ends[1], dup(death) };
        handle->channel = ends[0];
        handle->death = death;
        handle->pid = 0;
        error = thread->death < 0 ? -EMFILE
                                  : thread_start(&handle->thread, "tspool-writer", launcher->excluded_cpus, thread_main, thread);
        if (error == 0)
            return 0;
        close(thread->death);
    }
    if (death >= 0)
        close(death);
    free(thread);
    return error;
}

static int thread_start_writer(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure)
{
    int ends[2], error = channel_create(ends, failure);

    if (error < 0)
        return error;
    error = thread_launch(launcher, handle, ends);
    if (error < 0) {
        close(ends[0]);
        close(ends[1]);
        return failure_set(failure, TSPOOL_STAGE_WRITER, -error, FAILURE_AT(.operation = "thread"), THREAD_CAUSE);
    }
    return 0;
}

/* A thread cannot be killed; the end of the stream tells it that its trainer is gone. What it has sent stays readable. */
static void thread_hang_up(struct writer_launcher *launcher, struct writer_handle *handle)
{
    shutdown(handle->channel, SHUT_RDWR);
}

/* One that hangs is left behind: it has its own mapping of the arena and its own descriptors. */
static void thread_release(struct writer_launcher *launcher, struct writer_handle *handle, char *how, size_t how_size)
{
    uint64_t count;
    bool ended = read(handle->death, &count, sizeof(count)) > 0;

    close(handle->channel);
    close(handle->death);
    if (ended)
        pthread_join(handle->thread, NULL);
    else
        pthread_detach(handle->thread);
    snprintf(how, how_size, ended ? "ended" : "hangs");
}

void launcher_init_thread(struct writer_launcher *launcher, int (*writer_run)(int channel), const char *excluded_cpus)
{
    *launcher = (struct writer_launcher){ .start = thread_start_writer, .kill = thread_hang_up,
                                          .release = thread_release, .writer_run = writer_run, .excluded_cpus = excluded_cpus };
}

/* The link --------------------------------------------------------------------------------------------------------- */

void link_init(struct writer_link *link, struct writer_launcher *launcher)
{
    *link = (struct writer_link){ .state = LINK_DOWN, .launcher = launcher, .reason = TSPOOL_FAILURE_INIT };
}

static void watch(struct writer_link *link, struct io *io)
{
    link->death_op = (struct op){ .kind = OP_WATCH, .handle = link->handle.death, .owner = link };
    link->watching = io_submit(io, &link->death_op) == 0;
}

void link_receive(struct writer_link *link, struct io *io)
{
    link->recv_op = (struct op){ .kind = OP_RECV, .handle = link->handle.channel, .memory = &link->incoming,
                                 .size = sizeof(link->incoming), .owner = link };
    link->receiving = io_submit(io, &link->recv_op) == 0;
    /* A RECV tries when it is submitted: cancelled at once, it still brings what is queued, and waits for nothing. */
    link->only_queued = link->state == LINK_DRAINING;
    if (link->only_queued && link->receiving)
        io_cancel(io, &link->recv_op);
}

int link_start(struct writer_link *link, struct io *io, uint64_t start_deadline_ns, struct tspool_failure *failure)
{
    int error;

    link_init(link, link->launcher);
    error = link->launcher->start(link->launcher, &link->handle, failure);
    if (error < 0)
        return error;
    link->state = LINK_GREETING;
    link->due_ns = start_deadline_ns;
    watch(link, io);
    link_receive(link, io);
    return 0;
}

void link_send(struct writer_link *link, struct io *io, const int *fds, unsigned fd_count)
{
    link->send_op = (struct op){ .kind = OP_SEND, .handle = link->handle.channel, .memory = &link->outgoing,
                                 .size = message_size(link->outgoing.kind), .fd_count = fd_count, .owner = link };
    for (unsigned i = 0; i < fd_count; i++)
        link->send_op.fds[i] = fds[i];
    link->sending = io_submit(io, &link->send_op) == 0;
}

void link_end(struct writer_link *link, struct io *io, const struct tspool_failure *reason)
{
    if (reason && !link->reason.error)
        link->reason = *reason;
    if (link->state == LINK_DRAINING || link->state == LINK_DOWN || link->killed)
        return;
    link->killed = true;
    link->state = LINK_ENDING;
    link->due_ns = io_now(io) + PATIENCE_NS;
    link->launcher->kill(link->launcher, &link->handle);
}

void link_drain(struct writer_link *link, struct io *io)
{
    link->state = LINK_DRAINING;
    if (link->receiving)
        io_cancel(io, &link->recv_op); /* it comes back with a message, or is armed again for what is queued */
    if (link->watching)
        io_cancel(io, &link->death_op);
    if (link->sending)
        io_cancel(io, &link->send_op);
}

bool link_is_over(const struct writer_link *link)
{
    return link->state == LINK_DRAINING && !link->receiving && !link->watching && !link->sending;
}

void link_bury(struct writer_link *link, char *how, size_t how_size)
{
    *how = '\0';
    link->launcher->release(link->launcher, &link->handle, how, how_size);
    link->state = LINK_DOWN;
}

int link_take(struct writer_link *link, int64_t result, struct message *message)
{
    /* No message of a writer carries descriptors. */
    for (unsigned i = 0; i < link->recv_op.fd_count; i++)
        close(link->recv_op.fds[i]);
    if (result <= 0)
        return result == -ECANCELED && !link->only_queued ? -ECANCELED : -EAGAIN;
    return message_decode(&link->incoming, (size_t)result, message);
}
