/* destroy() with everything in flight. The caller frees ops and buffers right behind it: whatever still used them then
 * would write into somebody else's memory; and what the unreturned ops opened must not stay open. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define TRANSFERS 16

struct crowd {
    struct op writes[TRANSFERS], opens[4], lists[2], receives[3], sends[300], watches[2], timers[3], computes[8], closing;
    struct io_list listed[2];
    unsigned char *bytes;
    char names[4][8], received[3][8];
    int file, ends[2], event;
    unsigned computed;
};

static int64_t count_up(void *argument) { return __atomic_add_fetch((unsigned *)argument, 1, __ATOMIC_RELAXED); }

static void crowd_submit_files(struct crowd *crowd, struct fixture *fixture)
{
    for (unsigned i = 0; i < TRANSFERS; i++) {
        crowd->writes[i] = (struct op){ .kind = OP_WRITE, .handle = crowd->file, .file_offset = i * 65536,
                                        .memory = crowd->bytes + i * 65536, .size = 65536 };
        submit(fixture, &crowd->writes[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        memcpy(crowd->names[i], (char[]){ 'n', (char)('0' + i), 0 }, 3);
        crowd->opens[i] = (struct op){ .kind = OP_OPEN, .handle = fixture->directory, .name = crowd->names[i],
                                       .flags = OPEN_WRITE | OPEN_CREATE };
        submit(fixture, &crowd->opens[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
        crowd->lists[i] = (struct op){ .kind = OP_LIST, .handle = fixture->directory, .list = &crowd->listed[i] };
        submit(fixture, &crowd->lists[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        crowd->computes[i] = (struct op){ .kind = OP_COMPUTE, .compute = count_up, .argument = &crowd->computed };
        submit(fixture, &crowd->computes[i]);
    }
}

/* One receive has a message with a descriptor waiting, the others wait; the sends run into a full queue. */
static void crowd_submit_messages(struct crowd *crowd, struct fixture *fixture)
{
    crowd->sends[0] = (struct op){ .kind = OP_SEND, .handle = crowd->ends[1], .memory = crowd->bytes, .size = 2,
                                   .fds = { crowd->event }, .fd_count = 1 };
    submit(fixture, &crowd->sends[0]);
    for (unsigned i = 0; i < 3; i++) {
        crowd->receives[i] = (struct op){ .kind = OP_RECV, .handle = crowd->ends[0], .memory = crowd->received[i], .size = 8 };
        submit(fixture, &crowd->receives[i]);
    }
    for (unsigned i = 1; i < 300; i++) {
        crowd->sends[i] = (struct op){ .kind = OP_SEND, .handle = crowd->ends[0], .memory = crowd->bytes, .size = 4 };
        submit(fixture, &crowd->sends[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        crowd->timers[i] = (struct op){ .kind = OP_TIMER, .deadline_ns = i * (UINT64_MAX / 2) };
        submit(fixture, &crowd->timers[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
        crowd->watches[i] = (struct op){ .kind = OP_WATCH, .handle = crowd->event };
        submit(fixture, &crowd->watches[i]);
    }
}

static struct crowd *crowd_create(struct fixture *fixture)
{
    struct crowd *crowd = calloc(1, sizeof *crowd);

    cr_assert(crowd);
    crowd->bytes = aligned_bytes(TRANSFERS * 65536, 0x5a);
    crowd->file = file_create(fixture, "file", OPEN_DIRECT);
    crowd->event = eventfd(0, EFD_CLOEXEC);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, crowd->ends), 0);
    return crowd;
}

static void crowd_free(struct crowd *crowd)
{
    memset(crowd->bytes, 0, TRANSFERS * 65536);
    close(crowd->file);
    close(crowd->event);
    close(crowd->ends[0]);
    close(crowd->ends[1]);
    free(crowd->bytes);
    free(crowd);
}

static void assert_all_written(struct crowd *crowd)
{
    unsigned char *read = aligned_bytes(TRANSFERS * 65536, 0);

    cr_assert_eq(pread(crowd->file, read, TRANSFERS * 65536, 0), TRANSFERS * 65536);
    cr_assert_arr_eq(read, crowd->bytes, TRANSFERS * 65536);
    free(read);
}

static void destroys_at_once(struct fixture *fixture)
{
    struct crowd *crowd = crowd_create(fixture);

    crowd_submit_files(crowd, fixture);
    crowd_submit_messages(crowd, fixture);
    io_destroy(fixture->io);
    fixture->io = NULL;
    assert_all_written(crowd);
    cr_assert_eq(crowd->computed, 8);
    crowd_free(crowd);
}
Test(destroying, runs_transfers_and_verbs_to_their_end_and_leaves_nothing_open) { on_each_backend(NULL, destroys_at_once); }

static void destroys_after_a_while(struct fixture *fixture)
{
    struct crowd *crowd = crowd_create(fixture);
    struct completion completion;
    struct op discarded = { .kind = OP_TIMER };

    crowd_submit_messages(crowd, fixture);
    submit(fixture, &discarded);
    cr_assert_eq(io_wait(fixture->io, &completion, 1, IO_FOREVER), 1); /* by now everything that waits is armed */
    crowd_submit_files(crowd, fixture);
    io_cancel(fixture->io, &crowd->watches[0]);
    io_destroy(fixture->io);
    fixture->io = NULL;
    assert_all_written(crowd);
    crowd_free(crowd);
}
Test(destroying, in_the_middle_of_it_all_is_as_clean) { on_each_backend(NULL, destroys_after_a_while); }

static void destroys_unused(struct fixture *fixture)
{
    io_destroy(NULL);
    io_destroy(fixture->io);
    fixture->io = NULL;
}
Test(destroying, what_was_never_used_or_never_made_is_fine) { on_each_backend(NULL, destroys_unused); }

/* A cancelled watch whose descriptor fires at the same time, many times over: each must end exactly once. */
static void races_cancel_with_readiness(struct fixture *fixture)
{
    uint64_t one = 1, count;

    for (unsigned round = 0; round < 200; round++) {
        int event = eventfd(0, EFD_CLOEXEC);
        struct op watch = { .kind = OP_WATCH, .handle = event };
        struct completion completions[2];
        submit(fixture, &watch);
        cr_assert_eq(io_wait(fixture->io, completions, 2, 0), 0);
        cr_assert_eq(write(event, &one, sizeof one), sizeof one);
        cr_assert_eq(io_cancel(fixture->io, &watch), 0);
        cr_assert_eq(io_wait(fixture->io, completions, 2, IO_FOREVER), 1);
        cr_assert(completions[0].result == 0 || completions[0].result == -ECANCELED);
        assert_nothing_ready(fixture);
        cr_assert_eq(read(event, &count, sizeof count), sizeof count);
        close(event);
    }
}
Test(destroying, a_cancel_that_meets_readiness_ends_the_op_once) { on_each_backend(NULL, races_cancel_with_readiness); }

/* The socket was readable when the cancel came, and is not any more: waiting again would be for ever. */
static void cancels_what_another_took(struct fixture *fixture)
{
    int ends[2];
    char byte;
    struct op receive = { .kind = OP_RECV, .memory = &byte, .size = 1 };
    struct completion completion;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    receive.handle = ends[0];
    submit(fixture, &receive);
    cr_assert_eq(io_wait(fixture->io, &completion, 1, 0), 0);
    cr_assert_eq(send(ends[1], "x", 1, 0), 1);
    cr_assert_eq(recv(ends[0], &byte, 1, 0), 1);
    cr_assert_eq(io_cancel(fixture->io, &receive), 0);
    cr_assert_eq(await(fixture, &receive), -ECANCELED);
    close(ends[0]);
    close(ends[1]);
}
Test(destroying, a_cancelled_receive_ends_though_another_took_its_message) { on_each_backend(NULL, cancels_what_another_took); }
