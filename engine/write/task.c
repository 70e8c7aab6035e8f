/* write/task.c - tasks in flight, in the order of their submission. */
#include <write/task.h>

#include <stdlib.h>

static void list_append(struct task_list *list, struct task *task)
{
    task->newer = NULL;
    task->older = list->newest;
    if (list->newest)
        list->newest->newer = task;
    else
        list->oldest = task;
    list->newest = task;
}

static void list_remove(struct task_list *list, struct task *task)
{
    if (task->older)
        task->older->newer = task->newer;
    else
        list->oldest = task->newer;
    if (task->newer)
        task->newer->older = task->older;
    else
        list->newest = task->older;
    task->older = task->newer = NULL;
}

static struct task_list *list_of(struct tasks *tasks, const struct task *task)
{
    return task->standing ? &tasks->standing : &tasks->flying;
}

void tasks_submit(struct tasks *tasks, struct task *task)
{
    int error;

    task->op.owner = task;
    task->submitted_ns = tasks->now_ns;
    list_append(list_of(tasks, task), task);
    error = io_submit(tasks->io, &task->op);
    if (error < 0) {
        list_remove(list_of(tasks, task), task);
        task->refusal = error;
        list_append(&tasks->refused, task);
    }
}

void tasks_complete(struct tasks *tasks, const struct completion *completion)
{
    struct task *task = completion->op->owner;

    list_remove(list_of(tasks, task), task);
    task->done(task, completion->result);
}

void tasks_finish_refused(struct tasks *tasks)
{
    struct task *task;

    while ((task = tasks->refused.oldest)) {
        list_remove(&tasks->refused, task);
        task->done(task, task->refusal);
    }
}

void tasks_cancel_standing(struct tasks *tasks)
{
    for (struct task *task = tasks->standing.oldest; task; task = task->newer)
        io_cancel(tasks->io, &task->op);
}

bool tasks_are_idle(const struct tasks *tasks)
{
    return !tasks->flying.oldest && !tasks->standing.oldest && !tasks->refused.oldest;
}

void task_free(struct task *task) { free(task); }

static void list_discard(struct task_list *list)
{
    struct task *task, *newer;

    for (task = list->oldest; task; task = newer) {
        newer = task->newer;
        if (task->discard)
            task->discard(task);
    }
    *list = (struct task_list){ NULL, NULL };
}

void tasks_deinit(struct tasks *tasks)
{
    list_discard(&tasks->flying);
    list_discard(&tasks->standing);
    list_discard(&tasks->refused);
}
