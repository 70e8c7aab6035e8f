/* Digests are part of the format: they must be the same on every machine, in one piece or in many, and the same that
 * `xxhsum -H2` prints. The expected values below are from xxhsum 0.8.1. */
#include <base/hash.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void assert_hex(struct digest digest, const char *expected)
{
    char hex[DIGEST_HEX_BYTES + 1];

    digest_to_hex(digest, hex);
    cr_assert_str_eq(hex, expected);
}

static uint8_t *pattern_create(size_t size)
{
    uint8_t *bytes = malloc(size);

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    return bytes;
}

Test(hash, agrees_with_xxhsum)
{
    char *megabyte = calloc(1, 1 << 20);

    assert_hex(hash_bytes("", 0), "99aa06d3014798d86001c324468d497f");
    assert_hex(hash_bytes(NULL, 0), "99aa06d3014798d86001c324468d497f");
    assert_hex(hash_bytes("abc", 3), "06b05ab6733a618578af5f94892f3950");
    assert_hex(hash_bytes(megabyte, 1 << 20), "b6ef17a3448492b6918780b90550bf34");
    free(megabyte);
}

Test(hash, does_not_depend_on_how_the_bytes_are_cut)
{
    const size_t sizes[] = { 0, 1, 3, 16, 17, 240, 241, 1023, 1024, 1025, 65536, 100003 },
                 cuts[] = { 1, 7, 64, 255, 256, 257, 4096 };
    struct hash_stream *stream = hash_stream_create();
    uint8_t *bytes = pattern_create(100003);

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof cuts / sizeof *cuts; j++) {
            hash_stream_reset(stream);
            for (size_t at = 0; at < sizes[i]; at += cuts[j])
                hash_stream_update(stream, bytes + at, sizes[i] - at < cuts[j] ? sizes[i] - at : cuts[j]);
            cr_assert(digest_equal(hash_stream_digest(stream), hash_bytes(bytes, sizes[i])), "%zu by %zu", sizes[i], cuts[j]);
        }
    hash_stream_destroy(stream);
    free(bytes);
}

Test(hash, a_fresh_stream_needs_no_reset)
{
    struct hash_stream *stream = hash_stream_create();

    hash_stream_update(stream, "abc", 3);
    cr_assert(digest_equal(hash_stream_digest(stream), hash_bytes("abc", 3)));
    hash_stream_destroy(stream);
    hash_stream_destroy(NULL);
}

Test(hash, a_digest_may_be_taken_midway)
{
    struct hash_stream *stream = hash_stream_create();

    hash_stream_update(stream, "ab", 2);
    cr_assert(digest_equal(hash_stream_digest(stream), hash_bytes("ab", 2)));
    hash_stream_update(stream, "c", 1);
    cr_assert(digest_equal(hash_stream_digest(stream), hash_bytes("abc", 3)));
    hash_stream_destroy(stream);
}

Test(hash, two_pieces_hash_as_one)
{
    uint8_t *bytes = pattern_create(5000);

    for (size_t cut = 0; cut <= 5000; cut += 125)
        cr_assert(digest_equal(hash_two(bytes, cut, bytes + cut, 5000 - cut), hash_bytes(bytes, 5000)), "cut at %zu", cut);
    cr_assert(digest_equal(hash_two(NULL, 0, NULL, 0), hash_bytes(NULL, 0)));
    free(bytes);
}

Test(hash, hex_goes_there_and_back)
{
    struct digest digest = hash_bytes("x", 1), back;
    char hex[DIGEST_HEX_BYTES + 1];

    digest_to_hex(digest, hex);
    cr_assert_eq(digest_from_hex(hex, &back), 0);
    cr_assert(digest_equal(digest, back));
    back.bytes[15] ^= 1;
    cr_assert_not(digest_equal(digest, back));
}

Test(hash, refuses_hex_of_another_form)
{
    const char *wrong[] = { "",
                            "0",
                            "0123456789abcdef0123456789abcde",
                            "0123456789abcdef0123456789abcdef0",
                            "0123456789ABCDEF0123456789abcdef",
                            "0123456789abcdeg0123456789abcdef",
                            " 123456789abcdef0123456789abcdef" };
    struct digest untouched = hash_bytes("x", 1), digest = untouched;

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_assert_eq(digest_from_hex(wrong[i], &digest), -EINVAL, "%s", wrong[i]);
    cr_assert(digest_equal(digest, untouched));
}
