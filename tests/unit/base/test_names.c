/* Names become paths. A name that climbs, hides, or looks like one of our own hidden directories must not get through. */
#include <base/names.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void assert_refused(const char *name, const char *reason_part)
{
    const char *reason = NULL;

    cr_assert_eq(checkpoint_name_check(name, &reason), -EINVAL, "'%s' was accepted", name);
    cr_assert(strstr(reason, reason_part), "'%s': %s", name, reason);
}

Test(names, accepts_what_people_call_checkpoints)
{
    const char *fine[] = {
        "a", "step-00001000", "run 7 (best)", "b.c.d", "\xc3\xa9poque", "\xf0\x9f\x90\x98", "a\\b", "~", "-rf"
    };
    const char *reason;

    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++)
        cr_assert_eq(checkpoint_name_check(fine[i], &reason), 0, "%s", fine[i]);
}

Test(names, refuses_names_that_climb_hide_or_are_not_text)
{
    assert_refused("", "empty");
    assert_refused(".", "'.'");
    assert_refused("..", "'.'");
    assert_refused(".hidden", "'.'");
    assert_refused("/", "'/'");
    assert_refused("a/b", "'/'");
    assert_refused("a/", "'/'");
    assert_refused("a\nb", "control");
    assert_refused("a\x7f", "control");
    assert_refused("a\xff", "UTF-8");
    assert_refused("\xc3", "UTF-8");
}

Test(names, length_limit_is_exact)
{
    char name[CHECKPOINT_NAME_MAX + 2];
    const char *reason;

    memset(name, 'n', sizeof name);
    name[CHECKPOINT_NAME_MAX] = 0;
    cr_assert_eq(checkpoint_name_check(name, &reason), 0);
    name[CHECKPOINT_NAME_MAX] = 'n';
    name[CHECKPOINT_NAME_MAX + 1] = 0;
    assert_refused(name, "long");
}

/* An encoder and a count of code points decide what is legal; the validator must agree on every one- to three-byte input. */
Test(names, utf8_agrees_with_the_definition_for_all_short_inputs)
{
    size_t legal = 0;

    for (uint32_t value = 0; value < 1u << 24; value += value < 1u << 16 ? 1 : 3) {
        const char bytes[3] = { (char)(value >> 16), (char)(value >> 8), (char)value };
        size_t size = value < 1u << 8 ? 1 : value < 1u << 16 ? 2 : 3;
        const uint8_t *at = (const uint8_t *)bytes + 3 - size;
        uint32_t code = size == 3 ? (at[0] & 15u) << 12 | (at[1] & 63u) << 6 | (at[2] & 63u) : 0;
        bool one_sequence = size == 3 && (at[0] & 0xf0) == 0xe0 && (at[1] & 0xc0) == 0x80 && (at[2] & 0xc0) == 0x80;

        if (one_sequence) {
            bool wanted = code >= 0x800 && !(code >= 0xd800 && code <= 0xdfff);
            cr_assert_eq(utf8_is_valid((const char *)at, 3), wanted, "%06x", value);
        }
        legal += size == 1 && utf8_is_valid((const char *)at, 1);
    }
    cr_assert_eq(legal, 128);
}

Test(names, utf8_refuses_overlong_surrogate_and_too_large)
{
    cr_assert(utf8_is_valid("\xf4\x8f\xbf\xbf", 4));         /* U+10FFFF */
    cr_assert_not(utf8_is_valid("\xf4\x90\x80\x80", 4));
    cr_assert_not(utf8_is_valid("\xf5\x80\x80\x80", 4));
    cr_assert_not(utf8_is_valid("\xf0\x8f\xbf\xbf", 4));     /* overlong */
    cr_assert_not(utf8_is_valid("\xc0\x80", 2));
    cr_assert_not(utf8_is_valid("\xc1\xbf", 2));
    cr_assert_not(utf8_is_valid("\xed\xa0\x80", 3));         /* U+D800 */
    cr_assert_not(utf8_is_valid("\xe2\x82", 2));             /* cut */
    cr_assert_not(utf8_is_valid("\x80", 1));
}

/* Eight ASCII bytes are taken at once: a bad byte must be seen wherever it stands. */
Test(names, utf8_sees_a_bad_byte_at_any_place)
{
    char bytes[40];

    for (size_t size = 1; size < sizeof bytes; size++)
        for (size_t bad = 0; bad < size; bad++) {
            memset(bytes, 'a', sizeof bytes);
            cr_assert(utf8_is_valid(bytes, size));
            bytes[bad] = (char)0xff;
            cr_assert_not(utf8_is_valid(bytes, size), "%zu of %zu", bad, size);
        }
}

Test(names, hidden_name_goes_there_and_back)
{
    const uint8_t id[16] = { 0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff };
    char hidden[HIDDEN_NAME_MAX + 1], name[CHECKPOINT_NAME_MAX + 1], longest[CHECKPOINT_NAME_MAX + 1];
    uint8_t back[16];

    hidden_name_make("step-1.5", id, hidden);
    cr_assert_str_eq(hidden, ".step-1.5.00112233445566778899aabbccddeeff");
    cr_assert(hidden_name_parse(hidden, name, back));
    cr_assert_str_eq(name, "step-1.5");
    cr_assert_arr_eq(back, id, 16);
    memset(longest, 'n', sizeof longest);
    longest[CHECKPOINT_NAME_MAX] = 0;
    hidden_name_make(longest, id, hidden);
    cr_assert_eq(strlen(hidden), HIDDEN_NAME_MAX);
    cr_assert(hidden_name_parse(hidden, name, back));
    cr_assert_str_eq(name, longest);
}

/* What sweeps hidden directories must never take somebody else's for ours. */
Test(names, hidden_name_of_others_is_not_ours)
{
    const char *others[] = { "", ".", ".git", "step-1.00112233445566778899aabbccddeeff", ".00112233445566778899aabbccddeeff",
                             "..00112233445566778899aabbccddeeff", ".a.00112233445566778899aabbccddeef",
                             ".a.00112233445566778899AABBCCDDEEFF", ".a00112233445566778899aabbccddeeff0",
                             "..a.00112233445566778899aabbccddeeff", ".a.00112233445566778899aabbccddeeff.partial" };
    char name[CHECKPOINT_NAME_MAX + 1] = "kept";
    uint8_t id[16];

    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_not(hidden_name_parse(others[i], name, id), "%s", others[i]);
    cr_assert_str_eq(name, "kept");
}

Test(names, files_are_called_as_the_stock_readers_expect)
{
    char name[SHARD_FILE_NAME_MAX + 1];

    shard_name_make(false, 0, 1, 1, name);
    cr_assert_str_eq(name, "model.safetensors");
    shard_name_make(false, 0, 2, 4, name);
    cr_assert_str_eq(name, "model-00002-of-00004.safetensors");
    shard_name_make(true, 0, 1, 1, name);
    cr_assert_str_eq(name, "shard-00001-model-00001-of-00001.safetensors");
    objects_name_make(0, name);
    cr_assert_str_eq(name, "objects-00001.bin");
    part_name_make(0, name);
    cr_assert_str_eq(name, "tspool.part-00001");
}

Test(names, the_largest_numbers_fit)
{
    char name[SHARD_FILE_NAME_MAX + 1];

    shard_name_make(true, UINT32_MAX, UINT32_MAX, UINT32_MAX, name);
    cr_assert_str_eq(name, "shard-4294967296-model-4294967295-of-4294967295.safetensors");
    part_name_make(UINT32_MAX, name);
    cr_assert_str_eq(name, "tspool.part-4294967296");
    cr_assert(part_name_is(name));
}

Test(names, part_records_are_told_from_other_files)
{
    const char *others[] = { "tspool.part-", "tspool.part-1", "tspool.part-0000a", "tspool.part-00001.partial",
                             "xtspool.part-00001", DIGESTS_NAME, MANIFEST_NAME };

    cr_assert(part_name_is("tspool.part-00001"));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_not(part_name_is(others[i]), "%s", others[i]);
}

Test(names, part_manifests_give_their_rank_and_are_no_part_records)
{
    const char *others[] = { "tspool.part-00001", "tspool.part-00000.json", "tspool.part-00001.json.partial", "tspool.part-1.json",
                             "tspool.part-4294967296.json", "tspool.part-00001.jsonx" };
    uint32_t number = 0;

    cr_assert(part_manifest_name_parse("tspool.part-00012.json", &number));
    cr_assert_eq(number, 12);
    cr_assert_not(part_name_is("tspool.part-00012.json"));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_not(part_manifest_name_parse(others[i], &number), "%s", others[i]);
    cr_assert_eq(number, 12);
}

/* What is being deleted must not pass for an attempt: others would wait for it, or put it back under its name. */
Test(names, gone_names_are_of_attempts_and_are_no_attempts)
{
    char hidden[HIDDEN_NAME_MAX + 1], gone[GONE_NAME_MAX + 1], back[HIDDEN_NAME_MAX + 1] = "", name[CHECKPOINT_NAME_MAX + 1];
    char longest[CHECKPOINT_NAME_MAX + 1];
    const char *others[] = { ".gone", ".x.gone", "x.000102030405060708090a0b0c0d0e0f.gone", ".x.000102030405060708090a0b0c0d0e0f",
                             ".x.000102030405060708090a0b0c0d0e0f.gone.gone", ".x.000102030405060708090a0b0c0d0e0f.Gone" };
    uint8_t id[16] = { 1, 2, 3 };

    memset(longest, 'n', CHECKPOINT_NAME_MAX);
    longest[CHECKPOINT_NAME_MAX] = '\0';
    hidden_name_make(longest, id, hidden);
    gone_name_make(hidden, gone);
    cr_assert_eq(strlen(gone), GONE_NAME_MAX);
    cr_assert(gone_name_parse(gone, back));
    cr_assert_str_eq(back, hidden);
    cr_assert_not(hidden_name_parse(gone, name, id));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_not(gone_name_parse(others[i], back), "%s", others[i]);
    cr_assert_str_eq(back, hidden);
}

/* A rank that saves again removes its own files: another rank's must not be taken for them. */
Test(names, files_of_a_rank_are_told_from_those_of_others)
{
    const char *const own[] = { "shard-00012-model-00001-of-00002.safetensors", "shard-00012-model-00001-of-00002.safetensors.partial",
                                "objects-00012.bin", "objects-00012.bin.partial", "tspool.digests-00012",
                                "tspool.part-00012.json", "tspool.part-00012.json.partial" };
    const char *const others[] = { "shard-00001-model-00001-of-00002.safetensors", "shard-00112-model-00001-of-00002.safetensors",
                                   "objects-00001.bin", "tspool.digests", "tspool.digests-00011", "tspool.part-00012",
                                   "tspool.part-00011.json", "model.safetensors", "tokenizer.json", MANIFEST_NAME, PUBLISH_NAME,
                                   ".partial", "" };

    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        cr_assert(file_name_is_of_rank(own[i], 11), "%s", own[i]);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        cr_assert_not(file_name_is_of_rank(others[i], 11), "%s", others[i]);
}

Test(names, of_parts_say_their_rank)
{
    char name[SHARD_FILE_NAME_MAX + 1];
    uint32_t number = 0;

    part_manifest_name_make(6, name);
    cr_assert_str_eq(name, "tspool.part-00007.json");
    cr_assert(part_manifest_name_parse(name, &number));
    cr_assert_eq(number, 7);
    cr_assert_not(part_manifest_name_parse("tspool.part-00000.json", &number));
    cr_assert_not(part_manifest_name_parse("tspool.part-00007.json.partial", &number));
    cr_assert_not(part_manifest_name_parse("tspool.part-00007", &number));
    digests_name_make(6, 1, name);
    cr_assert_str_eq(name, "tspool.digests");
    digests_name_make(6, 8, name);
    cr_assert_str_eq(name, "tspool.digests-00007");
}

Test(names, file_names_in_manifests_stay_in_their_directory)
{
    char longest[257];

    memset(longest, 'f', sizeof longest);
    longest[255] = 0;
    cr_assert(file_name_is_safe("model.safetensors"));
    cr_assert(file_name_is_safe(longest));
    longest[255] = 'f';
    longest[256] = 0;
    cr_assert_not(file_name_is_safe(longest));
    cr_assert_not(file_name_is_safe(""));
    cr_assert_not(file_name_is_safe(".."));
    cr_assert_not(file_name_is_safe("../x"));
    cr_assert_not(file_name_is_safe("/etc/passwd"));
    cr_assert_not(file_name_is_safe(".x"));
    cr_assert_not(file_name_is_safe("a\x01"));
    cr_assert_not(file_name_is_safe("\xed\xa0\x80"));
}

/* The sweep of a name's leftovers goes by these: what is somebody else's must never match. */
Test(names, hidden_name_of_a_stream_is_of_that_name_only)
{
    static const uint8_t random[8] = { 0, 1, 2, 0xab, 0xcd, 0xef, 0xff, 0x10 };
    char partial[256], longest[STREAMED_NAME_MAX + 1];

    streamed_partial_make("model.pt", random, partial);
    cr_assert_str_eq(partial, ".model.pt.tspool-000102abcdefff10.partial");
    cr_assert(streamed_partial_is_of(partial, "model.pt"));
    cr_assert_not(streamed_partial_is_of(partial, "model.p"));
    cr_assert_not(streamed_partial_is_of(partial, "model.pt2"));
    cr_assert_not(streamed_partial_is_of(partial, ""));
    cr_assert_not(streamed_partial_is_of(partial + 1, "model.pt"));
    cr_assert_not(streamed_partial_is_of(".model.pt.tspool-000102abcdefff1.partial", "model.pt"));
    cr_assert_not(streamed_partial_is_of(".model.pt.tspool-000102abcdefff1X.partial", "model.pt"));
    cr_assert_not(streamed_partial_is_of(".model.pt.tspool-000102abcdefff10.partiaL", "model.pt"));
    cr_assert_not(streamed_partial_is_of(".model.pt.tspool-000102abcdefff10", "model.pt"));
    cr_assert_not(streamed_partial_is_of("", "model.pt"));
    memset(longest, 'n', sizeof(longest));
    longest[STREAMED_NAME_MAX] = 0;
    streamed_partial_make(longest, random, partial);
    cr_assert_eq(strlen(partial), 255);
    cr_assert(streamed_partial_is_of(partial, longest));
}
