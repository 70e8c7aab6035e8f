/* format/manifest_parse.c - the manifest, which anybody may have written.
 *
 * Two walks: the first finds the version and knows nothing else, so that a newer manifest is called newer and not
 * damaged; the second takes the members apart. Then names must be safe and distinct, ranks within the world, objects
 * within their files.
 */
#include <format/manifest.h>

#include <base/array.h>
#include <base/checked.h>
#include <base/names.h>
#include <errno.h>
#include <format/name_table.h>
#include <format/scan.h>
#include <string.h>

struct parser {
    struct manifest *manifest;
    struct pool pool;
    size_t metadata_capacity, file_capacity, digests_capacity, object_capacity, alias_capacity, shape_capacity;
};

/* Fields shared by several members --------------------------------------------------------------------------------- */

static int take_digest(struct scan *scan, struct digest *digest)
{
    struct scan_token token;
    char hex[DIGEST_HEX_BYTES + 1] = "";
    int error = scan_string(scan, &token);

    if (error)
        return error;
    if (!token.escaped && token.size == DIGEST_HEX_BYTES)
        memcpy(hex, token.bytes, DIGEST_HEX_BYTES);
    return digest_from_hex(hex, digest) ? scan_fault(scan, "a digest or id is not 32 lower-case hex digits") : 0;
}

static int take_file_name(struct scan *scan, const char **name)
{
    int error = scan_text(scan, name, NULL);

    if (error)
        return error;
    return file_name_is_safe(*name) ? 0 : scan_fault(scan, "a file name is not a plain name");
}

/* Makes room for one more element. */
static int list_grow(struct scan *scan, void *items, size_t *capacity, size_t count, size_t element_size)
{
    return array_reserve(items, capacity, count + 1, element_size) ? scan_no_memory(scan) : 0;
}

/* files ------------------------------------------------------------------------------------------------------------ */

static int take_kind(struct scan *scan, void *context)
{
    struct manifest_file *file = context;
    struct scan_token token;
    int error = scan_string(scan, &token);

    if (error)
        return error;
    file->kind = scan_token_is(token, "safetensors") ? MANIFEST_SAFETENSORS
               : scan_token_is(token, "objects")     ? MANIFEST_OBJECTS
               : scan_token_is(token, "index")       ? MANIFEST_INDEX
                                                     : 0;
    return file->kind ? 0 : scan_fault(scan, "a file has a kind that is unknown");
}

static int take_file_own_name(struct scan *scan, void *file) { return take_file_name(scan, &((struct manifest_file *)file)->name); }
static int take_file_rank(struct scan *scan, void *file) { return scan_u32(scan, &((struct manifest_file *)file)->rank); }
static int take_file_size(struct scan *scan, void *file) { return scan_u64(scan, &((struct manifest_file *)file)->size); }
static int take_header_size(struct scan *scan, void *file) { return scan_u64(scan, &((struct manifest_file *)file)->header_size); }
static int take_header_digest(struct scan *scan, void *file) { return take_digest(scan, &((struct manifest_file *)file)->digest); }

static int take_file(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", take_file_own_name, true },        { "kind", take_kind, true },
        { "rank", take_file_rank, true },            { "size", take_file_size, true },
        { "header_size", take_header_size, true },   { "header_digest", take_header_digest, true },
    };
    struct parser *parser = context;
    struct manifest *manifest = parser->manifest;
    struct manifest_file file = { 0 };
    int error = scan_object(scan, members, sizeof members / sizeof *members, &file);

    if (error)
        return error;
    if (file.header_size > file.size)
        return scan_fault(scan, "a file's header is larger than the file");
    error = list_grow(scan, (void **)&manifest->files, &parser->file_capacity, manifest->file_count, sizeof file);
    if (error)
        return error;
    manifest->files[manifest->file_count++] = file;
    return 0;
}

static int take_files(struct scan *scan, void *parser) { return scan_array(scan, take_file, parser); }

/* digests ---------------------------------------------------------------------------------------------------------- */

static int take_digests_name(struct scan *scan, void *digests) { return take_file_name(scan, &((struct manifest_digests *)digests)->name); }
static int take_digests_rank(struct scan *scan, void *digests) { return scan_u32(scan, &((struct manifest_digests *)digests)->rank); }
static int take_digests_size(struct scan *scan, void *digests) { return scan_u64(scan, &((struct manifest_digests *)digests)->size); }
static int take_digests_digest(struct scan *scan, void *digests) { return take_digest(scan, &((struct manifest_digests *)digests)->digest); }

static int take_digests_file(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", take_digests_name, true }, { "rank", take_digests_rank, true },
        { "size", take_digests_size, true }, { "digest", take_digests_digest, true },
    };
    struct parser *parser = context;
    struct manifest *manifest = parser->manifest;
    struct manifest_digests digests = { 0 };
    int error = scan_object(scan, members, sizeof members / sizeof *members, &digests);

    if (!error)
        error = list_grow(scan, (void **)&manifest->digests, &parser->digests_capacity, manifest->digests_count, sizeof digests);
    if (error)
        return error;
    manifest->digests[manifest->digests_count++] = digests;
    return 0;
}

static int take_digests(struct scan *scan, void *parser) { return scan_array(scan, take_digests_file, parser); }

/* objects ---------------------------------------------------------------------------------------------------------- */

static int take_object_name(struct scan *scan, void *object) { return scan_text(scan, &((struct manifest_object *)object)->name, NULL); }
static int take_object_kind(struct scan *scan, void *object) { return scan_text(scan, &((struct manifest_object *)object)->kind, NULL); }
static int take_object_rank(struct scan *scan, void *object) { return scan_u32(scan, &((struct manifest_object *)object)->rank); }
static int take_object_file(struct scan *scan, void *object) { return take_file_name(scan, &((struct manifest_object *)object)->file); }
static int take_object_offset(struct scan *scan, void *object) { return scan_u64(scan, &((struct manifest_object *)object)->file_offset); }
static int take_object_size(struct scan *scan, void *object) { return scan_u64(scan, &((struct manifest_object *)object)->size); }
static int take_object_digest(struct scan *scan, void *object) { return take_digest(scan, &((struct manifest_object *)object)->digest); }

static int take_object(struct scan *scan, void *context)
{
    static const struct scan_member members[] = {
        { "name", take_object_name, true },     { "kind", take_object_kind, true }, { "rank", take_object_rank, true },
        { "file", take_object_file, true },     { "offset", take_object_offset, true }, { "size", take_object_size, true },
        { "digest", take_object_digest, true },
    };
    struct parser *parser = context;
    struct manifest *manifest = parser->manifest;
    struct manifest_object object = { 0 };
    int error = scan_object(scan, members, sizeof members / sizeof *members, &object);

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
    struct manifest *manifest = parser->manifest;
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
    struct manifest *manifest = parser->manifest;
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
    struct manifest *manifest = parser->manifest;
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

static int take_version(struct scan *scan, void *version) { return scan_u64(scan, version); }

static int take_save_id(struct scan *scan, void *context)
{
    struct digest id;
    int error = take_digest(scan, &id);

    if (error)
        return error;
    memcpy(((struct parser *)context)->manifest->save_id, id.bytes, sizeof id.bytes);
    return 0;
}

static int take_sequence(struct scan *scan, void *parser) { return scan_u64(scan, &((struct parser *)parser)->manifest->sequence); }
static int take_world_size(struct scan *scan, void *parser) { return scan_u32(scan, &((struct parser *)parser)->manifest->world_size); }

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
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > month_days[month - 1] || hour > 23 || minute > 59 || second > 59)
        return false;
    year -= month <= 2;
    days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day - 1 - 719468;
    *seconds = days * 86400 + hour * 3600 + minute * 60 + second;
    return true;
}

static int take_time(struct scan *scan, void *context)
{
    struct parser *parser = context;
    struct scan_token token;
    int error = scan_string(scan, &token);

    if (error)
        return error;
    return time_parse(token.bytes, token.size, &parser->manifest->time_seconds) ? 0 : scan_fault(scan, "the time is malformed");
}

static int take_version_again(struct scan *scan, void *parser) { return scan_u32(scan, &((struct parser *)parser)->manifest->version); }

/* The whole -------------------------------------------------------------------------------------------------------- */

static int version_check(struct scan *scan, const char *json, size_t size, struct pool *pool)
{
    static const struct scan_member members[] = { { "tspool_manifest", take_version, true } };
    uint64_t version = 0;
    int error = scan_init(scan, json, size, pool);

    if (!error)
        error = scan_object(scan, members, 1, &version);
    if (!error)
        error = scan_finish(scan);
    if (error)
        return error;
    if (version > MANIFEST_VERSION) {
        scan->reason = "the checkpoint was written by a newer version";
        return -EPROTO;
    }
    return version ? 0 : scan_fault(scan, "the manifest's version is zero");
}

static int members_take(struct scan *scan, struct parser *parser)
{
    static const struct scan_member members[] = {
        { "tspool_manifest", take_version_again, true },
        { "save_id", take_save_id, true },
        { "sequence", take_sequence, true },
        { "time", take_time, false },
        { "world_size", take_world_size, true },
        { "metadata", take_metadata, false },
        { "files", take_files, true },
        { "digests", take_digests, true },
        { "objects", take_objects, false },
        { "aliases", take_aliases, false },
        { "shards", take_shapes, false },
    };

    scan->at = scan->start; /* the text is known to be one legal value */
    return scan_object(scan, members, sizeof members / sizeof *members, parser);
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
    int error = version_check(scan, json, size, &parser->pool);

    if (!error)
        error = members_take(scan, parser);
    return error ? error : whole_check(scan, parser->manifest);
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
    struct manifest parsed = { 0 };
    struct parser parser = { .manifest = &parsed };
    struct scan scan = { 0 };
    int error;

    if (size > MANIFEST_MAX_BYTES) {
        *reason = "the manifest is larger than 1 GiB";
        return -EBADMSG;
    }
    error = parse(&scan, &parser, json, size);
    parsed.memory = parser.pool.newest;
    if (error) {
        *reason = scan.reason;
        manifest_deinit(&parsed);
        return error;
    }
    *manifest = parsed;
    return 0;
}
