/* plan/keyed.c - least significant byte first; bytes that are the same in every key cost nothing, which is the usual case
 * for addresses and classes. A million keys of 8 differing bytes take a few hundredths of a second.
 */
#include <plan/keyed.h>
#include <string.h>

enum { RADIX_BYTES = 8, RADIX_VALUES = 256 };

static void count_bytes(const struct keyed *items, size_t count, size_t counts[RADIX_BYTES][RADIX_VALUES])
{
    memset(counts, 0, sizeof(size_t) * RADIX_BYTES * RADIX_VALUES);
    for (size_t i = 0; i < count; i++)
        for (unsigned byte = 0; byte < RADIX_BYTES; byte++)
            counts[byte][items[i].key >> (8 * byte) & 0xff]++;
}

static void scatter(const struct keyed *from, struct keyed *to, size_t count, unsigned byte, size_t *counts)
{
    size_t place = 0;

    for (unsigned value = 0; value < RADIX_VALUES; value++) {
        size_t here = counts[value];
        counts[value] = place;
        place += here;
    }
    for (size_t i = 0; i < count; i++)
        to[counts[from[i].key >> (8 * byte) & 0xff]++] = from[i];
}

void keyed_sort(struct keyed *items, struct keyed *scratch, size_t count)
{
    size_t counts[RADIX_BYTES][RADIX_VALUES];
    struct keyed *from = items, *to = scratch, *swap;

    if (count < 2)
        return;
    count_bytes(items, count, counts);
    for (unsigned byte = 0; byte < RADIX_BYTES; byte++) {
        if (counts[byte][from[0].key >> (8 * byte) & 0xff] == count)
            continue;
        scatter(from, to, count, byte, counts[byte]);
        swap = from;
        from = to;
        to = swap;
    }
    if (from != items)
        memcpy(items, from, count * sizeof(*items));
}

size_t keyed_run_end(const struct keyed *items, size_t count, size_t first)
{
    size_t end = first + 1;

    while (end < count && items[end].key == items[first].key)
        end++;
    return end;
}
