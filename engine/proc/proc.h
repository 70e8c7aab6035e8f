/* proc/proc.h - the sole creator of processes and threads' habits: spawn the writer, know it by pidfd, never block on it.
 *
 * Death is a readable pidfd, never end of stream on the channel: a forked child may keep the socket open.
 */
#ifndef PROC_PROC_H
#define PROC_PROC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <tspool/failure.h>

struct child { pid_t pid; int pidfd; };

/* Where tspool-writer is: `given`, else the configured libexec path, else ../libexec/tspool next to the library.
 * `out` holds PATH_MAX bytes. */
int writer_path_find(const char *given, char *out, struct tspool_failure *failure);

/* A SEQPACKET pair, both ends close-on-exec. */
int channel_create(int ends[2], struct tspool_failure *failure);

/* Executes `path` with the channel end as descriptor 3 and nothing else open but 0, 1 (/dev/null) and 2 (inherited);
 * CLONE_PIDFD | CLONE_VM | CLONE_VFORK, so a 500 GB trainer pays nothing. Signals: default dispositions, empty mask.
 * `excluded_cpus` (NULL: none) is taken out of the affinity. The caller closes its copy of the child's end.
 * Failure: path, errno and cause (not executable, noexec mount, RLIMIT_NPROC, ...). */
int child_spawn(const char *path, int channel_end, const char *excluded_cpus, struct child *child,
                struct tspool_failure *failure);
/* SIGKILL through the pidfd; fine when it is gone. */
void child_kill(const struct child *child);
void child_signal(const struct child *child, int signal);
bool child_is_dead(const struct child *child);  /* never blocks */
/* Reaps if dead, closes the pidfd; never blocks: a child in D state is abandoned. ECHILD is fine (the application reaps
 * everything, or SIGCHLD is ignored). *status: wait status, or -1 when unknown. */
void child_release(struct child *child, int *status);
/* "exited with status 3", "was killed by signal 9 (Killed)", for records. */
void child_describe(int status, char *text, size_t size);

/* What the exec'd writer resets of its inheritance: signal mask and dispositions (SIGXFSZ, SIGPIPE, SIGHUP ignored), nice 0 kept,
 * cwd "/", all descriptors above 3 closed, process group, NO_NEW_PRIVS, not dumpable. 0 or -errno. */
int process_settle(void);
/* SIGTERM as a readable descriptor (signalfd); -errno. */
int process_term_fd(void);

/* A thread that blocks all signals and is called `name` (<= 15 bytes), kept off excluded CPUs ("0-3,8"; NULL: none). */
int thread_start(pthread_t *thread, const char *name, const char *excluded_cpus, void *(*run)(void *), void *argument);
/* For records: what keeps thread_start from one. */
#define THREAD_CAUSE "no thread could be started: look at RLIMIT_NPROC (ulimit -u), the cgroup's pids.max and RLIMIT_AS " \
                     "(ulimit -v)"
int cpu_list_check(const char *list); /* 0 or -EINVAL */
/* How many CPUs this process may use, less the excluded ones (NULL: none); 1 when it cannot be told. */
unsigned cpu_count(const char *excluded_cpus);

#endif
