/* format/pool.c - blocks that double up to 1 MiB: a header of ten tensors costs a page, one of a million few mallocs, and
 * neither holds more than a small multiple of what was asked for. */
#include <format/pool.h>

#include <base/checked.h>
#include <stdlib.h>

#define POOL_BLOCK_FIRST KIB(4)
#define POOL_BLOCK_MAX MIB(1)

struct pool_block {
    struct pool_block *older;
    size_t used, capacity;
    _Alignas(16) char bytes[];
};

static struct pool_block *block_create(struct pool *pool, size_t size)
{
    uint64_t capacity = pool->newest ? min_u64(2 * pool->newest->capacity, POOL_BLOCK_MAX) : POOL_BLOCK_FIRST, bytes;
    struct pool_block *block;

    capacity = max_u64(capacity, size);
    if (!checked_add(capacity, sizeof *block, &bytes) || !(block = malloc(bytes)))
        return NULL;
    *block = (struct pool_block){ pool->newest, 0, capacity };
    pool->newest = block;
    return block;
}

void *pool_allocate(struct pool *pool, size_t size, size_t alignment)
{
    struct pool_block *block = pool->newest;
    size_t start = block ? align_up(block->used, alignment) : 0;

    if (!block || start > block->capacity || size > block->capacity - start) {
        block = block_create(pool, size);
        start = 0;
    }
    if (!block)
        return NULL;
    block->used = start + size;
    return block->bytes + start;
}

void pool_deinit(struct pool *pool)
{
    for (struct pool_block *block = pool->newest, *older; block; block = older) {
        older = block->older;
        free(block);
    }
    pool->newest = NULL;
}
