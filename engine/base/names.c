/* base/names.c - names: one component, valid UTF-8, nothing that hides, climbs or writes to a terminal. Pure. */
#include <base/names.h>

#include <base/hash.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME_BYTES_MAX 255 /* NAME_MAX of every file system that matters */

/* Bytes of the sequence that starts at `bytes`, or 0: table 3-7 of the Unicode standard (no surrogates, shortest form). */
static size_t utf8_sequence(const uint8_t *bytes, size_t left)
{
    uint8_t first = bytes[0], low = 0x80, high = 0xbf;
    size_t size = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;

    if (size < 2 || size > left)
        return size > left ? 0 : size;
    if (first == 0xe0)
        low = 0xa0;
    else if (first == 0xed)
        high = 0x9f;
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f;
    if (bytes[1] < low || bytes[1] > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

bool utf8_is_valid(const char *bytes, size_t size)
{
    const uint8_t *at = (const uint8_t *)bytes, *end = at + size;

    while (at < end) {
        uint64_t word;
        size_t step;

        if (end - at >= 8) { /* eight ASCII bytes at a time: headers of 100 MB are nearly all ASCII */
            memcpy(&word, at, 8);
            if (!(word & UINT64_C(0x8080808080808080))) {
                at += 8;
                continue;
            }
        }
        step = utf8_sequence(at, (size_t)(end - at));
        if (!step)
            return false;
        at += step;
    }
    return true;
}

/* Why `name` cannot be a component of ours; NULL when it can. */
static const char *component_fault(const char *name, size_t size_max)
{
    size_t size = strnlen(name, size_max + 1);

    if (size == 0)
        return "the name is empty";
    if (size > size_max)
        return "the name is too long";
    if (name[0] == '.')
        return "the name starts with '.'";
    for (size_t i = 0; i < size; i++)
        if (name[i] == '/')
            return "the name contains '/'";
        else if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return "the name contains a control byte";
    return utf8_is_valid(name, size) ? NULL : "the name is not valid UTF-8";
}

int checkpoint_name_check(const char *name, const char **reason)
{
    const char *fault = component_fault(name, CHECKPOINT_NAME_MAX);

    if (!fault)
        return 0;
    *reason = fault;
    return -EINVAL;
}

bool file_name_is_safe(const char *name) { return !component_fault(name, FILE_NAME_BYTES_MAX); }

void hidden_name_make(const char *name, const uint8_t save_id[16], char *out)
{
    struct digest id;
    char hex[DIGEST_HEX_BYTES + 1];

    memcpy(id.bytes, save_id, sizeof id.bytes);
    digest_to_hex(id, hex);
    snprintf(out, HIDDEN_NAME_MAX + 1, ".%s.%s", name, hex);
}

bool hidden_name_parse(const char *hidden, char *name, uint8_t save_id[16])
{
    size_t size = strnlen(hidden, HIDDEN_NAME_MAX + 1), name_size;
    char inner[CHECKPOINT_NAME_MAX + 1];
    const char *reason;
    struct digest id;

    if (size > HIDDEN_NAME_MAX || size < 1 + 1 + 1 + DIGEST_HEX_BYTES || hidden[0] != '.')
        return false;
    name_size = size - 2 - DIGEST_HEX_BYTES;
    memcpy(inner, hidden + 1, name_size);
    inner[name_size] = 0;
    if (hidden[1 + name_size] != '.' || digest_from_hex(hidden + 2 + name_size, &id) || checkpoint_name_check(inner, &reason))
        return false;
    memcpy(name, inner, name_size + 1);
    memcpy(save_id, id.bytes, sizeof id.bytes);
    return true;
}

static const char gone_suffix[] = ".gone";

void gone_name_make(const char *hidden, char *out) { snprintf(out, GONE_NAME_MAX + 1, "%s%s", hidden, gone_suffix); }

bool gone_name_parse(const char *gone, char *hidden)
{
    size_t size = strnlen(gone, GONE_NAME_MAX + 1), suffix = sizeof gone_suffix - 1;
    char copy[HIDDEN_NAME_MAX + 1], name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];

    if (size > GONE_NAME_MAX || size < suffix || strcmp(gone + size - suffix, gone_suffix) != 0)
        return false;
    snprintf(copy, sizeof copy, "%.*s", (int)(size - suffix), gone);
    if (!hidden_name_parse(copy, name, save_id))
        return false;
    strcpy(hidden, copy);
    return true;
}

#define STREAMED_MARK ".tspool-"
#define STREAMED_HEX 16

void streamed_partial_make(const char *name, const uint8_t random[8], char *out)
{
    char hex[STREAMED_HEX + 1];

    for (int i = 0; i < STREAMED_HEX / 2; i++)
        snprintf(hex + 2 * i, 3, "%02x", random[i]);
    snprintf(out, NAME_MAX + 1, ".%s" STREAMED_MARK "%s" PARTIAL_SUFFIX, name, hex);
}

bool streamed_partial_is_of(const char *partial, const char *name)
{
    size_t size = strlen(name);
    const char *hex = partial + 1 + size + strlen(STREAMED_MARK);

    return strlen(partial) == 1 + size + strlen(STREAMED_MARK) + STREAMED_HEX + strlen(PARTIAL_SUFFIX) && partial[0] == '.' &&
           memcmp(partial + 1, name, size) == 0 && memcmp(partial + 1 + size, STREAMED_MARK, strlen(STREAMED_MARK)) == 0 &&
           strspn(hex, "0123456789abcdef") == STREAMED_HEX && strcmp(hex + STREAMED_HEX, PARTIAL_SUFFIX) == 0;
}

void shard_name_make(bool sharded, uint32_t rank, uint32_t number, uint32_t count, char out[SHARD_FILE_NAME_MAX + 1])
{
    const size_t capacity = SHARD_FILE_NAME_MAX + 1;

    if (sharded)
        snprintf(out, capacity, "shard-%05" PRIu64 "-model-%05" PRIu32 "-of-%05" PRIu32 ".safetensors", (uint64_t)rank + 1,
                 number, count);
    else if (count == 1)
        snprintf(out, capacity, "model.safetensors");
    else
        snprintf(out, capacity, "model-%05" PRIu32 "-of-%05" PRIu32 ".safetensors", number, count);
}

void objects_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1])
{
    snprintf(out, SHARD_FILE_NAME_MAX + 1, "objects-%05" PRIu64 ".bin", (uint64_t)rank + 1);
}

void digests_name_make(uint32_t rank, uint32_t world_size, char out[SHARD_FILE_NAME_MAX + 1])
{
    if (world_size > 1)
        snprintf(out, SHARD_FILE_NAME_MAX + 1, DIGESTS_NAME "-%05" PRIu64, (uint64_t)rank + 1);
    else
        snprintf(out, SHARD_FILE_NAME_MAX + 1, DIGESTS_NAME);
}

static const char part_prefix[] = "tspool.part-";

void part_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1])
{
    snprintf(out, SHARD_FILE_NAME_MAX + 1, "%s%05" PRIu64, part_prefix, (uint64_t)rank + 1);
}

/* Behind the digits of "tspool.part-00001", or NULL. */
static const char *part_digits_end(const char *name)
{
    const size_t prefix = sizeof part_prefix - 1;
    size_t digits;

    if (strncmp(name, part_prefix, prefix))
        return NULL;
    digits = strspn(name + prefix, "0123456789");
    return digits >= 5 && digits <= 10 ? name + prefix + digits : NULL;
}

bool part_name_is(const char *name)
{
    const char *end = part_digits_end(name);

    return end && !*end;
}

bool part_manifest_name_parse(const char *name, uint32_t *number)
{
    const char *end = part_digits_end(name);
    unsigned long long value;

    if (!end || strcmp(end, ".json") != 0)
        return false;
    value = strtoull(name + sizeof part_prefix - 1, NULL, 10);
    if (value == 0 || value > UINT32_MAX)
        return false;
    *number = (uint32_t)value;
    return true;
}

void part_manifest_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1])
{
    snprintf(out, SHARD_FILE_NAME_MAX + 1, "%s%05" PRIu64 ".json", part_prefix, (uint64_t)rank + 1);
}

bool file_name_is_of_rank(const char *name, uint32_t rank)
{
    const size_t suffix = sizeof PARTIAL_SUFFIX - 1;
    char stem[FILE_NAME_BYTES_MAX + 1], made[SHARD_FILE_NAME_MAX + 1];
    size_t size = strnlen(name, FILE_NAME_BYTES_MAX + 1);

    if (size > FILE_NAME_BYTES_MAX)
        return false;
    memcpy(stem, name, size + 1);
    if (size > suffix && !strcmp(stem + size - suffix, PARTIAL_SUFFIX))
        stem[size - suffix] = 0;
    snprintf(made, sizeof made, "shard-%05" PRIu64 "-model-", (uint64_t)rank + 1);
    if (!strncmp(stem, made, strlen(made)))
        return true;
    objects_name_make(rank, made);
    if (!strcmp(stem, made))
        return true;
    digests_name_make(rank, UINT32_MAX, made);
    if (!strcmp(stem, made))
        return true;
    part_manifest_name_make(rank, made);
    return !strcmp(stem, made);
}

bool file_name_is_ours(const char *name)
{
    static const char *const patterns[] = { "model.safetensors", "model-*.safetensors", "shard-*.safetensors", "objects-*.bin",
                                            INDEX_NAME, "tspool.*" };

    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
        if (fnmatch(patterns[i], name, 0) == 0)
            return true;
    return false;
}
