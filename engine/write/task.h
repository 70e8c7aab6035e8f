/* write/task.h - an op together with who continues when it completes.
 *
 * Tasks in flight hang in a list in the order of their submission, so that PONG can name the oldest: a hung file server
 * shows as an op with an age. Standing tasks (receive, send, watches) may wait for ever and hang in a list of their own;
 * they are cancelled at the end.
 * An op that the backend refuses is finished like any other, with the refusal as its result, but later: a done function is
 * never called from within a submit.
 */
#ifndef WRITE_TASK_H
#define WRITE_TASK_H

#include <io/io.h>

struct writer;
struct job;

#define NO_FILE UINT32_MAX

struct task {
    struct op op;
    void (*done)(struct task *task, int64_t result); /* may free the task */
    struct writer *writer;
    struct job *job;            /* NULL: the writer's own */
    uint32_t file;              /* of the job: names the op in records; or NO_FILE */
    bool standing;
    void (*discard)(struct task *task); /* frees one that will never complete; NULL: it lies in another's memory */
    struct task *older, *newer;
    uint64_t submitted_ns;
    int64_t refusal;
};

struct task_list { struct task *oldest, *newest; };

struct tasks {
    struct io *io;
    uint64_t now_ns;            /* io_now() at the beginning of the step */
    struct task_list flying, standing, refused;
};

void tasks_submit(struct tasks *tasks, struct task *task);
void tasks_complete(struct tasks *tasks, const struct completion *completion);
void tasks_finish_refused(struct tasks *tasks);
void tasks_cancel_standing(struct tasks *tasks);
bool tasks_are_idle(const struct tasks *tasks); /* nothing in flight, standing or refused */
/* Discards what never completed; only when the io will not touch it any more. */
void tasks_deinit(struct tasks *tasks);
void task_free(struct task *task); /* discard for plain ones from malloc */

#endif
