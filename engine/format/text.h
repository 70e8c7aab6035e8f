/* format/text.h - growing JSON text. Emits directly: a tree of a million nodes would cost seconds and gigabytes.
 *
 * The first failure to grow sticks and later puts do nothing, so that callers check once, at text_finish.
 */
#ifndef FORMAT_TEXT_H
#define FORMAT_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text {
    char *bytes;
    size_t size, capacity;
    bool failed;
};

/* Makes room for `size` bytes more; false when the text has failed. */
bool text_reserve(struct text *text, size_t size);
void text_put(struct text *text, const char *bytes, size_t size);
void text_puts(struct text *text, const char *string);
void text_put_u64(struct text *text, uint64_t value);
void text_put_spaces(struct text *text, size_t count);
/* [1,2,3] */
void text_put_array(struct text *text, const uint64_t *values, size_t count);
/* Quoted and escaped; the bytes are UTF-8 and stay as they are where JSON allows it. */
void text_put_string(struct text *text, const char *bytes, size_t size);
void text_put_name(struct text *text, const char *name); /* of a NUL-terminated string */
/* Bytes between the quotes that text_put_string puts. */
size_t text_escaped_size(const char *bytes, size_t size);
/* Bytes of a number in decimal. */
size_t text_digits(uint64_t value);
/* Hands the malloc'ed bytes over. 0 or -ENOMEM; the text is empty afterwards either way. */
int text_finish(struct text *text, char **bytes, size_t *size);
void text_deinit(struct text *text);

#endif
