/* read/slice.c - boxes of elements into runs of bytes. See slice.h.
 *
 * Offsets are counted in bits first, because F4 and F6 elements are smaller than a byte; runs must then begin and end
 * on bytes.
 */
#include <assert.h>
#include <errno.h>
#include <read/slice.h>
#include <string.h>

/* Bits from one index of dimension `dimension` to the next. */
static uint64_t stride_bits(const uint64_t *shape, uint32_t rank, uint32_t dimension, unsigned bits)
{
    uint64_t stride = bits;

    for (uint32_t d = dimension + 1; d < rank; d++)
        stride *= shape[d];
    return stride;
}

static bool box_is_inside(uint32_t rank, const uint64_t *shape, const uint64_t *start, const uint64_t *extent)
{
    for (uint32_t d = 0; d < rank; d++)
        if (start[d] > shape[d] || extent[d] > shape[d] - start[d])
            return false;
    return true;
}

static bool box_is_empty(uint32_t rank, const uint64_t *extent)
{
    for (uint32_t d = 0; d < rank; d++)
        if (extent[d] == 0)
            return true;
    return false;
}

/* Dimensions below the result are taken whole: they and the result itself make up one run. */
static uint32_t run_dimension(uint32_t rank, const uint64_t *shape, const uint64_t *extent)
{
    uint32_t dimension = rank;

    while (dimension > 0 && extent[dimension - 1] == shape[dimension - 1])
        dimension--;
    return dimension ? dimension - 1 : 0;
}

static int slice_whole(struct slice *slice, uint32_t rank, const uint64_t *shape, unsigned bits, const char **reason)
{
    uint64_t total = bits;

    for (uint32_t d = 0; d < rank; d++)
        total = shape[d] ? total * shape[d] : 0;
    if (total % 8) {
        *reason = "the tensor does not end on a byte";
        return -EINVAL;
    }
    memset(slice, 0, sizeof *slice);
    slice->run_bytes = slice->bytes = total / 8;
    return 0;
}

/* Adds the loops around the run; false when one of them steps by a fraction of a byte. */
static bool loops_add(struct slice *slice, uint32_t inner, uint32_t rank, const uint64_t *shape, const uint64_t *extent,
                      unsigned bits)
{
    for (uint32_t d = 0; d < inner; d++) {
        uint64_t stride = stride_bits(shape, rank, d, bits);

        if (extent[d] == 1)
            continue;
        if (stride % 8)
            return false;
        slice->loops[slice->loop_count++] = (struct slice_loop){ extent[d], stride / 8 };
        slice->bytes *= extent[d];
    }
    return true;
}

static int slice_box(struct slice *slice, uint32_t rank, const uint64_t *shape, const uint64_t *start, const uint64_t *extent,
                     unsigned bits, const char **reason)
{
    uint32_t inner = run_dimension(rank, shape, extent);
    uint64_t base = 0, run = extent[inner] * stride_bits(shape, rank, inner, bits);
    struct slice made = { 0 };

    for (uint32_t d = 0; d < rank; d++)
        base += start[d] * stride_bits(shape, rank, d, bits);
    made.base = base / 8;
    made.run_bytes = made.bytes = run / 8;
    if (base % 8 || run % 8 || !loops_add(&made, inner, rank, shape, extent, bits)) {
        *reason = "elements of this dtype are smaller than a byte, and the slice begins or ends inside a byte";
        return -EINVAL;
    }
    *slice = made;
    return 0;
}

int slice_init(struct slice *slice, enum tspool_dtype dtype, uint32_t rank, const uint64_t *shape, const uint64_t *start,
               const uint64_t *extent, const char **reason)
{
    unsigned bits = tspool_dtype_bits(dtype);

    assert(bits && rank <= TSPOOL_RANK_MAX);
    if (!start && !extent)
        return slice_whole(slice, rank, shape, bits, reason);
    if (!start || !extent) {
        *reason = "a slice needs both start and extent";
        return -EINVAL;
    }
    if (!box_is_inside(rank, shape, start, extent)) {
        *reason = "the slice reaches outside the tensor's shape";
        return -EINVAL;
    }
    if (box_is_empty(rank, extent)) {
        memset(slice, 0, sizeof *slice);
        return 0;
    }
    if (rank == 0)
        return slice_whole(slice, rank, shape, bits, reason);
    return slice_box(slice, rank, shape, start, extent, bits, reason);
}

/* The next index tuple after a step in loop `loop`, those inside it at zero; false past the last. */
static bool index_advance(const struct slice *slice, uint64_t *index, uint32_t loop)
{
    for (uint32_t l = loop + 1; l < slice->loop_count; l++)
        index[l] = 0;
    for (uint32_t l = loop + 1; l-- > 0;) {
        if (++index[l] < slice->loops[l].extent)
            return true;
        index[l] = 0;
    }
    return false;
}

/* Index tuple of the first run that ends after `distance` bytes from the base; false when there is none. Loops nest:
 * what lies inside one step of a loop is smaller than its stride. */
static bool index_find(const struct slice *slice, uint64_t distance, uint64_t *index)
{
    for (uint32_t l = 0; l < slice->loop_count; l++) {
        index[l] = distance / slice->loops[l].stride;
        if (index[l] >= slice->loops[l].extent) {
            index[l] = slice->loops[l].extent - 1;
            return index_advance(slice, index, l);
        }
        distance -= index[l] * slice->loops[l].stride;
    }
    if (distance < slice->run_bytes)
        return true;
    return slice->loop_count > 0 && index_advance(slice, index, slice->loop_count - 1);
}

bool slice_run_at(const struct slice *slice, uint64_t at, struct slice_run *run)
{
    uint64_t index[TSPOOL_RANK_MAX], begin = slice->base, number = 0;

    if (slice->bytes == 0 || !index_find(slice, at > slice->base ? at - slice->base : 0, index))
        return false;
    for (uint32_t l = 0; l < slice->loop_count; l++) {
        begin += index[l] * slice->loops[l].stride;
        number = number * slice->loops[l].extent + index[l];
    }
    run->begin = at > begin ? at : begin;
    run->end = begin + slice->run_bytes;
    run->data_offset = number * slice->run_bytes + (run->begin - begin);
    return true;
}
