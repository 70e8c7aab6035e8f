/* read/parts.c - requests into parts, and what is done with a part's bytes. See reader.h.
 *
 * With digests a part is a leaf: nothing smaller can be checked, so a slice reads the whole leaves that it touches.
 * Without, a part is what is wanted inside 4 MiB, and runs closer together than GAP_BYTES are read through.
 */
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <read/reader.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define GAP_BYTES KIB(64)
#define PLACED_MIN_BYTES KIB(64) /* smaller ones are better gathered into one read */

/* Callers built before ranges were added have smaller requests. */
static bool is_range(const struct tspool_read_request *request)
{
    return request->size > offsetof(struct tspool_read_request, by_bytes) && request->by_bytes;
}

static int range_init(struct slice *slice, const struct tspool_read_request *request, uint64_t tensor_bytes, const char **reason)
{
    if (request->start || request->extent) {
        *reason = "a range of bytes has no start and no extent";
        return -EINVAL;
    }
    if (request->first_byte > tensor_bytes || request->bytes > tensor_bytes - request->first_byte) {
        *reason = "the range reaches past the tensor's end";
        return -EINVAL;
    }
    memset(slice, 0, sizeof *slice);
    slice->base = request->first_byte;
    slice->run_bytes = slice->bytes = request->bytes;
    return 0;
}

int request_slice(const struct run *run, size_t number, struct slice *slice, struct tspool_failure *failure)
{
    const struct tspool_checkpoint *checkpoint = run->checkpoint;
    const struct tspool_read_request *request = run_request(run, number);
    const struct parsed_tensor *tensor = entry_tensor(checkpoint, request->tensor);
    const char *reason = "";
    int error;

    error = is_range(request) ? range_init(slice, request, tensor->end - tensor->begin, &reason)
        : slice_init(slice, tensor->dtype, tensor->rank, tensor->shape, request->start, request->extent, &reason);
    if (error == 0)
        return 0;
    return failure_set(failure, TSPOOL_STAGE_READ, EINVAL,
                       FAILURE_AT(.operation = "read", .tensor = tensor->name, .path = checkpoint->path),
                       "Request %zu: %s.", number, reason);
}

static int sorted_compare(const void *left, const void *right)
{
    const struct sorted_request *a = left, *b = right;

    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    if (a->file_offset != b->file_offset)
        return a->file_offset < b->file_offset ? -1 : 1;
    return a->request < b->request ? -1 : a->request > b->request;
}

int requests_sort(const struct run *run, struct sorted_request **sorted, struct tspool_failure *failure)
{
    const struct tspool_checkpoint *checkpoint = run->checkpoint;
    struct sorted_request *made = run->count < UINT32_MAX ? malloc((run->count + 1) * sizeof *made) : NULL;
    struct slice slice;

    if (!made)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "read", .path = checkpoint->path), NULL);
    for (size_t i = 0; i < run->count; i++) {
        size_t tensor = run_request(run, i)->tensor;
        int error = request_slice(run, i, &slice, failure);

        if (error < 0) {
            free(made);
            return error;
        }
        made[i] = (struct sorted_request){ entry_file_offset(checkpoint, tensor) + slice.base, checkpoint->entries[tensor].file,
                                           (uint32_t)i };
    }
    qsort(made, run->count, sizeof *made, sorted_compare);
    *sorted = made;
    return 0;
}

/* Where the run's first byte goes, when all of [begin, end) lies in it, and file and memory suit a direct read. */
static uint8_t *part_place(const struct part_stream *stream, const struct part *part, const struct slice_run *run)
{
    const struct tspool_read_request *request = run_request(stream->run, part->request);
    const struct source *source = &stream->file->source;
    uint8_t *place;

    if (stream->run->discard || run->begin != part->begin || run->end < part->end || part->end - part->begin < PLACED_MIN_BYTES)
        return NULL;
    place = (uint8_t *)request->data + run->data_offset;
    if (!is_aligned(part->file_begin, source->offset_align) || !is_aligned((uintptr_t)place, source->memory_align))
        return NULL;
    return place;
}

/* Without digests: from the run's begin on, through small gaps, to the end of the 4 MiB that it began in. */
static uint64_t unchecked_end(const struct part_stream *stream, struct slice_run run)
{
    uint64_t limit = align_down(run.begin, LEAF_BYTES) + LEAF_BYTES, end = min_u64(run.end, limit);

    while (end < limit && slice_run_at(&stream->slice, end, &run) && run.begin < limit && run.begin - end <= GAP_BYTES)
        end = min_u64(run.end, limit);
    return end;
}

static void part_make(struct part_stream *stream, const struct slice_run *run, struct part *part)
{
    const struct tspool_checkpoint *checkpoint = stream->run->checkpoint;
    uint32_t request = stream->next->request;
    size_t tensor = run_request(stream->run, request)->tensor;

    *part = (struct part){ .request = request, .checked = stream->run->verified && stream->file->digests };
    part->begin = part->checked ? align_down(run->begin, LEAF_BYTES) : run->begin;
    part->end = part->checked ? min_u64(part->begin + LEAF_BYTES, entry_bytes(checkpoint, tensor)) : unchecked_end(stream, *run);
    part->file_begin = entry_file_offset(checkpoint, tensor) + part->begin;
    part->place = part_place(stream, part, run);
    part->placed = part->place != NULL;
}

int part_next(struct part_stream *stream, struct part *part, uint32_t *ended)
{
    struct slice_run run;

    if (stream->next == stream->end)
        return -ENOENT;
    if (!stream->is_open) {
        request_slice(stream->run, stream->next->request, &stream->slice, NULL); /* requests_sort saw that it is sound */
        stream->at = 0;
        stream->is_open = true;
    }
    if (!slice_run_at(&stream->slice, stream->at, &run)) {
        stream->is_open = false;
        *ended = stream->next++->request;
        return 0;
    }
    part_make(stream, &run, part);
    stream->at = part->end;
    return 1;
}

/* On compute threads ------------------------------------------------------------------------------------------------- */

static bool part_is_damaged(const struct run *run, const struct part *part, const uint8_t *bytes)
{
    const struct digest *leaves = entry_leaves(run->checkpoint, run_request(run, part->request)->tensor);

    if (MUTANT(LEAF_NOT_COMPARED) || (MUTANT(LAST_LEAF_NOT_COMPARED) && part->end - part->begin < LEAF_BYTES))
        return false;
    return !digest_equal(hash_bytes(bytes, part->end - part->begin), leaves[part->begin / LEAF_BYTES]);
}

static void part_copy_out(const struct run *run, const struct part *part, const uint8_t *bytes)
{
    uint8_t *data = run_request(run, part->request)->data;
    struct slice_run piece;
    struct slice slice;
    uint64_t at = part->begin;

    request_slice(run, part->request, &slice, NULL);
    while (slice_run_at(&slice, at, &piece) && piece.begin < part->end) {
        at = min_u64(piece.end, part->end);
        memcpy(data + piece.data_offset, bytes + (piece.begin - part->begin), at - piece.begin);
    }
}

static bool same_leaf(const struct part *a, const struct part *b)
{
    return a->checked && b->checked && a->file_begin == b->file_begin && a->end - a->begin == b->end - b->begin;
}

void parts_check(const struct run *run, struct part *parts, size_t count, const uint8_t *memory, uint64_t file_begin)
{
    for (size_t i = 0; i < count; i++) {
        struct part *part = &parts[i];
        const uint8_t *bytes = memory + (part->file_begin - file_begin);

        if (i > 0 && same_leaf(part, part - 1))
            part->damaged = part[-1].damaged;
        else if (part->checked)
            part->damaged = part_is_damaged(run, part, bytes);
        if (!part->damaged && !part->placed && !run->discard)
            part_copy_out(run, part, bytes);
    }
}
