/* The digests file is what verify believes. It is covered by the manifest, but must also hold on its own: no count that
 * overflows, no leaf that belongs to two tensors, no digest that is not its leaves'. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/digests.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t sizes[] = { 0, 1, LEAF_BYTES, LEAF_BYTES + 1, 3ull * LEAF_BYTES, 0, 17 };
enum { TENSORS = sizeof sizes / sizeof *sizes, LEAVES = 0 + 1 + 1 + 2 + 3 + 0 + 1 };

static uint8_t *file_create(uint64_t *size)
{
    struct digest leaves[LEAVES];
    uint8_t *file;

    for (uint8_t i = 0; i < LEAVES; i++)
        leaves[i] = hash_bytes(&i, 1);
    *size = digests_file_size(TENSORS, LEAVES);
    file = malloc(*size);
    digests_emit(sizes, TENSORS, leaves, LEAVES, file);
    return file;
}

static void assert_refused(uint8_t *file, uint64_t size, const char *reason_part)
{
    struct parsed_digests digests = { .tensor_count = 99 };
    const char *reason = "";

    cr_assert_eq(digests_parse(file, size, &digests, &reason), -EBADMSG);
    cr_assert(strstr(reason, reason_part), "refused because %s, not %s", reason, reason_part);
    cr_assert_eq(digests.tensor_count, 99);
}

Test(digests, leaves_are_counted_from_the_tensor)
{
    cr_assert_eq(leaf_count_of(0), 0);
    cr_assert_eq(leaf_count_of(1), 1);
    cr_assert_eq(leaf_count_of(LEAF_BYTES), 1);
    cr_assert_eq(leaf_count_of(LEAF_BYTES + 1), 2);
    cr_assert_eq(leaf_count_of(UINT64_MAX), UINT64_C(1) << 42);
}

Test(digests, file_size_overflow_is_zero)
{
    cr_assert_eq(digests_file_size(0, 0), 64);
    cr_assert_eq(digests_file_size(2, 3), 64 + 48 + 48);
    cr_assert_eq(digests_file_size(UINT64_MAX / 24 + 1, 0), 0);
    cr_assert_eq(digests_file_size(0, UINT64_MAX / 16 + 1), 0);
    cr_assert_eq(digests_file_size(UINT64_MAX / 24, UINT64_MAX / 16), 0);
    cr_assert_eq(digests_file_size(UINT64_MAX / 24, 0), 0);
}

/* docs/FORMAT.md: over the leaf digests in order, then the size as u64 LE. */
Test(digests, tensor_digest_is_what_the_format_says)
{
    uint8_t spelled[2 * 16 + 8] = { 0 };
    struct digest leaves[2] = { hash_bytes("a", 1), hash_bytes("b", 1) };

    memcpy(spelled, leaves, 32);
    spelled[32] = 0x02;
    spelled[34] = 0x40; /* 0x400002 */
    cr_assert(digest_equal(tensor_digest_of(leaves, 2, LEAF_BYTES + 2), hash_bytes(spelled, sizeof spelled)));
    memset(spelled, 0, 8);
    cr_assert(digest_equal(tensor_digest_of(NULL, 0, 0), hash_bytes(spelled, 8)));
}

Test(digests, layout_is_the_documented_one)
{
    uint64_t size, word;
    uint8_t *file = file_create(&size);
    uint32_t version;

    cr_assert_eq(size, 64 + 24 * TENSORS + 16 * LEAVES);
    cr_assert_eq(memcmp(file, "TSPLDGST", 8), 0);
    memcpy(&version, file + 8, 4);
    cr_assert_eq(version, 1);
    memcpy(&word, file + 16, 8);
    cr_assert_eq(word, 4194304);
    memcpy(&word, file + 24, 8);
    cr_assert_eq(word, TENSORS);
    memcpy(&word, file + 32, 8);
    cr_assert_eq(word, LEAVES);
    memcpy(&word, file + 64 + 24 * 3, 8);
    cr_assert_eq(word, LEAF_BYTES + 1);
    free(file);
}

Test(digests, go_there_and_back)
{
    const uint64_t first[] = { 0, 0, 1, 2, 4, 7, 7 };
    struct parsed_digests digests;
    const char *reason = "";
    uint64_t size;
    uint8_t *file = file_create(&size);

    cr_assert_eq(digests_parse(file, size, &digests, &reason), 0, "%s", reason);
    cr_assert_eq(digests.tensor_count, TENSORS);
    cr_assert_eq(digests.leaf_count, LEAVES);
    for (uint8_t i = 0; i < TENSORS; i++) {
        cr_assert_eq(digests_tensor_bytes(&digests, i), sizes[i]);
        cr_assert_eq(digests.first_leaf[i], first[i]);
        cr_assert(digest_equal(digests_tensor(&digests, i),
                               tensor_digest_of(digests.leaves + first[i], leaf_count_of(sizes[i]), sizes[i])));
    }
    for (uint8_t i = 0; i < LEAVES; i++)
        cr_assert(digest_equal(digests.leaves[i], hash_bytes(&i, 1)));
    parsed_digests_deinit(&digests);
    free(file);
}

Test(digests, of_no_tensors_go_there_and_back)
{
    uint8_t file[64];
    struct parsed_digests digests;
    const char *reason = "";

    digests_emit(NULL, 0, NULL, 0, file);
    cr_assert_eq(digests_parse(file, sizeof file, &digests, &reason), 0, "%s", reason);
    parsed_digests_deinit(&digests);
}

Test(digests, a_newer_version_is_not_called_damaged)
{
    struct parsed_digests digests;
    const char *reason;
    uint64_t size;
    uint8_t *file = file_create(&size);

    file[8] = 2;
    cr_assert_eq(digests_parse(file, size, &digests, &reason), -EPROTO);
    free(file);
}

Test(digests, counts_that_lie_are_refused)
{
    const uint64_t huge[] = { TENSORS + 1, TENSORS - 1, UINT64_MAX, UINT64_MAX / 24, UINT64_C(1) << 60 };
    uint64_t size, word;
    uint8_t *file = file_create(&size);

    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        memcpy(file + 24, &huge[i], 8);
        assert_refused(file, size, "counts");
    }
    word = TENSORS;
    memcpy(file + 24, &word, 8);
    word = UINT64_MAX;
    memcpy(file + 64, &word, 8);
    assert_refused(file, size, "leaf count");
    free(file);
}

Test(digests, leaves_of_no_tensor_are_refused)
{
    struct digest leaves[2] = { hash_bytes("a", 1), hash_bytes("b", 1) };
    const uint64_t one = 1, two = LEAF_BYTES + 1;
    uint8_t file[64 + 24 + 32];
    struct digest own;

    digests_emit(&two, 1, leaves, 2, file);
    memcpy(file + 64, &one, 8);
    own = tensor_digest_of(leaves, 1, 1);
    memcpy(file + 72, &own, 16);
    assert_refused(file, sizeof file, "no tensor");
}

Test(digests, every_truncation_is_refused)
{
    uint64_t size;
    uint8_t *file = file_create(&size);

    for (uint64_t cut = 0; cut < size; cut++) {
        uint8_t *copy = malloc(cut ? cut : 1);

        memcpy(copy, file, cut);
        assert_refused(copy, cut, "");
        free(copy);
    }
    free(file);
}

/* Everything in the file is checked by something, so no changed bit may pass. */
Test(digests, every_flipped_bit_is_refused)
{
    uint64_t size;
    uint8_t *file = file_create(&size);

    for (uint64_t bit = 0; bit < size * 8; bit++) {
        struct parsed_digests digests;
        const char *reason;
        int error;

        file[bit / 8] ^= (uint8_t)(1 << bit % 8);
        error = digests_parse(file, size, &digests, &reason);
        cr_assert(error == -EBADMSG || (error == -EPROTO && bit / 8 >= 8 && bit / 8 < 12), "bit %lu: %d", bit, error);
        file[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(file);
}
