/* Headers come from anywhere. Whatever Python's safetensors refuses must be refused (tests/exchange compares at random;
 * here are the rules one by one), and nothing may crash, over-read or allocate without bound. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/safetensors.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From a heap copy of exact size, so that reading one byte too many is seen by the sanitizer. */
static int parse(const char *json, size_t size, uint64_t data_bytes, struct parsed_header *header, const char **reason)
{
    char *copy = malloc(size ? size : 1);
    size_t position = SIZE_MAX;
    int error;

    memcpy(copy, json, size);
    error = header_parse(copy, size, data_bytes, header, reason, &position);
    if (error)
        cr_assert_leq(position, size);
    free(copy);
    return error;
}

static void assert_accepted(const char *json, uint64_t data_bytes)
{
    struct parsed_header header;
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), data_bytes, &header, &reason), 0, "%s: %s", json, reason);
    parsed_header_deinit(&header);
}

static void assert_refused(const char *json, uint64_t data_bytes, const char *reason_part)
{
    struct parsed_header header = { .count = 99 };
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), data_bytes, &header, &reason), -EBADMSG, "%s was accepted", json);
    cr_assert(strstr(reason, reason_part), "%s: refused because %s, not %s", json, reason, reason_part);
    cr_assert_eq(header.count, 99);
}

#define ENTRY(begin, end) "{\"dtype\":\"U8\",\"shape\":[" #end "],\"data_offsets\":[" #begin "," #end "]}"

Test(header_parse, takes_an_ordinary_header)
{
    static const char json[] = " {\"__metadata__\" : {\"format\":\"pt\"},\t\"b\":"
                               "{\"data_offsets\":[4, 28],\"shape\":[2,3],\"dtype\":\"F32\"},\n"
                               "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}      ";
    struct parsed_header header;
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), 28, &header, &reason), 0, "%s", reason);
    cr_assert_eq(header.count, 2);
    cr_assert_str_eq(header.tensors[0].name, "a");
    cr_assert_str_eq(header.tensors[1].name, "b");
    cr_assert_eq(header.tensors[1].dtype, TSPOOL_F32);
    cr_assert_eq(header.tensors[1].rank, 2);
    cr_assert_eq(header.tensors[1].shape[1], 3);
    cr_assert_eq(header.tensors[1].begin, 4);
    cr_assert_eq(header.tensors[1].end, 28);
    cr_assert_null(header.tensors[1].global_offsets);
    cr_assert_eq(header.data_bytes, 28);
    cr_assert_eq(header.metadata_count, 1);
    cr_assert_str_eq(header.metadata[0].key, "format");
    cr_assert_str_eq(header.metadata[0].value, "pt");
    parsed_header_deinit(&header);
}

Test(header_parse, takes_files_without_tensors)
{
    assert_accepted("{}", 0);
    assert_accepted("  { }  \n", 0);
    assert_accepted("{\"__metadata__\":{}}", 0);
    assert_accepted("{\"__metadata__\":null}", 0);
    assert_refused("{}", 1, "after its last tensor");
}

Test(header_parse, length_is_checked_against_the_file)
{
    const uint64_t wrong[] = { 0, 1, 93, SAFETENSORS_HEADER_MAX + 1, UINT64_MAX, UINT64_MAX - 7 };
    uint64_t json_size = 5, length = 92;
    const char *reason = NULL;

    cr_assert_eq(header_length_check((uint8_t *)&length, 100, &json_size, &reason), 0);
    cr_assert_eq(json_size, 92);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_assert_eq(header_length_check((const uint8_t *)&wrong[i], 100, &json_size, &reason), -EBADMSG);
        cr_assert_not_null(reason);
    }
    length = 2;
    cr_assert_eq(header_length_check((uint8_t *)&length, 7, &json_size, &reason), -EBADMSG);
    cr_assert_eq(json_size, 92);
}

Test(header_parse, data_is_covered_without_hole_overlap_or_rest)
{
    assert_accepted("{\"a\":" ENTRY(0, 4) "}", 4);
    assert_refused("{\"a\":" ENTRY(0, 4) "}", 3, "too short");
    assert_refused("{\"a\":" ENTRY(0, 4) "}", 5, "after its last tensor");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[1,5]}}", 5, "no tensor covers");
    assert_refused("{\"a\":" ENTRY(0, 4) ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]}}", 6,
                   "no tensor covers");
    assert_refused("{\"a\":" ENTRY(0, 4) ",\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[3,6]}}", 6, "overlap");
    assert_refused("{\"a\":" ENTRY(0, 4) ",\"b\":" ENTRY(0, 4) "}", 4, "overlap");
}

Test(header_parse, empty_tensors_may_stand_anywhere)
{
    assert_accepted("{\"a\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0);
    assert_accepted("{\"z\":" ENTRY(0, 4) ",\"m\":{\"dtype\":\"F64\",\"shape\":[7,0],\"data_offsets\":[0,0]},"
                    "\"e\":{\"dtype\":\"F64\",\"shape\":[0,9],\"data_offsets\":[4,4]}}", 4);
    assert_refused("{\"z\":" ENTRY(0, 4) ",\"e\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[2,2]}}", 4, "overlap");
}

Test(header_parse, sizes_agree_with_dtype_and_shape)
{
    assert_refused("{\"a\":{\"dtype\":\"U16\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "disagree");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,0]}}", 0, "disagree");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[4,3]}}", 4, "before it begins");
    assert_accepted("{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", 2);
    assert_accepted("{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3);
    assert_refused("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, "within a byte");
}

Test(header_parse, overflowing_shapes_are_refused)
{
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, "64 bits");
    assert_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2305843009213693952,1],\"data_offsets\":[0,0]}}", 0, "64 bits");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, "64 bits");
    assert_accepted("{\"a\":{\"dtype\":\"U8\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]}}", 0);
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,0]}}", 0, "64 bits");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[18446744073709551615,18446744073709551616]}}", 1,
                   "64 bits");
}

Test(header_parse, names_given_twice_are_refused)
{
    assert_refused("{\"a\":" ENTRY(0, 4) ",\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", 4, "given twice");
    assert_refused("{\"a\":" ENTRY(0, 4) ",\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}}", 4,
                   "given twice");
    assert_refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "given twice");
    assert_refused("{\"__metadata__\":{},\"\\u005f_metadata__\":{}}", 0, "given twice");
    assert_refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "given twice");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "given twice");
}

Test(header_parse, members_are_all_there_and_of_their_type)
{
    assert_refused("{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "missing");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0, "missing");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, "missing");
    assert_refused("{\"a\":{\"dtype\":\"X8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "dtype");
    assert_refused("{\"a\":{\"dtype\":8,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "string");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0.0],\"data_offsets\":[0,0]}}", 0, "integer");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0e0],\"data_offsets\":[0,0]}}", 0, "integer");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, "integer");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[00],\"data_offsets\":[0,0]}}", 0, "zero");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":0,\"data_offsets\":[0,0]}}", 0, "array");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0]}}", 0, "two numbers");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0,0]}}", 0, "two numbers");
    assert_refused("{\"a\":null}", 0, "object");
    assert_refused("{\"__metadata__\":{\"k\":1}}", 0, "string");
    assert_refused("{\"__metadata__\":\"k\"}", 0, "object");
    assert_refused("[]", 0, "object");
}

Test(header_parse, unknown_members_of_a_tensor_are_skipped)
{
    assert_accepted("{\"a\":{\"dtype\":\"U8\",\"x\":{\"y\":[1,-2.5e3,true,false,null,\"\\ud83d\\ude00\",{}],\"y\":[]},"
                    "\"shape\":[0],\"data_offsets\":[0,0]}}", 0);
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"x\":01,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "malformed");
    assert_refused("{\"a\":{\"dtype\":\"U8\",\"x\":1e999,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "out of range");
}

Test(header_parse, names_are_unescaped)
{
    static const char json[] = "{\"\\u0061\\n\\\"\\\\\\/\\ud83d\\ude00\\u00e9\\u20ac\":"
                               "{\"\\u0064type\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}";
    struct parsed_header header;
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), 1, &header, &reason), 0, "%s", reason);
    cr_assert_str_eq(header.tensors[0].name, "a\n\"\\/\xf0\x9f\x98\x80\xc3\xa9\xe2\x82\xac");
    parsed_header_deinit(&header);
}

Test(header_parse, broken_text_is_refused)
{
    assert_refused("", 0, "object");
    assert_refused("   ", 0, "object");
    assert_refused("{", 0, "string");
    assert_refused("{}}", 0, "after the JSON value");
    assert_refused("{} {}", 0, "after the JSON value");
    assert_refused("{\"a\":" ENTRY(0, 4) ",}", 4, "string");
    assert_refused("{\"a\" " ENTRY(0, 4) "}", 4, "':'");
    assert_refused("{\"a\n\":" ENTRY(0, 4) "}", 4, "control");
    assert_refused("{\"a\\x\":" ENTRY(0, 4) "}", 4, "escape");
    assert_refused("{\"a\\u00g0\":" ENTRY(0, 4) "}", 4, "escape");
    assert_refused("{\"\\ud800\":" ENTRY(0, 4) "}", 4, "escape");
    assert_refused("{\"\\udc00\":" ENTRY(0, 4) "}", 4, "escape");
    assert_refused("{\"\\ud800\\ud800\":" ENTRY(0, 4) "}", 4, "escape");
    assert_refused("{\"\xff\":" ENTRY(0, 4) "}", 4, "UTF-8");
    assert_refused("{\"a\\u0000b\":" ENTRY(0, 4) "}", 4, "NUL");
    assert_refused("\xef\xbb\xbf{}", 0, "object");
}

Test(header_parse, padding_is_white_space_only)
{
    struct parsed_header header;
    const char *reason;

    assert_accepted("{}\t\r\n ", 0);
    cr_assert_eq(parse("{}\0\0", 4, 0, &header, &reason), -EBADMSG);
}

/* A recursive skip of "[[[[..." would eat the stack. */
Test(header_parse, deep_nesting_is_refused)
{
    enum { DEPTH = 1000000 };
    static const char front[] = "{\"a\":{\"x\":";
    char *json = malloc(sizeof front + DEPTH);
    struct parsed_header header;
    const char *reason = "";

    memcpy(json, front, sizeof front - 1);
    memset(json + sizeof front - 1, '[', DEPTH);
    cr_assert_eq(parse(json, sizeof front - 1 + DEPTH, 0, &header, &reason), -EBADMSG);
    cr_assert(strstr(reason, "deeply"));
    free(json);
}

Test(header_parse, rank_has_a_limit)
{
    char json[1024];
    size_t used = (size_t)sprintf(json, "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[1");

    for (unsigned i = 1; i < TSPOOL_RANK_MAX; i++)
        used += (size_t)sprintf(json + used, ",1");
    strcpy(json + used, "]}}");
    assert_accepted(json, 1);
    strcpy(json + used, ",1]}}");
    assert_refused(json, 1, "too long");
}

/* Sharding ----------------------------------------------------------------------------------------------------------- */

#define SHARDED(info) \
    "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"" info "\"},\"a\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]}," \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[4,5]}}"

Test(header_parse, sharding_gives_global_offsets)
{
    static const char json[] = SHARDED("{\\\"b\\\": {\\\"saved_offsets\\\": []}, \\\"gone\\\": {\\\"saved_offsets\\\": [1]},"
                                       "\\\"a\\\": {\\\"saved_offsets\\\": [6, 8], \\\"more\\\": 1}}");
    struct parsed_header header;
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), 5, &header, &reason), 0, "%s", reason);
    cr_assert_not_null(header.tensors[0].global_offsets);
    cr_assert_eq(header.tensors[0].global_offsets[0], 6);
    cr_assert_eq(header.tensors[0].global_offsets[1], 8);
    cr_assert_not_null(header.tensors[1].global_offsets);
    parsed_header_deinit(&header);
}

Test(header_parse, sharding_may_leave_tensors_out)
{
    static const char json[] = SHARDED("{}");
    struct parsed_header header;
    const char *reason = "";

    cr_assert_eq(parse(json, strlen(json), 5, &header, &reason), 0, "%s", reason);
    cr_assert_null(header.tensors[0].global_offsets);
    parsed_header_deinit(&header);
}

Test(header_parse, broken_sharding_is_refused)
{
    assert_refused(SHARDED(""), 5, "object");
    assert_refused(SHARDED("{} x"), 5, "after the JSON value");
    assert_refused(SHARDED("{\\\"a\\\":{}}"), 5, "missing");
    assert_refused(SHARDED("{\\\"a\\\":{\\\"saved_offsets\\\":[1]}}"), 5, "dimensions");
    assert_refused(SHARDED("{\\\"a\\\":{\\\"saved_offsets\\\":[1,18446744073709551615]}}"), 5, "too large");
    assert_refused(SHARDED("{\\\"a\\\":{\\\"saved_offsets\\\":[1,-1]}}"), 5, "integer");
    assert_refused(SHARDED("{\\\"a\\\":{\\\"saved_offsets\\\":[1,1]},\\\"a\\\":{\\\"saved_offsets\\\":[1,1]}}"), 5, "twice");
    assert_refused(SHARDED("{\\\"gone\\\":7}"), 5, "object");
}

/* Damage ------------------------------------------------------------------------------------------------------------- */

static const char whole[] = "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{\\\"w\\\":{\\\"saved_offsets\\\":[0,3]}}\","
                            "\"k\":\"\\u00e9\"},"
                            "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                            "\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[24,24]}}  ";

Test(header_parse, every_truncated_file_is_refused)
{
    const uint64_t length = strlen(whole);
    const size_t file_size = 8 + length + 24;
    char *file = calloc(1, file_size);

    memcpy(file, &length, 8);
    memcpy(file + 8, whole, length);
    for (size_t size = 0; size <= file_size; size++) {
        struct parsed_header header;
        uint8_t prefix[8] = { 0 };
        uint64_t json_size;
        const char *reason;
        int error;

        memcpy(prefix, file, size < 8 ? size : 8);
        error = header_length_check(prefix, size, &json_size, &reason);
        if (!error)
            error = parse(file + 8, json_size, size - 8 - json_size, &header, &reason);
        cr_assert_eq(error, size == file_size ? 0 : -EBADMSG, "%zu of %zu bytes", size, file_size);
        if (!error)
            parsed_header_deinit(&header);
    }
    free(file);
}

Test(header_parse, every_truncated_json_is_refused)
{
    size_t end = strlen(whole);
    struct parsed_header header;
    const char *reason;

    while (whole[end - 1] == ' ')
        end--;
    for (size_t size = 0; size < end; size++)
        cr_assert_eq(parse(whole, size, 24, &header, &reason), -EBADMSG, "%zu", size);
}

/* A changed byte may still make a legal header (in a name); never one that breaks the promises of parsed_header. */
Test(header_parse, every_flipped_byte_parses_or_is_refused)
{
    char damaged[sizeof whole];

    for (size_t i = 0; i < strlen(whole); i++)
        for (int value = 0; value < 256; value++) {
            struct parsed_header header;
            const char *reason = NULL;
            uint64_t covered = 0;
            int error;

            memcpy(damaged, whole, sizeof whole);
            damaged[i] = (char)value;
            error = parse(damaged, strlen(whole), 24, &header, &reason);
            if (error) {
                cr_assert_eq(error, -EBADMSG);
                cr_assert_not_null(reason);
                continue;
            }
            for (size_t t = 0; t < header.count; t++) {
                cr_assert_eq(header.tensors[t].begin, covered);
                covered = header.tensors[t].end;
            }
            cr_assert_eq(covered, 24);
            parsed_header_deinit(&header);
        }
}
