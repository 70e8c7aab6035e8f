/* plan/copy.c - bytes of a tensor's contiguous form, wherever its elements lie.
 *
 * A strided tensor is first made simple: dimensions of one element vanish, and two that follow each other without a gap
 * become one. What is left is walked row by row, a row being the last dimension: rows without gaps are copied whole, others
 * are gathered, several at once where they are neighbours (a transposed matrix). Pieces begin and end at any byte: a chunk's
 * border may cut through an element.
 */
#include <base/checked.h>
#include <plan/gather.h>
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

/* `count` on in dimension i (of the rows: rank - 1), at most to its end. Past the last element the place wraps to the first. */
static void place_advance(struct place *place, const struct lattice *lattice, uint32_t i, uint64_t count)
{
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

static uint64_t left_in_dimension(const struct place *place, const struct lattice *lattice, uint32_t i)
{
    return lattice->shape[i] - place->index[i];
}

/* How many whole rows from here on lie side by side, element by element, and fit into `count`; less than 2: none. */
static uint32_t rows_in_band(const struct lattice *lattice, const struct place *place, uint64_t count)
{
    uint32_t row = lattice->rank - 1;
    uint64_t rows;

    if (row == 0 || place->index[row] != 0 || lattice->steps[row - 1] != lattice->element_bytes)
        return 0;
    rows = min_u64(left_in_dimension(place, lattice, row - 1), count / lattice->shape[row]);
    return (uint32_t)min_u64(rows, BAND_BYTES / lattice->element_bytes);
}

/* As much of `count` elements as goes in one step; returns how many. */
static uint64_t copy_run(const struct lattice *lattice, struct place *place, uint64_t count, uint8_t *to)
{
    uint32_t row = lattice->rank - 1, band = rows_in_band(lattice, place, count);
    uint64_t run = min_u64(left_in_dimension(place, lattice, row), count);

    if (rows_are_whole(lattice)) {
        stream_copy(to, place->at, run * lattice->element_bytes);
    } else if (band >= 2) {
        gather_band(to, place->at, lattice->steps[row], run, band, lattice->element_bytes);
        place_advance(place, lattice, row - 1, band);
        return run * band;
    } else {
        gather_row(to, place->at, lattice->steps[row], run, lattice->element_bytes);
    }
    place_advance(place, lattice, row, run);
    return run;
}

static void copy_elements(const struct lattice *lattice, struct place *place, uint64_t count, uint8_t *to)
{
    while (count > 0) {
        uint64_t run = copy_run(lattice, place, count, to);

        to += run * lattice->element_bytes;
        count -= run;
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
        place_advance(&place, &lattice, lattice.rank - 1, 1);
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
