/* plan/gather.c - one loop per element size: memcpy of a constant size compiles to a load and a store.
 *
 * A band of a transposed matrix goes through a tile on the stack: read along the columns of the source, written along the
 * lines of the target. Row by row each source line would be fetched for every element in it (a factor of 16 for floats),
 * and straight writes to rows that lie a power of two apart would evict each other. Three times as fast as row by row.
 */
#include <assert.h>
#include <plan/gather.h>
#include <string.h>

#define LINE_BYTES 64u
#define COLUMNS_AHEAD 8u /* each lies on a page of its own: no hardware prefetcher follows */

static inline __attribute__((always_inline)) void row_of(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count,
                                                         size_t element_bytes)
{
    for (; count > 0; count--, to += element_bytes, from += step)
        memcpy(to, from, element_bytes);
}

static inline __attribute__((always_inline)) void band_of(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count,
                                                          uint32_t rows, size_t element_bytes)
{
    uint8_t tile[BAND_BYTES][LINE_BYTES];
    uint64_t row_bytes = count * element_bytes, columns;

    for (; count > 0; count -= columns, to += columns * element_bytes) {
        columns = count < LINE_BYTES / element_bytes ? count : LINE_BYTES / element_bytes;
        for (uint64_t column = 0; column < columns; column++, from += step) {
            for (uint32_t ahead = 0; ahead < rows * element_bytes; ahead += LINE_BYTES)
                __builtin_prefetch((const void *)((uintptr_t)from + COLUMNS_AHEAD * step + ahead));
            for (uint32_t row = 0; row < rows; row++)
                memcpy(&tile[row][column * element_bytes], from + row * element_bytes, element_bytes);
        }
        for (uint32_t row = 0; row < rows; row++)
            memcpy(to + row * row_bytes, tile[row], columns * element_bytes);
    }
}

void gather_row(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count, size_t element_bytes)
{
    switch (element_bytes) {
    case 1: row_of(to, from, step, count, 1); return;
    case 2: row_of(to, from, step, count, 2); return;
    case 4: row_of(to, from, step, count, 4); return;
    case 8: row_of(to, from, step, count, 8); return;
    }
    assert(!"an element of 1, 2, 4 or 8 bytes");
}

void gather_band(uint8_t *to, const uint8_t *from, uint64_t step, uint64_t count, uint32_t rows, size_t element_bytes)
{
    assert(rows <= BAND_BYTES / element_bytes);
    switch (element_bytes) {
    case 1: band_of(to, from, step, count, rows, 1); return;
    case 2: band_of(to, from, step, count, rows, 2); return;
    case 4: band_of(to, from, step, count, rows, 4); return;
    case 8: band_of(to, from, step, count, rows, 8); return;
    }
    assert(!"an element of 1, 2, 4 or 8 bytes");
}
