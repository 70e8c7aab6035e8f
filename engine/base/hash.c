/* base/hash.c - XXH3-128 behind two small types.
 *
 * The widest vector code the CPU offers is chosen at run time by libxxhash's own dispatcher, because distributions build
 * the library for the oldest CPU they support. The stream is libxxhash's state and is allocated by it: its size belongs
 * to the library that is loaded, not to the header that we were compiled with.
 */
#include <base/hash.h>

#include <errno.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* for the size of XXH3_state_t alone */
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

static struct digest canonical(XXH128_hash_t hash)
{
    struct digest digest;
    XXH128_canonical_t big_endian;

    XXH128_canonicalFromHash(&big_endian, hash);
    memcpy(digest.bytes, big_endian.digest, sizeof digest.bytes);
    return digest;
}

struct digest hash_bytes(const void *data, size_t size)
{
    return canonical(XXH3_128bits(size ? data : "", size)); /* NULL is fine for us, not for every build of it */
}

struct digest hash_two(const void *first, size_t first_size, const void *second, size_t second_size)
{
    /* Room to spare: the library that is loaded may have a larger state than the header we were compiled with. */
    _Alignas(64) union { XXH3_state_t state; uint8_t room[2 * sizeof(XXH3_state_t)]; } stack;

    XXH3_INITSTATE(&stack.state);
    XXH3_128bits_reset(&stack.state);
    if (first_size)
        XXH3_128bits_update(&stack.state, first, first_size);
    if (second_size)
        XXH3_128bits_update(&stack.state, second, second_size);
    return canonical(XXH3_128bits_digest(&stack.state));
}

struct hash_stream *hash_stream_create(void)
{
    XXH3_state_t *state = XXH3_createState();

    if (state)
        XXH3_128bits_reset(state);
    return (struct hash_stream *)state;
}

void hash_stream_destroy(struct hash_stream *stream) { XXH3_freeState((XXH3_state_t *)stream); }

void hash_stream_reset(struct hash_stream *stream) { XXH3_128bits_reset((XXH3_state_t *)stream); }

void hash_stream_update(struct hash_stream *stream, const void *data, size_t size)
{
    if (size)
        XXH3_128bits_update((XXH3_state_t *)stream, data, size);
}

struct digest hash_stream_digest(const struct hash_stream *stream)
{
    return canonical(XXH3_128bits_digest((const XXH3_state_t *)stream));
}

void digest_to_hex(struct digest digest, char hex[DIGEST_HEX_BYTES + 1])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < sizeof digest.bytes; i++) {
        hex[2 * i] = digits[digest.bytes[i] >> 4];
        hex[2 * i + 1] = digits[digest.bytes[i] & 15];
    }
    hex[DIGEST_HEX_BYTES] = 0;
}

static int nibble_of(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    return -1;
}

int digest_from_hex(const char *hex, struct digest *digest)
{
    struct digest parsed;

    for (size_t i = 0; i < DIGEST_HEX_BYTES; i++) { /* stops at a NUL: it is no digit */
        int nibble = nibble_of(hex[i]);
        if (nibble < 0)
            return -EINVAL;
        parsed.bytes[i / 2] = (uint8_t)(i % 2 ? parsed.bytes[i / 2] | nibble : nibble << 4);
    }
    if (hex[DIGEST_HEX_BYTES])
        return -EINVAL;
    *digest = parsed;
    return 0;
}

int digest_equal(struct digest a, struct digest b) { return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0; }
