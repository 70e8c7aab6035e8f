#include "fixture.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    cr_assert(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

typedef int io_create(const struct io_settings *settings, struct io **io, struct tspool_failure *failure);

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *at) { return remove(path); }

static void scratch_remove(const struct fixture *fixture)
{
    char mounted[80];

    snprintf(mounted, sizeof mounted, "%s/mnt", fixture->path);
    umount2(mounted, MNT_DETACH); /* where there is one */
    nftw(fixture->path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void check_on(struct io *io, void (*check)(struct fixture *fixture))
{
    struct fixture fixture = { .io = io, .path = "/var/tmp/tspool-io-XXXXXX" };

    cr_assert(mkdtemp(fixture.path));
    fixture.directory = open(fixture.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(fixture.directory, 0);
    check(&fixture);
    io_destroy(fixture.io);
    close(fixture.directory);
    scratch_remove(&fixture);
}

void on_each_backend(const struct io_settings *settings, void (*check)(struct fixture *fixture))
{
    io_create *const create[] = { io_create_uring, io_create_threads };
    const struct io_settings defaults = { 0 };

    for (size_t i = 0; i < sizeof create / sizeof *create; i++) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        unsigned before = open_descriptors();
        struct io *io = NULL;
        int result = create[i](settings ? settings : &defaults, &io, &failure);

        if (create[i] == io_create_uring && (result == -EPERM || result == -ENOSYS)) {
            cr_log_warn("left out: %s", failure.message);
            continue;
        }
        cr_assert_eq(result, 0, "%s", failure.message);
        check_on(io, check);
        cr_assert_eq(open_descriptors(), before, "descriptors leaked by backend %zu", i);
    }
}

int64_t call(struct fixture *fixture, struct op op) { return io_call(fixture->io, &op); }

int file_create(struct fixture *fixture, const char *name, uint32_t more_flags)
{
    int64_t handle = call(fixture, (struct op){ .kind = OP_OPEN, .handle = fixture->directory, .name = name,
                                                .flags = OPEN_WRITE | OPEN_CREATE | more_flags });

    cr_assert_geq(handle, 0, "%s: open %s: %s", fixture->io->backend, name, strerror((int)-handle));
    return (int)handle;
}

void handle_close(struct fixture *fixture, int handle)
{
    cr_assert_eq(call(fixture, (struct op){ .kind = OP_CLOSE, .handle = handle }), 0);
}

void submit(struct fixture *fixture, struct op *op)
{
    int result = io_submit(fixture->io, op);

    cr_assert_eq(result, 0, "%s: submit %s: %s", fixture->io->backend, op_kind_name(op->kind), strerror(-result));
}

int64_t await(struct fixture *fixture, const struct op *op)
{
    struct completion completion = { 0 };

    cr_assert_eq(io_wait(fixture->io, &completion, 1, IO_FOREVER), 1);
    cr_assert_eq(completion.op, op, "%s: %s completed instead of %s", fixture->io->backend, op_kind_name(completion.op->kind),
                 op_kind_name(op->kind));
    return completion.result;
}

void assert_nothing_ready(struct fixture *fixture)
{
    struct completion completion = { 0 };
    int count = io_wait(fixture->io, &completion, 1, 0);

    cr_assert_eq(count, 0, "%s: %s completed with %ld", fixture->io->backend, op_kind_name(completion.op->kind),
                 (long)completion.result);
}

void *aligned_bytes(size_t size, unsigned char fill)
{
    void *bytes = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);

    cr_assert(bytes);
    memset(bytes, fill, size);
    return bytes;
}

bool system_call_forbid(int number, int error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof filter / sizeof *filter, .filter = filter };

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

int private_mount(struct fixture *fixture, const char *type, const char *options)
{
    char path[80];
    bool alone = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;

    snprintf(path, sizeof path, "%s/mnt", fixture->path);
    if (!alone || mkdir(path, 0700) < 0 || mount(type, path, type, 0, options) < 0)
        return -1;
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}
