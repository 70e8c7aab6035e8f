/* format/scan.c - the strict JSON scanner. Recursion happens only where unknown values are skipped, and is counted. */
#include <format/scan.h>

#include <assert.h>
#include <base/names.h>
#include <errno.h>
#include <string.h>

#define DECIMAL_EXPONENT_MAX 300 /* numbers beyond it may not fit a double, which serde_json refuses */

int scan_init(struct scan *scan, const char *text, size_t size, struct pool *pool)
{
    *scan = (struct scan){ .start = text, .at = text, .end = text + size, .pool = pool };
    return utf8_is_valid(text, size) ? 0 : scan_fault(scan, "the text is not valid UTF-8");
}

static int scan_end(struct scan *scan, int error, const char *reason)
{
    if (!scan->error) {
        scan->error = error;
        scan->reason = reason;
    }
    return scan->error;
}

int scan_fault(struct scan *scan, const char *reason) { return scan_end(scan, -EBADMSG, reason); }

int scan_no_memory(struct scan *scan) { return scan_end(scan, -ENOMEM, "no memory"); }

size_t scan_position(const struct scan *scan) { return (size_t)(scan->at - scan->start); }

/* The next byte that is not white space, not consumed; -1 at the end. */
static int peek(struct scan *scan)
{
    while (scan->at < scan->end && (*scan->at == ' ' || *scan->at == '\n' || *scan->at == '\t' || *scan->at == '\r'))
        scan->at++;
    return scan->at < scan->end ? (unsigned char)*scan->at : -1;
}

static int expect(struct scan *scan, char byte, const char *reason)
{
    if (peek(scan) != (unsigned char)byte)
        return scan_fault(scan, reason);
    scan->at++;
    return 0;
}

int scan_finish(struct scan *scan) { return peek(scan) < 0 ? 0 : scan_fault(scan, "there is something after the JSON value"); }

/* Strings --------------------------------------------------------------------------------------------------------- */

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* The four hex digits at `at`, or -1. */
static int32_t code_unit(const char *at, const char *end)
{
    int32_t unit = 0;

    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int value = hex_value(at[i]);
        if (value < 0)
            return -1;
        unit = unit << 4 | value;
    }
    return unit;
}

/* Decodes the escape whose backslash is at *at and moves *at past it; -1: not a legal one. */
static int32_t escape_decode(const char **at, const char *end)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *next = *at + 1, *found;
    int32_t unit, low;

    if (next >= end)
        return -1;
    if (*next != 'u') {
        found = memchr(names, *next, sizeof names - 1);
        *at = next + 1;
        return found ? values[found - names] : -1;
    }
    unit = code_unit(next + 1, end);
    if (unit < 0)
        return -1;
    *at = next + 5;
    if (unit < 0xd800 || unit > 0xdfff)
        return unit;
    if (unit > 0xdbff || end - *at < 6 || (*at)[0] != '\\' || (*at)[1] != 'u') /* half a pair */
        return -1;
    low = code_unit(*at + 2, end);
    *at += 6;
    return low < 0xdc00 || low > 0xdfff ? -1 : 0x10000 + ((unit - 0xd800) << 10 | (low - 0xdc00));
}

int scan_string(struct scan *scan, struct scan_token *token)
{
    const char *at, *first;
    bool escaped = false;
    int error = expect(scan, '"', "a string is expected here");

    if (error)
        return error;
    for (first = at = scan->at; at < scan->end && *at != '"';) {
        if (*at == '\\') {
            escaped = true;
            if (escape_decode(&at, scan->end) < 0)
                return scan_fault(scan, "the string has an illegal escape");
        } else if ((unsigned char)*at < 0x20)
            return scan_fault(scan, "the string has a bare control byte");
        else
            at++;
    }
    if (at == scan->end)
        return scan_fault(scan, "the string does not end");
    scan->at = at + 1;
    *token = (struct scan_token){ first, (size_t)(at - first), escaped };
    return 0;
}

static char *utf8_put(char *to, int32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
    } else if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
        *to++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *to++ = (char)(0xe0 | code >> 12);
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    } else {
        *to++ = (char)(0xf0 | code >> 18);
        *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
        *to++ = (char)(0x80 | (code & 0x3f));
    }
    return to;
}

/* Decodes into `to`, which has room for token.size bytes: no escape is shorter than what it stands for. */
static size_t token_decode(struct scan_token token, char *to)
{
    const char *at = token.bytes, *end = at + token.size;
    char *first = to;

    while (at < end)
        if (*at == '\\')
            to = utf8_put(to, escape_decode(&at, end));
        else
            *to++ = *at++;
    return (size_t)(to - first);
}

bool scan_token_is(struct scan_token token, const char *name)
{
    size_t size = strlen(name);
    char decoded[192];

    if (!token.escaped)
        return token.size == size && !memcmp(token.bytes, name, size);
    if (token.size > sizeof decoded || token.size > 6 * size) /* every byte of a name we know takes at most \u0000 */
        return false;
    return token_decode(token, decoded) == size && !memcmp(decoded, name, size);
}

int scan_keep(struct scan *scan, struct scan_token token, const char **text, size_t *size)
{
    char *kept = pool_allocate(scan->pool, token.size + 1, 1);
    size_t kept_size = token.size;

    if (!kept)
        return scan_no_memory(scan);
    if (token.escaped)
        kept_size = token_decode(token, kept);
    else
        memcpy(kept, token.bytes, token.size);
    if (token.escaped && memchr(kept, 0, kept_size))
        return scan_fault(scan, "a text contains a NUL");
    kept[kept_size] = 0;
    *text = kept;
    if (size)
        *size = kept_size;
    return 0;
}

int scan_text(struct scan *scan, const char **text, size_t *size)
{
    struct scan_token token;
    int error = scan_string(scan, &token);

    return error ? error : scan_keep(scan, token, text, size);
}

/* Numbers --------------------------------------------------------------------------------------------------------- */

static bool is_digit(const struct scan *scan) { return scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9'; }

int scan_u64(struct scan *scan, uint64_t *value)
{
    uint64_t sum = 0;

    peek(scan);
    if (!is_digit(scan))
        return scan_fault(scan, "a non-negative integer is expected here");
    if (*scan->at == '0' && scan->at + 1 < scan->end && scan->at[1] >= '0' && scan->at[1] <= '9')
        return scan_fault(scan, "a number starts with zero");
    for (; is_digit(scan); scan->at++)
        if (__builtin_mul_overflow(sum, 10, &sum) || __builtin_add_overflow(sum, (uint64_t)(*scan->at - '0'), &sum))
            return scan_fault(scan, "an integer does not fit 64 bits");
    if (scan->at < scan->end && (*scan->at == '.' || *scan->at == 'e' || *scan->at == 'E'))
        return scan_fault(scan, "an integer is expected here, not a fraction");
    *value = sum;
    return 0;
}

int scan_u32(struct scan *scan, uint32_t *value)
{
    uint64_t wide;
    int error = scan_u64(scan, &wide);

    if (error)
        return error;
    if (wide > UINT32_MAX)
        return scan_fault(scan, "an integer does not fit 32 bits");
    *value = (uint32_t)wide;
    return 0;
}

static size_t skip_digits(struct scan *scan)
{
    size_t count = 0;

    for (; is_digit(scan); scan->at++)
        count++;
    return count;
}

/* e+12: consumes it and gives its value, DECIMAL_EXPONENT_MAX + 1 for anything larger. -1: malformed. */
static int skip_exponent(struct scan *scan, bool *negative)
{
    int exponent = 0;

    scan->at++;
    *negative = scan->at < scan->end && *scan->at == '-';
    if (scan->at < scan->end && (*scan->at == '-' || *scan->at == '+'))
        scan->at++;
    if (!is_digit(scan))
        return -1;
    for (; is_digit(scan); scan->at++)
        exponent = exponent > DECIMAL_EXPONENT_MAX ? exponent : exponent * 10 + (*scan->at - '0');
    return exponent;
}

static int skip_number(struct scan *scan)
{
    size_t digits;
    bool negative = false, leading_zero;
    int exponent = 0;

    if (*scan->at == '-')
        scan->at++;
    leading_zero = is_digit(scan) && *scan->at == '0';
    digits = skip_digits(scan);
    if (!digits || (leading_zero && digits > 1))
        return scan_fault(scan, "a number is malformed");
    if (scan->at < scan->end && *scan->at == '.') {
        scan->at++;
        if (!skip_digits(scan))
            return scan_fault(scan, "a number is malformed");
    }
    if (scan->at < scan->end && (*scan->at == 'e' || *scan->at == 'E'))
        exponent = skip_exponent(scan, &negative);
    if (exponent < 0)
        return scan_fault(scan, "a number is malformed");
    if (digits + (negative ? 0 : (size_t)exponent) > DECIMAL_EXPONENT_MAX)
        return scan_fault(scan, "a number is out of range");
    return 0;
}

/* Values ---------------------------------------------------------------------------------------------------------- */

static int skip_literal(struct scan *scan, const char *literal)
{
    size_t size = strlen(literal);

    if ((size_t)(scan->end - scan->at) < size || memcmp(scan->at, literal, size))
        return scan_fault(scan, "a value is expected here");
    scan->at += size;
    return 0;
}

int scan_null(struct scan *scan, bool *is_null)
{
    *is_null = peek(scan) == 'n';
    return *is_null ? skip_literal(scan, "null") : 0;
}

int scan_bool(struct scan *scan, bool *value)
{
    *value = peek(scan) == 't';
    return skip_literal(scan, *value ? "true" : "false");
}

/* After an element: 1 when another follows, 0 when `close` ended the list, or the fault. */
static int list_continues(struct scan *scan, char close)
{
    int next = peek(scan);

    if (next != ',' && next != (unsigned char)close)
        return scan_fault(scan, close == '}' ? "',' or '}' is expected here" : "',' or ']' is expected here");
    scan->at++;
    return next == ',';
}

/* Opens a list: 1 when an element follows, 0 when it is empty (then it is closed), or the fault. */
static int list_opens(struct scan *scan, char open, char close)
{
    int error = expect(scan, open, open == '{' ? "an object is expected here" : "an array is expected here");

    if (error)
        return error;
    if (peek(scan) != (unsigned char)close)
        return 1;
    scan->at++;
    return 0;
}

int scan_map(struct scan *scan, scan_take_entry take, void *context)
{
    int more = list_opens(scan, '{', '}');

    while (more > 0) {
        struct scan_token key;
        int error = scan_string(scan, &key);

        if (!error)
            error = expect(scan, ':', "':' is expected here");
        if (!error)
            error = take(scan, key, context);
        more = error ? error : list_continues(scan, '}');
    }
    return more;
}

int scan_array(struct scan *scan, scan_take_element take, void *context)
{
    int more = list_opens(scan, '[', ']');

    while (more > 0) {
        int error = take(scan, context);
        more = error ? error : list_continues(scan, ']');
    }
    return more;
}

struct object_walk { const struct scan_member *members; size_t count; uint32_t seen; char *to; };

static int take_member(struct scan *scan, struct scan_token key, void *context)
{
    struct object_walk *walk = context;

    for (size_t i = 0; i < walk->count; i++) {
        if (!scan_token_is(key, walk->members[i].name))
            continue;
        if (walk->seen & UINT32_C(1) << i)
            return scan_fault(scan, "a member is given twice");
        walk->seen |= UINT32_C(1) << i;
        return walk->members[i].take(scan, walk->to + walk->members[i].offset);
    }
    return scan_skip(scan);
}

int scan_object(struct scan *scan, const struct scan_member *members, size_t count, void *to)
{
    struct object_walk walk = { members, count, 0, to };
    int error;

    assert(count <= 32);
    error = scan_map(scan, take_member, &walk);
    if (error)
        return error;
    for (size_t i = 0; i < count; i++)
        if (members[i].required && !(walk.seen & UINT32_C(1) << i))
            return scan_fault(scan, "a required member is missing");
    return 0;
}

int scan_take_u64(struct scan *scan, void *to) { return scan_u64(scan, to); }
int scan_take_u32(struct scan *scan, void *to) { return scan_u32(scan, to); }
int scan_take_text(struct scan *scan, void *to) { return scan_text(scan, to, NULL); }

static int skip_value(struct scan *scan, unsigned depth);

static int skip_entry(struct scan *scan, struct scan_token key, void *context)
{
    return skip_value(scan, *(unsigned *)context);
}

static int skip_element(struct scan *scan, void *context) { return skip_value(scan, *(unsigned *)context); }

static int skip_value(struct scan *scan, unsigned depth)
{
    struct scan_token token;
    int next = peek(scan);
    unsigned inner = depth + 1;

    if (depth > SCAN_DEPTH_MAX)
        return scan_fault(scan, "values are nested too deeply");
    if (next == '{')
        return scan_map(scan, skip_entry, &inner);
    if (next == '[')
        return scan_array(scan, skip_element, &inner);
    if (next == '"')
        return scan_string(scan, &token);
    if (next == '-' || (next >= '0' && next <= '9'))
        return skip_number(scan);
    return skip_literal(scan, next == 't' ? "true" : next == 'f' ? "false" : "null");
}

int scan_skip(struct scan *scan) { return skip_value(scan, 1); }

struct numbers { uint64_t *values; size_t count, capacity; };

static int take_number(struct scan *scan, void *context)
{
    struct numbers *numbers = context;
    uint64_t value;
    int error = scan_u64(scan, &value);

    if (error)
        return error;
    if (numbers->count == numbers->capacity)
        return scan_fault(scan, "an array is too long");
    numbers->values[numbers->count++] = value;
    return 0;
}

/* How many elements the array at hand can have at most: commas up to the first ']' and one more, within count_max. */
static size_t array_bound(const struct scan *scan, size_t count_max)
{
    size_t commas = 0;

    for (const char *at = scan->at; at < scan->end && *at != ']' && commas < count_max; at++)
        commas += *at == ',';
    return commas < count_max ? commas + 1 : count_max;
}

int scan_numbers(struct scan *scan, size_t count_max, const uint64_t **values, size_t *count)
{
    struct numbers numbers = { .capacity = array_bound(scan, count_max) };
    int error;

    numbers.values = pool_allocate(scan->pool, numbers.capacity * sizeof *numbers.values, sizeof *numbers.values);
    if (!numbers.values)
        return scan_no_memory(scan);
    error = scan_array(scan, take_number, &numbers);
    if (error)
        return error;
    *values = numbers.values;
    *count = numbers.count;
    return 0;
}
