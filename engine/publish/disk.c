/* publish/disk.c - see disk.h. */
#include <publish/disk.h>

#include <errno.h>
#include <stdlib.h>

int disk_open_directory(struct io *io, int directory, const char *name)
{
    return file_open(io, directory, name, OPEN_READ | OPEN_DIRECTORY);
}

void disk_close(struct io *io, int *handle)
{
    if (*handle >= 0)
        io_call(io, &(struct op){ .kind = OP_CLOSE, .handle = *handle });
    *handle = -1;
}

int disk_rename(struct io *io, int directory, const char *name, int to_directory, const char *to_name, uint32_t flags)
{
    return (int)io_call(io, &(struct op){ .kind = OP_RENAME, .handle = directory, .name = name, .to_handle = to_directory,
                                          .to_name = to_name, .flags = flags });
}

int disk_link(struct io *io, int directory, const char *name, int to_directory)
{
    return (int)io_call(io, &(struct op){ .kind = OP_LINK, .handle = directory, .name = name, .to_handle = to_directory,
                                          .to_name = name });
}

int disk_read(struct io *io, int handle, uint64_t file_offset, void *to, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        struct op read = { .kind = OP_READ, .handle = handle, .file_offset = file_offset + done, .memory = (char *)to + done,
                           .size = size - done };
        int64_t got = io_call(io, &read);

        if (got <= 0)
            return got < 0 ? (int)got : -EBADMSG;
        done += (uint64_t)got;
    }
    return 0;
}

int disk_write(struct io *io, int handle, const void *bytes, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        struct op write = { .kind = OP_WRITE, .handle = handle, .file_offset = done, .memory = (char *)bytes + done,
                            .size = size - done };
        int64_t put = io_call(io, &write);

        if (put <= 0)
            return put < 0 ? (int)put : -EIO;
        done += (uint64_t)put;
    }
    return 0;
}

static int load(struct io *io, int handle, uint64_t most, void **bytes, uint64_t *size)
{
    struct io_stat stat = { 0 };
    void *loaded;
    int error = file_stat(io, handle, NULL, &stat);

    if (error < 0 || !stat.is_regular || stat.size > most)
        return error < 0 ? error : stat.is_regular ? -EFBIG : -EBADMSG;
    if (!(loaded = malloc(stat.size + 1)))
        return -ENOMEM;
    error = disk_read(io, handle, 0, loaded, stat.size);
    if (error < 0) {
        free(loaded);
        return error;
    }
    *bytes = loaded;
    *size = stat.size;
    return 0;
}

/* Looked at before it is opened: opening a pipe would wait for its writer. */
int disk_load_file(struct io *io, int directory, const char *name, uint64_t most, void **bytes, uint64_t *size)
{
    struct io_stat stat = { 0 };
    int error = file_stat(io, directory, name, &stat), handle;

    if (error < 0 || !stat.is_regular)
        return error < 0 ? error : -EBADMSG;
    handle = file_open(io, directory, name, OPEN_READ);
    if (handle < 0)
        return handle;
    error = load(io, handle, most, bytes, size);
    disk_close(io, &handle);
    return error;
}
