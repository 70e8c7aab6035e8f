/* io.c - what does not depend on a backend. */
#include <assert.h>
#include <io/io.h>
#include <stdlib.h>

int64_t io_call(struct io *io, struct op *op)
{
    struct completion completion;
    int result = io_submit(io, op);

    if (result < 0)
        return result;
    result = io_wait(io, &completion, 1, IO_FOREVER);
    if (result < 0)
        return result;
    assert(completion.op == op); /* the caller has nothing else in flight */
    return completion.result;
}

const char *op_kind_name(enum op_kind kind)
{
    static const char *const names[] = {
        [OP_NONE] = "none", [OP_READ] = "read", [OP_WRITE] = "write", [OP_OPEN] = "open", [OP_CLOSE] = "close",
        [OP_STAT] = "stat", [OP_ALLOCATE] = "allocate", [OP_TRUNCATE] = "truncate", [OP_FSYNC] = "fsync",
        [OP_LOCK] = "lock", [OP_MKDIR] = "mkdir", [OP_RENAME] = "rename", [OP_UNLINK] = "unlink", [OP_LINK] = "link",
        [OP_LIST] = "list", [OP_SEND] = "send", [OP_RECV] = "recv", [OP_WATCH] = "watch", [OP_TIMER] = "timer",
        [OP_COMPUTE] = "compute",
    };

    return (unsigned)kind < sizeof names / sizeof *names ? names[kind] : "unknown";
}

void io_list_free(struct io_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list->names);
    *list = (struct io_list){ 0 };
}
