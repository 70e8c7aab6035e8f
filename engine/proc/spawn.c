/* proc/spawn.c - executes the writer out of a trainer that may hold hundreds of gigabytes and thousands of threads.
 *
 * fork() would copy page tables for seconds. CLONE_VM | CLONE_VFORK copies nothing: the child runs on a small stack of its
 * own in our memory, while this thread (not the others) is stopped, until it has executed the program or given up. So the
 * child may only make system calls: no locks, no allocation, no errno. libc's wrappers are avoided, because sanitizers
 * and profilers hook them. All signals stay blocked meanwhile, lest a handler of the application run in the child.
 */
#include <proc/proc.h>

#include <base/failure.h>
#include <errno.h>
#include <fcntl.h>
#include <proc/cpus.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ThreadSanitizer's clone() takes every child for a fork and falls over one that shares memory. There it gets a fork; the
 * recipe lies in shared memory either way. */
#if defined(__SANITIZE_THREAD__)
#define CLONE_SHARING 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CLONE_SHARING 0
#endif
#endif
#ifndef CLONE_SHARING
#define CLONE_SHARING CLONE_VM
#endif

#define STACK_BYTES (64 * 1024) /* the child uses a few hundred bytes; sanitizers somewhat more */
#define GUARD_BYTES (64 * 1024) /* a multiple of any page size; running over it must not reach our memory */
#define CHANNEL_FD 3
#define SPARE_FD 16             /* copies start here, so that 0..3 can be filled without overwriting what is needed */
#define KERNEL_SIGSET_BYTES 8

#define UNHOOKED __attribute__((noinline, no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined")))

/* Everything the child needs, made ready before; `error` is what it reports back. Lies at the low end of its stack. */
struct recipe {
    const char *path;
    char *argv[2], *envp[1];
    int channel_end;
    unsigned long descriptors; /* RLIMIT_NOFILE: for kernels without close_range */
    struct cpus cpus;
    bool cpus_matter;          /* some were excluded: better no writer than one on a core of the trainer's */
    const char *operation;
    int error;
};

/* syscall() sets errno, which is the stopped parent's thread-local one: read at once here, put back there afterwards. */
UNHOOKED static int child_failed(struct recipe *recipe, const char *operation)
{
    recipe->operation = operation;
    recipe->error = errno ? errno : EIO;
    return 127;
}

/* An ignored signal stays ignored through exec, a handler does not: all go back to the default. 32 zero bytes are
 * SIG_DFL, no flags and an empty mask in every architecture's struct. SIGKILL and SIGSTOP refuse; fine. */
UNHOOKED static void child_reset_signals(void)
{
    unsigned long action[4];

    for (int i = 0; i < 4; i++)
        ((volatile unsigned long *)action)[i] = 0;
    for (int signal = 1; signal <= 64; signal++)
        syscall(SYS_rt_sigaction, signal, action, NULL, (size_t)KERNEL_SIGSET_BYTES);
}

/* A copy above what is arranged; F_DUPFD says EINVAL where the limit lies below. */
UNHOOKED static long child_spare(long descriptor)
{
    long spare = syscall(SYS_fcntl, (int)descriptor, F_DUPFD, SPARE_FD);

    if (spare < 0 && errno == EINVAL)
        errno = EMFILE;
    return spare;
}

/* 0 and 1: /dev/null; 2: as it is; 3: the channel; nothing above. */
UNHOOKED static int child_arrange_descriptors(struct recipe *recipe)
{
    long channel = child_spare(recipe->channel_end), null, spare;

    if (channel < 0)
        return child_failed(recipe, "dup");
    null = syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR, 0);
    if (null < 0)
        return child_failed(recipe, "open /dev/null");
    spare = child_spare(null);
    if (spare < 0)
        return child_failed(recipe, "dup");
    if (syscall(SYS_dup3, (int)spare, 0, 0) < 0 || syscall(SYS_dup3, (int)spare, 1, 0) < 0 ||
        (syscall(SYS_fcntl, 2, F_GETFD) < 0 && syscall(SYS_dup3, (int)spare, 2, 0) < 0) ||
        syscall(SYS_dup3, (int)channel, CHANNEL_FD, 0) < 0)
        return child_failed(recipe, "dup");
    if (syscall(SYS_close_range, CHANNEL_FD + 1, ~0u, 0) < 0)
        for (unsigned long fd = CHANNEL_FD + 1; fd < recipe->descriptors; fd++)
            syscall(SYS_close, (int)fd);
    return 0;
}

UNHOOKED static int child_main(void *argument)
{
    struct recipe *recipe = argument;
    unsigned long empty_mask = 0;

    child_reset_signals();
    if (child_arrange_descriptors(recipe))
        return 127;
    syscall(SYS_setpgid, 0, 0); /* Ctrl-C in the trainer's terminal must not reach the writer, from the first moment on */
    if (syscall(SYS_sched_setaffinity, 0, sizeof recipe->cpus, &recipe->cpus) < 0 && recipe->cpus_matter)
        return child_failed(recipe, "sched_setaffinity");
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &empty_mask, NULL, (size_t)KERNEL_SIGSET_BYTES);
    syscall(SYS_execve, recipe->path, recipe->argv, recipe->envp);
    return child_failed(recipe, "exec");
}

static const char *exec_cause(int error)
{
    switch (error) {
    case EACCES: return "not an executable file, or on a file system mounted noexec";
    case EPERM:  return "the system's policy forbids executing it";
    case ENOENT: return "there is no such program, or its interpreter is missing";
    case ENOEXEC: return "not a program for this machine";
    case ETXTBSY: return "the program is being written to: is an installation under way?";
    case EAGAIN: return "too many processes for this user (RLIMIT_NPROC) or container (pids.max)";
    default: return NULL;
    }
}

static int spawn_failed(const struct recipe *recipe, struct tspool_failure *failure)
{
    const char *cause = exec_cause(recipe->error);

    if (!cause)
        cause = failure_likely_cause(recipe->error);
    return failure_set(failure, TSPOOL_STAGE_WRITER, recipe->error,
                       FAILURE_AT(.operation = recipe->operation, .path = recipe->path), "%s", cause);
}

struct workshop { uint8_t guard[GUARD_BYTES]; struct recipe recipe; uint8_t stack[STACK_BYTES] __attribute__((aligned(64))); };

static struct workshop *workshop_create(void)
{
    struct workshop *shop = mmap(NULL, sizeof *shop, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (shop == MAP_FAILED)
        return NULL;
    mprotect(shop->guard, GUARD_BYTES, PROT_NONE);
    return shop;
}

/* Returns the child's pid, or -errno of clone. After a successful return the child has executed the program, has put an
 * error into the recipe, or was killed. */
static pid_t workshop_run(struct workshop *shop, int *pidfd)
{
    unsigned long all = ~0ul, before = 0;
    int cancel_state, kept_errno = errno;
    pid_t pid;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, (size_t)KERNEL_SIGSET_BYTES); /* glibc's own two as well */
    pid = clone(child_main, shop->stack + STACK_BYTES, CLONE_SHARING | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &shop->recipe, pidfd);
    if (pid < 0)
        pid = -errno;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, (size_t)KERNEL_SIGSET_BYTES);
    pthread_setcancelstate(cancel_state, NULL);
    errno = kept_errno;
    return pid;
}

/* A child that gave up is past its last system call, but vfork lets us go a moment before it can be reaped: this one
 * wait ends at once and leaves no zombie. */
static void child_collect(struct child *child)
{
    int status;

    while (waitid((idtype_t)P_PIDFD, (id_t)child->pidfd, NULL, WEXITED | WNOWAIT) < 0 && errno == EINTR)
        ;
    child_release(child, &status);
}

static unsigned long descriptor_limit(void)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < 1 << 20 ? (unsigned long)limit.rlim_cur : 1 << 20;
}

/* Runs the recipe: 0 with *child, or the failure. */
static int child_make(struct workshop *shop, struct child *child, struct tspool_failure *failure)
{
    struct child made = { -1, -1 };

    made.pid = workshop_run(shop, &made.pidfd);
    if (made.pid < 0) {
        shop->recipe.operation = "clone";
        shop->recipe.error = -made.pid;
        return spawn_failed(&shop->recipe, failure);
    }
    if (shop->recipe.error) {
        child_collect(&made);
        return spawn_failed(&shop->recipe, failure);
    }
    *child = made;
    return 0;
}

int child_spawn(const char *path, int channel_end, const char *excluded_cpus, struct child *child,
                struct tspool_failure *failure)
{
    struct workshop *shop;
    struct cpus cpus;
    int error;

    if (cpus_allowed(excluded_cpus, &cpus) < 0)
        return failure_set(failure, TSPOOL_STAGE_WRITER, EINVAL, FAILURE_AT(.operation = "spawn"),
                           "excluded_cpus \"%s\" is no list of CPUs like \"0-3,8\", or leaves none", excluded_cpus);
    shop = workshop_create();
    if (!shop)
        return failure_set(failure, TSPOOL_STAGE_WRITER, ENOMEM, FAILURE_AT(.operation = "spawn"), NULL);
    shop->recipe = (struct recipe){ .path = path, .argv = { (char *)(uintptr_t)"tspool-writer", NULL }, .envp = { NULL },
                                    .channel_end = channel_end, .descriptors = descriptor_limit(), .cpus = cpus,
                                    .cpus_matter = excluded_cpus != NULL };
    error = child_make(shop, child, failure);
    munmap(shop, sizeof *shop);
    return error;
}
