/* read/source.c - opening and plainly reading one file over the io seam. See source.h.
 *
 * A file is looked at before it is opened (opening a pipe would wait for its writer) and again through its handle,
 * which alone says what was really opened.
 */
#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <read/source.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_BYTES MIB(1)
#define UNREPORTED_ALIGN 4096u /* O_DIRECT alignment where statx says nothing: no device asks for more */
#define ALIGN_MAX MIB(1)       /* a file system that claims more is not believed: buffered then */

char *path_join(const char *directory, const char *name)
{
    size_t length = strlen(directory);
    char *path = NULL;

    while (length > 1 && directory[length - 1] == '/')
        length--;
    if (asprintf(&path, "%.*s%s%s", (int)length, directory, length && directory[length - 1] == '/' ? "" : "/", name) < 0)
        return NULL;
    return path;
}

static int refuse(const struct source *source, const char *operation, int error, const char *cause,
                  struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = operation, .path = source->path);

    return cause ? failure_set(failure, TSPOOL_STAGE_READ, -error, at, "%s", cause)
                 : failure_set(failure, TSPOOL_STAGE_READ, -error, at, NULL);
}

/* One block, to learn whether O_DIRECT that opened can also read. */
static int direct_probe(struct io *io, int handle)
{
    void *block = aligned_alloc(UNREPORTED_ALIGN, UNREPORTED_ALIGN);
    struct op op = { .kind = OP_READ, .handle = handle, .memory = block, .size = UNREPORTED_ALIGN };
    int result;

    if (!block)
        return -ENOMEM;
    result = (int)io_call(io, &op);
    free(block);
    return result < 0 ? result : 0;
}

static bool direct_is_usable(struct io *io, int handle, const struct io_stat *stat)
{
    if (!stat->direct_offset_align)
        return direct_probe(io, handle) == 0;
    return is_power_of_two(stat->direct_offset_align) && stat->direct_offset_align <= ALIGN_MAX &&
           stat->direct_memory_align <= ALIGN_MAX && (!stat->direct_memory_align || is_power_of_two(stat->direct_memory_align));
}

static void source_take(struct source *source, int handle, const struct io_stat *stat, bool direct)
{
    uint32_t align = stat->direct_offset_align ? stat->direct_offset_align : UNREPORTED_ALIGN;
    uint32_t memory_align = stat->direct_memory_align ? stat->direct_memory_align : align;

    source->handle = handle;
    source->size = stat->size;
    source->direct = direct && stat->direct_offset_align;
    source->offset_align = direct ? align : 1;
    source->memory_align = direct ? memory_align : 1;
}

/* 0; 1 when O_DIRECT does not work on it; or -errno. */
static int source_try(struct io *io, int directory, bool direct, struct source *source)
{
    int handle = file_open(io, directory, source->name, OPEN_READ | (direct ? OPEN_DIRECT : 0)), error;
    struct io_stat stat = { 0 };

    if (handle == -EINVAL && direct)
        return 1;
    if (handle < 0)
        return handle;
    error = file_stat(io, handle, NULL, &stat);
    if (error == 0 && !stat.is_regular)
        error = -EBADMSG;
    if (error == 0 && direct && !direct_is_usable(io, handle, &stat))
        error = 1;
    if (error)
        file_close(io, handle);
    else
        source_take(source, handle, &stat, direct);
    return error;
}

static int source_check_kind(struct io *io, int directory, const struct source *source, struct tspool_failure *failure)
{
    struct io_stat stat = { 0 };
    int error = file_stat(io, directory, source->name, &stat);

    if (error < 0)
        return refuse(source, "stat", error, error == -ENOENT ? "The file is missing." : NULL, failure);
    if (stat.is_regular || MUTANT(IMPOSTORS_OPENED))
        return 0;
    return refuse(source, "open", stat.is_directory ? -EISDIR : -EBADMSG,
                  "It is not a regular file. Links, pipes and devices inside a checkpoint are not followed; "
                  "where links are wanted, copy what they lead to (cp -rL).", failure);
}

int source_open(struct io *io, int directory, const char *name, const char *path, bool buffered, struct source *source,
                struct tspool_failure *failure)
{
    int error;

    *source = (struct source){ .name = strdup(name), .path = strdup(path), .handle = -1 };
    if (!source->name || !source->path)
        return refuse(source, "open", -ENOMEM, NULL, failure);
    error = source_check_kind(io, directory, source, failure);
    if (error < 0)
        return error;
    error = buffered ? 1 : source_try(io, directory, true, source);
    if (error == 1)
        error = source_try(io, directory, false, source);
    return error < 0 ? refuse(source, "open", error, NULL, failure) : 0;
}

int source_check_size(const struct source *source, uint64_t listed, struct tspool_failure *failure)
{
    struct failure_at at = { .operation = "open", .path = source->path, .file_offset = min_u64(source->size, listed) };

    if (source->size == listed || MUTANT(LISTED_SIZE_NOT_COMPARED))
        return 0;
    return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, at, "The file has %llu bytes, the manifest says %llu: it was %s.",
                       (unsigned long long)source->size, (unsigned long long)listed, source->size < listed ? "cut" : "extended");
}

void source_close(struct io *io, struct source *source)
{
    file_close(io, source->handle);
    free(source->name);
    free(source->path);
    *source = (struct source){ .handle = -1 };
}

/* Reads the aligned cover of up to one bounce buffer and copies out what was asked for. Bytes copied, or -errno. */
static int64_t bounce_read(struct io *io, const struct source *source, uint64_t file_offset, void *to, uint64_t size,
                           uint8_t *bounce, uint64_t bounce_size)
{
    uint64_t first = align_down(file_offset, source->offset_align), skip = file_offset - first;
    struct op op = { .kind = OP_READ, .handle = source->handle, .file_offset = first, .memory = bounce,
                     .size = min_u64(bounce_size, align_up(skip + size, source->offset_align)) };
    int64_t got = io_call(io, &op);

    if (got < 0)
        return got;
    if ((uint64_t)got <= skip)
        return 0;
    size = min_u64(size, (uint64_t)got - skip);
    memcpy(to, bounce + skip, size);
    return (int64_t)size;
}

static int read_refuse(const struct source *source, uint64_t file_offset, int64_t result, struct tspool_failure *failure)
{
    struct failure_at at = { .operation = "read", .path = source->path, .file_offset = file_offset };

    if (result == 0)
        return failure_set(failure, TSPOOL_STAGE_READ, EBADMSG, at, "The file ends here; it was longer when it was opened, or "
                           "what describes it says that it is longer.");
    return failure_set(failure, TSPOOL_STAGE_READ, (int)-result, at, NULL);
}

int source_read(struct io *io, const struct source *source, uint64_t file_offset, void *to, uint64_t size,
                struct tspool_failure *failure)
{
    uint64_t alignment = max_u64(source->offset_align, max_u64(source->memory_align, 4096));
    uint64_t bounce_size = min_u64(align_up(BOUNCE_BYTES, alignment), align_up(size + alignment, alignment)), done = 0;
    uint8_t *bounce;
    int64_t got = 0;

    if (size == 0)
        return 0;
    bounce = aligned_alloc(alignment, bounce_size);
    if (!bounce)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "read", .path = source->path), NULL);
    while (done < size) {
        got = bounce_read(io, source, file_offset + done, (char *)to + done, size - done, bounce, bounce_size);
        if (got <= 0)
            break;
        done += (uint64_t)got;
    }
    free(bounce);
    return done == size ? 0 : read_refuse(source, file_offset + done, got, failure);
}

int source_load(struct io *io, const struct source *source, uint64_t file_offset, uint64_t size, void **bytes,
                struct tspool_failure *failure)
{
    char *memory;
    int error;

    if (file_offset > source->size || size > source->size - file_offset)
        return read_refuse(source, source->size, 0, failure);
    memory = malloc(size + 1);
    if (!memory)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "read", .path = source->path), NULL);
    error = source_read(io, source, file_offset, memory, size, failure);
    if (error < 0) {
        free(memory);
        return error;
    }
    memory[size] = '\0';
    *bytes = memory;
    return 0;
}
