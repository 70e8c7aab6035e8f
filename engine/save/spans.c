/* save/spans.c - see spans.h. Pieces of headers are ours to fill; pieces of tensors are the caller's. */
#include <save/spans.h>

#include <arena/arena.h>
#include <base/array.h>
#include <base/failure.h>
#include <errno.h>
#include <save/save.h>
#include <save/spool.h>
#include <save/stager.h>
#include <save/structs.h>
#include <stdlib.h>
#include <string.h>

/* A token names the span: chunk, and the number of the span in it. */
static uint64_t token_make(uint32_t chunk, uint32_t number) { return (uint64_t)chunk << 32 | number; }

static struct open_chunk *open_find(const struct spans *spans, uint32_t chunk)
{
    struct open_chunk *open = spans->open;

    while (open && open->chunk != chunk)
        open = open->next;
    return open;
}

static void open_close(struct spans *spans, struct open_chunk *open)
{
    struct open_chunk **link = &spans->open;

    while (*link != open)
        link = &(*link)->next;
    *link = open->next;
    if (spans->current == open)
        spans->current = NULL;
    free(open->marks);
    free(open);
}

bool spans_pin(const struct tspool_save *save, uint32_t chunk)
{
    const struct open_chunk *open = open_find(&save->spans, chunk);

    return open && open->filled < open->handed;
}

void spans_deinit(struct spans *spans)
{
    while (spans->open)
        open_close(spans, spans->open);
}

/* The chunk's last span came back, and no more of it will go out. */
static void chunk_finish(struct tspool_save *save, struct open_chunk *open)
{
    uint32_t chunk = open->chunk;

    open_close(&save->spans, open);
    if (save_is_ending(save)) {
        save_free_slot(save, chunk);
        roster_wake(save->roster); /* the supervisor waits for the spans that are out before it lets go of the save */
        return;
    }
    chunk_pad(save, chunk, arena_slot(save->arena, save->slots[chunk]));
    save_chunk_staged(save, chunk);
}

/* Opens the next chunk. 1, 0 after the last one, or -errno; may wait for arena space. */
static int chunk_open(struct tspool_save *save, uint64_t deadline_ns, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    uint32_t chunk, slot;
    struct open_chunk *open;
    int error = 0;

    if (save->spans.position == plan->chunk_count)
        return 0;
    chunk = plan->chunk_order[save->spans.position];
    /* What fits the arena has its slots from submit, or gets them from a staging thread, in the line's order. */
    while (save->replayable && save->slots[chunk] == ARENA_NO_SLOT && !save_is_ending(save) && error == 0)
        error = roster_wait(save->roster, deadline_ns);
    if (error == 0 && !save_is_ending(save) && save->slots[chunk] == ARENA_NO_SLOT) {
        save->copying++;
        pthread_mutex_unlock(&save->roster->lock);
        error = arena_acquire(save->arena, deadline_ns, &save->cancelled, &slot, failure);
        pthread_mutex_lock(&save->roster->lock);
        save->copying--;
        if (error == 0)
            save->slots[chunk] = slot;
    }
    if (save_is_ending(save)) {
        roster_wake(save->roster);
        return -ECANCELED;
    }
    if (error < 0)
        return error;
    open = calloc(1, sizeof(*open));
    if (!open)
        return -ENOMEM;
    *open = (struct open_chunk){ .chunk = chunk, .next = save->spans.open };
    save->spans.open = save->spans.current = open;
    save->spans.position++;
    plan_cursor_init(&save->spans.cursor, plan, chunk);
    return 1;
}

static int piece_hand(struct tspool_save *save, const struct plan_piece *piece, uint8_t *slot, struct tspool_span *span)
{
    struct open_chunk *open = save->spans.current;

    if (array_reserve((void **)&open->marks, &open->marks_capacity, (size_t)open->handed + 1, 1) < 0)
        return -ENOMEM;
    open->marks[open->handed] = 0;
    *span = (struct tspool_span){
        .size = sizeof(*span),
        .data = slot + piece->chunk_offset,
        .bytes = piece->size,
        .tensor = save_plan(save)->entries[piece->entry].source,
        .tensor_offset = piece->source_offset,
        .token = token_make(open->chunk, open->handed),
    };
    open->handed++;
    return 1;
}

/* No more spans of this chunk will go out: the last one to come back makes it whole, without another call. */
static void chunk_exhaust(struct tspool_save *save, struct open_chunk *open)
{
    struct plan_cursor ahead = save->spans.cursor;
    struct plan_piece piece;

    if (plan_cursor_next(&ahead, save_plan(save), &piece))
        return;
    open->complete = true;
    save->spans.current = NULL;
    if (open->filled == open->handed)
        chunk_finish(save, open);
}

/* The next tensor piece of the open chunk: 1 and the span, or 0 at its end. Fills in header pieces on the way. */
static int chunk_next(struct tspool_save *save, struct tspool_span *span)
{
    struct open_chunk *open = save->spans.current;
    const struct plan *plan = save_plan(save);
    uint8_t *slot = arena_slot(save->arena, save->slots[open->chunk]);
    const struct plan_file *file = &plan->files[plan_chunk_at(plan, open->chunk).file];
    struct plan_cursor before = save->spans.cursor;
    struct plan_piece piece;
    int result;

    while (plan_cursor_next(&save->spans.cursor, plan, &piece)) {
        if (piece.kind == PIECE_HEADER) {
            memcpy(slot + piece.chunk_offset, (const uint8_t *)file->header + piece.source_offset, piece.size);
            before = save->spans.cursor;
            continue;
        }
        result = piece_hand(save, &piece, slot, span);
        if (result < 0)
            save->spans.cursor = before; /* asked again, it comes again */
        else
            chunk_exhaust(save, open);
        return result;
    }
    chunk_exhaust(save, open); /* nothing but header */
    return 0;
}

static int span_next(struct tspool_save *save, struct tspool_span *span, uint64_t deadline_ns)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int result = 0;

    while (result == 0) {
        if (save_is_ending(save))
            return save_error(save);
        if (!save->spans.current) {
            result = chunk_open(save, deadline_ns, &failure);
            if (result == -ENOMEM && failure.error)
                save_give_up(save, &failure);
            if (result == -ECANCELED)
                return save_error(save);
            if (result <= 0)
                return result;
        }
        result = chunk_next(save, span);
    }
    return result;
}

int tspool_save_next_span(struct tspool_save *save, struct tspool_span *span, uint64_t timeout_ns)
{
    struct tspool_span own;
    int result;

    if (!save || !span)
        return -EINVAL;
    result = save_check(save);
    if (result < 0)
        return result;
    pthread_mutex_lock(&save->roster->lock);
    if (save->staging != TSPOOL_STAGING_CALLER || save->state == SAVE_DECLARED)
        result = -EINVAL;
    else
        result = span_next(save, &own, deadline_after(timeout_ns));
    pthread_mutex_unlock(&save->roster->lock);
    return result == 1 && struct_give(span, &own, sizeof(own)) < 0 ? -EINVAL : result;
}

static int span_filled(struct tspool_save *save, uint64_t token)
{
    struct open_chunk *open = open_find(&save->spans, (uint32_t)(token >> 32));
    uint32_t number = (uint32_t)token;

    if (!open || number >= open->handed || open->marks[number])
        return -EINVAL; /* never handed out, or filled before */
    open->marks[number] = 1;
    open->filled++;
    if (open->filled == open->handed && (open->complete || save_is_ending(save)))
        chunk_finish(save, open);
    return save_is_ending(save) ? save_error(save) : 0;
}

int tspool_save_filled(struct tspool_save *save, const struct tspool_span *span)
{
    struct tspool_span own;
    int error;

    if (!save || !span)
        return -EINVAL;
    error = save_check(save);
    if (error < 0)
        return error;
    error = struct_take(&own, sizeof(own), span);
    if (error < 0)
        return error;
    pthread_mutex_lock(&save->roster->lock);
    error = span_filled(save, own.token);
    pthread_mutex_unlock(&save->roster->lock);
    return error;
}
