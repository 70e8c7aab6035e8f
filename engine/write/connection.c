/* write/connection.c - receiving, sending, and noticing the trainer's death. What a message means is writer.c's. */
#include <write/machine.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void receive_done(struct task *task, int64_t result);

/* Receiving --------------------------------------------------------------------------------------------------------- */

static void receive_submit(struct writer *writer)
{
    struct connection *connection = &writer->connection;
    struct task *task = &connection->receive;

    memset(task, 0, sizeof(*task));
    task->op.kind = OP_RECV;
    task->op.handle = writer->settings.channel;
    task->op.memory = connection->received;
    task->op.size = sizeof(connection->received);
    task->done = receive_done;
    task->writer = writer;
    task->file = NO_FILE;
    task->standing = true;
    connection->receiving = true;
    connection->last_look = connection->draining;
    tasks_submit(&writer->tasks, task);
    if (connection->last_look)
        io_cancel(writer->io, &task->op); /* brings a queued message all the same */
}

void connection_receive(struct writer *writer)
{
    struct connection *connection = &writer->connection;

    if (!connection->receiving && !connection->stream_over)
        receive_submit(writer);
}

static void fds_drop(struct writer *writer, const struct op *op)
{
    for (unsigned i = 0; i < op->fd_count; i++)
        writer_close_handle(writer, op->fds[i]);
}

static void message_received(struct writer *writer, const struct op *op, size_t size)
{
    struct message message;
    unsigned least = 0, most = 0;
    int error = message_decode(writer->connection.received, size, &message);

    if (error == 0)
        message_fd_range(message.kind, &least, &most);
    if (error == 0 && op->fd_count >= least && op->fd_count <= most) {
        writer_message(writer, &message, op->fds, op->fd_count);
        return;
    }
    fds_drop(writer, op);
    if (error == 0 && op->fds_lost && message.kind == MESSAGE_BEGIN)
        writer_cannot_begin(writer, &message.attempt, EMFILE);
    else
        writer_broken(writer);
}

/* No message, and there will be none: not a death yet where a pidfd tells of it. */
static void stream_over(struct writer *writer)
{
    struct connection *connection = &writer->connection;

    connection->stream_over = true;
    if (connection->draining)
        writer_drained(writer);
    else if (writer->settings.trainer < 0 || MUTANT(EOF_TAKEN_FOR_TRAINERS_DEATH))
        writer_trainer_gone(writer);
}

static void receive_done(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;
    struct connection *connection = &writer->connection;
    struct op op = task->op; /* the next receive may be submitted from within */
    bool last_look = connection->last_look;

    connection->receiving = false;
    if (connection->stream_over || writer->state >= WRITER_LEAVING)
        fds_drop(writer, &op);
    else if (result > 0)
        message_received(writer, &op, (size_t)result);
    else if (result == -ECANCELED && last_look)
        writer_drained(writer);
    else if (result == 0)
        stream_over(writer);
    else if (result != -ECANCELED)
        writer_broken(writer);
    if (writer->state < WRITER_LEAVING)
        connection_receive(writer);
}

void connection_drain(struct writer *writer)
{
    struct connection *connection = &writer->connection;

    connection->draining = true;
    if (connection->stream_over)
        writer_drained(writer);
    else if (connection->receiving)
        io_cancel(writer->io, &connection->receive.op); /* its completion goes on with last looks */
    else
        receive_submit(writer);
}

/* Sending ----------------------------------------------------------------------------------------------------------- */

static void send_done(struct task *task, int64_t result);

static void send_next(struct writer *writer)
{
    struct connection *connection = &writer->connection;
    struct task *task = &connection->send;

    if (connection->sending || !connection->first)
        return;
    memset(task, 0, sizeof(*task));
    task->op.kind = OP_SEND;
    task->op.handle = writer->settings.channel;
    task->op.memory = connection->first->bytes;
    task->op.size = connection->first->size;
    task->done = send_done;
    task->writer = writer;
    task->file = NO_FILE;
    task->standing = true; /* a trainer that does not read is not a hung device */
    connection->sending = true;
    tasks_submit(&writer->tasks, task);
}

static void first_drop(struct connection *connection)
{
    struct outgoing *first = connection->first;

    connection->first = first->next;
    if (!connection->first)
        connection->last = NULL;
    if (first == (struct outgoing *)connection->spare)
        connection->spare_is_queued = false;
    else
        free(first);
}

static void send_done(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;
    struct connection *connection = &writer->connection;

    connection->sending = false;
    first_drop(connection);
    if (result < 0)
        connection_mute(writer); /* nobody listens; whether the trainer is dead, its pidfd will tell */
    send_next(writer);
}

static struct outgoing *outgoing_take(struct connection *connection, size_t size)
{
    struct outgoing *outgoing = malloc(sizeof(*outgoing) + size);

    if (outgoing || connection->spare_is_queued)
        return outgoing;
    connection->spare_is_queued = true;
    return (struct outgoing *)connection->spare;
}

void connection_send(struct writer *writer, const struct message *message)
{
    struct connection *connection = &writer->connection;
    size_t size = message_size(message->kind);
    struct outgoing *outgoing;

    if (connection->mute)
        return;
    if (!(outgoing = outgoing_take(connection, size))) {
        connection->starved = true; /* a lost answer would leave the trainer waiting: better an end that it sees */
        return;
    }
    outgoing->next = NULL;
    outgoing->size = size;
    memcpy(outgoing->bytes, message, size);
    if (connection->last)
        connection->last->next = outgoing;
    else
        connection->first = outgoing;
    connection->last = outgoing;
    send_next(writer);
}

void connection_mute(struct writer *writer)
{
    struct connection *connection = &writer->connection;
    struct outgoing *kept = connection->sending ? connection->first : NULL;

    connection->mute = true;
    if (kept) {
        io_cancel(writer->io, &connection->send.op);
        connection->first = kept->next;
    }
    while (connection->first)
        first_drop(connection);
    connection->first = connection->last = kept;
    if (kept)
        kept->next = NULL;
}

bool connection_is_quiet(const struct writer *writer) { return !writer->connection.first; }

/* Watching ---------------------------------------------------------------------------------------------------------- */

static void trainer_done(struct task *task, int64_t result)
{
    if (result == 0)
        writer_trainer_gone(task->writer);
    else if (result != -ECANCELED)
        writer_broken(task->writer); /* a writer that cannot see the trainer die must not stay */
}

static void term_done(struct task *task, int64_t result)
{
    if (result == 0)
        writer_terminated(task->writer);
}

static void watch(struct writer *writer, struct task *task, int handle, void (*done)(struct task *, int64_t))
{
    if (handle < 0)
        return;
    task->op.kind = OP_WATCH;
    task->op.handle = handle;
    task->done = done;
    task->writer = writer;
    task->file = NO_FILE;
    task->standing = true;
    tasks_submit(&writer->tasks, task);
}

void connection_init(struct writer *writer)
{
    watch(writer, &writer->connection.trainer, writer->settings.trainer, trainer_done);
    watch(writer, &writer->connection.term, writer->settings.term, term_done);
}

void connection_deinit(struct writer *writer)
{
    while (writer->connection.first)
        first_drop(&writer->connection);
}
