/* attempt.c - one attempt at SEND, RECV or WATCH; whoever calls waits for readiness between attempts.
 *
 * Both backends come through here, so that descriptors are received, counted and closed in one place. What arrives is a
 * stranger's: a message that does not fit is an error, and none of its descriptors stays open.
 */
#include <errno.h>
#include <io/attempt.h>
#include <io/verbs.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Room for OP_FDS_MAX descriptors; the kernel wants it aligned like its header. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(OP_FDS_MAX * sizeof(int))];
};

static void control_set(struct msghdr *message, union control *control, const struct op *op)
{
    struct cmsghdr *header;

    memset(control, 0, sizeof *control);
    message->msg_control = control;
    message->msg_controllen = CMSG_SPACE(op->fd_count * sizeof(int));
    header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(op->fd_count * sizeof(int));
    memcpy(CMSG_DATA(header), op->fds, op->fd_count * sizeof(int));
}

static int64_t message_send(const struct op *op)
{
    struct iovec place = { op_place(op), op->size };
    struct msghdr message = { .msg_iov = &place, .msg_iovlen = 1 };
    union control control;
    ssize_t sent;

    if (op->fd_count)
        control_set(&message, &control, op);
    do
        sent = sendmsg(op->handle, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

/* Moves the received descriptors into op->fds; with `keep` false, or when there is no room, closes them. How many there were. */
static size_t descriptors_take(struct op *op, struct msghdr *message, bool keep)
{
    struct cmsghdr *header;
    size_t count, all = 0;
    int fd;

    op->fd_count = 0;
    for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        count = (header->cmsg_len - CMSG_LEN(0)) / sizeof fd;
        all += count;
        for (size_t i = 0; i < count; i++) {
            memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            if (keep && op->fd_count < OP_FDS_MAX)
                op->fds[op->fd_count++] = fd;
            else
                close(fd);
        }
    }
    return all;
}

/* ECONNRESET of a local socket says that the peer died with messages of ours unread. It is said once; what the peer had
 * sent before is still queued behind it and must not be lost. */
static ssize_t message_receive_raw(int handle, struct msghdr *message)
{
    size_t control_bytes = message->msg_controllen;
    ssize_t received;
    bool was_reset = false;

    for (;;) {
        message->msg_controllen = control_bytes;
        received = recvmsg(handle, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (received >= 0 || (errno != EINTR && (errno != ECONNRESET || was_reset)))
            return received;
        was_reset |= errno == ECONNRESET;
    }
}

static int64_t message_receive(struct op *op)
{
    union control control;
    struct iovec place = { op_place(op), op->size };
    struct msghdr message = { .msg_iov = &place, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
    ssize_t received = message_receive_raw(op->handle, &message);
    size_t arrived;
    bool cut;

    op->fd_count = 0;
    op->fds_lost = false;
    if (received < 0)
        return -errno;
    cut = message.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    arrived = descriptors_take(op, &message, received > 0 && !cut);
    /* Cut although our room was not used up: the kernel found no free number for the next one. */
    op->fds_lost = (message.msg_flags & MSG_CTRUNC) && !(message.msg_flags & MSG_TRUNC) && arrived < OP_FDS_MAX;
    return cut && !op->fds_lost ? -EMSGSIZE : received;
}

static int64_t watch(const struct op *op)
{
    struct pollfd entry = { .fd = op->handle, .events = POLLIN };

    if (poll(&entry, 1, 0) <= 0)
        return -EAGAIN;
    return entry.revents & POLLNVAL ? -EBADF : 0;
}

int64_t attempt_run(struct op *op)
{
    if (op->kind == OP_SEND)
        return message_send(op);
    return op->kind == OP_RECV ? message_receive(op) : watch(op);
}

short attempt_events(enum op_kind kind) { return kind == OP_SEND ? POLLOUT : POLLIN; }
