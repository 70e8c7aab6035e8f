/* read/slice.h - a slice of a tensor as runs of adjacent bytes. Pure arithmetic, nothing stored per run.
 *
 * A slice [start, start + extent) of a contiguous tensor is a box. Trailing dimensions that are taken whole melt into
 * one run of bytes; what remains are loops around it. F32 [4, 6] sliced [1:3, 2:5]: base 32, run 12, one loop of 2 with
 * stride 24 -> bytes [32, 44) and [56, 68). A whole tensor is one run and no loop.
 */
#ifndef READ_SLICE_H
#define READ_SLICE_H

#include <stdbool.h>
#include <stdint.h>
#include <tspool/tensor.h>

struct slice_loop { uint64_t extent, stride; }; /* stride in bytes */

struct slice {
    uint64_t base;       /* first byte, from the tensor's start */
    uint64_t run_bytes;
    uint64_t bytes;      /* the whole slice, packed */
    uint32_t loop_count; /* outermost first; none: the slice is one run */
    struct slice_loop loops[TSPOOL_RANK_MAX];
};

struct slice_run {
    uint64_t begin, end;  /* bytes of the tensor */
    uint64_t data_offset; /* where `begin` goes in the packed slice */
};

/* start NULL: the whole tensor. -EINVAL with *reason (static): outside the shape, or elements smaller than a byte cut
 * inside a byte. The shape was checked before: its bytes do not overflow. */
int slice_init(struct slice *slice, enum tspool_dtype dtype, uint32_t rank, const uint64_t *shape, const uint64_t *start,
               const uint64_t *extent, const char **reason);
/* The first run that ends after byte `at` of the tensor, cut to begin at `at` or later; false when there is none. */
bool slice_run_at(const struct slice *slice, uint64_t at, struct slice_run *run);

#endif
