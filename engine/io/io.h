/* io/io.h - the seam: every effect on the world is an op; every op ends as one completion out of wait().
 *
 * Two step machines stand on it (the writer's and the supervisor's) and the reader. Backends: uring.c (the sole user
 * of liburing), threads.c, and in tests the simulated disk. A backend is used by one thread: the loop's (see below).
 *
 * Rules
 *   - submit() never blocks and never calls back. It returns 0, or -errno when the op was not taken: no completion then.
 *   - The op and what it points to belong to the backend from submit() until its completion was returned by wait().
 *   - Each taken op completes exactly once, with `result` >= 0 or -errno. Partial READ/WRITE are ordinary: the caller
 *     advances. -EINTR and -EAGAIN are dealt with inside.
 *   - Ops are unordered, but SENDs of one socket go out, and RECVs of one socket are filled, in the order of their
 *     submission. An FSYNC covers only writes whose completion was returned before it was submitted.
 *   - cancel() asks an op in flight to end early (RECV, SEND, WATCH, TIMER only); it still completes, with -ECANCELED
 *     or with its result.
 *   - A handle must not be closed while an op on it is in flight.
 *   - destroy() reaps what is in flight first (I/O may still be reading the buffers); RECV, SEND, WATCH, TIMER are cancelled.
 *     What the unreturned ops brought (an opened handle, received descriptors, a list) is released.
 *
 * Threads: any one thread creates a backend and may attach buffers; from the first submit, wait or cancel on, it belongs to
 * the thread that called it (io_uring is told so: one submitter is a good deal faster), destroy included.
 */
#ifndef IO_IO_H
#define IO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tspool/failure.h>

enum op_kind {
    OP_NONE = 0,
    OP_READ,     /* handle, file_offset, memory place, size -> bytes (0 at end of file) */
    OP_WRITE,    /* handle, file_offset, memory place, size -> bytes */
    OP_OPEN,     /* in directory `handle`: name, flags (enum open_flags) -> handle */
    OP_CLOSE,    /* handle */
    OP_STAT,     /* handle, or name in directory `handle` when name != NULL (a symlink is described, not followed): fills *stat */
    OP_ALLOCATE, /* handle, size: blocks for [0, size), file size becomes `size` (fallocate mode 0; where it is not
                  * supported: ftruncate, result 1); on failure the size is what it was */
    OP_TRUNCATE, /* handle, size */
    OP_FSYNC,    /* handle: file or directory */
    OP_LOCK,     /* handle: flock(LOCK_EX | LOCK_NB); -EWOULDBLOCK when held by another. flags LOCK_OP_SOLE: nothing is
                  * locked; 0 when nobody else has that file open or mapped, -EWOULDBLOCK when somebody has, or it cannot be told */
    OP_MKDIR,    /* in directory `handle`: name */
    OP_RENAME,   /* name in `handle` -> to_name in directory `to_handle`, flags (enum rename_flags) */
    OP_UNLINK,   /* in directory `handle`: name; flags UNLINK_DIRECTORY for rmdir */
    OP_LINK,     /* hard link: name in `handle` -> to_name in `to_handle`; never follows a symlink */
    OP_LIST,     /* directory `handle`: *list is filled with its names (no "." and ".."), sorted; owner frees */
    OP_SEND,     /* socket `handle`: memory place, size > 0, fds[0..fd_count) -> bytes; raises no SIGPIPE */
    OP_RECV,     /* socket `handle`: memory place, size > 0 -> bytes, fds filled (close-on-exec), fd_count set; 0 at end of
                  * stream; -EMSGSIZE for a message that is longer or brings more descriptors: it is lost, none stays open;
                  * fds_lost: there was no room for the descriptors of this message (RLIMIT_NOFILE, fs.file-max), none stays.
                  * Tries at submit: one that is cancelled at once still brings what was queued */
    OP_WATCH,    /* handle becomes readable, or hung up (pidfd, eventfd) -> 0 */
    OP_TIMER,    /* deadline_ns -> 0 */
    OP_COMPUTE   /* compute(argument) on a compute thread -> its result */
};

enum open_flags {
    OPEN_READ = 1,           /* O_RDONLY */
    OPEN_WRITE = 2,          /* O_RDWR */
    OPEN_CREATE = 4,         /* O_CREAT | O_EXCL, mode 0666 less the umask */
    OPEN_DIRECT = 8,         /* O_DIRECT; -EINVAL where the file system refuses it (the caller opens again without) */
    OPEN_DIRECTORY = 16      /* O_DIRECTORY */
};                           /* always O_NOFOLLOW | O_CLOEXEC */
enum rename_flags { RENAME_PLAIN = 0, RENAME_OP_NOREPLACE = 1, RENAME_OP_EXCHANGE = 2 };
enum { UNLINK_DIRECTORY = 1 };
enum { LOCK_OP_SOLE = 1 };

struct io_stat {
    uint64_t size;
    uint64_t inode, device;
    uint64_t links;
    int64_t mtime_ns;
    bool is_directory, is_regular;
    uint32_t direct_memory_align, direct_offset_align; /* STATX_DIOALIGN; 0: not reported */
    uint64_t free_bytes;      /* of the file system, for unprivileged users (statvfs f_bavail) */
    char filesystem[16];      /* "ext4", "xfs", "btrfs", "nfs", "tmpfs", "overlay", or hex of f_type */
};

struct io_list { char **names; size_t count; };
void io_list_free(struct io_list *list);

#define OP_FDS_MAX 4
#define IO_NO_BUFFER 0u /* then `memory` is the place */

struct op {
    enum op_kind kind;
    int handle;               /* a handle, or IO_CWD for OP_OPEN/OP_STAT of paths given by the user */
    int to_handle;
    uint32_t flags;
    uint64_t file_offset;
    uint64_t deadline_ns;     /* OP_TIMER: absolute, in now() */
    uint32_t buffer;          /* number from attach(), or IO_NO_BUFFER */
    uint64_t buffer_offset;   /* the memory place is buffer + buffer_offset, or `memory` */
    void *memory;
    size_t size;
    const char *name, *to_name;
    struct io_stat *stat;
    struct io_list *list;
    int fds[OP_FDS_MAX];
    unsigned fd_count;
    bool fds_lost;
    int64_t (*compute)(void *argument);
    void *argument;
    void *owner;              /* the submitter's */
    struct op *next;          /* the backend's while in flight */
    void *private_data;       /* the backend's while in flight */
    int64_t result;           /* the backend's while in flight */
};
#define IO_CWD (-100) /* AT_FDCWD */

struct completion { struct op *op; int64_t result; };

#define IO_FOREVER UINT64_MAX

struct io;
struct io_ops {
    /* 0; -EBUSY beyond the depth; -EINVAL for an op that is malformed or names an unknown buffer. */
    int (*submit)(struct io *io, struct op *op);
    /* Returns the number of completions, at least 1, at most capacity; 0 when now() reached deadline_ns first (IO_FOREVER:
     * never; 0: only what is ready); -errno when the backend is beyond use. */
    int (*wait)(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns);
    int (*cancel)(struct io *io, struct op *op); /* 0, or -EINVAL for a kind that cannot be cancelled */
    /* Makes [base, base+size) known as a buffer; it must stay mapped until detach. Returns its number > 0 or -errno. */
    int (*attach)(struct io *io, void *base, size_t size);
    void (*detach)(struct io *io, uint32_t buffer);
    uint64_t (*now)(struct io *io);                       /* nanoseconds, monotonic */
    void (*random)(struct io *io, void *bytes, size_t size);
    void (*destroy)(struct io *io);
};
struct io {
    const struct io_ops *ops;
    const char *backend;      /* "uring", "threads", "simulated" */
    bool registered;          /* attached buffers are registered, all of them */
};

static inline int io_submit(struct io *io, struct op *op) { return io->ops->submit(io, op); }
static inline int io_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    return io->ops->wait(io, completions, capacity, deadline_ns);
}
static inline int io_cancel(struct io *io, struct op *op) { return io->ops->cancel(io, op); }
static inline uint64_t io_now(struct io *io) { return io->ops->now(io); }
static inline void io_random(struct io *io, void *bytes, size_t size) { io->ops->random(io, bytes, size); }
static inline int io_attach(struct io *io, void *base, size_t size) { return io->ops->attach(io, base, size); }
static inline void io_detach(struct io *io, uint32_t buffer) { io->ops->detach(io, buffer); }
static inline void io_destroy(struct io *io) { if (io) io->ops->destroy(io); }

/* Submits one op and waits for it: for callers with nothing else in flight (the reader's open, tools).
 * Returns the completion's result. */
int64_t io_call(struct io *io, struct op *op);

const char *op_kind_name(enum op_kind kind); /* "write", "fsync", ...: for records and traces. Static. */

struct io_settings {
    unsigned depth;            /* READ/WRITE ops in flight at most; 0: 16. submit() of more is -EBUSY */
    unsigned verb_threads;     /* threads for the blocking verbs (OPEN .. LIST); 0: 2 */
    unsigned compute_threads;  /* threads for OP_COMPUTE; 0: 2; they run at a lower priority (nice +10) */
    unsigned transfer_threads; /* threads backend: threads that pread/pwrite; 0: min(depth, 8) */
    unsigned submit_batch;     /* uring: transfers that go out with one enter, at the latest when it waits; 0: 1 */
    bool registered;           /* uring: register attached buffers (needs writable mappings); where the kernel refuses,
                                * they are used unregistered: see io->registered */
    const char *thread_name;   /* prefix of the threads' names, <= 8 bytes: "tspool" */
};

/* Threads of a backend block all signals. The failure names what the kernel refused and the likely reason
 * (kernel.io_uring_disabled, a seccomp profile, RLIMIT_MEMLOCK, ...). */
int io_create_uring(const struct io_settings *settings, struct io **io, struct tspool_failure *failure);
int io_create_threads(const struct io_settings *settings, struct io **io, struct tspool_failure *failure);

#endif
