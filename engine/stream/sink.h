/* stream/sink.h - blocks on their way into one file: space taken ahead of them, several in flight, each completion checked.
 *
 * A machine: it submits ops and is told of their completions; it never waits and knows no threads. Blocks come in the order of the
 * file, are the sink's from sink_push until `written` is called for them, and that is called for each one, error or not.
 */
#ifndef STREAM_SINK_H
#define STREAM_SINK_H

#include <io/io.h>
#include <stream/place.h>

struct sink_block {
    struct op op;              /* its memory, size and file_offset are the pusher's to set: multiples of the place's align */
    struct sink_block *next;
    unsigned stuck;
};

struct sink {
    const struct place *place;
    void (*written)(void *context, struct sink_block *block);
    void *context;
    struct sink_block *first, *last; /* not submitted yet */
    unsigned in_flight;              /* ops, the allocation among them */
    struct op allocate;
    bool allocating;
    bool ending;                     /* what was pushed is all: no space is taken ahead any more */
    uint64_t allocated;              /* the file has space up to here */
    uint64_t expected;               /* as long as the file will be, they say; 0: nobody knows */
    uint64_t step;                   /* of the next allocation beyond that; 0: only what is needed */
    int error;                       /* -errno, the first; nothing is begun any more */
    struct tspool_failure failure;
    uint64_t writes, short_writes;
};

void sink_init(struct sink *sink, const struct place *place, uint64_t expected_bytes);
void sink_push(struct sink *sink, struct sink_block *block);
/* Begins what can be begun; to be called after pushes and completions. */
void sink_pump(struct sink *sink);
void sink_complete(struct sink *sink, struct op *op, int64_t result);
static inline bool sink_is_idle(const struct sink *sink) { return !sink->first && !sink->in_flight; }
/* What is not submitted yet is not wanted any more. */
void sink_give_up(struct sink *sink);

#endif
