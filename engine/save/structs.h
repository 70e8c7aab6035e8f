/* save/structs.h - public structs cross the library's border by size: the caller's compiler may have known an older or a
 * newer one. Each begins with its own size.
 */
#ifndef SAVE_STRUCTS_H
#define SAVE_STRUCTS_H

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <tspool/failure.h>

#define STRUCT_SIZE_MAX 65536u /* more is a struct that nobody initialised */

static inline size_t struct_size(const void *theirs)
{
    size_t size;

    memcpy(&size, theirs, sizeof(size));
    return size;
}

/* Takes what the caller gave: what an older caller does not know is zero, its default. -E2BIG when a newer caller asks
 * for something that we do not know; -EINVAL when the size was never set. */
static inline int struct_take(void *own, size_t own_size, const void *theirs)
{
    size_t size = struct_size(theirs), known = size < own_size ? size : own_size;

    if (size < sizeof(size_t) * 2 || size > STRUCT_SIZE_MAX)
        return -EINVAL;
    for (size_t i = own_size; i < size; i++)
        if (((const unsigned char *)theirs)[i])
            return -E2BIG;
    memset(own, 0, own_size);
    memcpy(own, theirs, known);
    memcpy(own, &own_size, sizeof(own_size));
    return 0;
}

/* Gives the caller as much as its struct holds; what only a newer caller knows becomes zero. */
static inline int struct_give(void *theirs, const void *own, size_t own_size)
{
    size_t size = struct_size(theirs), known = size < own_size ? size : own_size;

    if (size < sizeof(size_t) * 2 || size > STRUCT_SIZE_MAX)
        return -EINVAL;
    memcpy((char *)theirs + sizeof(size_t), (const char *)own + sizeof(size_t), known - sizeof(size_t));
    if (size > own_size)
        memset((char *)theirs + own_size, 0, size - own_size);
    return 0;
}

/* Hands a finished record to the caller's, which may be NULL. */
static inline void failure_give(struct tspool_failure *theirs, const struct tspool_failure *own)
{
    if (theirs && theirs != own)
        (void)struct_give(theirs, own, sizeof(*own));
}

#endif
