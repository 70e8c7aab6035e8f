/* format/pool.h - memory of one parsed document: many small pieces that never move and are freed together. */
#ifndef FORMAT_POOL_H
#define FORMAT_POOL_H

#include <stddef.h>

struct pool_block;
struct pool { struct pool_block *newest; };

/* `size` bytes at an address that is a multiple of `alignment` (a power of two, at most 16); NULL: no memory. */
void *pool_allocate(struct pool *pool, size_t size, size_t alignment);
void pool_deinit(struct pool *pool);

#endif
