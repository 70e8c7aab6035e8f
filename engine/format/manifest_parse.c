/* format/manifest_parse.c - the manifest, which anybody may have written.
 *
 * Two walks: the first finds the version and the manifest's digest of itself and knows nothing else, so that a newer
 * manifest is called newer and a damaged one damaged, whatever stands in it; the second takes the members apart. Then names
 * must be safe and distinct, ranks within the world, objects within their files.
 */
#include <format/manifest.h>

#include <base/array.h>
#include <base/checked.h>
#include <base/mutant.h>
#include <base/names.h>
#include <errno.h>
#include <format/name_table.h>
#include <format/scan.h>
#include <string.h>

struct parser {
    struct manifest manifest;
    struct pool pool;
    size_t metadata_capacity, file_capacity, digests_capacity, object_capacity, alias_capacity, shape_capacity;
};

/* Takes what members have in common. */

static int take_digest(struct scan *scan, void *to)
{
    struct scan_token token;
    char hex[DIGEST_HEX_BYTES + 1] = "";
    int error = scan_string(scan, &token);

    if (error)
        return error;
    if (!token.escaped && token.size == DIGEST_HEX_BYTES)
        memcpy(hex, token.bytes, DIGEST_HEX_BYTES);
    return digest_from_hex(hex, to) ? scan_fault(scan, "a digest or id is not 32 lower-case hex digits") : 0;
}

static int take_file_name(struct scan *scan, void *to)
{
    const char **name = to;
    int error = scan_text(scan, name, NULL);

    if (error)
        return error;
    return file_name_is_safe(*name) ? 0 : scan_fault(scan, "a file name is not a plain name");
}

static int take_kind(struct scan *scan, void *to)
{
    enum manifest_file_kind *kind = to;
    struct scan_token token;
    int error = scan_string(scan, &token);

    if (error)
        return error;
    if (scan_token_is(token, "safetensors"))
        *kind = MANIFEST_SAFETENSORS;
    else if (scan_token_is(token, "objects"))
        *kind = MANIFEST_OBJECTS;
    else if (scan_token_is(token, "index"))
        *kind = MANIFEST_INDEX;
    else
        return scan_fault(scan, "a file has a kind that is unknown");
    return 0;
}

/* Makes room for one more element. */
static int list_grow(struct scan *scan, void **items, size_t *capacity, size_t count, size_t element_size)
{
    return array_reserve(items, capacity, count + 1, element_size) ? scan_no_memory(scan) : 0;
}

/* files, digests, objects ------------------------------------------------------------------------------------------ */

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

static int take_file(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", take_file_name, true, offsetof(struct manifest_file, name) },
        { "kind", take_kind, true, offsetof(struct manifest_file, kind) },
        { "rank", scan_take_u32, true, offsetof(struct manifest_file, rank) },
        { "size", scan_take_u64, true, offsetof(struct manifest_file, size) },
        { "header_size", scan_take_u64, true, offsetof(struct manifest_file, header_size) },
        { "header_digest", take_digest, true, offsetof(struct manifest_file, digest) },
    };
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct manifest_file file = { 0 };
    int error = scan_object(scan, members, COUNT_OF(members), &file);

    if (!error && file.header_size > file.size)
        error = scan_fault(scan, "a file's header is larger than the file");
    if (!error)
        error = list_grow(scan, (void **)&manifest->files, &parser->file_capacity, manifest->file_count, sizeof file);
    if (error)
        return error;
    manifest->files[manifest->file_count++] = file;
    return 0;
}

static int take_files(struct scan *scan, void *parser) { return scan_array(scan, take_file, parser); }

static int take_digests_file(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", take_file_name, true, offsetof(struct manifest_digests, name) },
        { "rank", scan_take_u32, true, offsetof(struct manifest_digests, rank) },
        { "size", scan_take_u64, true, offsetof(struct manifest_digests, size) },
        { "digest", take_digest, true, offsetof(struct manifest_digests, digest) },
    };
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct manifest_digests digests = { 0 };
    int error = scan_object(scan, members, COUNT_OF(members), &digests);

    if (!error)
        error = list_grow(scan, (void **)&manifest->digests, &parser->digests_capacity, manifest->digests_count, sizeof digests);
    if (error)
        return error;
    manifest->digests[manifest->digests_count++] = digests;
    return 0;
}

static int take_digests(struct scan *scan, void *parser) { return scan_array(scan, take_digests_file, parser); }

static int take_object(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", scan_take_text, true, offsetof(struct manifest_object, name) },
        { "kind", scan_take_text, true, offsetof(struct manifest_object, kind) },
        { "rank", scan_take_u32, true, offsetof(struct manifest_object, rank) },
        { "file", take_file_name, true, offsetof(struct manifest_object, file) },
        { "offset", scan_take_u64, true, offsetof(struct manifest_object, file_offset) },
        { "size", scan_take_u64, true, offsetof(struct manifest_object, size) },
        { "digest", take_digest, true, offsetof(struct manifest_object, digest) },
    };
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct manifest_object object = { 0 };
    int error = scan_object(scan, members, COUNT_OF(members), &object);

    if (!error)
        error = list_grow(scan, (void **)&manifest->objects, &parser->object_capacity, manifest->object_count, sizeof object);
    if (error)
        return error;
    manifest->objects[manifest->object_count++] = object;
    return 0;
}

static int take_objects(struct scan *scan, void *parser) { return scan_array(scan, take_object, parser); }

/* metadata, aliases, shards ---------------------------------------------------------------------------------------- */

static int take_pair(struct scan *scan, struct scan_token key, void *context)
{
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct header_pair pair;
    int error = scan_keep(scan, key, &pair.key, NULL);

    if (!error)
        error = scan_text(scan, &pair.value, NULL);
    if (!error)
        error = list_grow(scan, (void **)&manifest->metadata, &parser->metadata_capacity, manifest->metadata_count, sizeof pair);
    if (error)
        return error;
    manifest->metadata[manifest->metadata_count++] = pair;
    return 0;
}

static int take_metadata(struct scan *scan, void *parser) { return scan_map(scan, take_pair, parser); }

static int take_alias(struct scan *scan, struct scan_token key, void *context)
{
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct manifest_alias alias;
    int error = scan_keep(scan, key, &alias.alias, NULL);

    if (!error)
        error = scan_text(scan, &alias.stored, NULL);
    if (!error && !strcmp(alias.alias, alias.stored))
        error = scan_fault(scan, "a tensor is tied to itself");
    if (!error)
        error = list_grow(scan, (void **)&manifest->aliases, &parser->alias_capacity, manifest->alias_count, sizeof alias);
    if (error)
        return error;
    manifest->aliases[manifest->alias_count++] = alias;
    return 0;
}

static int take_aliases(struct scan *scan, void *parser) { return scan_map(scan, take_alias, parser); }

static int take_shape(struct scan *scan, struct scan_token key, void *context)
{
    struct parser *parser = context;
    struct manifest *manifest = &parser->manifest;
    struct manifest_shape shape = { 0 };
    size_t rank = 0;
    int error = scan_keep(scan, key, &shape.name, NULL);

    if (!error)
        error = scan_numbers(scan, TSPOOL_RANK_MAX, &shape.global_shape, &rank);
    if (!error)
        error = list_grow(scan, (void **)&manifest->shapes, &parser->shape_capacity, manifest->shape_count, sizeof shape);
    if (error)
        return error;
    shape.rank = (uint32_t)rank;
    manifest->shapes[manifest->shape_count++] = shape;
    return 0;
}

static int take_shapes(struct scan *scan, void *parser) { return scan_map(scan, take_shape, parser); }

/* The front -------------------------------------------------------------------------------------------------------- */

static const char time_form[] = "0000-00-00T00:00:00Z"; /* a 0 stands for any digit */

static uint64_t digits_at(const char *text, size_t first, size_t count)
{
    uint64_t value = 0;

    for (size_t i = first; i < first + count; i++)
        value = value * 10 + (uint64_t)(text[i] - '0');
    return value;
}

/* The inverse of manifest_emit.c's time_format. False for what is not a time from 1970 on. */
static bool time_parse(const char *text, size_t size, uint64_t *seconds)
{
    static const uint8_t month_days[] = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    uint64_t year, month, day, hour, minute, second, days;

    if (size != sizeof time_form - 1)
        return false;
    for (size_t i = 0; i < size; i++)
        if (time_form[i] == '0' ? text[i] < '0' || text[i] > '9' : text[i] != time_form[i])
            return false;
    year = digits_at(text, 0, 4), month = digits_at(text, 5, 2), day = digits_at(text, 8, 2);
    hour = digits_at(text, 11, 2), minute = digits_at(text, 14, 2), second = digits_at(text, 17, 2);
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > month_days[month - 1] || hour > 23 || minute > 59 ||
        second > 59)
        return false;
    year -= month <= 2;
    days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day - 1 - 719468;
    *seconds = days * 86400 + hour * 3600 + minute * 60 + second;
    return true;
}

static int take_time(struct scan *scan, void *to)
{
    struct scan_token token;
    int error = scan_string(scan, &token);

    if (error)
        return error;
    return time_parse(token.bytes, token.size, to) ? 0 : scan_fault(scan, "the time is malformed");
}

static int take_part(struct scan *scan, void *to)
{
    struct manifest *manifest = to;

    manifest->is_part = true;
    return scan_u32(scan, &manifest->part);
}

static int take_replace(struct scan *scan, void *to) { return scan_bool(scan, to); }

/* The whole -------------------------------------------------------------------------------------------------------- */

struct front { uint64_t version; struct scan_token digest; /* bytes: NULL when there is none */ };

static int take_token(struct scan *scan, void *to) { return scan_string(scan, to); }

/* The text is one legal object, so what may follow the last member can only be white space and one brace. */
static bool is_last_member(const struct scan *scan, struct scan_token value)
{
    for (const char *at = value.bytes + value.size + 1; at < scan->end; at++)
        if (!strchr(" \t\r\n}", *at))
            return false;
    return true;
}

static int self_check(struct scan *scan, struct scan_token token)
{
    char hex[DIGEST_HEX_BYTES + 1];

    if (!is_last_member(scan, token))
        return scan_fault(scan, "something follows the manifest's digest of itself");
    digest_to_hex(hash_bytes(scan->start, (size_t)(token.bytes - scan->start)), hex);
    if ((token.size != DIGEST_HEX_BYTES || memcmp(token.bytes, hex, DIGEST_HEX_BYTES) != 0) &&
        !MUTANT(MANIFEST_DIGEST_NOT_COMPARED))
        return scan_fault(scan, "the manifest does not match its digest of itself");
    return 0;
}

/* A newer manifest may do without the digest; where it has one, damage is not taken for a version. */
static int front_check(struct scan *scan, const char *json, size_t size, struct pool *pool)
{
    static const struct scan_member members[] = {
        { "tspool_manifest", scan_take_u64, true, offsetof(struct front, version) },
        { "digest", take_token, false, offsetof(struct front, digest) },
    };
    struct front front = { 0 };
    int error = scan_init(scan, json, size, pool);

    if (!error)
        error = scan_object(scan, members, COUNT_OF(members), &front);
    if (!error)
        error = scan_finish(scan);
    if (!error && front.digest.bytes)
        error = self_check(scan, front.digest);
    if (error)
        return error;
    if (front.version > MANIFEST_VERSION) {
        scan->reason = "the checkpoint was written by a newer version";
        return -EPROTO;
    }
    if (!front.digest.bytes)
        return scan_fault(scan, "the manifest has no digest of itself");
    return front.version ? 0 : scan_fault(scan, "the manifest's version is zero");
}

static int members_take(struct scan *scan, struct parser *parser)
{
    static const struct scan_member members[] = {
        { "tspool_manifest", scan_take_u32, true, offsetof(struct parser, manifest.version) },
        { "save_id", take_digest, true, offsetof(struct parser, manifest.save_id) }, /* hex of 16 bytes as well */
        { "sequence", scan_take_u64, true, offsetof(struct parser, manifest.sequence) },
        { "time", take_time, false, offsetof(struct parser, manifest.time_seconds) },
        { "world_size", scan_take_u32, true, offsetof(struct parser, manifest.world_size) },
        { "metadata", take_metadata, false, 0 },
        { "files", take_files, true, 0 },
        { "digests", take_digests, true, 0 },
        { "objects", take_objects, false, 0 },
        { "aliases", take_aliases, false, 0 },
        { "shards", take_shapes, false, 0 },
        { "part", take_part, false, offsetof(struct parser, manifest) },
        { "replace", take_replace, false, offsetof(struct parser, manifest.replace) },
    };

    scan->at = scan->start; /* the text is known to be one legal value */
    return scan_object(scan, members, COUNT_OF(members), parser);
}

/* The name is the first field of each element. */
static int repeats_check(struct scan *scan, const void *names, size_t stride, size_t count, const char *fault)
{
    int outcome = count ? names_repeat(names, stride, count) : 0;

    return outcome < 0 ? scan_no_memory(scan) : outcome ? scan_fault(scan, fault) : 0;
}

/* Files of all kinds, digests files included, share one directory. */
static int files_check(struct scan *scan, const struct manifest *manifest, struct name_table *table)
{
    size_t count = manifest->file_count + manifest->digests_count;
    const char **names = pool_allocate(scan->pool, (count + 1) * sizeof *names, sizeof *names);
    int outcome;

    if (!names)
        return scan_no_memory(scan);
    for (size_t i = 0; i < count; i++)
        names[i] = i < manifest->file_count ? manifest->files[i].name : manifest->digests[i - manifest->file_count].name;
    outcome = name_table_build(table, names, sizeof *names, count);
    return outcome < 0 ? scan_no_memory(scan) : outcome ? scan_fault(scan, "a file is listed twice") : 0;
}

/* A part speaks of its own rank only. */
static int part_check(struct scan *scan, const struct manifest *manifest)
{
    bool alone = manifest->part < manifest->world_size;

    for (size_t i = 0; i < manifest->file_count; i++)
        alone = alone && manifest->files[i].rank == manifest->part;
    for (size_t i = 0; i < manifest->digests_count; i++)
        alone = alone && manifest->digests[i].rank == manifest->part;
    for (size_t i = 0; i < manifest->object_count; i++)
        alone = alone && manifest->objects[i].rank == manifest->part;
    return alone ? 0 : scan_fault(scan, "a part lists what another rank wrote");
}

static int ranks_check(struct scan *scan, const struct manifest *manifest)
{
    bool within = manifest->world_size > 0;

    for (size_t i = 0; i < manifest->file_count; i++)
        within = within && manifest->files[i].rank < manifest->world_size;
    for (size_t i = 0; i < manifest->digests_count; i++)
        within = within && manifest->digests[i].rank < manifest->world_size;
    for (size_t i = 0; i < manifest->object_count; i++)
        within = within && manifest->objects[i].rank < manifest->world_size;
    return within ? 0 : scan_fault(scan, "a rank is not below the world size");
}

static int objects_check(struct scan *scan, const struct manifest *manifest, const struct name_table *table)
{
    for (size_t i = 0; i < manifest->object_count; i++) {
        const struct manifest_object *object = &manifest->objects[i];
        size_t file = name_table_find(table, object->file);
        uint64_t end;

        if (file >= manifest->file_count || manifest->files[file].kind != MANIFEST_OBJECTS)
            return scan_fault(scan, "an object lies in a file that is not listed for objects");
        if (!checked_add(object->file_offset, object->size, &end) || end > manifest->files[file].size)
            return scan_fault(scan, "an object lies beyond the end of its file");
    }
    return 0;
}

static int whole_check(struct scan *scan, const struct manifest *manifest)
{
    struct name_table table = { NULL, 0 };
    int error = files_check(scan, manifest, &table);

    if (!error)
        error = ranks_check(scan, manifest);
    if (!error && manifest->is_part)
        error = part_check(scan, manifest);
    if (!error)
        error = objects_check(scan, manifest, &table);
    name_table_deinit(&table);
    if (!error)
        error = repeats_check(scan, manifest->metadata, sizeof *manifest->metadata, manifest->metadata_count,
                              "a key of the metadata is given twice");
    if (!error)
        error = repeats_check(scan, manifest->aliases, sizeof *manifest->aliases, manifest->alias_count,
                              "a tensor is tied twice");
    if (!error)
        error = repeats_check(scan, manifest->shapes, sizeof *manifest->shapes, manifest->shape_count,
                              "a sharded tensor is listed twice");
    return error;
}

static int parse(struct scan *scan, struct parser *parser, const char *json, size_t size)
{
    int error = front_check(scan, json, size, &parser->pool);

    if (!error)
        error = members_take(scan, parser);
    return error ? error : whole_check(scan, &parser->manifest);
}

/* manifest.memory is the pool's newest block. */
void manifest_deinit(struct manifest *manifest)
{
    struct pool pool = { manifest->memory };

    pool_deinit(&pool);
    free(manifest->metadata);
    free(manifest->files);
    free(manifest->digests);
    free(manifest->objects);
    free(manifest->aliases);
    free(manifest->shapes);
    *manifest = (struct manifest){ 0 };
}

int manifest_parse(const char *json, size_t size, struct manifest *manifest, const char **reason)
{
    struct parser parser = { .pool = { NULL } };
    struct scan scan;
    int error;

    if (size > MANIFEST_MAX_BYTES) {
        *reason = "the manifest is larger than 1 GiB";
        return -EBADMSG;
    }
    error = parse(&scan, &parser, json, size);
    parser.manifest.memory = parser.pool.newest;
    if (error) {
        *reason = scan.reason;
        manifest_deinit(&parser.manifest);
        return error;
    }
    *manifest = parser.manifest;
    return 0;
}
