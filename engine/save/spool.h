/* save/spool.h - the spool: root directory, arena, roster, stager and supervisor of one rank, and how they start and end. */
#ifndef SAVE_SPOOL_H
#define SAVE_SPOOL_H

#include <arena/arena.h>
#include <claim/orphans.h>
#include <save/layout.h>
#include <save/roster.h>
#include <save/stager.h>
#include <save/supervisor.h>
#include <sys/types.h>
#include <tspool/save.h>
#include <tspool/spool.h>

struct tspool {
    pid_t owner;                        /* a forked child may not come in */
    struct tspool_options options;      /* checked, defaults filled in; strings are ours */
    char *root, *writer_path, *excluded_cpus;
    struct orphan_report orphans;       /* that were waited for at the open */
    int root_fd, self_pidfd;            /* self_pidfd: by which the writer knows of our death; -1 with thread isolation */
    struct arena *arena;
    struct roster roster;
    pthread_mutex_t submitting;         /* taken before roster.lock: saves reserve slots and enter the line in one order */
    struct stager stager;
    struct supervisor supervisor;
    struct writer_launcher launcher;
    pthread_t supervisor_thread;
    bool has_supervisor, has_roster;
    struct layout *latest;              /* roster.lock; the plan that the next save may reuse */
    struct tspool_save *known;          /* roster.lock; saves with a handle (next_known) */
};

/* tspool_open, with the writer's machine for thread isolation handed in: this room may not know it. */
int spool_open(const struct tspool_options *options, int (*writer_run)(int channel), struct tspool **spool,
               struct tspool_failure *failure);
/* Stops all threads and frees everything but the saves that have a handle. Takes half-made spools. */
void spool_destroy(struct tspool *spool);
/* 0, -EINVAL for NULL, -EPERM in a forked child. */
int spool_check(const struct tspool *spool);
struct plan_rules spool_plan_rules(struct tspool *spool);

#endif
