/* The header is what every other reader sees of us. Python's safetensors opens what is emitted in tests/exchange; here:
 * the exact bytes, the alignment, and that parsing gives back what went in. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/safetensors.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t shape_2x3[] = { 2, 3 }, offsets_4x0[] = { 4, 0 };

struct built { char *bytes; size_t size; };

static struct built build(const struct header_entry *entries, size_t count, int sharded, const struct header_pair *pairs,
                          size_t pair_count)
{
    struct built built = { 0 };
    void *bytes = NULL;

    cr_assert_eq(header_build(entries, count, sharded, pairs, pair_count, SAFETENSORS_DATA_ALIGN, &bytes, &built.size), 0);
    built.bytes = bytes;
    return built;
}

/* Exactly `json`, padded with spaces to a whole number of 4096 bytes. */
static void assert_json(struct built built, const char *json)
{
    uint64_t length;

    memcpy(&length, built.bytes, sizeof length);
    cr_assert_eq(built.size % SAFETENSORS_DATA_ALIGN, 0);
    cr_assert_eq(length, built.size - 8);
    cr_assert_eq(memcmp(built.bytes + 8, json, strlen(json)), 0, "%.*s", (int)strlen(json), built.bytes + 8);
    for (size_t i = 8 + strlen(json); i < built.size; i++)
        cr_assert_eq(built.bytes[i], ' ');
}

Test(header_emit, writes_entries_as_the_format_says)
{
    const struct header_entry entries[] = { { "w", TSPOOL_F32, 2, shape_2x3, 0, 24, NULL },
                                            { "s", TSPOOL_BF16, 0, NULL, 24, 26, NULL } };
    struct built built = build(entries, 2, 0, NULL, 0);

    assert_json(built, "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                       "\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[24,26]}}");
    free(built.bytes);
}

Test(header_emit, writes_pairs_first)
{
    const struct header_entry entry = { "w", TSPOOL_F32, 2, shape_2x3, 0, 24, NULL };
    const struct header_pair pairs[] = { { "format", "pt" }, { "tied", "w" } };
    struct built built = build(&entry, 1, 0, pairs, 2);

    assert_json(built, "{\"__metadata__\":{\"format\":\"pt\",\"tied\":\"w\"},"
                       "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}");
    free(built.bytes);
}

Test(header_emit, writes_sharding_as_dcp_reads_it)
{
    const struct header_entry entries[] = { { "w", TSPOOL_F32, 2, shape_2x3, 0, 24, offsets_4x0 },
                                            { "v", TSPOOL_U8, 2, shape_2x3, 24, 30, NULL } };
    const struct header_pair pairs[] = { { "format", "np" }, { "t", "w" } };
    struct built built = build(entries, 2, 1, pairs, 2);

    assert_json(built, "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{\\\"w\\\":{\\\"saved_offsets\\\":[4,0]},"
                       "\\\"v\\\":{\\\"saved_offsets\\\":[0,0]}}\",\"DCP_VERSION\":\"1.0\",\"format\":\"pt\",\"t\":\"w\"},"
                       "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                       "\"v\":{\"dtype\":\"U8\",\"shape\":[2,3],\"data_offsets\":[24,30]}}");
    free(built.bytes);
}

Test(header_emit, a_file_without_tensors_is_an_empty_object)
{
    struct built built = build(NULL, 0, 0, NULL, 0);

    assert_json(built, "{}");
    free(built.bytes);
    built = build(NULL, 0, 1, NULL, 0);
    assert_json(built, "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{}\",\"DCP_VERSION\":\"1.0\",\"format\":\"pt\"}}");
    free(built.bytes);
}

Test(header_emit, escapes_names_once_and_in_sharding_twice)
{
    const struct header_entry entry = { "a\"b\\c\n\xc3\xa9", TSPOOL_U8, 0, NULL, 0, 1, NULL };
    struct built built = build(&entry, 1, 1, NULL, 0);

    assert_json(built, "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{\\\"a\\\\\\\"b\\\\\\\\c\\\\u000a\xc3\xa9\\\":"
                       "{\\\"saved_offsets\\\":[]}}\","
                       "\"DCP_VERSION\":\"1.0\",\"format\":\"pt\"},"
                       "\"a\\\"b\\\\c\\u000a\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}");
    free(built.bytes);
}

/* JSON of 4087, 4088 and 4089 bytes: the last that fits one block of 4096 with the length is 4088. */
Test(header_emit, pads_to_the_alignment_and_no_further)
{
    static const char frame[] = "{\"\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}";

    for (size_t json_size = 4087; json_size <= 4089; json_size++) {
        char name[4096] = "";
        const struct header_entry entry = { name, TSPOOL_U8, 0, NULL, 0, 1, NULL };
        struct built built;

        memset(name, 'n', json_size - (sizeof frame - 1));
        built = build(&entry, 1, 0, NULL, 0);
        cr_assert_eq(built.size, json_size <= 4088 ? 4096 : 8192, "JSON of %zu bytes", json_size);
        free(built.bytes);
    }
}

Test(header_emit, obeys_a_larger_alignment)
{
    void *bytes;
    size_t size;

    cr_assert_eq(header_build(NULL, 0, 0, NULL, 0, 65536, &bytes, &size), 0);
    cr_assert_eq(size, 65536);
    free(bytes);
}

Test(header_emit, refuses_what_no_reader_takes)
{
    const struct header_entry reserved = { "__metadata__", TSPOOL_U8, 0, NULL, 0, 1, NULL };
    const struct header_entry not_text = { "a\xff", TSPOOL_U8, 0, NULL, 0, 1, NULL };
    const struct header_entry no_dtype = { "a", TSPOOL_DTYPE_INVALID, 0, NULL, 0, 1, NULL };
    const struct header_pair bad_pair = { "k", "\xff" };
    void *bytes = &bytes;
    size_t size = 7;

    cr_assert_eq(header_build(&reserved, 1, 0, NULL, 0, 4096, &bytes, &size), -EINVAL);
    cr_assert_eq(header_build(&not_text, 1, 0, NULL, 0, 4096, &bytes, &size), -EINVAL);
    cr_assert_eq(header_build(&no_dtype, 1, 0, NULL, 0, 4096, &bytes, &size), -EINVAL);
    cr_assert_eq(header_build(NULL, 0, 0, &bad_pair, 1, 4096, &bytes, &size), -EINVAL);
    cr_assert_eq(bytes, &bytes);
    cr_assert_eq(size, 7);
}

Test(header_emit, refuses_a_header_beyond_the_limit)
{
    char *value = malloc(SAFETENSORS_HEADER_MAX + 1);
    const struct header_pair pair = { "k", value };
    void *bytes;
    size_t size;

    memset(value, 'v', SAFETENSORS_HEADER_MAX);
    value[SAFETENSORS_HEADER_MAX] = 0;
    cr_assert_eq(header_build(NULL, 0, 0, &pair, 1, 4096, &bytes, &size), -E2BIG);
    value[SAFETENSORS_HEADER_MAX - 10000] = 0;
    cr_assert_eq(header_build(NULL, 0, 0, &pair, 1, 4096, &bytes, &size), 0);
    free(bytes);
    free(value);
}

/* The planner ends a file by these bounds: a header that outgrows them would be refused only after everything is laid out. */
Test(header_emit, bounds_hold_for_the_hardest_names)
{
    char quotes[400] = "", controls[400] = ""; /* long: a byte too few for each shows through the slack of the frame */
    const char *names[] = { quotes, controls, "", "w", "\x01\x02\x1f", "\"\\\"\\", "\xc3\xa9\xf0\x9f\x90\x98", "a\nb\"c\\d" };
    const uint64_t shape[] = { UINT64_MAX, 0, 1, 9, 10, 99, 100 };
    const struct header_pair pairs[] = { { "\x01\"", "\\\x02" }, { "", "" } };

    memset(quotes, '"', sizeof quotes - 1);
    memset(controls, '\n', sizeof controls - 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (uint32_t rank = 0; rank <= 7; rank++)
            for (int sharded = 0; sharded < 2; sharded++) {
                struct header_entry entry = { names[i], TSPOOL_F8_E4M3FNUZ, rank, shape, UINT64_MAX - 1, UINT64_MAX, shape };
                size_t bound = header_entry_bound(&entry, sharded) + header_pair_bound(&pairs[0]) + header_pair_bound(&pairs[1]);
                struct built built = build(&entry, 1, sharded, pairs, 2);
                const char *end = built.bytes + built.size;

                while (end[-1] == ' ')
                    end--;
                cr_assert_leq((size_t)(end - built.bytes), bound + HEADER_FRAME_BOUND);
                cr_assert_geq((size_t)(end - built.bytes) + HEADER_FRAME_BOUND, bound,
                              "a bound far from the truth splits files for nothing");
                free(built.bytes);
            }
}

/* Random entries there and back ------------------------------------------------------------------------------------ */

static uint64_t random_state = 42;

static uint64_t random_next(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

#define ENTRIES 40

struct sample {
    struct header_entry entries[ENTRIES];
    char names[ENTRIES][64];
    uint64_t shapes[ENTRIES][6], offsets[ENTRIES][6];
    size_t count;
    uint64_t data_bytes;
};

static void sample_entry(struct sample *sample, size_t i)
{
    static const char *const tails[] = { "", "\xe2\x82\xac", "\"", "\\", "\n", "\x1f",
                                         "\xf0\x9f\x92\xbe", "__metadata__", "/", " " };
    struct header_entry *entry = &sample->entries[i];
    uint64_t bits;

    snprintf(sample->names[i], sizeof sample->names[i], "%s.layer.%zu.%s", tails[random_next() % 10], i,
             tails[random_next() % 10]);
    *entry = (struct header_entry){ sample->names[i], (enum tspool_dtype)(1 + random_next() % (TSPOOL_DTYPE_COUNT - 1)),
                                    (uint32_t)(random_next() % 7), sample->shapes[i], sample->data_bytes, 0, NULL };
    bits = tspool_dtype_bits(entry->dtype);
    for (uint32_t d = 0; d < entry->rank; d++) {
        sample->shapes[i][d] = (random_next() % 5) * (random_next() % 8 ? 1 : 100);
        sample->offsets[i][d] = random_next();
    }
    if (bits % 8 && entry->rank)
        sample->shapes[i][0] *= 4;
    else if (bits % 8)
        entry->dtype = TSPOOL_U8;
    bits = tspool_dtype_bits(entry->dtype);
    for (uint32_t d = 0; d < entry->rank; d++)
        bits *= sample->shapes[i][d];
    entry->end = sample->data_bytes += bits / 8;
    entry->global_offsets = random_next() % 4 ? sample->offsets[i] : NULL;
}

static const struct parsed_tensor *find(const struct parsed_header *header, const char *name)
{
    for (size_t i = 0; i < header->count; i++)
        if (!strcmp(header->tensors[i].name, name))
            return &header->tensors[i];
    cr_assert_fail("%s is missing", name);
    return NULL;
}

static void assert_same(const struct parsed_tensor *tensor, const struct header_entry *entry, int sharded)
{
    cr_assert_eq(tensor->dtype, entry->dtype);
    cr_assert_eq(tensor->rank, entry->rank);
    cr_assert_eq(tensor->begin, entry->begin);
    cr_assert_eq(tensor->end, entry->end);
    cr_assert_eq(tensor->global_offsets != NULL, sharded);
    for (uint32_t d = 0; d < entry->rank; d++) {
        cr_assert_eq(tensor->shape[d], entry->shape[d]);
        if (sharded)
            cr_assert_eq(tensor->global_offsets[d], entry->global_offsets ? entry->global_offsets[d] : 0);
    }
}

Test(header_emit, what_is_emitted_is_parsed_back)
{
    static struct sample sample;

    for (int round = 0; round < 300; round++) {
        struct parsed_header header;
        struct built built;
        const char *reason = "";
        size_t position;
        uint64_t json_size;
        int sharded = round % 2;

        sample.count = random_next() % (ENTRIES + 1);
        sample.data_bytes = 0;
        for (size_t i = 0; i < sample.count; i++)
            sample_entry(&sample, i);
        built = build(sample.entries, sample.count, sharded, NULL, 0);
        cr_assert_eq(header_length_check((uint8_t *)built.bytes, built.size + sample.data_bytes, &json_size, &reason), 0);
        cr_assert_eq(header_parse(built.bytes + 8, json_size, sample.data_bytes, &header, &reason, &position), 0, "%s", reason);
        cr_assert_eq(header.count, sample.count);
        cr_assert_eq(header.data_bytes, sample.data_bytes);
        for (size_t i = 0; i < sample.count; i++)
            assert_same(find(&header, sample.names[i]), &sample.entries[i], sharded);
        parsed_header_deinit(&header);
        free(built.bytes);
    }
}

Test(header_emit, a_large_header_is_parsed_back_in_order)
{
    enum { COUNT = 200000 };
    struct header_entry *entries = calloc(COUNT, sizeof *entries);
    char (*names)[24] = calloc(COUNT, sizeof *names);
    const uint64_t shape[] = { 4 };
    struct parsed_header header;
    struct built built;
    const char *reason = "";
    size_t position;

    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof *names, "t.%zu", i * 7919 % COUNT);
        entries[i] = (struct header_entry){ names[i], TSPOOL_F32, 1, shape, i * 16, i * 16 + 16, NULL };
    }
    built = build(entries, COUNT, 1, NULL, 0);
    cr_assert_eq(header_parse(built.bytes + 8, built.size - 8, COUNT * 16, &header, &reason, &position), 0, "%s", reason);
    cr_assert_eq(header.count, COUNT);
    for (size_t i = 0; i < COUNT; i++)
        cr_assert_str_eq(header.tensors[i].name, names[i]);
    parsed_header_deinit(&header);
    free(built.bytes);
    free(names);
    free(entries);
}
