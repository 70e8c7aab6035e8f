/* io/calls.c - see calls.h. */
#include <io/calls.h>
#include <unistd.h>

int file_stat(struct io *io, int directory, const char *name, struct io_stat *stat)
{
    struct op op = { .kind = OP_STAT, .handle = directory, .name = name, .stat = stat };

    return (int)io_call(io, &op);
}

int file_open(struct io *io, int directory, const char *name, uint32_t flags)
{
    struct op op = { .kind = OP_OPEN, .handle = directory, .name = name, .flags = flags };

    return (int)io_call(io, &op);
}

void file_close(struct io *io, int handle)
{
    struct op op = { .kind = OP_CLOSE, .handle = handle };

    if (handle < 0)
        return;
    if (io)
        io_call(io, &op);
    else
        close(handle);
}

int directory_list(struct io *io, int directory, struct io_list *list)
{
    struct op op = { .kind = OP_LIST, .handle = directory, .list = list };

    return (int)io_call(io, &op);
}

int file_fsync(struct io *io, int handle)
{
    struct op op = { .kind = OP_FSYNC, .handle = handle };

    return (int)io_call(io, &op);
}

int file_truncate(struct io *io, int handle, uint64_t size)
{
    struct op op = { .kind = OP_TRUNCATE, .handle = handle, .size = size };

    return (int)io_call(io, &op);
}

int file_unlink(struct io *io, int directory, const char *name, uint32_t flags)
{
    struct op op = { .kind = OP_UNLINK, .handle = directory, .name = name, .flags = flags };

    return (int)io_call(io, &op);
}

int file_lock(struct io *io, int handle, uint32_t flags)
{
    struct op op = { .kind = OP_LOCK, .handle = handle, .flags = flags };

    return (int)io_call(io, &op);
}

int file_rename(struct io *io, int directory, const char *name, const char *to_name, enum rename_flags flags)
{
    struct op op = { .kind = OP_RENAME, .handle = directory, .name = name, .to_handle = directory, .to_name = to_name,
                     .flags = flags };

    return (int)io_call(io, &op);
}

void pause_for(struct io *io, uint64_t duration_ns)
{
    struct op timer = { .kind = OP_TIMER, .deadline_ns = io_now(io) + duration_ns };

    io_call(io, &timer);
}
