/* support/handicap.c - runs a program with less than it expects: limits, refused system calls, another user.
 *
 *     handicap [--once FILE] [--limit NAME=N]... [--refuse CALL=ERRNO]... [--set NAME=VALUE]... [--user UID] PROGRAM [ARG...]
 *
 * With --once it does so only if FILE is there, which it removes: the next one runs undisturbed. A refused call comes from a
 * seccomp filter, as in a container whose profile is strict.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RULES_MAX 16

static const struct { const char *name; int number; } limits[] = {
    { "nofile", RLIMIT_NOFILE }, { "memlock", RLIMIT_MEMLOCK }, { "fsize", RLIMIT_FSIZE }, { "as", RLIMIT_AS },
    { "nproc", RLIMIT_NPROC },
};
/* With a flag the call is refused only when that bit is in its third argument: "create" is an openat that makes a file. */
static const struct { const char *name; unsigned number, flag; } calls[] = {
    { "io_uring_setup", SYS_io_uring_setup, 0 }, { "memfd_create", SYS_memfd_create, 0 }, { "fallocate", SYS_fallocate, 0 },
    { "fsync", SYS_fsync, 0 }, { "renameat2", SYS_renameat2, 0 }, { "ftruncate", SYS_ftruncate, 0 },
    { "pwrite64", SYS_pwrite64, 0 }, { "mkdirat", SYS_mkdirat, 0 }, { "flock", SYS_flock, 0 },
    { "create", SYS_openat, O_CREAT }, { "eventfd2", SYS_eventfd2, 0 }, { "pidfd_open", SYS_pidfd_open, 0 },
};
static const struct { const char *name; int number; } errors[] = {
    { "EPERM", EPERM }, { "ENOSYS", ENOSYS }, { "ENFILE", ENFILE }, { "EMFILE", EMFILE }, { "ENOMEM", ENOMEM }, { "EIO", EIO },
    { "ENOSPC", ENOSPC }, { "EDQUOT", EDQUOT }, { "EOPNOTSUPP", EOPNOTSUPP }, { "EINVAL", EINVAL }, { "EROFS", EROFS },
    { "EXDEV", EXDEV },
};

static struct sock_filter filter[4 * RULES_MAX + 2] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
};
static unsigned short filter_size = 1;

static void wrong(const char *what)
{
    fprintf(stderr, "handicap: %s: %s\n", what, errno ? strerror(errno) : "not understood");
    exit(125);
}

static size_t find(const char *text, size_t size, const void *table, size_t count, size_t stride)
{
    for (size_t i = 0; i < count; i++) {
        const char *name = *(const char *const *)((const char *)table + i * stride);

        if (strlen(name) == size && memcmp(name, text, size) == 0)
            return i;
    }
    wrong(text);
    return 0;
}

#define FIND(text, size, table) find(text, size, table, sizeof(table) / sizeof(table[0]), sizeof(table[0]))

static const char *value_of(const char *text)
{
    const char *value = strchr(text, '=');

    if (!value)
        wrong(text);
    return value + 1;
}

static void limit_take(const char *text)
{
    const char *value = value_of(text);
    rlim_t most = strtoull(value, NULL, 10);
    const struct rlimit limit = { most, most };

    if (setrlimit(limits[FIND(text, (size_t)(value - text) - 1, limits)].number, &limit) < 0)
        wrong(text);
}

/* The accumulator holds the call's number, before and after each rule. */
static void refusal_take(const char *text)
{
    const char *value = value_of(text);
    size_t call = FIND(text, (size_t)(value - text) - 1, calls);
    unsigned error = (unsigned)errors[FIND(value, strlen(value), errors)].number, flag = calls[call].flag;
    const struct sock_filter rule[] = {
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[call].number, 0, flag ? 4 : 1),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, flag, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };

    if (filter_size + 6 > (int)(sizeof(filter) / sizeof(filter[0])))
        wrong(text);
    filter[filter_size++] = rule[0];
    if (flag) {
        filter[filter_size++] = rule[1];
        filter[filter_size++] = rule[2];
    }
    filter[filter_size++] = rule[3];
    if (flag)
        filter[filter_size++] = rule[4];
}

static void filter_install(void)
{
    struct sock_fprog program = { .filter = filter };

    if (filter_size == 1)
        return;
    filter[filter_size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program.len = filter_size;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        wrong("seccomp");
}

static void user_take(const char *text)
{
    uid_t user = (uid_t)strtoul(text, NULL, 10);

    if (setgroups(0, NULL) < 0 || setgid(user) < 0 || setuid(user) < 0)
        wrong("user");
}

static void variable_take(char *text)
{
    if (!strchr(text, '=') || putenv(text) != 0)
        wrong(text);
}

int main(int argc, char **argv)
{
    bool wanted = true;
    int i = 1;

    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--once") == 0)
            wanted = unlink(argv[i + 1]) == 0;
        else if (!wanted)
            continue;
        else if (strcmp(argv[i], "--limit") == 0)
            limit_take(argv[i + 1]);
        else if (strcmp(argv[i], "--refuse") == 0)
            refusal_take(argv[i + 1]);
        else if (strcmp(argv[i], "--set") == 0)
            variable_take(argv[i + 1]);
        else if (strcmp(argv[i], "--user") == 0)
            user_take(argv[i + 1]);
        else
            wrong(argv[i]);
    }
    if (i >= argc)
        wrong("no program");
    filter_install();
    execv(argv[i], argv + i);
    wrong(argv[i]);
}
