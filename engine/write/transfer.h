/* write/transfer.h - write items: a fixed number in flight over all jobs, first come first served.
 *
 * One writer's item objects are a pool of `depth`; an item keeps its place until all of its bytes are written, however
 * many calls that takes. The oldest job goes first; a younger one gets what places are left.
 */
#ifndef WRITE_TRANSFER_H
#define WRITE_TRANSFER_H

#include <write/task.h>

struct item;

struct transfer {
    struct item *items, *idle;
    uint32_t depth, item_bytes;
    uint64_t bytes_per_second; /* 0: no cap */
    uint64_t paid_until_ns;    /* with a cap: what was submitted so far would be written by then at that rate */
    uint64_t resume_ns;        /* when the cap allows the next item; IO_FOREVER: it is not what we wait for */
};

int transfer_init(struct transfer *transfer, const struct message_hello *hello); /* 0 or -ENOMEM */
void transfer_deinit(struct transfer *transfer);
/* Submits what may be submitted now. */
void transfer_pump(struct writer *writer);

/* The chunks and texts of one job that wait for a place. */
struct write_queue {
    uint32_t first_chunk, last_chunk; /* staged, linked by chunk.next; NO_CHUNK: none */
    uint32_t next_item;               /* of the first chunk */
    uint32_t text_file;               /* file whose text is written; file_count: none left */
    uint64_t text_offset;
};
void write_queue_init(struct write_queue *queue);
void write_queue_add(struct job *job, uint32_t chunk);

#endif
