/* SEND and RECV: the channel between trainer and writer. A message lost, overtaken, or a descriptor left open by a peer's
 * malformed message would each be found only days later. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct pair { int near, far; };

static struct pair pair_open(void)
{
    int ends[2];

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    return (struct pair){ ends[0], ends[1] };
}

static void pair_close(struct pair pair)
{
    close(pair.near);
    close(pair.far);
}

static struct op send_op(int handle, const void *bytes, size_t size)
{
    return (struct op){ .kind = OP_SEND, .handle = handle, .memory = (void *)bytes, .size = size };
}

static struct op recv_op(int handle, void *bytes, size_t size)
{
    return (struct op){ .kind = OP_RECV, .handle = handle, .memory = bytes, .size = size };
}

static void carries_descriptors(struct fixture *fixture)
{
    struct pair pair = pair_open();
    int event = eventfd(7, EFD_CLOEXEC);
    char bytes[16] = "";
    struct op message = send_op(pair.near, "hello", 5), received = recv_op(pair.far, bytes, sizeof bytes);
    uint64_t count = 0;

    message.fds[0] = message.fds[1] = message.fds[2] = message.fds[3] = event;
    message.fd_count = OP_FDS_MAX;
    cr_assert_eq(io_call(fixture->io, &message), 5);
    cr_assert_eq(io_call(fixture->io, &received), 5);
    cr_assert_arr_eq(bytes, "hello", 5);
    cr_assert_eq(received.fd_count, OP_FDS_MAX);
    cr_assert_eq(read(received.fds[3], &count, sizeof count), sizeof count);
    cr_assert_eq(count, 7, "it is the same open file");
    for (unsigned i = 0; i < received.fd_count; i++) {
        cr_assert(fcntl(received.fds[i], F_GETFD) & FD_CLOEXEC);
        close(received.fds[i]);
    }
    close(event);
    pair_close(pair);
}
Test(messages, carry_descriptors_that_close_on_exec) { on_each_backend(NULL, carries_descriptors); }

static void counts_no_descriptors(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char byte;
    struct op message = send_op(pair.near, "x", 1), received = recv_op(pair.far, &byte, 1);

    received.fd_count = 3; /* left from an earlier use of the op */
    cr_assert_eq(io_call(fixture->io, &message), 1);
    cr_assert_eq(io_call(fixture->io, &received), 1);
    cr_assert_eq(received.fd_count, 0);
    pair_close(pair);
}
Test(messages, without_descriptors_say_so) { on_each_backend(NULL, counts_no_descriptors); }

static void refuses_long_messages(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char bytes[4];
    struct op message = send_op(pair.near, "too long", 8), received = recv_op(pair.far, bytes, sizeof bytes);
    unsigned before = open_descriptors();

    message.fds[0] = pair.near;
    message.fd_count = 1;
    cr_assert_eq(io_call(fixture->io, &message), 8);
    cr_assert_eq(io_call(fixture->io, &received), -EMSGSIZE);
    cr_assert_eq(received.fd_count, 0);
    cr_assert_eq(open_descriptors(), before, "the descriptors of a refused message are closed");
    cr_assert_eq(io_submit(fixture->io, &message), 0);
    cr_assert_eq(await(fixture, &message), 8, "the channel goes on");
    pair_close(pair);
}
Test(messages, too_long_for_the_place_are_refused_and_leave_nothing_open) { on_each_backend(NULL, refuses_long_messages); }

/* A stranger's message, sent around our SEND, which takes no more than OP_FDS_MAX. */
static void send_many_descriptors(int handle, int fd, unsigned count, size_t size)
{
    char control[CMSG_SPACE(16 * sizeof(int))] = "", bytes[8] = "";
    struct iovec place = { bytes, size };
    struct msghdr message = { .msg_iov = &place, .msg_iovlen = 1, .msg_control = control,
                              .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (unsigned i = 0; i < count; i++)
        memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
    cr_assert_eq(sendmsg(handle, &message, 0), (ssize_t)size);
}

static void refuses_many_descriptors(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char bytes[8];
    struct op received = recv_op(pair.far, bytes, sizeof bytes);
    unsigned before = open_descriptors();

    send_many_descriptors(pair.near, pair.near, OP_FDS_MAX + 1, 8);
    cr_assert_eq(io_call(fixture->io, &received), -EMSGSIZE);
    send_many_descriptors(pair.near, pair.near, 16, 8);
    cr_assert_eq(io_call(fixture->io, &received), -EMSGSIZE);
    cr_assert_eq(received.fd_count, 0);
    cr_assert_eq(open_descriptors(), before);
    pair_close(pair);
}
Test(messages, with_too_many_descriptors_are_refused_and_leave_nothing_open) { on_each_backend(NULL, refuses_many_descriptors); }

/* The first free number is the last one allowed: of two descriptors one arrives. */
static void tells_lost_descriptors(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char byte = 0;
    struct op received = recv_op(pair.far, &byte, 1);
    unsigned before = open_descriptors();
    int first_free = dup(pair.near);
    struct rlimit limit, tight;

    close(first_free);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = (struct rlimit){ (rlim_t)first_free + 1, limit.rlim_max };
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
    send_many_descriptors(pair.near, pair.near, 2, 1);
    cr_assert_eq(io_call(fixture->io, &received), 1, "the message itself arrives");
    cr_assert(received.fds_lost);
    cr_assert_eq(received.fd_count, 0);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_eq(open_descriptors(), before, "the one that arrived is closed");
    send_many_descriptors(pair.near, pair.near, 2, 1);
    cr_assert_eq(io_call(fixture->io, &received), 1);
    cr_assert(!received.fds_lost);
    cr_assert_eq(received.fd_count, 2);
    close(received.fds[0]);
    close(received.fds[1]);
    pair_close(pair);
}
Test(messages, whose_descriptors_find_no_room_say_so) { on_each_backend(NULL, tells_lost_descriptors); }

static void closes_descriptors_of_empty_messages(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char bytes[8];
    struct op received = recv_op(pair.far, bytes, sizeof bytes);
    unsigned before = open_descriptors();

    send_many_descriptors(pair.near, pair.near, 2, 0);
    cr_assert_eq(io_call(fixture->io, &received), 0, "an empty message counts as the end of the stream");
    cr_assert_eq(received.fd_count, 0);
    cr_assert_eq(open_descriptors(), before);
    pair_close(pair);
}
Test(messages, that_are_empty_leave_no_descriptor_open) { on_each_backend(NULL, closes_descriptors_of_empty_messages); }

static void refuses_malformed_ops(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char byte = 0;
    struct op empty = send_op(pair.near, &byte, 0), none = recv_op(pair.far, &byte, 0), many = send_op(pair.near, &byte, 1);
    struct op nothing = { .kind = OP_NONE }, unknown = { .kind = 99 };

    many.fd_count = OP_FDS_MAX + 1;
    cr_assert_eq(io_submit(fixture->io, &empty), -EINVAL);
    cr_assert_eq(io_submit(fixture->io, &none), -EINVAL);
    cr_assert_eq(io_submit(fixture->io, &many), -EINVAL);
    cr_assert_eq(io_submit(fixture->io, &nothing), -EINVAL);
    cr_assert_eq(io_submit(fixture->io, &unknown), -EINVAL);
    assert_nothing_ready(fixture);
    pair_close(pair);
}
Test(messages, malformed_ops_are_not_taken) { on_each_backend(NULL, refuses_malformed_ops); }

#define MANY 700 /* more than a SEQPACKET socket queues */

/* Sends until the queue is full and well beyond; then the peer reads, and everything arrives in order. */
static void sends_beyond_the_queue(struct fixture *fixture)
{
    static struct op ops[MANY];
    static uint32_t numbers[MANY];
    struct pair pair = pair_open();
    unsigned completed = 0, number;
    struct completion completions[64];
    int count;

    for (number = 0; number < MANY; number++) {
        numbers[number] = number;
        ops[number] = send_op(pair.near, &numbers[number], sizeof numbers[number]);
        submit(fixture, &ops[number]);
    }
    while ((count = io_wait(fixture->io, completions, 64, 0)) > 0)
        completed += (unsigned)count;
    cr_assert_lt(completed, MANY, "the queue is full");
    for (number = 0; number < MANY; number++) {
        uint32_t got = UINT32_MAX;
        while (recv(pair.far, &got, sizeof got, MSG_DONTWAIT) < 0) {
            cr_assert_eq(errno, EAGAIN);
            count = io_wait(fixture->io, completions, 64, IO_FOREVER);
            cr_assert_gt(count, 0);
            for (int i = 0; i < count; i++, completed++) {
                cr_assert_eq(completions[i].op, &ops[completed], "in order");
                cr_assert_eq(completions[i].result, sizeof got);
            }
        }
        cr_assert_eq(got, number);
    }
    while (completed < MANY)
        completed += (unsigned)io_wait(fixture->io, completions, 64, IO_FOREVER);
    assert_nothing_ready(fixture);
    pair_close(pair);
}
Test(messages, beyond_a_full_queue_complete_later_and_in_order) { on_each_backend(NULL, sends_beyond_the_queue); }

static void waits_for_messages(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char first[4] = "", second[4] = "";
    struct op one = recv_op(pair.far, first, 4), two = recv_op(pair.far, second, 4);
    struct completion completions[2];

    submit(fixture, &one);
    submit(fixture, &two);
    assert_nothing_ready(fixture);
    cr_assert_eq(send(pair.near, "a", 1, 0), 1);
    cr_assert_eq(await(fixture, &one), 1);
    assert_nothing_ready(fixture);
    cr_assert_eq(send(pair.near, "bb", 2, 0), 2);
    cr_assert_eq(await(fixture, &two), 2);
    cr_assert_eq(first[0], 'a');
    cr_assert_eq(second[0], 'b');
    submit(fixture, &one);
    submit(fixture, &two);
    cr_assert_eq(send(pair.near, "c", 1, 0), 1);
    cr_assert_eq(send(pair.near, "dd", 2, 0), 2);
    for (int count = 0; count < 2;)
        count += io_wait(fixture->io, completions + count, 2 - (unsigned)count, IO_FOREVER);
    cr_assert_eq(completions[0].op, &one);
    cr_assert_eq(completions[1].op, &two);
    pair_close(pair);
}
Test(messages, that_come_later_fill_the_receives_in_order) { on_each_backend(NULL, waits_for_messages); }

static void sees_the_end(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char bytes[8];
    struct op received = recv_op(pair.far, bytes, sizeof bytes);

    submit(fixture, &received);
    assert_nothing_ready(fixture);
    cr_assert_eq(send(pair.near, "last", 4, 0), 4);
    close(pair.near);
    cr_assert_eq(await(fixture, &received), 4);
    cr_assert_eq(io_call(fixture->io, &received), 0);
    cr_assert_eq(io_call(fixture->io, &received), 0);
    close(pair.far);
}
Test(messages, end_with_0_once_everything_was_received) { on_each_backend(NULL, sees_the_end); }

/* A peer killed with our messages unread resets the connection; what it had said before still counts. */
static void hears_a_dead_peer(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char bytes[8];
    struct op received = recv_op(pair.far, bytes, sizeof bytes);

    cr_assert_eq(send(pair.near, "testament", 6, 0), 6);
    cr_assert_eq(send(pair.far, "unread", 6, 0), 6);
    close(pair.near);
    cr_assert_eq(io_call(fixture->io, &received), 6);
    cr_assert_eq(io_call(fixture->io, &received), 0);
    close(pair.far);
}
Test(messages, of_a_peer_that_died_with_ours_unread_are_still_received) { on_each_backend(NULL, hears_a_dead_peer); }

/* How a dead peer's channel is read out to the last message: end of stream may never come, a forked child of it may hold
 * the socket open. */
static void reads_out_what_is_queued(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char byte = 0;
    struct op received = recv_op(pair.far, &byte, 1);

    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(send(pair.near, (char[]){ (char)('a' + i) }, 1, 0), 1);
    for (unsigned i = 0; i < 4; i++) {
        submit(fixture, &received);
        cr_assert_eq(io_cancel(fixture->io, &received), 0);
        cr_assert_eq(await(fixture, &received), i < 3 ? 1 : -ECANCELED);
        cr_assert_eq(byte, (char)('a' + (i < 3 ? i : 2)));
    }
    pair_close(pair);
}
Test(messages, that_are_queued_come_though_the_receive_is_cancelled_at_once)
{
    on_each_backend(NULL, reads_out_what_is_queued);
}

static void sends_to_nobody(struct fixture *fixture)
{
    struct pair pair = pair_open();
    struct op message = send_op(pair.near, "x", 1);
    char byte;

    close(pair.far);
    cr_assert_eq(io_call(fixture->io, &message), -EPIPE);
    close(pair.near);
    cr_assert_eq(call(fixture, send_op(pair.near, "x", 1)), -EBADF);
    cr_assert_eq(call(fixture, recv_op(pair.near, &byte, 1)), -EBADF);
    cr_assert_eq(call(fixture, recv_op(fixture->directory, &byte, 1)), -ENOTSOCK);
}
Test(messages, to_a_closed_peer_are_EPIPE) { on_each_backend(NULL, sends_to_nobody); }

static void sends_into_a_closed_stream(struct fixture *fixture)
{
    int ends[2];

    signal(SIGPIPE, SIG_DFL);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    close(ends[1]);
    cr_assert_eq(call(fixture, send_op(ends[0], "x", 1)), -EPIPE);
    close(ends[0]);
}
Test(messages, into_a_closed_stream_raise_no_SIGPIPE) { on_each_backend(NULL, sends_into_a_closed_stream); }

static void sends_from_buffers(struct fixture *fixture)
{
    struct pair pair = pair_open();
    char near[8] = "abcdefg", far[8] = "";
    int from = io_attach(fixture->io, near, 8), to = io_attach(fixture->io, far, 8);
    struct op message = { .kind = OP_SEND, .handle = pair.near, .buffer = (uint32_t)from, .buffer_offset = 2, .size = 3 };
    struct op received = { .kind = OP_RECV, .handle = pair.far, .buffer = (uint32_t)to, .buffer_offset = 4, .size = 4 };

    cr_assert_eq(io_call(fixture->io, &message), 3);
    cr_assert_eq(io_call(fixture->io, &received), 3);
    cr_assert_arr_eq(far + 4, "cde", 3);
    received.buffer_offset = 5;
    cr_assert_eq(io_submit(fixture->io, &received), -EINVAL);
    pair_close(pair);
}
Test(messages, use_attached_buffers) { on_each_backend(NULL, sends_from_buffers); }
