/* save/torn.c - see torn.h. */
#include <save/torn.h>

#include <base/failure.h>
#include <base/hash.h>
#include <errno.h>
#include <save/save.h>
#include <save/stager.h>
#include <stdlib.h>

struct torn {
    size_t *first;          /* by chunk: number of its first piece */
    struct digest *digests; /* by piece, headers left out: they are ours and do not change */
};

void torn_destroy(struct torn *torn)
{
    if (!torn)
        return;
    free(torn->first);
    free(torn->digests);
    free(torn);
}

static bool next_of_tensor(struct plan_cursor *cursor, const struct plan *plan, struct plan_piece *piece)
{
    while (plan_cursor_next(cursor, plan, piece))
        if (piece->kind == PIECE_TENSOR)
            return true;
    return false;
}

/* Numbers the pieces. */
static size_t pieces_count(const struct plan *plan, size_t *first)
{
    struct plan_cursor cursor;
    struct plan_piece piece;
    size_t count = 0;

    for (uint32_t chunk = 0; chunk < plan->chunk_count; chunk++) {
        first[chunk] = count;
        plan_cursor_init(&cursor, plan, chunk);
        while (next_of_tensor(&cursor, plan, &piece))
            count++;
    }
    return count;
}

static struct torn *torn_create(const struct plan *plan)
{
    struct torn *torn = calloc(1, sizeof(*torn));

    if (!torn)
        return NULL;
    torn->first = calloc((size_t)plan->chunk_count + 1, sizeof(*torn->first));
    if (torn->first)
        torn->digests = calloc(pieces_count(plan, torn->first) + 1, sizeof(*torn->digests));
    if (torn->digests)
        return torn;
    torn_destroy(torn);
    return NULL;
}

/* The very copy that staging makes, into memory of its own: strided tensors are gathered in one place of the code only. */
int torn_record(struct tspool_save *save)
{
    const struct plan *plan = save_plan(save);
    struct torn *torn = torn_create(plan);
    uint8_t *scratch = malloc(CHUNK_BYTES);
    struct plan_cursor cursor;
    struct plan_piece piece;

    if (!torn || !scratch) {
        torn_destroy(torn);
        free(scratch);
        return -ENOMEM;
    }
    for (uint32_t chunk = 0; chunk < plan->chunk_count; chunk++) {
        size_t number = torn->first[chunk];

        chunk_fill(save, chunk, scratch);
        plan_cursor_init(&cursor, plan, chunk);
        while (next_of_tensor(&cursor, plan, &piece))
            torn->digests[number++] = hash_bytes(scratch + piece.chunk_offset, piece.size);
    }
    free(scratch);
    save->torn = torn;
    return 0;
}

bool torn_check(const struct tspool_save *save, uint32_t chunk, const uint8_t *slot, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    struct tspool_tensor tensor;
    struct plan_cursor cursor;
    struct plan_piece piece;
    size_t number;

    if (!save->torn)
        return true;
    number = save->torn->first[chunk];
    plan_cursor_init(&cursor, plan, chunk);
    while (next_of_tensor(&cursor, plan, &piece))
        if (!digest_equal(hash_bytes(slot + piece.chunk_offset, piece.size), save->torn->digests[number++])) {
            state_dict_tensor(save->layout->dict, plan->entries[piece.entry].source, &tensor);
            failure_set(failure, TSPOOL_STAGE_STAGE, EBUSY, FAILURE_AT(.tensor = tensor.name, .operation = "copy"),
                        "bytes %llu to %llu of the tensor changed between submit and their copying (check_torn): wait for STAGED "
                        "before changing it", (unsigned long long)piece.source_offset,
                        (unsigned long long)(piece.source_offset + piece.size));
            return false;
        }
    return true;
}
