/* fuzz_sharding - any bytes as DCP_SHARDING_INFO of a file with a few tensors: offsets are taken of its tensors only, as many
 * as they have dimensions, and what is emitted from them says the same again. */
#include <assert.h>
#include <format/sharding.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint64_t shape[] = { 3, UINT64_MAX - 7, 1 };

#define TENSORS { { .name = "", .rank = 0 }, { .name = "a", .rank = 1, .shape = shape }, \
                  { .name = "a\"b", .rank = 2, .shape = shape }, { .name = "é", .rank = 3, .shape = shape } }
#define COUNT 4u

static void rebuild(const struct parsed_tensor tensors[COUNT])
{
    struct parsed_tensor again[COUNT] = TENSORS;
    struct header_entry entries[COUNT];
    struct text text = { 0 };
    struct pool pool = { 0 };
    const char *reason;
    char *info;
    size_t size;

    for (size_t i = 0; i < COUNT; i++)
        entries[i] = (struct header_entry){ .name = tensors[i].name, .rank = tensors[i].rank, .shape = tensors[i].shape,
                                            .global_offsets = tensors[i].global_offsets };
    sharding_emit(&text, entries, COUNT);
    assert(!text_finish(&text, &info, &size));
    assert(!sharding_parse(info, size, again, COUNT, &pool, &reason));
    for (size_t i = 0; i < COUNT; i++)
        for (uint32_t k = 0; k < tensors[i].rank; k++)
            assert(again[i].global_offsets[k] == (tensors[i].global_offsets ? tensors[i].global_offsets[k] : 0));
    pool_deinit(&pool);
    free(info);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct parsed_tensor tensors[COUNT] = TENSORS;
    struct pool pool = { 0 };
    const char *reason = NULL;
    char *info = malloc(size ? size : 1);

    memcpy(info, data, size);
    if (sharding_parse(info, size, tensors, COUNT, &pool, &reason))
        assert(reason);
    else {
        for (size_t i = 0; i < COUNT; i++)
            for (uint32_t k = 0; tensors[i].global_offsets && k < tensors[i].rank; k++)
                assert(tensors[i].global_offsets[k] <= UINT64_MAX - shape[k]);
        rebuild(tensors);
    }
    free(info);
    pool_deinit(&pool);
    return 0;
}
