/* The verbs on names and handles, and how each of them fails. What stands in a checkpoint directory is not ours alone:
 * symlinks, FIFOs and other people's files must never be followed, waited for or overwritten. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct op open_op(struct fixture *fixture, const char *name, uint32_t flags)
{
    return (struct op){ .kind = OP_OPEN, .handle = fixture->directory, .name = name, .flags = flags };
}

static void empty_file(struct fixture *fixture, const char *name) { handle_close(fixture, file_create(fixture, name, 0)); }

static void opens(struct fixture *fixture)
{
    int handle;

    umask(027);
    handle = file_create(fixture, "file", 0);
    cr_assert(fcntl(handle, F_GETFD) & FD_CLOEXEC);
    cr_assert_eq(fcntl(handle, F_GETFL) & O_ACCMODE, O_RDWR);
    handle_close(fixture, handle);
    cr_assert_eq(call(fixture, open_op(fixture, "file", OPEN_WRITE | OPEN_CREATE)), -EEXIST);
    cr_assert_eq(call(fixture, open_op(fixture, "absent", OPEN_READ)), -ENOENT);
    cr_assert_eq(call(fixture, open_op(fixture, "file", OPEN_READ | OPEN_DIRECTORY)), -ENOTDIR);
    cr_assert_eq(call(fixture, open_op(fixture, ".", OPEN_WRITE)), -EISDIR);
    cr_assert_eq(call(fixture, open_op(fixture, "file/below", OPEN_READ)), -ENOTDIR);
    handle = (int)call(fixture, open_op(fixture, ".", OPEN_READ | OPEN_DIRECTORY));
    cr_assert(fcntl(handle, F_GETFD) & FD_CLOEXEC);
    handle_close(fixture, handle);
}
Test(files, open_creates_exclusively_and_closes_on_exec) { on_each_backend(NULL, opens); }

static void creates_with_the_umask(struct fixture *fixture)
{
    struct stat stat;

    umask(027);
    empty_file(fixture, "file");
    cr_assert_eq(fstatat(fixture->directory, "file", &stat, 0), 0);
    cr_assert_eq(stat.st_mode & 07777, 0640);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_MKDIR, .handle = fixture->directory, .name = "dir" }), 0);
    cr_assert_eq(fstatat(fixture->directory, "dir", &stat, 0), 0);
    cr_assert_eq(stat.st_mode & 07777, 0750);
}
Test(files, modes_come_from_the_umask) { on_each_backend(NULL, creates_with_the_umask); }

static void meets_symlinks(struct fixture *fixture)
{
    empty_file(fixture, "file");
    cr_assert_eq(symlinkat("file", fixture->directory, "link"), 0);
    cr_assert_eq(symlinkat("absent", fixture->directory, "dangling"), 0);
    cr_assert_eq(call(fixture, open_op(fixture, "link", OPEN_READ)), -ELOOP);
    cr_assert_eq(call(fixture, open_op(fixture, "link", OPEN_WRITE)), -ELOOP);
    cr_assert_eq(call(fixture, open_op(fixture, "dangling", OPEN_WRITE | OPEN_CREATE)), -EEXIST);
    cr_assert_eq(faccessat(fixture->directory, "absent", F_OK, 0), -1);
}
Test(files, open_never_follows_a_symlink) { on_each_backend(NULL, meets_symlinks); }

static void meets_a_fifo(struct fixture *fixture)
{
    int handle;

    cr_assert_eq(mkfifoat(fixture->directory, "fifo", 0600), 0);
    handle = (int)call(fixture, open_op(fixture, "fifo", OPEN_READ));
    cr_assert_geq(handle, 0);
    cr_assert_eq(fcntl(handle, F_GETFL) & O_NONBLOCK, 0);
    handle_close(fixture, handle);
}
Test(files, open_does_not_wait_for_the_writer_of_a_fifo) { on_each_backend(NULL, meets_a_fifo); }

static void opens_user_paths(struct fixture *fixture)
{
    int handle = (int)call(fixture, (struct op){ .kind = OP_OPEN, .handle = IO_CWD, .name = fixture->path,
                                                 .flags = OPEN_READ | OPEN_DIRECTORY });
    struct io_stat stat;

    cr_assert_geq(handle, 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_STAT, .handle = IO_CWD, .name = fixture->path, .stat = &stat }), 0);
    cr_assert(stat.is_directory);
    handle_close(fixture, handle);
}
Test(files, paths_of_the_user_start_at_the_working_directory) { on_each_backend(NULL, opens_user_paths); }

static void closes(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);

    handle_close(fixture, handle);
    cr_assert_eq(fcntl(handle, F_GETFD), -1);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_CLOSE, .handle = handle }), -EBADF);
}
Test(files, close_closes_and_a_second_one_is_EBADF) { on_each_backend(NULL, closes); }

static void allocates(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct op op = { .kind = OP_ALLOCATE, .handle = handle, .size = 1 << 20 };
    struct stat stat;

    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 1 << 20);
    cr_assert_geq(stat.st_blocks * 512, 1 << 20);
    op.size = 100;
    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 100);
    op.size = 0;
    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 0);
    op.size = SIZE_MAX;
    cr_assert_eq(call(fixture, op), -EINVAL);
    op.handle = fixture->directory;
    cr_assert_lt(call(fixture, op), 0);
    handle_close(fixture, handle);
}
Test(files, allocate_takes_blocks_and_sets_the_size) { on_each_backend(NULL, allocates); }

static void allocates_without_fallocate(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct stat stat;

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_ALLOCATE, .handle = handle, .size = 12345 }), 1);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 12345);
    handle_close(fixture, handle);
}
Test(files, allocate_only_sets_the_size_where_the_file_system_cannot)
{
    if (!system_call_forbid(SYS_fallocate, EOPNOTSUPP))
        cr_skip("no seccomp filter here");
    on_each_backend(NULL, allocates_without_fallocate);
}

static void truncates_and_syncs(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct stat stat;

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_TRUNCATE, .handle = handle, .size = 777 }), 0);
    cr_assert_eq(fstat(handle, &stat), 0);
    cr_assert_eq(stat.st_size, 777);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_TRUNCATE, .handle = handle, .size = SIZE_MAX }), -EINVAL);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_FSYNC, .handle = handle }), 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_FSYNC, .handle = fixture->directory }), 0);
    handle_close(fixture, handle);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_FSYNC, .handle = handle }), -EBADF);
}
Test(files, truncate_cuts_and_fsync_takes_files_and_directories) { on_each_backend(NULL, truncates_and_syncs); }

static void locks(struct fixture *fixture)
{
    int holder = file_create(fixture, "file", 0), other = (int)call(fixture, open_op(fixture, "file", OPEN_READ));

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_LOCK, .handle = holder }), 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_LOCK, .handle = other }), -EWOULDBLOCK);
    handle_close(fixture, holder);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_LOCK, .handle = other }), 0);
    handle_close(fixture, other);
}
Test(files, lock_is_refused_while_another_holds_it) { on_each_backend(NULL, locks); }

/* A collector cuts only what nobody reads any more: an open descriptor counts, and a mapping that outlived its descriptor. */
static void tells_who_is_alone(struct fixture *fixture)
{
    int own = file_create(fixture, "file", 0), other;
    struct op sole = { .kind = OP_LOCK, .handle = own, .flags = LOCK_OP_SOLE };
    void *map;

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_TRUNCATE, .handle = own, .size = 4096 }), 0);
    if (call(fixture, sole) == -EWOULDBLOCK)
        cr_skip("this file system knows no leases");
    other = openat(fixture->directory, "file", O_RDONLY);
    cr_assert_eq(call(fixture, sole), -EWOULDBLOCK);
    map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, other, 0);
    close(other);
    cr_assert_eq(call(fixture, sole), -EWOULDBLOCK);
    munmap(map, 4096);
    cr_assert_eq(call(fixture, sole), 0);
    other = openat(fixture->directory, "file", O_RDONLY | O_NONBLOCK);
    cr_assert_geq(other, 0, "a lease was kept");
    close(other);
    handle_close(fixture, own);
}
Test(files, sole_is_who_has_no_other_descriptor_and_no_mapping_beside) { on_each_backend(NULL, tells_who_is_alone); }

static struct op named(struct fixture *fixture, enum op_kind kind, const char *name, const char *to_name, uint32_t flags)
{
    return (struct op){ .kind = kind, .handle = fixture->directory, .to_handle = fixture->directory, .name = name,
                        .to_name = to_name, .flags = flags };
}

static bool exists(struct fixture *fixture, const char *name)
{
    return faccessat(fixture->directory, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static void renames(struct fixture *fixture)
{
    empty_file(fixture, "a");
    empty_file(fixture, "b");
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "a", "b", RENAME_OP_NOREPLACE)), -EEXIST);
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "a", "absent", RENAME_OP_EXCHANGE)), -ENOENT);
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "absent", "b", RENAME_PLAIN)), -ENOENT);
    cr_assert(exists(fixture, "a") && exists(fixture, "b"));
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "a", "b", RENAME_PLAIN)), 0);
    cr_assert(!exists(fixture, "a") && exists(fixture, "b"));
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "b", "c", RENAME_OP_NOREPLACE)), 0);
    cr_assert(!exists(fixture, "b") && exists(fixture, "c"));
}
Test(files, rename_replaces_only_when_it_is_plain) { on_each_backend(NULL, renames); }

static void renames_directories(struct fixture *fixture)
{
    cr_assert_eq(call(fixture, named(fixture, OP_MKDIR, "old", NULL, 0)), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_MKDIR, "old", NULL, 0)), -EEXIST);
    cr_assert_eq(call(fixture, named(fixture, OP_MKDIR, "new", NULL, 0)), 0);
    empty_file(fixture, "old/x");
    empty_file(fixture, "new/y");
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "new", "old", RENAME_PLAIN)), -ENOTEMPTY);
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "new", "old", RENAME_OP_EXCHANGE)), 0);
    cr_assert(exists(fixture, "old/y") && exists(fixture, "new/x"));
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "old/y", NULL, 0)), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_RENAME, "new", "old", RENAME_PLAIN)), 0, "onto an empty directory");
}
Test(files, rename_exchanges_directories_and_refuses_a_full_one) { on_each_backend(NULL, renames_directories); }

static void unlinks(struct fixture *fixture)
{
    empty_file(fixture, "file");
    cr_assert_eq(call(fixture, named(fixture, OP_MKDIR, "dir", NULL, 0)), 0);
    empty_file(fixture, "dir/file");
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "dir", NULL, 0)), -EISDIR);
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "dir", NULL, UNLINK_DIRECTORY)), -ENOTEMPTY);
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "file", NULL, UNLINK_DIRECTORY)), -ENOTDIR);
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "dir/file", NULL, 0)), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "dir", NULL, UNLINK_DIRECTORY)), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_UNLINK, "dir", NULL, UNLINK_DIRECTORY)), -ENOENT);
}
Test(files, unlink_removes_files_and_on_request_empty_directories) { on_each_backend(NULL, unlinks); }

static void links(struct fixture *fixture)
{
    struct stat stat;

    empty_file(fixture, "file");
    cr_assert_eq(symlinkat("file", fixture->directory, "symlink"), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_LINK, "file", "second", 0)), 0);
    cr_assert_eq(call(fixture, named(fixture, OP_LINK, "file", "second", 0)), -EEXIST);
    cr_assert_eq(call(fixture, named(fixture, OP_LINK, "absent", "third", 0)), -ENOENT);
    cr_assert_eq(fstatat(fixture->directory, "second", &stat, 0), 0);
    cr_assert_eq(stat.st_nlink, 2);
    cr_assert_eq(call(fixture, named(fixture, OP_LINK, "symlink", "fourth", 0)), 0);
    cr_assert_eq(fstatat(fixture->directory, "fourth", &stat, AT_SYMLINK_NOFOLLOW), 0);
    cr_assert(S_ISLNK(stat.st_mode));
}
Test(files, link_adds_a_name_and_never_follows_a_symlink) { on_each_backend(NULL, links); }

static void lists(struct fixture *fixture)
{
    const char *const names[] = { "zeta", "alpha", ".hidden", "B", "alpha2" };
    const char *const sorted[] = { ".hidden", "B", "alpha", "alpha2", "zeta" };
    struct io_list list = { 0 };
    struct op op = { .kind = OP_LIST, .handle = fixture->directory, .list = &list };

    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(list.count, 0);
    io_list_free(&list);
    for (unsigned i = 0; i < 5; i++)
        empty_file(fixture, names[i]);
    for (unsigned round = 0; round < 2; round++) { /* a second time: the handle's position was not moved */
        cr_assert_eq(call(fixture, op), 0);
        cr_assert_eq(list.count, 5);
        for (unsigned i = 0; i < 5; i++)
            cr_assert_str_eq(list.names[i], sorted[i]);
        io_list_free(&list);
    }
}
Test(files, list_gives_every_name_sorted) { on_each_backend(NULL, lists); }

static void lists_what_is_no_directory(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct io_list list = { .count = 7 };

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_LIST, .handle = handle, .list = &list }), -ENOTDIR);
    cr_assert_eq(list.count, 7, "outputs change only on success");
    handle_close(fixture, handle);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_LIST, .handle = handle, .list = &list }), -EBADF);
}
Test(files, list_of_a_file_is_ENOTDIR) { on_each_backend(NULL, lists_what_is_no_directory); }

static void stats(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", 0);
    struct io_stat by_handle, by_name, other = { .size = 7 };
    struct op op = { .kind = OP_STAT, .handle = handle, .stat = &by_handle };

    cr_assert_eq(ftruncate(handle, 4242), 0);
    cr_assert_eq(linkat(fixture->directory, "file", fixture->directory, "second", 0), 0);
    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(by_handle.size, 4242);
    cr_assert_eq(by_handle.links, 2);
    cr_assert(by_handle.is_regular && !by_handle.is_directory);
    cr_assert_gt(by_handle.free_bytes, 0);
    cr_assert_gt(by_handle.mtime_ns, (int64_t)1500000000 * 1000000000);
    op = (struct op){ .kind = OP_STAT, .handle = fixture->directory, .name = "second", .stat = &by_name };
    cr_assert_eq(call(fixture, op), 0);
    cr_assert_eq(by_name.inode, by_handle.inode);
    cr_assert_eq(by_name.device, by_handle.device);
    cr_assert_eq(by_name.direct_offset_align, by_handle.direct_offset_align);
    op = (struct op){ .kind = OP_STAT, .handle = fixture->directory, .name = "absent", .stat = &other };
    cr_assert_eq(call(fixture, op), -ENOENT);
    cr_assert_eq(other.size, 7, "outputs change only on success");
    handle_close(fixture, handle);
}
Test(files, stat_describes_a_handle_or_a_name) { on_each_backend(NULL, stats); }

static void stats_other_kinds(struct fixture *fixture)
{
    struct io_stat stat;

    cr_assert_eq(symlinkat(".", fixture->directory, "link"), 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_STAT, .handle = fixture->directory, .stat = &stat }), 0);
    cr_assert(stat.is_directory);
    cr_assert_eq(stat.direct_memory_align, 0);
    cr_assert_eq(stat.direct_offset_align, 0);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_STAT, .handle = fixture->directory, .name = "link", .stat = &stat }), 0);
    cr_assert(!stat.is_directory && !stat.is_regular);
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_STAT, .handle = IO_CWD, .name = "/proc/self", .stat = &stat }), 0);
    cr_assert_str_eq(stat.filesystem, "0x9fa0", "a file system without a name here is told by its number");
}
Test(files, stat_tells_directories_symlinks_and_file_systems_apart) { on_each_backend(NULL, stats_other_kinds); }

/* The alignment that stat reports is the one with which O_DIRECT really works. */
static void reports_alignment(struct fixture *fixture)
{
    int handle = file_create(fixture, "file", OPEN_DIRECT);
    char *bytes = aligned_bytes(65536, 1);
    struct io_stat stat;
    struct op write = { .kind = OP_WRITE, .handle = handle, .memory = bytes };
    uint32_t align;

    cr_assert_eq(call(fixture, (struct op){ .kind = OP_STAT, .handle = handle, .stat = &stat }), 0);
    cr_assert_eq(stat.direct_memory_align == 0, stat.direct_offset_align == 0);
    align = stat.direct_offset_align;
    if (!align)
        cr_skip("no STATX_DIOALIGN on %s", stat.filesystem);
    write.file_offset = write.size = align;
    cr_assert_eq(call(fixture, write), align);
    write.file_offset = align / 2;
    cr_assert_eq(call(fixture, write), -EINVAL);
    handle_close(fixture, handle);
    free(bytes);
}
Test(files, stat_reports_the_alignment_that_direct_writes_need) { on_each_backend(NULL, reports_alignment); }
