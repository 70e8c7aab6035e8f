/* What every test of this room stands on: a backend, a scratch directory, and the certainty that nothing is left open. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <io/io.h>

struct fixture {
    struct io *io;
    int directory;   /* a scratch directory, removed afterwards */
    char path[64];   /* its path */
};

/* Runs `check` once on each backend, and asserts that no descriptor is open afterwards that was not before. The uring
 * backend is left out, with a warning, where the machine forbids it. `settings` NULL: defaults. `check` may destroy the
 * backend itself and set io to NULL. */
void on_each_backend(const struct io_settings *settings, void (*check)(struct fixture *fixture));

/* One op, submitted and waited for. */
int64_t call(struct fixture *fixture, struct op op);
int file_create(struct fixture *fixture, const char *name, uint32_t more_flags); /* asserts success */
void handle_close(struct fixture *fixture, int handle);
/* Asserts that the op is taken. */
void submit(struct fixture *fixture, struct op *op);
/* Waits for the next completion and asserts that it is of `op`; its result. */
int64_t await(struct fixture *fixture, const struct op *op);
/* Asserts that nothing is ready. */
void assert_nothing_ready(struct fixture *fixture);

void *aligned_bytes(size_t size, unsigned char fill); /* page-aligned, for O_DIRECT; free() it */
unsigned open_descriptors(void);
/* From now on, and in threads started later, the system call fails with `error` (0: returns 0). False: not permitted. */
bool system_call_forbid(int number, int error);
/* Mounts a file system that only this process sees on the scratch directory's "mnt"; a handle of it, or -1: not permitted. */
int private_mount(struct fixture *fixture, const char *type, const char *options);
#endif
