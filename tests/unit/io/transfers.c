/* Bytes to and from files. A transfer that lies about its length, or reads stale bytes, is a damaged checkpoint. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE 65536u

static struct op transfer(enum op_kind kind, int handle, uint64_t file_offset, void *memory, size_t size)
{
    return (struct op){ .kind = kind, .handle = handle, .file_offset = file_offset, .memory = memory, .size = size };
}

static void writes_many_pieces_at_once(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", OPEN_DIRECT);
    struct completion completion;
    struct op ops[8];
    unsigned char *written = aligned_bytes(8 * PIECE, 0), *read = aligned_bytes(8 * PIECE, 0xee);

    cr_assert(fcntl(handle, F_GETFL) & O_DIRECT);
    io_random(fixture->io, written, 8 * PIECE);
    for (unsigned i = 0; i < 8; i++) {
        ops[i] = transfer(OP_WRITE, handle, (uint64_t)(7 - i) * PIECE, written + (7 - i) * PIECE, PIECE);
        submit(fixture, &ops[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(io_wait(fixture->io, &completion, 1, IO_FOREVER), 1);
        cr_assert_eq(completion.result, PIECE);
    }
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 0, read, 8 * PIECE)), 8 * PIECE);
    cr_assert_arr_eq(read, written, 8 * PIECE);
    handle_close(fixture, handle);
    free(written);
    free(read);
}
Test(transfers, direct_writes_in_flight_together_are_read_back) { on_each_backend(NULL, writes_many_pieces_at_once); }

/* Eight go out as three, three, and two that no batch fills: those must not wait for ever. */
Test(transfers, what_no_batch_fills_goes_out_with_the_wait)
{
    const struct io_settings settings = { .submit_batch = 3 };

    on_each_backend(&settings, writes_many_pieces_at_once);
}

static void reads_at_the_end(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    char bytes[100] = "", read[100];

    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 0, bytes, 60)), 60);
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 20, read, 100)), 40);
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 60, read, 100)), 0);
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 6000, read, 100)), 0);
    handle_close(fixture, handle);
}
Test(transfers, read_is_short_at_the_end_of_the_file_and_0_behind_it) { on_each_backend(NULL, reads_at_the_end); }

static void moves_nothing(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct stat stat;
    char byte = 1;

    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 4096, &byte, 0)), 0);
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 0, &byte, 0)), 0);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 0);
    handle_close(fixture, handle);
}
Test(transfers, of_no_bytes_succeed_and_change_nothing) { on_each_backend(NULL, moves_nothing); }

static void refuses_wrong_handles(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", OPEN_DIRECT);
    int read_only = openat(fixture->directory, "file", O_RDONLY | O_CLOEXEC);
    char *bytes = aligned_bytes(8192, 0);

    cr_assert_eq(call(fixture, transfer(OP_WRITE, read_only, 0, bytes, 4096)), -EBADF);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, -1, 0, bytes, 4096)), -EBADF);
    cr_assert_eq(call(fixture, transfer(OP_READ, fixture->directory, 0, bytes, 4096)), -EISDIR);
    cr_assert_eq(call(fixture, transfer(OP_READ, handle, 0, NULL, 4096)), 0, "an empty file ends before the place is touched");
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 0, NULL, 4096)), -EFAULT);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 1, bytes, 4096)), -EINVAL, "not aligned");
    free(bytes);
    close(read_only);
    handle_close(fixture, handle);
}
Test(transfers, report_the_kernels_errno) { on_each_backend(NULL, refuses_wrong_handles); }

/* io_uring would take the offset -1 for the handle's own position and write there. */
static void refuses_negative_offsets(struct fixture *fixture)
{
    char byte = 1;

    cr_assert_eq(call(fixture, transfer(OP_WRITE, fixture->directory, UINT64_MAX, &byte, 1)), -EINVAL);
    cr_assert_eq(call(fixture, transfer(OP_READ, fixture->directory, (uint64_t)INT64_MAX + 1, &byte, 1)), -EINVAL);
}
Test(transfers, beyond_the_largest_file_offset_are_not_taken) { on_each_backend(NULL, refuses_negative_offsets); }

static void moves_at_most_what_the_kernel_moves(struct fixture *fixture)
{
    const size_t size = (size_t)5 << 30; /* whose low 32 bits would be 1 GiB */
    int handle = open("/dev/null", O_WRONLY | O_CLOEXEC);
    void *place = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    cr_assert_neq(place, MAP_FAILED);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 0, place, size)), 2147479552);
    munmap(place, size);
    close(handle);
}
Test(transfers, beyond_2_GiB_are_partial) { on_each_backend(NULL, moves_at_most_what_the_kernel_moves); }

static void stops_at_the_file_size_limit(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct rlimit before, limit = { .rlim_max = RLIM_INFINITY, .rlim_cur = 8192 };
    char *bytes = aligned_bytes(16384, 1);

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    limit.rlim_max = before.rlim_max;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 0, bytes, 16384)), 8192);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 8192, bytes, 8192)), -EFBIG);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_ALLOCATE, .handle = handle, .size = 16384 }), -EFBIG);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    free(bytes);
    handle_close(fixture, handle);
}
Test(transfers, at_the_file_size_limit_are_short_then_EFBIG) { on_each_backend(NULL, stops_at_the_file_size_limit); }

static void fills_a_file_system(struct fixture *fixture)
{
    int mounted = private_mount(fixture, "tmpfs", "size=65536"), handle;
    struct op create = { .kind = OP_OPEN, .handle = mounted, .name = "file", .flags = OPEN_WRITE | OPEN_CREATE };
    char *bytes = aligned_bytes(131072, 1);
    struct stat stat;

    if (mounted < 0)
        cr_skip("mounting a small tmpfs needs CAP_SYS_ADMIN");
    handle = (int)call(fixture, create);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_ALLOCATE, .handle = handle, .size = 131072 }), -ENOSPC);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 0, "a failed ALLOCATE leaves the size as it was");
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 0, bytes, 131072)), 65536);
    cr_assert_eq(call(fixture, transfer(OP_WRITE, handle, 65536, bytes, 4096)), -ENOSPC);
    handle_close(fixture, handle);
    close(mounted);
    free(bytes);
}
Test(transfers, to_a_full_file_system_are_short_then_ENOSPC) { on_each_backend(NULL, fills_a_file_system); }

static void refuses_more_than_depth(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct completion completions[2];
    struct op ops[3];
    char bytes[3] = "ab";

    for (unsigned i = 0; i < 3; i++)
        ops[i] = transfer(OP_WRITE, handle, i, &bytes[i], 1);
    submit(fixture, &ops[0]);
    submit(fixture, &ops[1]);
    cr_assert_eq(io_submit(fixture->io, &ops[2]), -EBUSY);
    cr_assert_eq(io_wait(fixture->io, completions, 1, IO_FOREVER), 1);
    submit(fixture, &ops[2]); /* one was returned: there is room for one */
    for (int count = 0; count < 2;)
        count += io_wait(fixture->io, completions, 2, IO_FOREVER);
    assert_nothing_ready(fixture);
    handle_close(fixture, handle);
}
Test(transfers, beyond_the_depth_are_busy_until_one_was_returned)
{
    on_each_backend(&(struct io_settings){ .depth = 2 }, refuses_more_than_depth);
}

static void moves_attached_buffers(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    char *base = aligned_bytes(16384, 'x');
    int buffer = io_attach(fixture->io, base, 16384), other;
    struct op op = { .kind = OP_WRITE, .handle = handle, .buffer = (uint32_t)buffer, .buffer_offset = 8192, .size = 8192 };

    cr_assert_gt(buffer, 0);
    memset(base + 8192, 'y', 8192);
    cr_assert_eq(io_call(fixture->io, &op), 8192);
    op = (struct op){ .kind = OP_READ, .handle = handle, .buffer = (uint32_t)buffer, .buffer_offset = 100, .size = 1000 };
    cr_assert_eq(io_call(fixture->io, &op), 1000);
    cr_assert_eq(base[99], 'x');
    cr_assert_eq(base[100], 'y');
    cr_assert_eq(base[1099], 'y');
    cr_assert_eq(base[1100], 'x');
    op.buffer_offset = 16384 - 999;
    cr_assert_eq(io_submit(fixture->io, &op), -EINVAL, "beyond the buffer's end");
    op.buffer_offset = UINT64_MAX;
    cr_assert_eq(io_submit(fixture->io, &op), -EINVAL);
    op = (struct op){ .kind = OP_READ, .handle = handle, .buffer = (uint32_t)buffer + 1, .size = 1 };
    cr_assert_eq(io_submit(fixture->io, &op), -EINVAL, "no such buffer");
    io_detach(fixture->io, (uint32_t)buffer);
    op.buffer = (uint32_t)buffer;
    cr_assert_eq(io_submit(fixture->io, &op), -EINVAL, "detached");
    other = io_attach(fixture->io, base, 4096);
    op.buffer = (uint32_t)other;
    cr_assert_eq(io_call(fixture->io, &op), 1);
    handle_close(fixture, handle);
    free(base);
}
Test(transfers, use_attached_buffers_within_their_bounds) { on_each_backend(NULL, moves_attached_buffers); }
Test(transfers, use_registered_buffers_within_their_bounds)
{
    on_each_backend(&(struct io_settings){ .registered = true }, moves_attached_buffers);
}

static void uses_what_cannot_be_registered(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", OPEN_DIRECT);
    char *writable = aligned_bytes(4096, 'w'), *read_only = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int first = io_attach(fixture->io, writable, 4096), second;
    bool is_uring = !strcmp(fixture->io->backend, "uring");
    struct op write = { .kind = OP_WRITE, .handle = handle, .size = 4096 };

    cr_assert_eq(fixture->io->registered, is_uring);
    second = io_attach(fixture->io, read_only, 4096);
    cr_assert_not(fixture->io->registered, "a read-only mapping cannot be registered, and it says so");
    write.buffer = (uint32_t)first;
    cr_assert_eq(call(fixture, write), 4096);
    write.buffer = (uint32_t)second;
    cr_assert_eq(call(fixture, write), 4096);
    handle_close(fixture, handle);
    io_detach(fixture->io, (uint32_t)second);
    io_detach(fixture->io, (uint32_t)first);
    munmap(read_only, 4096);
    free(writable);
}
Test(transfers, from_memory_that_cannot_be_registered_work_and_say_so)
{
    on_each_backend(&(struct io_settings){ .registered = true }, uses_what_cannot_be_registered);
}
