/* fuzz_names - any bytes as the name of a checkpoint, a hidden directory, a part record, a file: what is accepted stays one
 * plain component, and a hidden name says what it was made of. */
#include <base/names.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static int is_plain(const char *name)
{
    for (const char *at = name; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f || *at == '/')
            return 0;
    return *name && *name != '.' && utf8_is_valid(name, strlen(name));
}

static void hidden_check(const char *text)
{
    char name[CHECKPOINT_NAME_MAX + 1], again[HIDDEN_NAME_MAX + 1];
    uint8_t save_id[16];
    const char *reason;

    if (!hidden_name_parse(text, name, save_id))
        return;
    require(checkpoint_name_check(name, &reason) == 0);
    hidden_name_make(name, save_id, again);
    require(strcmp(again, text) == 0);
}

static void checkpoint_check(const char *text)
{
    char hidden[HIDDEN_NAME_MAX + 1], name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16] = { 0xab, 1 }, parsed_id[16];
    const char *reason = NULL;

    if (checkpoint_name_check(text, &reason)) {
        require(reason != NULL);
        return;
    }
    require(is_plain(text) && strlen(text) <= CHECKPOINT_NAME_MAX && file_name_is_safe(text));
    hidden_name_make(text, save_id, hidden);
    require(hidden_name_parse(hidden, name, parsed_id) && strcmp(name, text) == 0 && !memcmp(parsed_id, save_id, 16));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1); /* exact, so that the sanitizer sees a byte too many */

    memcpy(text, data, size);
    text[size] = 0;
    utf8_is_valid(text, size);
    hidden_check(text);
    checkpoint_check(text);
    require(!file_name_is_safe(text) || (is_plain(text) && strlen(text) <= 255));
    require(!part_name_is(text) || file_name_is_safe(text));
    free(text);
    return 0;
}
