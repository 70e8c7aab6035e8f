/* fuzz/memory_io.c - see memory_io.h. */
#include "memory_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HANDLE_DIRECTORY 0

static void require(bool condition)
{
    if (!condition)
        abort();
}

static struct memory_io *memory_of(struct io *io) { return (struct memory_io *)io; }

struct memory_file *memory_io_find(struct memory_io *memory, const char *name)
{
    for (unsigned i = 0; i < memory->file_count; i++)
        if (strcmp(memory->files[i].name, name) == 0)
            return &memory->files[i];
    return NULL;
}

/* Files have two handles each, the second one direct. */
static int file_handle(const struct memory_io *memory, const struct memory_file *file, bool direct)
{
    return 1 + 2 * (int)(file - memory->files) + direct;
}

static struct memory_file *handle_file(struct memory_io *memory, int handle)
{
    require(handle > HANDLE_DIRECTORY && handle < 1 + 2 * (int)memory->file_count && memory->open[handle] > 0);
    return &memory->files[(handle - 1) / 2];
}

static bool handle_is_direct(int handle) { return (handle - 1) % 2 == 1; }

static bool is_the_directory(const struct op *op)
{
    return op->handle == IO_CWD ? op->name && strcmp(op->name, MEMORY_DIRECTORY) == 0
                                : op->handle == HANDLE_DIRECTORY && !op->name;
}

/* The file that an op names or has open; NULL with *error. */
static struct memory_file *op_file(struct memory_io *memory, const struct op *op)
{
    if (!op->name)
        return handle_file(memory, op->handle);
    require(op->handle == IO_CWD || memory->open[HANDLE_DIRECTORY] > 0);
    return op->handle == IO_CWD ? NULL : memory_io_find(memory, op->name);
}

static int64_t do_stat(struct memory_io *memory, const struct op *op)
{
    struct memory_file *file;

    if (is_the_directory(op)) {
        *op->stat = (struct io_stat){ .is_directory = true, .links = 1 };
        return 0;
    }
    file = op_file(memory, op);
    if (!file)
        return -ENOENT;
    *op->stat = (struct io_stat){ .size = file->size, .is_regular = true, .links = 1,
                                  .direct_memory_align = memory->direct_align, .direct_offset_align = memory->direct_align };
    return 0;
}

static int64_t do_open(struct memory_io *memory, const struct op *op)
{
    struct memory_file *file = NULL;
    bool direct = op->flags & OPEN_DIRECT;
    int handle = HANDLE_DIRECTORY;

    require(!(op->flags & (OPEN_WRITE | OPEN_CREATE)));
    if (!is_the_directory(op)) {
        file = op_file(memory, op);
        if (!file)
            return -ENOENT;
        if (op->flags & OPEN_DIRECTORY)
            return -ENOTDIR;
        if (direct && !memory->direct_align)
            return -EINVAL;
        handle = file_handle(memory, file, direct);
    }
    memory->open[handle]++;
    return handle;
}

static int64_t do_close(struct memory_io *memory, const struct op *op)
{
    require(op->handle >= 0 && op->handle < (int)(sizeof memory->open / sizeof *memory->open) && memory->open[op->handle] > 0);
    memory->open[op->handle]--;
    return 0;
}

static int64_t do_read(struct memory_io *memory, const struct op *op)
{
    struct memory_file *file = handle_file(memory, op->handle);
    size_t size;

    if (handle_is_direct(op->handle))
        require(op->file_offset % memory->direct_align == 0 && op->size % memory->direct_align == 0 &&
                (uintptr_t)op->memory % memory->direct_align == 0);
    if (op->file_offset >= file->size)
        return 0;
    size = file->size - op->file_offset < op->size ? (size_t)(file->size - op->file_offset) : op->size;
    memcpy(op->memory, file->bytes + op->file_offset, size);
    return (int64_t)size;
}

static int64_t do_list(struct memory_io *memory, const struct op *op)
{
    require(op->handle == HANDLE_DIRECTORY && memory->open[HANDLE_DIRECTORY] > 0);
    op->list->names = calloc(memory->file_count + 1, sizeof *op->list->names);
    op->list->count = memory->file_count;
    for (unsigned i = 0; i < memory->file_count; i++)
        op->list->names[i] = strdup(memory->files[i].name);
    return 0;
}

static int64_t act(struct memory_io *memory, const struct op *op)
{
    switch (op->kind) {
    case OP_STAT: return do_stat(memory, op);
    case OP_OPEN: return do_open(memory, op);
    case OP_CLOSE: return do_close(memory, op);
    case OP_READ: return do_read(memory, op);
    case OP_LIST: return do_list(memory, op);
    case OP_COMPUTE: return op->compute(op->argument);
    case OP_TIMER: return 0;
    default: abort(); /* a reader changes nothing */
    }
}

static int memory_submit(struct io *io, struct op *op)
{
    struct memory_io *memory = memory_of(io);

    op->result = act(memory, op);
    op->next = NULL;
    if (memory->done_last)
        memory->done_last->next = op;
    else
        memory->done_first = op;
    memory->done_last = op;
    return 0;
}

static int memory_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct memory_io *memory = memory_of(io);
    unsigned count = 0;

    require(memory->done_first || deadline_ns != IO_FOREVER);
    for (; count < capacity && memory->done_first; count++) {
        struct op *op = memory->done_first;

        memory->done_first = op->next;
        completions[count] = (struct completion){ op, op->result };
    }
    if (!memory->done_first)
        memory->done_last = NULL;
    return (int)count;
}

static uint64_t memory_now(struct io *io) { return 0; }

static const struct io_ops memory_ops = { .submit = memory_submit, .wait = memory_wait, .now = memory_now };

void memory_io_init(struct memory_io *memory)
{
    *memory = (struct memory_io){ .io = { .ops = &memory_ops, .backend = "memory" } };
}

void memory_io_deinit(struct memory_io *memory)
{
    require(!memory->done_first);
    for (unsigned i = 0; i < sizeof memory->open / sizeof *memory->open; i++)
        require(memory->open[i] == 0);
}
