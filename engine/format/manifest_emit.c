/* format/manifest_emit.c - the manifest as text: one line per file, object and tie, so that people can read it too. */
#include <format/manifest.h>

#include <errno.h>
#include <format/text.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TIME_SECONDS_MAX UINT64_C(253402300799) /* the last second of the year 9999 */
#define SECONDS_PER_DAY 86400
#define TIME_ROOM 80 /* more than it takes: gcc cannot see that the fields are small */

static const char *const kind_names[] = {
    [MANIFEST_SAFETENSORS] = "safetensors", [MANIFEST_OBJECTS] = "objects", [MANIFEST_INDEX] = "index"
};

/* "<name>":  with the comma and line break that go before it. */
static void put_member(struct text *text, const char *name)
{
    text_puts(text, text->size > 1 && text->bytes[text->size - 1] != '{' ? ",\"" : "\"");
    text_puts(text, name);
    text_puts(text, "\":");
}

static void put_text(struct text *text, const char *name, const char *value)
{
    put_member(text, name);
    text_put_name(text, value);
}

static void put_number(struct text *text, const char *name, uint64_t value)
{
    put_member(text, name);
    text_put_u64(text, value);
}

/* Returns where the hex digits stand. */
static size_t put_digest(struct text *text, const char *name, struct digest digest)
{
    char hex[DIGEST_HEX_BYTES + 1];

    digest_to_hex(digest, hex);
    put_text(text, name, hex);
    return text->size - 1 - DIGEST_HEX_BYTES;
}

/* 2026-11-22T02:25:00Z. By hand, because gmtime_r reads the environment (TZ). Days are counted from 1 March of year 0, so
 * that leap days end years; 400 years have 146097 days. */
static void time_format(uint64_t seconds, char out[TIME_ROOM])
{
    uint64_t day = seconds / SECONDS_PER_DAY + 719468, second = seconds % SECONDS_PER_DAY;
    uint64_t era = day / 146097, of_era = day % 146097;
    uint64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    uint64_t march_month = (5 * of_year + 2) / 153;
    uint64_t month = march_month < 10 ? march_month + 3 : march_month - 9;

    snprintf(out, TIME_ROOM, "%04" PRIu64 "-%02" PRIu64 "-%02" PRIu64 "T%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 "Z",
             era * 400 + year + (month <= 2), month, of_year - (153 * march_month + 2) / 5 + 1, second / 3600, second / 60 % 60,
             second % 60);
}

static void put_front(struct text *text, const struct manifest *manifest)
{
    struct digest id;
    char time[TIME_ROOM];

    memcpy(id.bytes, manifest->save_id, sizeof id.bytes);
    time_format(manifest->time_seconds, time);
    put_number(text, "tspool_manifest", MANIFEST_VERSION);
    put_digest(text, "save_id", id);
    put_number(text, "sequence", manifest->sequence);
    put_text(text, "time", time);
    put_number(text, "world_size", manifest->world_size);
}

static void put_metadata(struct text *text, const struct manifest *manifest)
{
    text_puts(text, ",\n\"metadata\":{");
    for (size_t i = 0; i < manifest->metadata_count; i++) {
        text_puts(text, i ? ",\n" : "\n");
        text_put_name(text, manifest->metadata[i].key);
        text_put(text, ":", 1);
        text_put_name(text, manifest->metadata[i].value);
    }
    text_put(text, "}", 1);
}

static void put_files(struct text *text, const struct manifest *manifest)
{
    text_puts(text, ",\n\"files\":[");
    for (size_t i = 0; i < manifest->file_count; i++) {
        const struct manifest_file *file = &manifest->files[i];

        text_puts(text, i ? ",\n{" : "\n{");
        put_text(text, "name", file->name);
        put_text(text, "kind", kind_names[file->kind]);
        put_number(text, "rank", file->rank);
        put_number(text, "size", file->size);
        put_number(text, "header_size", file->header_size);
        put_digest(text, "header_digest", file->digest);
        text_put(text, "}", 1);
    }
    text_put(text, "]", 1);
}

static void put_digests(struct text *text, const struct manifest *manifest, size_t *digest_patch)
{
    text_puts(text, ",\n\"digests\":[");
    for (size_t i = 0; i < manifest->digests_count; i++) {
        const struct manifest_digests *digests = &manifest->digests[i];

        text_puts(text, i ? ",\n{" : "\n{");
        put_text(text, "name", digests->name);
        put_number(text, "rank", digests->rank);
        put_number(text, "size", digests->size);
        digest_patch[i] = put_digest(text, "digest", digests->digest);
        text_put(text, "}", 1);
    }
    text_put(text, "]", 1);
}

static void put_objects(struct text *text, const struct manifest *manifest)
{
    text_puts(text, ",\n\"objects\":[");
    for (size_t i = 0; i < manifest->object_count; i++) {
        const struct manifest_object *object = &manifest->objects[i];

        text_puts(text, i ? ",\n{" : "\n{");
        put_text(text, "name", object->name);
        put_text(text, "kind", object->kind);
        put_number(text, "rank", object->rank);
        put_text(text, "file", object->file);
        put_number(text, "offset", object->file_offset);
        put_number(text, "size", object->size);
        put_digest(text, "digest", object->digest);
        text_put(text, "}", 1);
    }
    text_put(text, "]", 1);
}

static void put_aliases(struct text *text, const struct manifest *manifest)
{
    text_puts(text, ",\n\"aliases\":{");
    for (size_t i = 0; i < manifest->alias_count; i++) {
        text_puts(text, i ? ",\n" : "\n");
        text_put_name(text, manifest->aliases[i].alias);
        text_put(text, ":", 1);
        text_put_name(text, manifest->aliases[i].stored);
    }
    text_put(text, "}", 1);
}

static void put_shapes(struct text *text, const struct manifest *manifest)
{
    text_puts(text, ",\n\"shards\":{");
    for (size_t i = 0; i < manifest->shape_count; i++) {
        text_puts(text, i ? ",\n" : "\n");
        text_put_name(text, manifest->shapes[i].name);
        text_put(text, ":", 1);
        text_put_array(text, manifest->shapes[i].global_shape, manifest->shapes[i].rank);
    }
    text_put(text, "}", 1);
}

static void put_part(struct text *text, const struct manifest *manifest)
{
    put_number(text, "part", manifest->part);
    put_member(text, "replace");
    text_puts(text, manifest->replace ? "true" : "false");
}

void manifest_seal(char *json, size_t self_patch)
{
    char hex[DIGEST_HEX_BYTES + 1];

    digest_to_hex(hash_bytes(json, self_patch), hex);
    memcpy(json + self_patch, hex, DIGEST_HEX_BYTES);
}

int manifest_build(const struct manifest *manifest, char **json, size_t *size, size_t *digest_patch, size_t *self_patch)
{
    const struct digest unknown = { { 0 } };
    struct text text = { 0 };
    size_t self;
    int error;

    if (manifest->time_seconds > TIME_SECONDS_MAX)
        return -EINVAL;
    text_put(&text, "{", 1);
    put_front(&text, manifest);
    put_metadata(&text, manifest);
    put_files(&text, manifest);
    put_digests(&text, manifest, digest_patch);
    put_objects(&text, manifest);
    put_aliases(&text, manifest);
    put_shapes(&text, manifest);
    if (manifest->is_part)
        put_part(&text, manifest);
    self = put_digest(&text, "digest", unknown);
    text_puts(&text, "}\n");
    if (!text.failed && text.size > MANIFEST_MAX_BYTES) {
        text_deinit(&text);
        return -E2BIG;
    }
    error = text_finish(&text, json, size);
    if (error)
        return error;
    manifest_seal(*json, self);
    *self_patch = self;
    return 0;
}
