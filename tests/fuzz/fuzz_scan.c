/* fuzz_scan - the scanner below all JSON: numbers are what strtoull says, texts come out as UTF-8 without a NUL, and what is
 * skipped as a value is the same value when it stands in an array. */
#include <assert.h>
#include <base/names.h>
#include <errno.h>
#include <format/scan.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void number_check(const char *text, size_t size)
{
    struct pool pool = { 0 };
    struct scan scan;
    uint64_t value = 0;
    char *copy = strndup(text, size), *end;

    if (!scan_init(&scan, text, size, &pool) && !scan_u64(&scan, &value)) {
        const char *first = copy + strspn(copy, " \t\r\n");

        errno = 0;
        assert(strtoull(first, &end, 10) == value && errno == 0);
        assert((size_t)(end - copy) == scan_position(&scan));
    }
    free(copy);
    pool_deinit(&pool);
}

static void text_check(const char *text, size_t size)
{
    struct pool pool = { 0 };
    struct scan scan;
    const char *kept;
    size_t kept_size;

    if (!scan_init(&scan, text, size, &pool) && !scan_text(&scan, &kept, &kept_size))
        assert(strlen(kept) == kept_size && utf8_is_valid(kept, kept_size) && kept_size < size);
    pool_deinit(&pool);
}

static void numbers_check(const char *text, size_t size)
{
    struct pool pool = { 0 };
    struct scan scan;
    const uint64_t *values;
    size_t count;

    if (!scan_init(&scan, text, size, &pool) && !scan_numbers(&scan, 8, &values, &count))
        assert(count <= 8);
    pool_deinit(&pool);
}

static int skip_one(struct scan *scan, void *context)
{
    ++*(unsigned *)context;
    return scan_skip(scan);
}

static int value_skip(const char *text, size_t size)
{
    struct pool pool = { 0 };
    struct scan scan;
    int error = scan_init(&scan, text, size, &pool);

    if (!error)
        error = scan_skip(&scan);
    if (!error)
        error = scan_finish(&scan);
    assert(!error || (scan.reason && scan_position(&scan) <= size));
    pool_deinit(&pool);
    return error;
}

static int in_array_skip(const char *text, size_t size)
{
    char *array = malloc(size + 4);
    struct pool pool = { 0 };
    struct scan scan;
    unsigned count = 0;
    int error;

    array[0] = '[';
    memcpy(array + 1, text, size);
    memcpy(array + 1 + size, ",7]", 3);
    error = scan_init(&scan, array, size + 4, &pool);
    if (!error)
        error = scan_array(&scan, skip_one, &count);
    if (!error)
        error = scan_finish(&scan);
    pool_deinit(&pool);
    free(array);
    return error ? error : count == 2 ? 0 : 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size ? size : 1);

    memcpy(text, data, size);
    number_check(text, size);
    text_check(text, size);
    numbers_check(text, size);
    if (!value_skip(text, size))
        assert(in_array_skip(text, size) == 0);
    free(text);
    return 0;
}
