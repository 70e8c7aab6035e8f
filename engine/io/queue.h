/* io/queue.h - a first-in first-out list of ops, linked through op->next: an op is in at most one. */
#ifndef IO_QUEUE_H
#define IO_QUEUE_H

#include <io/io.h>

struct op_queue { struct op *head, *tail; };

static inline void op_queue_push(struct op_queue *queue, struct op *op)
{
    op->next = NULL;
    if (queue->head)
        queue->tail->next = op;
    else
        queue->head = op;
    queue->tail = op;
}

static inline struct op *op_queue_pop(struct op_queue *queue)
{
    struct op *op = queue->head;

    if (op)
        queue->head = op->next;
    return op;
}

/* Takes `op` out; it must be in the queue. O(n). */
static inline void op_queue_remove(struct op_queue *queue, const struct op *op)
{
    struct op **link = &queue->head, *before = NULL;

    for (; *link != op; link = &(*link)->next)
        before = *link;
    *link = op->next;
    if (queue->tail == op)
        queue->tail = before;
}

#endif
