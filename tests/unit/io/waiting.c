/* wait(), timers, watches, cancel and compute: the loop must neither sleep through an event nor spin without one. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS ((uint64_t)1000000)

static struct op timer_op(uint64_t deadline_ns) { return (struct op){ .kind = OP_TIMER, .deadline_ns = deadline_ns }; }
static struct op watch_op(int handle) { return (struct op){ .kind = OP_WATCH, .handle = handle }; }

static void wakes_at_the_deadline(struct fixture *fixture)
{
    struct completion completion;
    uint64_t deadline = io_now(fixture->io) + 3 * MS;

    cr_assert_eq(io_wait(fixture->io, &completion, 1, 0), 0);
    cr_assert_eq(io_wait(fixture->io, &completion, 1, 1), 0, "long past");
    cr_assert_lt(io_now(fixture->io), deadline);
    cr_assert_eq(io_wait(fixture->io, &completion, 1, deadline), 0);
    cr_assert_geq(io_now(fixture->io), deadline, "not before");
}
Test(waiting, without_events_ends_at_the_deadline) { on_each_backend(NULL, wakes_at_the_deadline); }

static void orders_timers(struct fixture *fixture)
{
    uint64_t start = io_now(fixture->io);
    struct op late = timer_op(start + 4 * MS), early = timer_op(start + MS), same = timer_op(start + MS), past = timer_op(0);
    struct op never = timer_op(UINT64_MAX);

    submit(fixture, &never);
    submit(fixture, &late);
    submit(fixture, &early);
    submit(fixture, &same);
    submit(fixture, &past);
    cr_assert_eq(await(fixture, &past), 0);
    cr_assert_eq(await(fixture, &early), 0);
    cr_assert_geq(io_now(fixture->io), early.deadline_ns);
    cr_assert_eq(await(fixture, &same), 0);
    cr_assert_eq(await(fixture, &late), 0);
    cr_assert_geq(io_now(fixture->io), late.deadline_ns);
    assert_nothing_ready(fixture);
    cr_assert_eq(io_cancel(fixture->io, &never), 0);
    cr_assert_eq(await(fixture, &never), -ECANCELED);
}
Test(waiting, timers_come_in_the_order_of_their_deadlines) { on_each_backend(NULL, orders_timers); }

static pid_t child_waiting_for_death(void)
{
    pid_t pid = fork();

    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static void watches_a_death(struct fixture *fixture)
{
    pid_t pid = child_waiting_for_death();
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct op watch = watch_op(pidfd), again = watch_op(pidfd);

    cr_assert_geq(pidfd, 0);
    submit(fixture, &watch);
    submit(fixture, &again);
    assert_nothing_ready(fixture);
    kill(pid, SIGKILL);
    cr_assert_eq(await(fixture, &watch), 0);
    cr_assert_eq(await(fixture, &again), 0, "every watch of it completes");
    cr_assert_eq(waitpid(pid, NULL, 0), pid);
    close(pidfd);
}
Test(waiting, watch_of_a_pidfd_completes_when_the_child_is_killed) { on_each_backend(NULL, watches_a_death); }

static void watches_readiness(struct fixture *fixture)
{
    int event = eventfd(0, EFD_CLOEXEC), ends[2];
    uint64_t one = 1;
    struct op watch = watch_op(event), hangup;

    submit(fixture, &watch);
    assert_nothing_ready(fixture);
    cr_assert_eq(write(event, &one, sizeof one), sizeof one);
    cr_assert_eq(await(fixture, &watch), 0);
    cr_assert_eq(call(fixture, watch_op(event)), 0, "still readable: at once");
    close(event);
    cr_assert_eq(call(fixture, watch_op(event)), -EBADF);
    cr_assert_eq(pipe2(ends, O_CLOEXEC), 0);
    hangup = watch_op(ends[0]);
    submit(fixture, &hangup);
    assert_nothing_ready(fixture);
    close(ends[1]);
    cr_assert_eq(await(fixture, &hangup), 0, "hung up counts as readable");
    close(ends[0]);
}
Test(waiting, watch_completes_when_readable_or_hung_up) { on_each_backend(NULL, watches_readiness); }

static void cancels(struct fixture *fixture)
{
    int ends[2], event = eventfd(0, EFD_CLOEXEC);
    char bytes[4];
    struct op ops[] = { timer_op(UINT64_MAX), watch_op(event), { .kind = OP_RECV, .memory = bytes, .size = 4 } };

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    ops[2].handle = ends[0];
    for (unsigned armed = 0; armed < 2; armed++) { /* cancelled before, and after, a wait has armed it */
        for (unsigned i = 0; i < 3; i++) {
            submit(fixture, &ops[i]);
            if (armed)
                assert_nothing_ready(fixture);
            cr_assert_eq(io_cancel(fixture->io, &ops[i]), 0);
            cr_assert_eq(io_cancel(fixture->io, &ops[i]), 0, "twice is as good as once");
            cr_assert_eq(await(fixture, &ops[i]), -ECANCELED);
            assert_nothing_ready(fixture);
        }
    }
    cr_assert_eq(send(ends[1], "x", 1, 0), 1);
    cr_assert_eq(io_call(fixture->io, &ops[2]), 1, "a cancelled receive swallowed nothing");
    close(ends[0]);
    close(ends[1]);
    close(event);
}
Test(waiting, cancelled_ops_complete_once_with_ECANCELED) { on_each_backend(NULL, cancels); }

/* Fills the queue of `handle` with one-byte messages. */
static void queue_fill(int handle)
{
    while (send(handle, "x", 1, MSG_DONTWAIT) == 1)
        ;
    cr_assert_eq(errno, EAGAIN);
}

static void cancels_a_stuck_send(struct fixture *fixture)
{
    int ends[2];
    struct op first = { .kind = OP_SEND, .memory = (char[]){ "1" }, .size = 1 }, second = first, third = first;
    char byte;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    first.handle = second.handle = third.handle = ends[0];
    queue_fill(ends[0]);
    submit(fixture, &first);
    submit(fixture, &second);
    submit(fixture, &third);
    assert_nothing_ready(fixture);
    cr_assert_eq(io_cancel(fixture->io, &second), 0);
    cr_assert_eq(await(fixture, &second), -ECANCELED);
    cr_assert_eq(io_cancel(fixture->io, &first), 0);
    cr_assert_eq(await(fixture, &first), -ECANCELED);
    assert_nothing_ready(fixture);
    while (recv(ends[1], &byte, 1, MSG_DONTWAIT) == 1)
        ;
    cr_assert_eq(await(fixture, &third), 1, "the one behind them goes on");
    close(ends[0]);
    close(ends[1]);
}
Test(waiting, cancelling_a_stuck_send_frees_the_one_behind) { on_each_backend(NULL, cancels_a_stuck_send); }

static void cancels_what_it_cannot(struct fixture *fixture)
{
    int event = eventfd(1, EFD_CLOEXEC);
    struct op watch = watch_op(event), sync = { .kind = OP_FSYNC, .handle = fixture->directory };

    submit(fixture, &watch);
    cr_assert_eq(io_cancel(fixture->io, &watch), 0);
    cr_assert_eq(await(fixture, &watch), 0, "it was done already");
    submit(fixture, &sync);
    cr_assert_eq(io_cancel(fixture->io, &sync), -EINVAL);
    cr_assert_eq(await(fixture, &sync), 0);
    close(event);
}
Test(waiting, cancelling_what_is_done_or_cannot_end_early_changes_nothing) { on_each_backend(NULL, cancels_what_it_cannot); }

static int64_t twice(void *argument) { return 2 * *(int *)argument; }
static int64_t interrupted(void *argument) { return ++*(int *)argument == 1 ? -EINTR : 77; }
static int64_t priority_of_thread(void *argument) { return getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid)); }

static int64_t signals_open(void *argument)
{
    sigset_t blocked;
    int64_t open = 0;

    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    for (int number = 1; number < 32; number++)
        open += number != SIGKILL && number != SIGSTOP && !sigismember(&blocked, number);
    return open;
}

static void computes(struct fixture *fixture)
{
    int number = 21, calls = 0, ours = getpriority(PRIO_PROCESS, 0);

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_COMPUTE, .compute = twice, .argument = &number }), 42);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_COMPUTE, .compute = interrupted, .argument = &calls }), -EINTR,
                 "whatever it returns is its result: it runs once");
    cr_assert_eq(calls, 1);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_COMPUTE, .compute = priority_of_thread }),
                 ours + 10 < 19 ? ours + 10 : 19);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_COMPUTE, .compute = signals_open }), 0);
    cr_assert_eq(getpriority(PRIO_PROCESS, 0), ours, "only the compute threads yield");
}
Test(waiting, compute_runs_once_on_a_yielding_thread_without_signals) { on_each_backend(NULL, computes); }

struct gate { int ends[2]; };

static int64_t pass_gate(void *argument)
{
    char byte;

    return read(((struct gate *)argument)->ends[0], &byte, 1);
}

static void lives_with_stuck_threads(struct fixture *fixture)
{
    struct gate gate;
    struct op stuck[3], timer = timer_op(io_now(fixture->io) + MS);

    cr_assert_eq(pipe2(gate.ends, O_CLOEXEC), 0);
    for (unsigned i = 0; i < 3; i++) { /* two threads: the third is queued behind them */
        stuck[i] = (struct op){ .kind = OP_COMPUTE, .compute = pass_gate, .argument = &gate };
        submit(fixture, &stuck[i]);
    }
    submit(fixture, &timer);
    cr_assert_eq(await(fixture, &timer), 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_FSYNC, .handle = fixture->directory }), 0,
                 "verbs have threads of their own");
    cr_assert_eq(write(gate.ends[1], "abc", 3), 3);
    for (unsigned i = 0; i < 3; i++) {
        struct completion completion;
        cr_assert_eq(io_wait(fixture->io, &completion, 1, IO_FOREVER), 1);
        cr_assert_eq(completion.result, 1);
    }
    close(gate.ends[0]);
    close(gate.ends[1]);
}
Test(waiting, goes_on_while_threads_are_stuck) { on_each_backend(NULL, lives_with_stuck_threads); }

static void returns_at_most_capacity(struct fixture *fixture)
{
    struct op timers[5];
    struct completion completions[8];

    for (unsigned i = 0; i < 5; i++) {
        timers[i] = timer_op(i);
        submit(fixture, &timers[i]);
    }
    cr_assert_eq(io_wait(fixture->io, completions, 3, IO_FOREVER), 3);
    cr_assert_eq(completions[2].op, &timers[2]);
    cr_assert_eq(io_wait(fixture->io, completions, 8, 0), 2);
    cr_assert_eq(completions[1].op, &timers[4]);
}
Test(waiting, returns_no_more_than_there_is_room_for) { on_each_backend(NULL, returns_at_most_capacity); }

/* A caller whose ops are always ready (here: timers long past) must still hear of everything else. */
static void hears_beside_ready_ops(struct fixture *fixture)
{
    int event = eventfd(0, EFD_CLOEXEC), heard = 0;
    uint64_t one = 1;
    struct op watch = watch_op(event), timer = timer_op(0);
    struct completion completions[4];

    submit(fixture, &watch);
    assert_nothing_ready(fixture);
    cr_assert_eq(write(event, &one, sizeof one), sizeof one);
    for (unsigned round = 0; round < 3 && !heard; round++) {
        int count;
        submit(fixture, &timer);
        count = io_wait(fixture->io, completions, 4, IO_FOREVER);
        for (int i = 0; i < count; i++)
            heard |= completions[i].op == &watch;
    }
    cr_assert(heard);
    close(event);
}
Test(waiting, with_something_always_ready_hears_the_rest) { on_each_backend(NULL, hears_beside_ready_ops); }

static uint64_t cpu_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void idles(struct fixture *fixture)
{
    int ends[2], event = eventfd(0, EFD_CLOEXEC);
    char bytes[4];
    struct op receive = { .kind = OP_RECV, .memory = bytes, .size = 4 }, watch = watch_op(event);
    struct completion completion;
    uint64_t before;

    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    receive.handle = ends[0];
    submit(fixture, &receive);
    submit(fixture, &watch);
    assert_nothing_ready(fixture);
    before = cpu_ns();
    cr_assert_eq(io_wait(fixture->io, &completion, 1, io_now(fixture->io) + 100 * MS), 0);
    cr_assert_lt(cpu_ns() - before, 10 * MS, "%s: 100 ms of nothing to do cost %lu us", fixture->io->backend,
                 (unsigned long)(cpu_ns() - before) / 1000);
    close(ends[1]);
    cr_assert_eq(await(fixture, &receive), 0);
    close(ends[0]);
    cr_assert_eq(io_cancel(fixture->io, &watch), 0);
    cr_assert_eq(await(fixture, &watch), -ECANCELED);
    close(event);
}
Test(waiting, for_messages_costs_no_processor_time) { on_each_backend(NULL, idles); }

static void *run_elsewhere(void *argument)
{
    struct fixture *fixture = argument;
    int handle = file_create(fixture, "file", 0);

    handle_close(fixture, handle);
    cr_assert_eq(call(fixture, timer_op(0)), 0);
    io_destroy(fixture->io);
    fixture->io = NULL;
    return NULL;
}

static void moves_to_another_thread(struct fixture *fixture)
{
    pthread_t thread;
    char place[4096];

    cr_assert_gt(io_attach(fixture->io, place, sizeof place), 0); /* the creator may attach before */
    cr_assert_eq(pthread_create(&thread, NULL, run_elsewhere, fixture), 0);
    pthread_join(thread, NULL);
}
Test(waiting, belongs_to_the_thread_that_first_uses_it) { on_each_backend(NULL, moves_to_another_thread); }

static void draws_random_bytes(struct fixture *fixture)
{
    unsigned char first[300] = { 0 }, second[300] = { 0 };

    io_random(fixture->io, first, 0);
    cr_assert_eq(first[0], 0);
    io_random(fixture->io, first, sizeof first); /* more than getrandom gives in one piece uninterrupted */
    io_random(fixture->io, second, sizeof second);
    cr_assert_arr_neq(first, second, sizeof first);
    cr_assert_arr_neq(first + 284, (unsigned char[16]){ 0 }, 16);
}
Test(waiting, random_fills_all_bytes) { on_each_backend(NULL, draws_random_bytes); }

Test(waiting, every_kind_of_op_has_a_name)
{
    cr_assert_str_eq(op_kind_name(OP_WRITE), "write");
    cr_assert_str_eq(op_kind_name(OP_COMPUTE), "compute");
    for (enum op_kind kind = OP_NONE; kind <= OP_COMPUTE; kind++)
        cr_assert_str_neq(op_kind_name(kind), "unknown");
    cr_assert_str_eq(op_kind_name(OP_COMPUTE + 1), "unknown");
}
