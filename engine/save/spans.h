/* save/spans.h - caller staging: the tensor pieces of each chunk, handed out to be filled by the caller.
 *
 * A chunk is open from its first span until its last one was filled. A span that is out pins its slot even when the save
 * has failed: the caller may still be writing into it.
 */
#ifndef SAVE_SPANS_H
#define SAVE_SPANS_H

#include <plan/plan.h>
#include <stdbool.h>
#include <stdint.h>

struct open_chunk {
    uint32_t chunk;
    uint32_t handed, filled;   /* spans */
    bool complete;             /* every span of it was handed out */
    uint8_t *marks;            /* by span: filled */
    size_t marks_capacity;
    struct open_chunk *next;
};
struct spans {
    uint32_t position;         /* in chunk_order */
    struct open_chunk *current;/* the one that spans are handed out of; also in `open` */
    struct open_chunk *open;
    struct plan_cursor cursor;
};

struct tspool_save;
/* With roster->lock held: is some span of this chunk with the caller? */
bool spans_pin(const struct tspool_save *save, uint32_t chunk);
void spans_deinit(struct spans *spans);

#endif
