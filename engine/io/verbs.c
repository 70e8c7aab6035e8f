/* verbs.c - the blocking verbs as plain functions, one path per verb for every backend.
 *
 * They run on the pool's threads, so that a hung file system stalls a thread and never the loop. Names come from others:
 * symlinks are never followed, nothing is inherited by children, and no open waits for the other end of a FIFO.
 */
#include <assert.h>
#include <base/array.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <io/stat.h>
#include <io/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t outcome(int64_t result) { return result < 0 ? -errno : result; }

static size_t transfer_bytes(const struct op *op) { return op->size < TRANSFER_BYTES_MAX ? op->size : TRANSFER_BYTES_MAX; }

static int64_t verb_read(const struct op *op)
{
    return outcome(pread(op->handle, op_place(op), transfer_bytes(op), (off_t)op->file_offset));
}

static int64_t verb_write(const struct op *op)
{
    return outcome(pwrite(op->handle, op_place(op), transfer_bytes(op), (off_t)op->file_offset));
}

/* Reading a FIFO that stands where a file should be would wait in open() for a writer: open without blocking, and take
 * the flag back, which io_uring and some file systems heed even for plain files. */
static int64_t handle_made_blocking(int handle)
{
    int flags = fcntl(handle, F_GETFL), error;

    if (flags >= 0 && fcntl(handle, F_SETFL, flags & ~O_NONBLOCK) == 0)
        return handle;
    error = -errno;
    close(handle);
    return error;
}

static int64_t verb_open(const struct op *op)
{
    int flags = O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, handle;
    bool may_block = !(op->flags & (OPEN_WRITE | OPEN_DIRECTORY));

    flags |= op->flags & OPEN_WRITE ? O_RDWR : O_RDONLY;
    flags |= op->flags & OPEN_CREATE ? O_CREAT | O_EXCL : 0;
    flags |= op->flags & OPEN_DIRECT ? O_DIRECT : 0;
    flags |= op->flags & OPEN_DIRECTORY ? O_DIRECTORY : 0;
    flags |= may_block ? O_NONBLOCK : 0;
    handle = openat(op->handle, op->name, flags, 0666);
    if (handle < 0)
        return -errno;
    return may_block ? handle_made_blocking(handle) : handle;
}

/* Not repeated after EINTR: Linux has closed the descriptor by then, and the number may be another's already. */
static int64_t verb_close(const struct op *op)
{
    int64_t result = outcome(close(op->handle));

    return result == -EINTR ? 0 : result;
}

static int64_t verb_stat(const struct op *op)
{
    return op->name ? stat_name(op->handle, op->name, op->stat) : stat_handle(op->handle, op->stat);
}

static int64_t verb_truncate(const struct op *op) { return outcome(ftruncate(op->handle, (off_t)op->size)); }

static int64_t verb_allocate(const struct op *op)
{
    struct stat before;
    int error, undone;

    if (fstat(op->handle, &before) < 0)
        return -errno;
    if (op->size == 0) /* fallocate refuses it */
        return verb_truncate(op);
    if (fallocate(op->handle, 0, 0, (off_t)op->size) == 0)
        return before.st_size > (off_t)op->size ? verb_truncate(op) : 0;
    error = errno;
    if (error == EOPNOTSUPP) { /* NFSv3 and others */
        int64_t result = verb_truncate(op);
        return result < 0 ? result : 1;
    }
    undone = ftruncate(op->handle, before.st_size); /* ext4 leaves the size grown and the blocks taken */
    (void)undone;                                   /* the failure that counts is the first */
    return -error;
}

/* An XFS that has shut down says 0 to the fsync of a directory whose change it has just thrown away: nothing is pinned any
 * more (Linux 6.18, xfs_dir_fsync). It says EIO to an open, and for ever: one that works afterwards vouches for the fsync. */
static int64_t directory_check(int directory)
{
    int opened = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (opened < 0)
        return errno == EIO ? -EIO : 0; /* ENOTDIR: a file, whose fsync looks for itself; EMFILE: nothing was learned */
    close(opened);
    return 0;
}

static int64_t verb_fsync(const struct op *op)
{
    int64_t result = outcome(fsync(op->handle));

    return result < 0 ? result : directory_check(op->handle);
}

/* A write lease is granted only where no other descriptor and no mapping of the file is left. It is given back at once: kept,
 * it would have the next one that opens the file wait. Who opens it in that very moment has SIGIO sent, which would end a
 * process that does not handle it: so to this thread, which blocks all signals and does not outlive its backend. */
static int64_t verb_sole(const struct op *op)
{
    const struct f_owner_ex owner = { F_OWNER_TID, gettid() };

    if (fcntl(op->handle, F_SETOWN_EX, &owner) < 0 || fcntl(op->handle, F_SETLEASE, F_WRLCK) < 0)
        return -EWOULDBLOCK;
    return fcntl(op->handle, F_SETLEASE, F_UNLCK) < 0 ? -EWOULDBLOCK : 0;
}

static int64_t verb_lock(const struct op *op)
{
    return op->flags & LOCK_OP_SOLE ? verb_sole(op) : outcome(flock(op->handle, LOCK_EX | LOCK_NB));
}

static int64_t verb_mkdir(const struct op *op) { return outcome(mkdirat(op->handle, op->name, 0777)); }

static int64_t verb_rename(const struct op *op)
{
    unsigned flags = op->flags == RENAME_OP_NOREPLACE ? RENAME_NOREPLACE : op->flags == RENAME_OP_EXCHANGE ? RENAME_EXCHANGE : 0;

    return outcome(renameat2(op->handle, op->name, op->to_handle, op->to_name, flags));
}

static int64_t verb_unlink(const struct op *op)
{
    return outcome(unlinkat(op->handle, op->name, op->flags & UNLINK_DIRECTORY ? AT_REMOVEDIR : 0));
}

static int64_t verb_link(const struct op *op)
{
    return outcome(linkat(op->handle, op->name, op->to_handle, op->to_name, 0));
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int list_append(struct io_list *list, size_t *capacity, const char *name)
{
    int result = array_reserve((void **)&list->names, capacity, list->count + 1, sizeof *list->names);

    if (result < 0)
        return result;
    if (!(list->names[list->count] = strdup(name)))
        return -ENOMEM;
    list->count++;
    return 0;
}

static int list_fill(struct io_list *list, DIR *directory)
{
    size_t capacity = 0;
    struct dirent *entry;
    int result;

    while (errno = 0, (entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        result = list_append(list, &capacity, entry->d_name);
        if (result < 0)
            return result;
    }
    return -errno;
}

/* Opened again rather than dup'ed: a dup would share, and move, the handle's position. */
static int64_t verb_list(const struct op *op)
{
    struct io_list list = { 0 };
    int handle = openat(op->handle, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), result;
    DIR *directory = handle < 0 ? NULL : fdopendir(handle);

    if (!directory) {
        result = -errno;
        if (handle >= 0)
            close(handle);
        return result;
    }
    result = list_fill(&list, directory);
    closedir(directory);
    if (result < 0) {
        io_list_free(&list);
        return result;
    }
    if (list.count)
        qsort(list.names, list.count, sizeof *list.names, compare_names);
    *op->list = list;
    return 0;
}

static int64_t verb_compute(const struct op *op) { return op->compute(op->argument); }

static int64_t (*const verbs[])(const struct op *op) = {
    [OP_READ] = verb_read, [OP_WRITE] = verb_write, [OP_OPEN] = verb_open, [OP_CLOSE] = verb_close, [OP_STAT] = verb_stat,
    [OP_ALLOCATE] = verb_allocate, [OP_TRUNCATE] = verb_truncate, [OP_FSYNC] = verb_fsync, [OP_LOCK] = verb_lock,
    [OP_MKDIR] = verb_mkdir, [OP_RENAME] = verb_rename, [OP_UNLINK] = verb_unlink, [OP_LINK] = verb_link,
    [OP_LIST] = verb_list, [OP_COMPUTE] = verb_compute,
};

int64_t verb_run(const struct op *op)
{
    int64_t result;

    assert((size_t)op->kind < sizeof verbs / sizeof *verbs && verbs[op->kind]);
    if (op->kind == OP_COMPUTE) /* runs once, whatever number it returns */
        return verb_compute(op);
    do
        result = verbs[op->kind](op);
    while (result == -EINTR);
    return result;
}

void verb_discard(struct op *op)
{
    if (op->result < 0)
        return;
    if (op->kind == OP_OPEN)
        close((int)op->result);
    else if (op->kind == OP_LIST)
        io_list_free(op->list);
    else if (op->kind == OP_RECV)
        for (unsigned i = 0; i < op->fd_count; i++)
            close(op->fds[i]);
}
