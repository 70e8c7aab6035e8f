/* plan/gather.h - elements that do not lie side by side, brought together. For this room only. */
#ifndef PLAN_GATHER_H
#define PLAN_GATHER_H

#include <stddef.h>
#include <stdint.h>

#define BAND_BYTES 256u /* of a source column: four cache lines for each page that is looked up */

/* `count` elements, `step` bytes apart, to `to`. Elements have 1, 2, 4 or 8 bytes, here and below. */
void gather_row(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count, size_t element_bytes);

/* `rows` rows (at most BAND_BYTES / element_bytes) of `count` elements, one after the other at `to`; elements of a row are
 * `step` bytes apart and the rows are neighbours in memory: a band of a transposed matrix. Each cache line is read once. */
void gather_band(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count, uint32_t rows, size_t element_bytes);

#endif
