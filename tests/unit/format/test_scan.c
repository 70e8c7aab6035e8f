/* The scanner under the three parsers: each rule of JSON that serde_json enforces, on single values. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/scan.h>
#include <string.h>

static int skip(const char *json)
{
    struct pool pool = { NULL };
    struct scan scan;
    int error = scan_init(&scan, json, strlen(json), &pool);

    if (!error)
        error = scan_skip(&scan);
    if (!error)
        error = scan_finish(&scan);
    cr_assert_eq(error != 0, scan.reason != NULL);
    cr_assert_leq(scan_position(&scan), strlen(json));
    pool_deinit(&pool);
    return error;
}

Test(scan, takes_legal_values)
{
    const char *legal[] = {
        "0", "-0", "1", "-1", "12.5", "0.5", "1e5", "1E+5", "1e-5", "-1.25e-300", "1e299", "1e-99999999999999999999",
        "123456789012345678901234567890", "\"\"", "\"\\u0000\\b\\f\\n\\r\\t\\/\\\\\\\"\"", "\"\\ud800\\udc00\"",
        "\"\\uDBFF\\uDFFF\"", "\"\x7f\"", "true", "false", "null", "[]", "[ ]", "{}", "{ }", "[1,[2],{\"a\":3}]",
        "{\"a\":1,\"a\":2}", " \t\r\n1 "
    };

    for (size_t i = 0; i < sizeof legal / sizeof *legal; i++)
        cr_assert_eq(skip(legal[i]), 0, "%s", legal[i]);
}

Test(scan, refuses_illegal_values)
{
    const char *illegal[] = {
        "", " ", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+", "1.e5", "1e301", "1e999", "0x1", "NaN", "Infinity",
        "\"", "\"a", "\"\\\"", "\"\\", "\"\\u", "\"\\u12\"", "\"\\u12", "\"\\q\"", "\"\\ud800\"", "\"\\ud800x\"",
        "\"\\ud800\\n\"", "\"\\ud800\\u0041\"", "\"\\udc00\"", "\"\\ud800\\", "\"\\ud800\\u", "\"\\ud800\\udc0",
        "\"\t\"", "\"\x01\"", "\"\xff\"", "\"\xed\xa0\x80\"", "tru", "True", "nul", "fals", "[", "[1", "[1,", "[1,]",
        "[,1]", "[1 2]", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{a:1}", "{1:1}", "{\"a\" 1}",
        "1 2", "1,", "]", "}", "'a'", "/**/1", "[1}", "{\"a\":1]"
    };

    for (size_t i = 0; i < sizeof illegal / sizeof *illegal; i++)
        cr_assert_eq(skip(illegal[i]), -EBADMSG, "%s", illegal[i]);
}

Test(scan, nesting_ends_at_the_limit)
{
    char json[2 * SCAN_DEPTH_MAX + 3] = "";

    for (size_t depth = SCAN_DEPTH_MAX - 1; depth <= SCAN_DEPTH_MAX + 1; depth++) {
        memset(json, '[', depth);
        memset(json + depth, ']', depth);
        json[2 * depth] = 0;
        cr_assert_eq(skip(json), depth <= SCAN_DEPTH_MAX ? 0 : -EBADMSG, "%zu", depth);
    }
}

Test(scan, integers_end_at_64_bits)
{
    const struct { const char *text; uint64_t value; int error; } cases[] = {
        { "0", 0, 0 }, { "18446744073709551615", UINT64_MAX, 0 }, { "18446744073709551616", 0, -EBADMSG },
        { "99999999999999999999", 0, -EBADMSG }, { "1.0", 0, -EBADMSG }, { "1e3", 0, -EBADMSG }, { "-1", 0, -EBADMSG },
        { "00", 0, -EBADMSG }, { "\"1\"", 0, -EBADMSG }, { "", 0, -EBADMSG },
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct pool pool = { NULL };
        struct scan scan;
        uint64_t value = 77;

        cr_assert_eq(scan_init(&scan, cases[i].text, strlen(cases[i].text), &pool), 0);
        cr_assert_eq(scan_u64(&scan, &value), cases[i].error, "%s", cases[i].text);
        cr_assert_eq(value, cases[i].error ? 77 : cases[i].value);
    }
}

static void assert_text(const char *json, const char *expected)
{
    struct pool pool = { NULL };
    struct scan scan;
    const char *text = NULL;
    size_t size;

    cr_assert_eq(scan_init(&scan, json, strlen(json), &pool), 0);
    cr_assert_eq(scan_text(&scan, &text, &size), 0, "%s", json);
    cr_assert_str_eq(text, expected);
    cr_assert_eq(size, strlen(expected));
    pool_deinit(&pool);
}

Test(scan, texts_are_unescaped)
{
    assert_text("\"\"", "");
    assert_text("\"plain\"", "plain");
    assert_text("\"\\b\\f\\n\\r\\t\\/\\\\\\\"\"", "\b\f\n\r\t/\\\"");
    assert_text("\"\\u007f\\u0080\\u07ff\\u0800\\uffff\"", "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf");
    assert_text("\"\\ud800\\udc00\\udbff\\udfff\"", "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf");
}
