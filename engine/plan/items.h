/* plan/items.h - one chunk of a file as aligned write items: arithmetic only, used by the writer. */
#ifndef PLAN_ITEMS_H
#define PLAN_ITEMS_H

#include <base/checked.h>
#include <stdbool.h>

struct write_item { uint64_t file_offset, chunk_offset, size; };

struct item_rules { uint32_t item_bytes, offset_align; }; /* item_bytes a multiple of offset_align; align a power of two */

static inline uint32_t item_count(const struct item_rules *rules, uint64_t chunk_size)
{
    return (uint32_t)divide_up(chunk_size, rules->item_bytes);
}

/* Item `number` of the chunk at file_offset (aligned) with chunk_size bytes; the last one is padded up to the alignment:
 * 1,048,580 bytes, 512 KiB items, 4096: item 2 is {1048576, 1048576, 4096}. */
static inline struct write_item item_at(const struct item_rules *rules, uint64_t file_offset, uint64_t chunk_size,
                                        uint32_t number)
{
    uint64_t chunk_offset = (uint64_t)number * rules->item_bytes;
    uint64_t left = align_up(chunk_size - chunk_offset, rules->offset_align);

    return (struct write_item){ file_offset + chunk_offset, chunk_offset, min_u64(left, rules->item_bytes) };
}

#endif
