/* format/digests.c - tspool.digests, both ways. See digests.h for the layout. */
#include <format/digests.h>

#include <base/checked.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DIGESTS_MAGIC "TSPLDGST"
#define DIGESTS_VERSION 1
#define FRONT_BYTES 64
#define TENSOR_BYTES 24 /* size, digest */

static void u64_put(uint8_t *to, uint64_t value)
{
    value = htole64(value);
    memcpy(to, &value, sizeof value);
}

static uint64_t u64_at(const uint8_t *from)
{
    uint64_t value;

    memcpy(&value, from, sizeof value);
    return le64toh(value);
}

static void u32_put(uint8_t *to, uint32_t value)
{
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static uint32_t u32_at(const uint8_t *from)
{
    uint32_t value;

    memcpy(&value, from, sizeof value);
    return le32toh(value);
}

uint64_t leaf_count_of(uint64_t tensor_bytes) { return divide_up(tensor_bytes, LEAF_BYTES); }

struct digest tensor_digest_of(const struct digest *leaves, uint64_t leaf_count, uint64_t tensor_bytes)
{
    uint8_t size[8];

    u64_put(size, tensor_bytes);
    return hash_two(leaves, leaf_count * sizeof *leaves, size, sizeof size);
}

uint64_t digests_file_size(uint64_t tensor_count, uint64_t leaf_count)
{
    uint64_t tensors, leaves, size;

    if (!checked_mul(tensor_count, TENSOR_BYTES, &tensors) || !checked_mul(leaf_count, sizeof(struct digest), &leaves) ||
        !checked_add(tensors, leaves, &size) || !checked_add(size, FRONT_BYTES, &size))
        return 0;
    return size;
}

void digests_emit(const uint64_t *tensor_bytes, uint64_t tensor_count, const struct digest *leaves, uint64_t leaf_count,
                  void *out)
{
    uint8_t *front = out, *tensor = front + FRONT_BYTES;

    memset(front, 0, FRONT_BYTES);
    memcpy(front, DIGESTS_MAGIC, 8);
    u32_put(front + 8, DIGESTS_VERSION);
    u64_put(front + 16, LEAF_BYTES);
    u64_put(front + 24, tensor_count);
    u64_put(front + 32, leaf_count);
    if (leaf_count)
        memcpy(tensor + tensor_count * TENSOR_BYTES, leaves, leaf_count * sizeof *leaves);
    for (uint64_t i = 0; i < tensor_count; i++, tensor += TENSOR_BYTES) {
        uint64_t own = leaf_count_of(tensor_bytes[i]);
        struct digest digest = tensor_digest_of(leaves, own, tensor_bytes[i]);

        u64_put(tensor, tensor_bytes[i]);
        memcpy(tensor + 8, digest.bytes, sizeof digest.bytes);
        leaves += own;
    }
}

static int fault(const char **reason, const char *what)
{
    *reason = what;
    return -EBADMSG;
}

static int front_check(const uint8_t *front, uint64_t size, const char **reason)
{
    static const uint8_t zeros[24];

    if (size < FRONT_BYTES || memcmp(front, DIGESTS_MAGIC, 8))
        return fault(reason, "not a digests file, or cut off");
    if (u32_at(front + 8) > DIGESTS_VERSION) {
        *reason = "a newer version of the digests file";
        return -EPROTO;
    }
    if (u32_at(front + 8) != DIGESTS_VERSION || u32_at(front + 12) || memcmp(front + 40, zeros, sizeof zeros))
        return fault(reason, "the digests file's front is damaged");
    if (u64_at(front + 16) != LEAF_BYTES)
        return fault(reason, "the digests file has another leaf size");
    if (digests_file_size(u64_at(front + 24), u64_at(front + 32)) != size)
        return fault(reason, "the digests file's size disagrees with its counts");
    return 0;
}

/* Each tensor's leaves lie within the file's, all are used, and each tensor's digest is that of its leaves. */
static int tensors_check(const struct parsed_digests *digests, const char **reason)
{
    uint64_t leaf = 0;

    for (uint64_t i = 0; i < digests->tensor_count; i++) {
        uint64_t bytes = digests_tensor_bytes(digests, i), own = leaf_count_of(bytes);

        if (own > digests->leaf_count - leaf)
            return fault(reason, "a tensor's size disagrees with the leaf count");
        if (!digest_equal(tensor_digest_of(digests->leaves + leaf, own, bytes), digests_tensor(digests, i)))
            return fault(reason, "a tensor's digest disagrees with its leaves");
        digests->first_leaf[i] = leaf;
        leaf += own;
    }
    return leaf == digests->leaf_count ? 0 : fault(reason, "leaves that belong to no tensor");
}

int digests_parse(const void *bytes, uint64_t size, struct parsed_digests *digests, const char **reason)
{
    const uint8_t *front = bytes;
    struct parsed_digests parsed;
    int error = front_check(front, size, reason);

    if (error)
        return error;
    parsed.tensor_count = u64_at(front + 24);
    parsed.leaf_count = u64_at(front + 32);
    parsed.tensors = front + FRONT_BYTES;
    parsed.leaves = (const struct digest *)(parsed.tensors + parsed.tensor_count * TENSOR_BYTES);
    parsed.first_leaf = calloc(parsed.tensor_count ? parsed.tensor_count : 1, sizeof *parsed.first_leaf);
    if (!parsed.first_leaf) {
        *reason = "no memory";
        return -ENOMEM;
    }
    error = tensors_check(&parsed, reason);
    if (error) {
        free(parsed.first_leaf);
        return error;
    }
    *digests = parsed;
    return 0;
}

uint64_t digests_tensor_bytes(const struct parsed_digests *digests, uint64_t tensor)
{
    return u64_at(digests->tensors + tensor * TENSOR_BYTES);
}

struct digest digests_tensor(const struct parsed_digests *digests, uint64_t tensor)
{
    struct digest digest;

    memcpy(digest.bytes, digests->tensors + tensor * TENSOR_BYTES + 8, sizeof digest.bytes);
    return digest;
}

void parsed_digests_deinit(struct parsed_digests *digests)
{
    free(digests->first_leaf);
    *digests = (struct parsed_digests){ 0 };
}
