/* Any bytes as a digests file. Its own digests keep a fuzzer from getting far, so they are mended first: the second try
 * parses the same counts and sizes with digests that agree. */
#include <assert.h>
#include <format/digests.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const uint8_t *bytes, size_t size)
{
    struct parsed_digests digests;
    const char *reason = NULL;
    uint64_t leaves = 0;

    if (digests_parse(bytes, size, &digests, &reason)) {
        assert(reason);
        return;
    }
    for (uint64_t i = 0; i < digests.tensor_count; i++) {
        assert(digests.first_leaf[i] == leaves);
        leaves += leaf_count_of(digests_tensor_bytes(&digests, i));
    }
    assert(leaves == digests.leaf_count && size == digests_file_size(digests.tensor_count, digests.leaf_count));
    parsed_digests_deinit(&digests);
}

static void mend(uint8_t *bytes, size_t size)
{
    uint64_t tensors, leaves, used = 0;

    memcpy(&tensors, bytes + 24, 8);
    memcpy(&leaves, bytes + 32, 8);
    if (digests_file_size(tensors, leaves) != size)
        return;
    for (uint64_t i = 0; i < tensors; i++) {
        uint8_t *tensor = bytes + 64 + 24 * i;
        uint64_t own, tensor_bytes;
        struct digest digest;

        memcpy(&tensor_bytes, tensor, 8);
        own = leaf_count_of(tensor_bytes);
        if (own > leaves - used)
            return;
        digest = tensor_digest_of((const struct digest *)(bytes + 64 + 24 * tensors) + used, own, tensor_bytes);
        memcpy(tensor + 8, &digest, sizeof digest);
        used += own;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    parse(data, size);
    memcpy(copy, data, size);
    if (size >= 64)
        mend(copy, size);
    parse(copy, size);
    free(copy);
    return 0;
}
