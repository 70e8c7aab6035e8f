/* format/header_emit.c - the header of a safetensors file, emitted in one pass.
 *
 *   u64 LE length of what follows | {"__metadata__":{...},"<name>":{"dtype":...},...} | spaces up to the data's alignment
 *
 * Worked example: JSON of 100 bytes, data aligned to 4096: the length says 4088, 3988 spaces follow the JSON, data starts
 * at byte 4096.
 */
#include <format/safetensors.h>

#include <assert.h>
#include <base/checked.h>
#include <base/names.h>
#include <endian.h>
#include <errno.h>
#include <format/sharding.h>
#include <format/text.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES sizeof(uint64_t)
#define U64_DIGITS 20

/* A name inside DCP_SHARDING_INFO is escaped twice, once for each string around it. */
static size_t twice_escaped_size(const char *bytes, size_t size)
{
    size_t escaped = text_escaped_size(bytes, size);

    for (size_t i = 0; i < size; i++)
        if (bytes[i] == '"' || bytes[i] == '\\')
            escaped += 2; /* \" -> \\\" */
        else if ((unsigned char)bytes[i] < 0x20)
            escaped += 1; /* \u001f -> \\u001f */
    return escaped;
}

size_t header_entry_bound(const struct header_entry *entry, int sharded)
{
    static const char frame[] = ",\"\":{\"dtype\":\"F8_E4M3FNUZ\",\"shape\":[],\"data_offsets\":[,]}";
    static const char shard_frame[] = ",\\\"\\\":{\\\"saved_offsets\\\":[]}";
    size_t name_size = strlen(entry->name), bound = sizeof frame + 2 * U64_DIGITS + text_escaped_size(entry->name, name_size);

    for (uint32_t i = 0; i < entry->rank; i++)
        bound += text_digits(entry->shape[i]) + 1;
    if (!sharded)
        return bound;
    bound += sizeof shard_frame + twice_escaped_size(entry->name, name_size);
    for (uint32_t i = 0; i < entry->rank; i++)
        bound += text_digits(entry->global_offsets ? entry->global_offsets[i] : 0) + 1;
    return bound;
}

size_t header_pair_bound(const struct header_pair *pair)
{
    static const char frame[] = ",\"\":\"\"";

    return sizeof frame + text_escaped_size(pair->key, strlen(pair->key)) + text_escaped_size(pair->value, strlen(pair->value));
}

/* Keys that the sharded form sets itself. A tied tensor may have such a name; its tie is in the manifest as well. */
static bool pair_is_reserved(const struct header_pair *pair)
{
    return !strcmp(pair->key, SHARDING_INFO_KEY) || !strcmp(pair->key, SHARDING_VERSION_KEY) || !strcmp(pair->key, "format");
}

static void emit_pair(struct text *text, const char *key, const char *value, size_t value_size, bool *first)
{
    if (!*first)
        text_put(text, ",", 1);
    *first = false;
    text_put_name(text, key);
    text_put(text, ":", 1);
    text_put_string(text, value, value_size);
}

static void emit_sharding(struct text *text, const struct header_entry *entries, size_t count, bool *first)
{
    struct text info = { 0 };
    char *bytes = NULL;
    size_t size = 0;

    sharding_emit(&info, entries, count);
    if (text_finish(&info, &bytes, &size)) {
        text->failed = true;
        return;
    }
    emit_pair(text, SHARDING_INFO_KEY, bytes, size, first);
    emit_pair(text, SHARDING_VERSION_KEY, "1.0", 3, first);
    emit_pair(text, "format", "pt", 2, first);
    free(bytes);
}

static void emit_metadata(struct text *text, const struct header_entry *entries, size_t count, int sharded,
                          const struct header_pair *pairs, size_t pair_count)
{
    bool first = true;

    text_puts(text, "\"__metadata__\":{");
    if (sharded)
        emit_sharding(text, entries, count, &first);
    for (size_t i = 0; i < pair_count; i++)
        if (!sharded || !pair_is_reserved(&pairs[i]))
            emit_pair(text, pairs[i].key, pairs[i].value, strlen(pairs[i].value), &first);
    text_put(text, "}", 1);
}

static void emit_entry(struct text *text, const struct header_entry *entry)
{
    uint64_t offsets[2] = { entry->begin, entry->end };

    text_put_name(text, entry->name);
    text_puts(text, ":{\"dtype\":\"");
    text_puts(text, tspool_dtype_name(entry->dtype));
    text_puts(text, "\",\"shape\":");
    text_put_array(text, entry->shape, entry->rank);
    text_puts(text, ",\"data_offsets\":");
    text_put_array(text, offsets, 2);
    text_put(text, "}", 1);
}

static void emit_json(struct text *text, const struct header_entry *entries, size_t count, int sharded,
                      const struct header_pair *pairs, size_t pair_count)
{
    bool separate = sharded || pair_count;

    text_put(text, "{", 1);
    if (separate)
        emit_metadata(text, entries, count, sharded, pairs, pair_count);
    for (size_t i = 0; i < count; i++, separate = true) {
        if (separate)
            text_put(text, ",", 1);
        emit_entry(text, &entries[i]);
    }
    text_put(text, "}", 1);
}

static bool text_is_utf8(const char *text) { return utf8_is_valid(text, strlen(text)); }

/* What no reader would take back. */
static bool is_emittable(const struct header_entry *entries, size_t count, const struct header_pair *pairs, size_t pair_count)
{
    for (size_t i = 0; i < count; i++)
        if (!text_is_utf8(entries[i].name) || !strcmp(entries[i].name, "__metadata__") || entries[i].rank > TSPOOL_RANK_MAX ||
            !tspool_dtype_name(entries[i].dtype))
            return false;
    for (size_t i = 0; i < pair_count; i++)
        if (!text_is_utf8(pairs[i].key) || !text_is_utf8(pairs[i].value))
            return false;
    return true;
}

int header_build(const struct header_entry *entries, size_t count, int sharded, const struct header_pair *pairs,
                 size_t pair_count, uint32_t data_align, void **bytes, size_t *size)
{
    struct text text = { 0 };
    uint64_t length = 0, whole;
    char *built;
    int error;

    assert(is_power_of_two(data_align) && data_align >= SAFETENSORS_DATA_ALIGN);
    if (!is_emittable(entries, count, pairs, pair_count))
        return -EINVAL;
    text_put(&text, (const char *)&length, LENGTH_BYTES); /* known at the end */
    emit_json(&text, entries, count, sharded, pairs, pair_count);
    whole = align_up(text.size, data_align);
    if (!text.failed && whole - LENGTH_BYTES > SAFETENSORS_HEADER_MAX) {
        text_deinit(&text);
        return -E2BIG;
    }
    text_put_spaces(&text, whole - text.size);
    error = text_finish(&text, &built, size);
    if (error)
        return error;
    length = htole64(whole - LENGTH_BYTES);
    memcpy(built, &length, LENGTH_BYTES);
    *bytes = built;
    return 0;
}
