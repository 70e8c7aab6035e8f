/* plan/copy.c - bytes of a tensor's contiguous form, wherever its elements lie.
 *
 * A strided tensor is first made simple: dimensions of one element vanish, and two that follow each other without a gap
 * become one. What is left is walked row by row, a row being the last dimension: rows without gaps are copied whole, others
 * are gathered element by element. Pieces begin and end at any byte: a chunk's border may cut through an element.
 */
#include <assert.h>
#include <base/checked.h>
#include <plan/plan.h>
#include <plan/stream.h>
#include <string.h>

/* The simplified tensor: `rank` >= 1, strides in bytes. */
struct lattice {
    const uint8_t *data;
    uint32_t rank;
    size_t element_bytes;
    uint64_t shape[TSPOOL_RANK_MAX], steps[TSPOOL_RANK_MAX];
};

/* Dimensions are taken from the outermost: {4, 3, 2} with strides {6, 2, 1} becomes {24} with {1}. */
static void lattice_init(struct lattice *lattice, const struct tspool_tensor *tensor)
{
    size_t element_bytes = tspool_dtype_bits(tensor->dtype) / 8;
    uint32_t rank = 0;

    for (uint32_t i = 0; i < tensor->rank; i++) {
        uint64_t extent = tensor->shape[i], step = (uint64_t)tensor->strides[i] * element_bytes;

        if (extent == 1)
            continue;
        if (rank > 0 && lattice->steps[rank - 1] == step * extent) {
            lattice->shape[rank - 1] *= extent;
            lattice->steps[rank - 1] = step;
            continue;
        }
        lattice->shape[rank] = extent;
        lattice->steps[rank++] = step;
    }
    if (rank == 0) {
        lattice->shape[0] = 1;
        lattice->steps[rank++] = element_bytes;
    }
    lattice->data = tensor->data;
    lattice->element_bytes = element_bytes;
    lattice->rank = rank;
}

static bool rows_are_whole(const struct lattice *lattice) { return lattice->steps[lattice->rank - 1] == lattice->element_bytes; }

/* Where a walk over elements stands: an index per dimension, and the element's place. */
struct place { uint64_t index[TSPOOL_RANK_MAX]; const uint8_t *at; };

static void place_find(struct place *place, const struct lattice *lattice, uint64_t element)
{
    place->at = lattice->data;
    for (uint32_t i = lattice->rank; i-- > 0;) {
        place->index[i] = element % lattice->shape[i];
        element /= lattice->shape[i];
        place->at += place->index[i] * lattice->steps[i];
    }
}

/* `count` elements on, within the row or to its end. Past the last element the place wraps to the first. */
static void place_advance(struct place *place, const struct lattice *lattice, uint64_t count)
{
    uint32_t i = lattice->rank - 1;

    place->index[i] += count;
    place->at += count * lattice->steps[i];
    while (place->index[i] == lattice->shape[i]) {
        place->at -= lattice->shape[i] * lattice->steps[i];
        place->index[i] = 0;
        if (i-- == 0)
            return;
        place->index[i]++;
        place->at += lattice->steps[i];
    }
}

/* One loop per element size, with a copy of fixed size that compiles to a load and a store. */
static void gather(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count, size_t element_bytes)
{
    switch (element_bytes) {
    case 1:
        for (; count > 0; count--, to += 1, from += step)
            *to = *from;
        return;
    case 2:
        for (; count > 0; count--, to += 2, from += step)
            memcpy(to, from, 2);
        return;
    case 4:
        for (; count > 0; count--, to += 4, from += step)
            memcpy(to, from, 4);
        return;
    case 8:
        for (; count > 0; count--, to += 8, from += step)
            memcpy(to, from, 8);
        return;
    }
    assert(!"an element of 1, 2, 4 or 8 bytes");
}

static uint64_t left_in_row(const struct place *place, const struct lattice *lattice)
{
    return lattice->shape[lattice->rank - 1] - place->index[lattice->rank - 1];
}

static void copy_elements(const struct lattice *lattice, struct place *place, uint64_t count, uint8_t *to)
{
    bool whole = rows_are_whole(lattice);

    while (count > 0) {
        uint64_t run = min_u64(left_in_row(place, lattice), count);

        if (whole)
            stream_copy(to, place->at, run * lattice->element_bytes);
        else
            gather(to, place->at, lattice->steps[lattice->rank - 1], run, lattice->element_bytes);
        to += run * lattice->element_bytes;
        count -= run;
        place_advance(place, lattice, run);
    }
}

/* 4-byte elements, bytes [6, 15): 2 bytes of element 1, element 2, 3 bytes of element 3. */
static void copy_strided(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, uint8_t *to)
{
    struct lattice lattice;
    struct place place;
    uint64_t skip, part, whole;

    lattice_init(&lattice, tensor);
    skip = offset % lattice.element_bytes;
    place_find(&place, &lattice, offset / lattice.element_bytes);
    if (skip > 0) {
        part = min_u64(lattice.element_bytes - skip, size);
        memcpy(to, place.at + skip, part);
        to += part;
        size -= part;
        place_advance(&place, &lattice, 1);
    }
    whole = size - size % lattice.element_bytes;
    copy_elements(&lattice, &place, whole / lattice.element_bytes, to);
    memcpy(to + whole, place.at, size - whole);
}

void tensor_copy(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, void *to)
{
    if (size == 0)
        return;
    if (tensor->strides)
        copy_strided(tensor, offset, size, to);
    else
        stream_copy(to, (const uint8_t *)tensor->data + offset, size);
}
