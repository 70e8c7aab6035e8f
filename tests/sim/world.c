/* sim/world.c - the simulated world: the rules of io/io.h hold in it, and each fault does what its comment says. */
#include "sim_io.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define OP(...) (&(struct op){ __VA_ARGS__ })

static char letter[] = "x";

static struct sim_world *world_make(uint64_t seed)
{
    struct sim_settings settings = { .seed = seed, .memory_align = 512, .offset_align = 512, .trace = true };
    struct sim_world *world = sim_world_create(&settings, NULL);
    uint32_t root;

    cr_assert_eq(sim_disk_make(sim_world_disk(world), SIM_ROOT, "root", true, &root), 0);
    sim_disk_sync_all(sim_world_disk(world));
    return world;
}

static int file_create(struct io *io, int root, const char *name, uint32_t flags)
{
    int64_t handle = io_call(io, OP(.kind = OP_OPEN, .handle = root, .name = name, .flags = OPEN_WRITE | OPEN_CREATE | flags));

    cr_assert_geq(handle, 0);
    return (int)handle;
}

static void world_end(struct sim_world *world, struct io *io)
{
    cr_expect_null(sim_world_violation(world), "%s", sim_world_violation(world));
    io_destroy(io);
    sim_world_destroy(world);
}

/* Eight writes in flight: the order in which they come back, as text. */
static void order_of(uint64_t seed, char order[9])
{
    struct sim_world *world = world_make(seed);
    struct io *io = sim_io_create(world, "one", 8);
    int root = sim_open(io, "/root"), file = file_create(io, root, "a", 0);
    struct completion batch[8];
    struct op ops[8];
    int count = 0;

    for (int i = 0; i < 8; i++) {
        ops[i] = (struct op){ .kind = OP_WRITE, .handle = file, .file_offset = (uint64_t)i, .memory = letter, .size = 1 };
        cr_assert_eq(io_submit(io, &ops[i]), 0);
    }
    while (count < 8) {
        int got = io_wait(io, batch, 8, IO_FOREVER);

        cr_assert_gt(got, 0);
        for (int i = 0; i < got; i++)
            order[count++] = (char)('0' + (batch[i].op - ops));
    }
    order[8] = '\0';
    world_end(world, io);
}

Test(world, same_seed_gives_same_order_and_other_seeds_others)
{
    char first[9], again[9], other[9];
    int different = 0;

    order_of(7, first);
    order_of(7, again);
    cr_assert_str_eq(first, again);
    for (uint64_t seed = 0; seed < 20; seed++) {
        order_of(seed, other);
        different += strcmp(first, other) != 0;
    }
    cr_assert_geq(different, 15);
}

Test(world, writes_beyond_depth_are_refused)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 1);
    int root = sim_open(io, "/root"), file = file_create(io, root, "a", 0);
    struct op one = { .kind = OP_WRITE, .handle = file, .memory = letter, .size = 1 }, two = one;
    struct completion completion;

    cr_assert_eq(io_submit(io, &one), 0);
    cr_assert_eq(io_submit(io, &two), -EBUSY);
    cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
    cr_assert_eq(io_submit(io, &two), 0);
    world_end(world, io);
}

Test(world, direct_file_refuses_misaligned_places)
{
    static char page[1024] __attribute__((aligned(512)));
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    int root = sim_open(io, "/root"), file = file_create(io, root, "a", OPEN_DIRECT);

    cr_expect_eq(io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = page, .size = 512)), 512);
    cr_expect_eq(io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = page, .size = 100)), -EINVAL);
    cr_expect_eq(io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = page, .size = 512, .file_offset = 8)), -EINVAL);
    cr_expect_eq(io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = page + 1, .size = 512)), -EINVAL);
    world_end(world, io);
}

Test(world, fsync_submitted_before_a_write_completed_does_not_cover_it)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct sim_world *world = world_make(seed);
        struct io *io = sim_io_create(world, "one", 0);
        int root = sim_open(io, "/root"), file = file_create(io, root, "a", 0);
        struct op write = { .kind = OP_WRITE, .handle = file, .memory = letter, .size = 1 };
        struct op sync = { .kind = OP_FSYNC, .handle = file };
        struct completion batch[2];
        size_t before = sim_disk_pending(sim_world_disk(world));

        cr_assert_eq(io_submit(io, &write), 0);
        cr_assert_eq(io_submit(io, &sync), 0);
        for (int count = 0; count < 2;)
            count += io_wait(io, batch, 2, IO_FOREVER);
        cr_assert_gt(sim_disk_pending(sim_world_disk(world)), before, "seed %lu", (unsigned long)seed);
        world_end(world, io);
    }
}

Test(world, memory_changed_under_a_write_is_found)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    int root = sim_open(io, "/root"), file = file_create(io, root, "a", 0);
    char bytes[4] = "abc";
    struct op write = { .kind = OP_WRITE, .handle = file, .memory = bytes, .size = 4 };
    struct completion completion;

    cr_assert_eq(io_submit(io, &write), 0);
    bytes[0] = 'z';
    cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
    cr_assert_not_null(sim_world_violation(world));
    io_destroy(io);
    sim_world_destroy(world);
}

Test(world, use_of_a_closed_handle_is_found)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    int root = sim_open(io, "/root");

    cr_assert_eq(io_call(io, OP(.kind = OP_CLOSE, .handle = root)), 0);
    cr_assert_eq(io_call(io, OP(.kind = OP_FSYNC, .handle = root)), -EBADF);
    cr_assert_not_null(sim_world_violation(world));
    io_destroy(io);
    sim_world_destroy(world);
}

Test(world, second_of_two_locks_is_refused_until_the_first_owner_dies)
{
    struct sim_world *world = world_make(1);
    struct io *one = sim_io_create(world, "one", 0), *two = sim_io_create(world, "two", 0);
    int first = file_create(one, sim_open(one, "/root"), "part", 0), second = sim_open(two, "/root/part");

    cr_assert_eq(io_call(one, OP(.kind = OP_LOCK, .handle = first)), 0);
    cr_assert_eq(io_call(two, OP(.kind = OP_LOCK, .handle = second)), -EWOULDBLOCK);
    sim_io_kill(one);
    cr_assert_eq(io_call(two, OP(.kind = OP_LOCK, .handle = second)), 0);
    world_end(world, two);
}

Test(world, message_carries_descriptors_and_waits_for_room)
{
    struct sim_settings settings = { .seed = 3, .channel_messages = 1 };
    struct sim_world *world = sim_world_create(&settings, NULL);
    struct io *one = sim_io_create(world, "one", 0), *two = sim_io_create(world, "two", 0);
    int ends[2], memory = sim_memory(one, 100);
    char hello[] = "hello", text[8] = "";
    struct op send = { .kind = OP_SEND, .memory = hello, .size = 6, .fds = { memory }, .fd_count = 1 }, more = send;
    struct op receive = { .kind = OP_RECV, .memory = text, .size = sizeof(text) };
    struct completion completion;
    uint64_t size;

    sim_channel(one, two, ends);
    send.handle = more.handle = ends[0];
    receive.handle = ends[1];
    cr_assert_eq(io_call(one, &send), 6);
    cr_assert_eq(io_submit(one, &more), 0);
    cr_assert_eq(io_wait(one, &completion, 1, sim_world_now(world) + 1000000000), 0, "the queue holds one");
    cr_assert_eq(io_call(two, &receive), 6);
    cr_assert_str_eq(text, "hello");
    cr_assert_eq(receive.fd_count, 1);
    cr_assert_not_null(sim_memory_bytes(two, receive.fds[0], &size));
    cr_assert_eq(size, 100);
    cr_assert_eq(io_wait(one, &completion, 1, IO_FOREVER), 1);
    cr_assert_eq(io_call(two, &receive), 6);
    sim_io_kill(one);
    cr_assert_eq(io_call(two, &receive), 0, "end of stream");
    world_end(world, two);
}

Test(world, death_is_a_readable_descriptor)
{
    struct sim_world *world = world_make(1);
    struct io *one = sim_io_create(world, "one", 0), *two = sim_io_create(world, "two", 0);
    struct op watch = { .kind = OP_WATCH, .handle = sim_process(one, two) };
    struct completion completion;

    cr_assert_eq(io_submit(one, &watch), 0);
    cr_assert_eq(io_wait(one, &completion, 1, sim_world_now(world) + 1000000000), 0);
    sim_io_kill(two);
    cr_assert_eq(io_wait(one, &completion, 1, IO_FOREVER), 1);
    cr_assert_eq(completion.result, 0);
    world_end(world, one);
}

Test(world, timers_follow_virtual_time_and_cancel_ends_waiting)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    uint64_t now = io_now(io);
    struct op hour = { .kind = OP_TIMER, .deadline_ns = now + 3600000000000 }, day = hour;
    struct op watch = { .kind = OP_WATCH, .handle = sim_event(io) };
    struct completion completion;

    day.deadline_ns *= 24;
    cr_assert_eq(io_submit(io, &day), 0);
    cr_assert_eq(io_submit(io, &hour), 0);
    cr_assert_eq(io_submit(io, &watch), 0);
    cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
    cr_assert(completion.op == &hour && io_now(io) == hour.deadline_ns);
    cr_assert_eq(io_cancel(io, &watch), 0);
    cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
    cr_assert(completion.op == &watch && completion.result == -ECANCELED);
    world_end(world, io);
}

Test(world, waiting_for_what_can_never_happen_is_found)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    struct op watch = { .kind = OP_WATCH, .handle = sim_event(io) };
    struct completion completion;

    cr_assert_eq(io_submit(io, &watch), 0);
    cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), -EDEADLK);
    cr_assert_not_null(sim_world_violation(world));
    io_destroy(io);
    sim_world_destroy(world);
}

/* Faults ------------------------------------------------------------------------------------------------------------ */

static int64_t mkdir_with(const struct sim_fault *fault, struct sim_world **world, struct io **io)
{
    *world = world_make(1);
    *io = sim_io_create(*world, "one", 0);
    sim_world_fault(*world, fault);
    return io_call(*io, OP(.kind = OP_MKDIR, .handle = sim_open(*io, "/root"), .name = "d"));
}

static bool has(struct sim_world *world, const char *path)
{
    uint32_t inode;

    return sim_disk_walk(sim_world_disk(world), SIM_ROOT, path, &inode) == 0;
}

Test(faults, fail_refuses_and_fail_after_does_it_all_the_same)
{
    struct sim_fault fault = { .on = { .kind = OP_MKDIR, .path = "/root/*" }, .action = SIM_FAIL, .error = EIO };
    struct sim_world *world;
    struct io *io;

    cr_assert_eq(mkdir_with(&fault, &world, &io), -EIO);
    cr_assert_not(has(world, "root/d"));
    cr_assert_eq(sim_fault_hits(world, 0), 1);
    world_end(world, io);
    fault.action = SIM_FAIL_AFTER;
    cr_assert_eq(mkdir_with(&fault, &world, &io), -EIO);
    cr_assert(has(world, "root/d"));
    world_end(world, io);
}

Test(faults, lie_reports_success_and_does_nothing)
{
    struct sim_world *world;
    struct io *io;

    cr_assert_eq(mkdir_with(&(struct sim_fault){ .on = { .kind = OP_MKDIR }, .action = SIM_LIE }, &world, &io), 0);
    cr_assert_not(has(world, "root/d"));
    world_end(world, io);
}

Test(faults, defer_does_it_after_what_it_should_have_come_before)
{
    struct sim_fault fault = { .on = { .kind = OP_MKDIR, .path = "*/d" }, .action = SIM_DEFER, .until = { .path = "*/e" } };
    struct sim_world *world;
    struct io *io;

    cr_assert_eq(mkdir_with(&fault, &world, &io), 0);
    cr_assert_not(has(world, "root/d"));
    file_create(io, sim_open(io, "/root"), "e", 0);
    cr_assert(has(world, "root/d"));
    world_end(world, io);
}

Test(faults, only_the_nth_match_is_hit)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    int root = sim_open(io, "/root");

    sim_world_fault(world, &(struct sim_fault){ .on = { .kind = OP_MKDIR }, .ordinal = 2, .action = SIM_FAIL, .error = ENOSPC });
    cr_expect_eq(io_call(io, OP(.kind = OP_MKDIR, .handle = root, .name = "a")), 0);
    cr_expect_eq(io_call(io, OP(.kind = OP_MKDIR, .handle = root, .name = "b")), -ENOSPC);
    cr_expect_eq(io_call(io, OP(.kind = OP_MKDIR, .handle = root, .name = "c")), 0);
    world_end(world, io);
}

Test(faults, kill_ends_the_process_after_the_op)
{
    struct sim_world *world;
    struct io *io;
    struct completion completion;
    struct op late = { .kind = OP_TIMER };

    cr_assert_lt(mkdir_with(&(struct sim_fault){ .on = { .kind = OP_MKDIR }, .action = SIM_KILL }, &world, &io), 0);
    cr_assert(sim_io_is_dead(io));
    cr_assert(has(world, "root/d"));
    cr_assert_lt(io_submit(io, &late), 0);
    cr_assert_lt(io_wait(io, &completion, 1, IO_FOREVER), 0);
    cr_assert_eq(sim_handles(io), 0);
    sim_world_destroy(world);
}

Test(faults, write_in_flight_of_a_killed_process_lands_or_not)
{
    int landed = 0;

    for (uint64_t seed = 0; seed < 40; seed++) {
        struct sim_world *world = world_make(seed);
        struct io *io = sim_io_create(world, "one", 0), *other = sim_io_create(world, "two", 0);
        int file = file_create(io, sim_open(io, "/root"), "a", 0);
        char *bytes = strdup("text");
        struct op write = { .kind = OP_WRITE, .handle = file, .memory = bytes, .size = 4 };
        struct io_stat stat = { 0 };
        struct completion completion;

        cr_assert_eq(io_submit(io, &write), 0);
        sim_io_kill(io);
        free(bytes); /* the machine is thrown away */
        cr_assert_eq(io_wait(other, &completion, 1, sim_world_now(world) + 1000000000), 0);
        cr_assert_eq(io_call(other, OP(.kind = OP_STAT, .handle = sim_open(other, "/root"), .name = "a", .stat = &stat)), 0);
        landed += stat.size == 4;
        world_end(world, other);
    }
    cr_assert(landed > 5 && landed < 35, "%d of 40", landed);
}

Test(faults, short_writes_move_whole_blocks_of_a_direct_file)
{
    static char page[4096] __attribute__((aligned(512)));
    struct sim_settings settings = { .seed = 1, .memory_align = 512, .offset_align = 512, .short_writes_per_mille = 1000 };
    struct sim_world *world = sim_world_create(&settings, NULL);
    struct io *io = sim_io_create(world, "one", 0);
    int file = file_create(io, sim_open(io, "/"), "a", OPEN_DIRECT);

    for (int i = 0; i < 100; i++) {
        int64_t moved = io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = page, .size = sizeof(page)));

        cr_assert(moved > 0 && moved < (int64_t)sizeof(page) && moved % 512 == 0);
    }
    world_end(world, io);
}

Test(world, disk_in_flight_has_begun_what_was_submitted)
{
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "one", 0);
    struct op make = { .kind = OP_MKDIR, .handle = sim_open(io, "/root"), .name = "d" };
    struct sim_disk *disk;
    uint32_t inode;

    cr_assert_eq(io_submit(io, &make), 0);
    disk = sim_world_disk_in_flight(world);
    cr_assert_not(has(world, "root/d"));
    cr_assert_eq(sim_disk_walk(disk, SIM_ROOT, "root/d", &inode), 0);
    cr_assert_eq(sim_disk_pending(disk), 1);
    sim_disk_destroy(disk);
    world_end(world, io);
}

Test(world, trace_says_what_happened)
{
    char text[] = "text";
    struct sim_world *world = world_make(1);
    struct io *io = sim_io_create(world, "writer", 0);
    int root = sim_open(io, "/root"), file = file_create(io, root, "a", 0);

    cr_assert_eq(io_call(io, OP(.kind = OP_WRITE, .handle = file, .memory = text, .size = 4)), 4);
    cr_assert_eq(io_call(io, OP(.kind = OP_UNLINK, .handle = root, .name = "b")), -ENOENT);
    cr_assert(strstr(sim_world_trace(world), "writer #2 write /root/a @0+4 -> 4\n"));
    cr_assert(strstr(sim_world_trace(world), "writer #3 unlink /root/b -> ENOENT\n"));
    world_end(world, io);
}
