/* commands/feed.c - verified reads from the sources into the spans of the save.
 *
 * Spans are filled in batches: a leaf that lies across the border of two spans is then read and hashed once.
 */
#include "copy.h"

#include <errno.h>
#include <stdlib.h>

#define BATCH_BYTES ((uint64_t)64 << 20) /* spans filled by one read: leaves across their borders are read once */
#define BATCH_SPANS 4096u

struct batch {
    struct tspool_span spans[BATCH_SPANS];
    struct tspool_read_request requests[BATCH_SPANS];
    size_t count;
    uint64_t bytes;
    struct tspool_checkpoint *source;   /* of all its spans */
    struct tspool_span held;            /* one of another source, for the next batch */
    bool has_held, ended;
};

static void batch_add(struct batch *batch, const struct tspool_span *span, const struct origin *origin)
{
    struct tspool_read_request *request = &batch->requests[batch->count];

    *request = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
    request->tensor = origin->entry;
    request->data = span->data;
    request->bytes = span->bytes;
    request->first_byte = span->tensor_offset;
    request->by_bytes = 1;
    batch->source = origin->checkpoint;
    batch->spans[batch->count++] = *span;
    batch->bytes += span->bytes;
}

/* The next span: 1, 0 at the end, -ETIMEDOUT, -EINTR, or the save's failure. Waits only for the first of a batch: with
 * spans in hand the arena may be full of them. */
static int span_next(struct copy *copy, const struct batch *batch, struct tspool_span *span)
{
    int got;

    *span = (struct tspool_span)TSPOOL_SPAN_INIT;
    do {
        if (interrupted())
            return -EINTR;
        got = tspool_save_next_span(copy->save, span, batch->count ? 0 : LOOK_NS);
        copy_tell_levels(copy);
    } while (got == -ETIMEDOUT && batch->count == 0);
    return got;
}

/* Collects spans of one source until there are enough, or none just now. 0, or -errno. */
static int batch_collect(struct copy *copy, struct batch *batch)
{
    batch->count = 0;
    batch->bytes = 0;
    if (batch->has_held)
        batch_add(batch, &batch->held, &copy->sources.origins.items[batch->held.tensor]);
    batch->has_held = false;
    while (batch->count < BATCH_SPANS && batch->bytes < BATCH_BYTES) {
        struct tspool_span span;
        int got = span_next(copy, batch, &span);

        batch->ended = got == 0;
        if (got <= 0)
            return got == -ETIMEDOUT ? 0 : got;
        if (batch->count && copy->sources.origins.items[span.tensor].checkpoint != batch->source) {
            batch->held = span;
            batch->has_held = true;
            return 0;
        }
        batch_add(batch, &span, &copy->sources.origins.items[span.tensor]);
    }
    return 0;
}

/* Spans in hand pin the arena: a save that was given up ends only when they came back, with whatever is in them. */
static void batch_give_back(struct copy *copy, struct batch *batch)
{
    tspool_save_abort(copy->save);
    for (size_t i = 0; i < batch->count; i++)
        tspool_save_filled(copy->save, &batch->spans[i]);
    if (batch->has_held)
        tspool_save_filled(copy->save, &batch->held);
}

/* Once the save ends, further spans are taken back with its failure: all are given. */
static int batch_fill(struct copy *copy, struct batch *batch)
{
    int error = tspool_checkpoint_read(batch->source, batch->requests, batch->count, NULL, NULL, &copy->failure);
    int first = 0;

    if (error < 0)
        return error;
    for (size_t i = 0; i < batch->count; i++) {
        error = tspool_save_filled(copy->save, &batch->spans[i]);
        first = first ? first : error;
    }
    batch->count = 0;
    return first;
}

int copy_fill_spans(struct copy *copy)
{
    struct batch *batch = calloc(1, sizeof *batch);
    int error = batch ? 0 : -ENOMEM;

    while (error == 0 && (!batch->ended || batch->has_held)) {
        error = batch_collect(copy, batch);
        if (error == 0 && batch->count)
            error = batch_fill(copy, batch);
    }
    if (error < 0 && batch)
        batch_give_back(copy, batch);
    free(batch);
    return error;
}
