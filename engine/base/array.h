/* base/array.h - growing arrays without macros that hide control flow. */
#ifndef BASE_ARRAY_H
#define BASE_ARRAY_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Makes room for `count` elements of `element_size` in *items (capacity in *capacity); doubles. 0 or -ENOMEM, then
 * nothing changed. */
static inline int array_reserve(void **items, size_t *capacity, size_t count, size_t element_size)
{
    size_t grown = *capacity ? *capacity : 16, bytes;
    void *moved;

    if (count <= *capacity)
        return 0;
    while (grown < count)
        if (__builtin_mul_overflow(grown, (size_t)2, &grown))
            return -ENOMEM;
    if (__builtin_mul_overflow(grown, element_size, &bytes) || !(moved = realloc(*items, bytes)))
        return -ENOMEM;
    *items = moved;
    *capacity = grown;
    return 0;
}

#endif
