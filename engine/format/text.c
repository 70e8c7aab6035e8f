/* format/text.c - growing JSON text: bytes, numbers and escaped strings. */
#include <format/text.h>

#include <base/array.h>
#include <string.h>

bool text_reserve(struct text *text, size_t size)
{
    size_t wanted;

    if (text->failed)
        return false;
    if (size <= text->capacity - text->size)
        return true;
    text->failed = __builtin_add_overflow(text->size, size, &wanted) ||
                   array_reserve((void **)&text->bytes, &text->capacity, wanted, 1);
    return !text->failed;
}

void text_put(struct text *text, const char *bytes, size_t size)
{
    if (!size || !text_reserve(text, size))
        return;
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
}

void text_puts(struct text *text, const char *string) { text_put(text, string, strlen(string)); }

void text_put_spaces(struct text *text, size_t count)
{
    if (!count || !text_reserve(text, count))
        return;
    memset(text->bytes + text->size, ' ', count);
    text->size += count;
}

size_t text_digits(uint64_t value)
{
    size_t digits = 1;

    for (; value >= 10; value /= 10)
        digits++;
    return digits;
}

void text_put_u64(struct text *text, uint64_t value)
{
    char digits[20];
    size_t first = sizeof digits;

    do {
        digits[--first] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    text_put(text, digits + first, sizeof digits - first);
}

void text_put_array(struct text *text, const uint64_t *values, size_t count)
{
    text_put(text, "[", 1);
    for (size_t i = 0; i < count; i++) {
        if (i)
            text_put(text, ",", 1);
        text_put_u64(text, values[i]);
    }
    text_put(text, "]", 1);
}

static bool is_plain(char byte) { return (unsigned char)byte >= 0x20 && byte != '"' && byte != '\\'; }

static size_t plain_run(const char *bytes, size_t size)
{
    size_t run = 0;

    while (run < size && is_plain(bytes[run]))
        run++;
    return run;
}

size_t text_escaped_size(const char *bytes, size_t size)
{
    size_t escaped = size;

    for (size_t i = 0; i < size; i++)
        if (!is_plain(bytes[i]))
            escaped += (unsigned char)bytes[i] < 0x20 ? 5 : 1; /* \u001f, \" */
    return escaped;
}

static void put_escape(struct text *text, char byte)
{
    static const char digits[] = "0123456789abcdef";
    const char pair[] = { '\\', byte };
    const char code[] = { '\\', 'u', '0', '0', digits[(byte >> 4) & 15], digits[byte & 15] };

    if ((unsigned char)byte < 0x20)
        text_put(text, code, sizeof code);
    else
        text_put(text, pair, sizeof pair);
}

void text_put_string(struct text *text, const char *bytes, size_t size)
{
    text_put(text, "\"", 1);
    for (size_t at = 0; at < size;) {
        size_t run = plain_run(bytes + at, size - at);

        text_put(text, bytes + at, run);
        at += run;
        if (at < size)
            put_escape(text, bytes[at++]);
    }
    text_put(text, "\"", 1);
}

void text_put_name(struct text *text, const char *name) { text_put_string(text, name, strlen(name)); }

int text_finish(struct text *text, char **bytes, size_t *size)
{
    char *fitting;

    if (!text_reserve(text, 1)) { /* never NULL, even when empty */
        text_deinit(text);
        return -ENOMEM;
    }
    fitting = realloc(text->bytes, text->size ? text->size : 1); /* doubling left up to half of it unused */
    *bytes = fitting ? fitting : text->bytes;
    *size = text->size;
    *text = (struct text){ 0 };
    return 0;
}

void text_deinit(struct text *text)
{
    free(text->bytes);
    *text = (struct text){ 0 };
}
