/* The manifest makes a checkpoint whole. One that is damaged must never be taken for one that is, and one made by an
 * attacker must not lead out of its directory or eat the machine. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/manifest.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t global_shape[] = { 1024, 4096 };

static struct header_pair pairs[] = { { "step", "1000" }, { "note", "a \"b\" \n\xe2\x82\xac" } };
static struct manifest_file files[] = {
    { "model-00001-of-00002.safetensors", MANIFEST_SAFETENSORS, 0, 1000000, 4096, { { 1, 2, 3 } } },
    { "model-00002-of-00002.safetensors", MANIFEST_SAFETENSORS, 1, UINT64_MAX, 8192, { { 4 } } },
    { "objects-00001.bin", MANIFEST_OBJECTS, 0, 100, 100, { { 5 } } },
    { "model.safetensors.index.json", MANIFEST_INDEX, 0, 77, 77, { { 6 } } },
};
static struct manifest_digests digests[] = { { "tspool.digests", 0, 164, { { 7 } } },
                                             { "tspool.digests-00002", 1, 64, { { 8 } } } };
static struct manifest_object objects[] = { { "lr", "json", "objects-00001.bin", 0, 0, 60, { { 9 } } },
                                            { "rng", "bytes", "objects-00001.bin", 1, 60, 40, { { 10 } } } };
static struct manifest_alias aliases[] = { { "lm_head.weight", "wte.weight" }, { "tied\\2", "wte.weight" } };
static struct manifest_shape shapes[] = { { "w", 2, global_shape }, { "scalar", 0, NULL } };

static struct manifest sample(void)
{
    return (struct manifest){ .world_size = 2,
                              .save_id = { 0xde, 0xad, 0xbe, 0xef },
                              .sequence = UINT64_MAX - 1,
                              .time_seconds = 1795314300,
                              .metadata = pairs, .metadata_count = 2,
                              .files = files, .file_count = 4,
                              .digests = digests, .digests_count = 2,
                              .objects = objects, .object_count = 2,
                              .aliases = aliases, .alias_count = 2,
                              .shapes = shapes, .shape_count = 2 };
}

static char *build(const struct manifest *manifest, size_t *size, size_t *patch)
{
    char *json = NULL;
    size_t self;

    cr_assert_eq(manifest_build(manifest, &json, size, patch, &self), 0);
    return json;
}

Test(manifest, goes_there_and_back)
{
    struct manifest given = sample(), got;
    size_t size, patch[2];
    char *json = build(&given, &size, patch);
    const char *reason = "";

    cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
    free(json);
    cr_assert_eq(got.version, MANIFEST_VERSION);
    cr_assert_eq(got.world_size, 2);
    cr_assert_arr_eq(got.save_id, given.save_id, 16);
    cr_assert_eq(got.sequence, given.sequence);
    cr_assert_eq(got.time_seconds, given.time_seconds);
    cr_assert_eq(got.metadata_count, 2);
    cr_assert_str_eq(got.metadata[1].value, pairs[1].value);
    cr_assert_eq(got.file_count, 4);
    for (size_t i = 0; i < 4; i++) {
        cr_assert_str_eq(got.files[i].name, files[i].name);
        cr_assert_eq(got.files[i].kind, files[i].kind);
        cr_assert_eq(got.files[i].rank, files[i].rank);
        cr_assert_eq(got.files[i].size, files[i].size);
        cr_assert_eq(got.files[i].header_size, files[i].header_size);
        cr_assert(digest_equal(got.files[i].digest, files[i].digest));
    }
    cr_assert_eq(got.digests_count, 2);
    cr_assert_str_eq(got.digests[1].name, digests[1].name);
    cr_assert_eq(got.digests[1].size, 64);
    cr_assert(digest_equal(got.digests[1].digest, digests[1].digest));
    cr_assert_eq(got.object_count, 2);
    cr_assert_str_eq(got.objects[1].name, "rng");
    cr_assert_str_eq(got.objects[1].kind, "bytes");
    cr_assert_str_eq(got.objects[1].file, "objects-00001.bin");
    cr_assert_eq(got.objects[1].rank, 1);
    cr_assert_eq(got.objects[1].file_offset, 60);
    cr_assert_eq(got.objects[1].size, 40);
    cr_assert_eq(got.alias_count, 2);
    cr_assert_str_eq(got.aliases[1].alias, "tied\\2");
    cr_assert_str_eq(got.aliases[1].stored, "wte.weight");
    cr_assert_eq(got.shape_count, 2);
    cr_assert_eq(got.shapes[0].rank, 2);
    cr_assert_eq(got.shapes[0].global_shape[1], 4096);
    cr_assert_eq(got.shapes[1].rank, 0);
    manifest_deinit(&got);
}

Test(manifest, a_part_goes_there_and_back)
{
    for (int replace = 0; replace < 2; replace++) {
        struct manifest_file file = { "shard-00002-model-00001-of-00001.safetensors", MANIFEST_SAFETENSORS, 1, 10, 8, { { 1 } } };
        struct manifest given = { .world_size = 3, .is_part = true, .part = 1, .replace = replace, .files = &file,
                                  .file_count = 1 }, got;
        const char *reason = "";
        size_t size;
        char *json = build(&given, &size, NULL);

        cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
        cr_assert(got.is_part);
        cr_assert_eq(got.part, 1);
        cr_assert_eq(got.replace, replace);
        manifest_deinit(&got);
        free(json);
    }
}

Test(manifest, of_nothing_goes_there_and_back)
{
    struct manifest given = { .world_size = 1 }, got;
    size_t size;
    char *json = build(&given, &size, NULL);
    const char *reason = "";

    cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
    cr_assert_eq(got.file_count, 0);
    manifest_deinit(&got);
    free(json);
}

/* The writer fills the digest in without parsing. */
Test(manifest, digest_is_patched_in_place)
{
    struct manifest given = sample(), got;
    size_t size, patch[2], self;
    char *json, hex[DIGEST_HEX_BYTES + 1];
    struct digest late[2] = { hash_bytes("0", 1), hash_bytes("1", 1) };
    const char *reason = "";

    cr_assert_eq(manifest_build(&given, &json, &size, patch, &self), 0);
    for (size_t i = 0; i < 2; i++) {
        digest_to_hex(late[i], hex);
        memcpy(json + patch[i], hex, DIGEST_HEX_BYTES);
    }
    cr_assert_eq(manifest_parse(json, size, &got, &reason), -EBADMSG, "patched, but not sealed");
    cr_assert(strstr(reason, "digest of itself"), "%s", reason);
    manifest_seal(json, self);
    cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
    cr_assert(digest_equal(got.digests[0].digest, late[0]));
    cr_assert(digest_equal(got.digests[1].digest, late[1]));
    manifest_deinit(&got);
    free(json);
}

Test(manifest, times_go_there_and_back)
{
    const uint64_t times[] = { 0, 59, 86399, 86400, 951782400 /* 2000-02-29 */, 951868799, 951868800, 1795314300,
                               4107542399, 4107542400, 253402300799 };

    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        struct manifest given = { .world_size = 1, .time_seconds = times[i] }, got;
        size_t size;
        char *json = build(&given, &size, NULL);
        const char *reason = "";

        cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
        cr_assert_eq(got.time_seconds, times[i]);
        manifest_deinit(&got);
        free(json);
    }
}

Test(manifest, time_reads_as_people_write_it)
{
    struct manifest given = { .world_size = 1, .time_seconds = 951825661 };
    size_t size, self;
    char *json = build(&given, &size, NULL);

    cr_assert_not_null(memmem(json, size, "\"time\":\"2000-02-29T12:01:01Z\"", 29));
    free(json);
    given.time_seconds = UINT64_C(253402300800);
    cr_assert_eq(manifest_build(&given, &json, &size, NULL, &self), -EINVAL);
}

/* Bad input ---------------------------------------------------------------------------------------------------------- */

#define ID "\"save_id\":\"00000000000000000000000000000000\""
#define HEX "\"11111111111111111111111111111111\""
#define FRONT "{\"tspool_manifest\":1," ID ",\"sequence\":1,\"world_size\":1"
#define FILE_OF(name, kind, rank, size, header) \
    "{\"name\":\"" name "\",\"kind\":\"" kind "\",\"rank\":" #rank ",\"size\":" #size \
    ",\"header_size\":" #header ",\"header_digest\":" HEX "}"
#define OBJECT_IN(file, offset, size) \
    "{\"name\":\"o\",\"kind\":\"json\",\"rank\":0,\"file\":\"" file "\",\"offset\":" #offset ",\"size\":" #size \
    ",\"digest\":" HEX "}"

#define SELF ",\"digest\":\""

static void assert_text_outcome(const char *json, int expected, const char *reason_part)
{
    struct manifest manifest = { .version = 99 };
    const char *reason = "";
    char *copy = malloc(strlen(json) + 1);
    int error;

    memcpy(copy, json, strlen(json));
    error = manifest_parse(copy, strlen(json), &manifest, &reason);
    free(copy);
    cr_assert_eq(error, expected, "%s: %d %s", json, error, reason);
    if (error) {
        cr_assert(strstr(reason, reason_part), "%s: refused because %s, not %s", json, reason, reason_part);
        cr_assert_eq(manifest.version, 99);
    } else
        manifest_deinit(&manifest);
}

/* Of the object `json` with its right digest as the last member: damage is not what is wrong with it. */
static void assert_outcome(const char *json, int expected, const char *reason_part)
{
    size_t kept = strlen(json) - 1, self = kept + strlen(SELF);
    char *sealed = malloc(self + DIGEST_HEX_BYTES + 3);

    cr_assert_eq(json[kept], '}');
    memcpy(sealed, json, kept);
    memcpy(sealed + kept, SELF, strlen(SELF));
    manifest_seal(sealed, self);
    strcpy(sealed + self + DIGEST_HEX_BYTES, "\"}");
    assert_text_outcome(sealed, expected, reason_part);
    free(sealed);
}

static void assert_refused(const char *json, const char *reason_part) { assert_outcome(json, -EBADMSG, reason_part); }

Test(manifest, unknown_members_are_ignored)
{
    assert_outcome(FRONT ",\"future\":{\"x\":[1,{}]},\"files\":[],\"digests\":[]}", 0, "");
    assert_outcome("{\"digests\":[],\"files\":[],\"world_size\":1,\"sequence\":1," ID ",\"tspool_manifest\":1}", 0, "");
}

Test(manifest, a_newer_version_is_not_called_damaged)
{
    assert_outcome("{\"tspool_manifest\":2}", -EPROTO, "newer");
    assert_text_outcome("{\"tspool_manifest\":2}", -EPROTO, "newer");
    assert_outcome("{\"files\":{},\"tspool_manifest\":18446744073709551615}", -EPROTO, "newer");
    assert_refused("{\"tspool_manifest\":0}", "zero");
    assert_refused("{\"tspool_manifest\":2}}", "after");
    assert_text_outcome("{}", -EBADMSG, "missing");
}

/* A flipped bit may well leave a legal manifest of another save, another step, another world. */
Test(manifest, without_its_digest_of_itself_is_refused)
{
    assert_text_outcome(FRONT ",\"files\":[],\"digests\":[]}", -EBADMSG, "no digest of itself");
    assert_text_outcome(FRONT ",\"files\":[],\"digests\":[],\"digest\":" HEX "}", -EBADMSG, "does not match");
    assert_text_outcome(FRONT ",\"files\":[],\"digests\":[],\"digest\":\"\"}", -EBADMSG, "does not match");
    assert_text_outcome(FRONT ",\"files\":[],\"digests\":[],\"digest\":1}", -EBADMSG, "string");
    assert_text_outcome("{\"tspool_manifest\":2,\"digest\":" HEX "}", -EBADMSG, "does not match");
}

Test(manifest, nothing_but_white_space_follows_its_digest)
{
    const char *const tails[] = { "\"}", "\" \n}\r\n\t ", "\",\"note\":1}", "\",\"files\":[]}", "\"}}", "\"},", "\"" };

    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        char text[512] = FRONT ",\"files\":[],\"digests\":[]" SELF;
        size_t self = strlen(text);

        manifest_seal(text, self);
        strcpy(text + self + DIGEST_HEX_BYTES, tails[i]);
        assert_text_outcome(text, i < 2 ? 0 : -EBADMSG, "");
    }
}

Test(manifest, files_stay_in_the_directory)
{
    assert_outcome(FRONT ",\"files\":[" FILE_OF("a", "safetensors", 0, 10, 10) "],\"digests\":[]}", 0, "");
    assert_refused(FRONT ",\"files\":[" FILE_OF("../a", "safetensors", 0, 10, 10) "],\"digests\":[]}", "plain name");
    assert_refused(FRONT ",\"files\":[" FILE_OF("/a", "safetensors", 0, 10, 10) "],\"digests\":[]}", "plain name");
    assert_refused(FRONT ",\"files\":[" FILE_OF("", "safetensors", 0, 10, 10) "],\"digests\":[]}", "plain name");
    assert_refused(FRONT ",\"files\":[],\"digests\":[{\"name\":\"a/b\",\"rank\":0,\"size\":64,\"digest\":" HEX "}]}",
                   "plain name");
}

Test(manifest, files_are_listed_once_and_are_consistent)
{
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 0, 1, 1) "," FILE_OF("a", "objects", 0, 1, 1) "],\"digests\":[]}",
                   "twice");
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 0, 1, 1) "],"
                   "\"digests\":[{\"name\":\"a\",\"rank\":0,\"size\":64,\"digest\":" HEX "}]}", "twice");
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 0, 1, 2) "],\"digests\":[]}", "larger than the file");
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 1, 1, 1) "],\"digests\":[]}", "world size");
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "image", 0, 1, 1) "],\"digests\":[]}", "kind");
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 4294967296, 1, 1) "],\"digests\":[]}", "32 bits");
    assert_refused(FRONT ",\"files\":[{\"name\":\"a\"}],\"digests\":[]}", "missing");
    assert_refused(FRONT ",\"digests\":[]}", "missing");
    assert_refused(FRONT ",\"sequence\":1,\"files\":[],\"digests\":[]}", "twice");
}

Test(manifest, objects_lie_within_their_files)
{
#define WITH_OBJECT(object) \
    FRONT ",\"files\":[" FILE_OF("o.bin", "objects", 0, 10, 10) "," FILE_OF("s", "safetensors", 0, 10, 10) \
    "],\"digests\":[],\"objects\":[" object "]}"
    assert_outcome(WITH_OBJECT(OBJECT_IN("o.bin", 0, 10)), 0, "");
    assert_outcome(WITH_OBJECT(OBJECT_IN("o.bin", 10, 0)), 0, "");
    assert_refused(WITH_OBJECT(OBJECT_IN("o.bin", 1, 10)), "beyond the end");
    assert_refused(WITH_OBJECT(OBJECT_IN("o.bin", 18446744073709551615, 2)), "beyond the end");
    assert_refused(WITH_OBJECT(OBJECT_IN("s", 0, 1)), "not listed for objects");
    assert_refused(WITH_OBJECT(OBJECT_IN("gone", 0, 1)), "not listed for objects");
    assert_refused(WITH_OBJECT(OBJECT_IN("../o", 0, 1)), "plain name");
}

Test(manifest, maps_name_each_thing_once)
{
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"metadata\":{\"a\":\"1\",\"a\":\"1\"}}", "twice");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"aliases\":{\"a\":\"b\",\"\\u0061\":\"c\"}}", "twice");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"shards\":{\"a\":[1],\"a\":[1]}}", "twice");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"aliases\":{\"a\":\"a\"}}", "itself");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"metadata\":{\"a\":1}}", "string");
}

static void time_is(const char *time, bool is_one)
{
    char json[300];

    snprintf(json, sizeof json, FRONT ",\"files\":[],\"digests\":[],\"time\":\"%s\"}", time);
    assert_outcome(json, is_one ? 0 : -EBADMSG, "time");
}

Test(manifest, time_is_one_of_the_calendar_and_the_clock)
{
    static const char *const times[] = { "1970-01-01T00:00:00Z", "2026-12-31T23:59:59Z", "2024-02-29T12:00:00Z" };
    static const char *const none[] = {
        "yesterday", "1969-12-31T23:59:59Z", "2026-00-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-00T00:00:00Z",
        "2026-04-31T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z", "2026-01-01 00:00:00Z",
        "2026-01-01T00:00:0:Z", "2026-01-01T00:00:0/Z", "2026-01-01T00:00:00+" };

    for (size_t i = 0; i < sizeof times / sizeof *times; i++)
        time_is(times[i], true);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        time_is(none[i], false);
}

Test(manifest, a_part_speaks_of_its_own_rank_only)
{
#define PART(part, lists) \
    "{\"tspool_manifest\":1," ID ",\"sequence\":1,\"world_size\":2,\"part\":" #part ",\"replace\":false," lists "}"
    assert_outcome(PART(1, "\"files\":[" FILE_OF("a", "index", 1, 1, 1) "],\"digests\":[]"), 0, "");
    assert_refused(PART(0, "\"files\":[" FILE_OF("a", "index", 1, 1, 1) "],\"digests\":[]"), "another rank");
    assert_refused(PART(2, "\"files\":[],\"digests\":[]"), "another rank");
    assert_refused(PART(0, "\"files\":[],\"digests\":[{\"name\":\"a\",\"rank\":1,\"size\":64,\"digest\":" HEX "}]"), "another rank");
    assert_refused(PART(1, "\"files\":[" FILE_OF("o.bin", "objects", 1, 10, 10) "],\"digests\":[],\"objects\":["
                           OBJECT_IN("o.bin", 0, 10) "]"), "another rank");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"replace\":1}", "value");
    assert_refused(FRONT ",\"files\":[],\"digests\":[],\"part\":\"0\"}", "integer");
}

Test(manifest, ranks_are_below_the_world_size)
{
    assert_refused(FRONT ",\"files\":[" FILE_OF("a", "index", 1, 1, 1) "],\"digests\":[]}", "world size");
    assert_refused(FRONT ",\"files\":[],\"digests\":[{\"name\":\"a\",\"rank\":1,\"size\":64,\"digest\":" HEX "}]}",
                   "world size");
    assert_refused(FRONT ",\"files\":[" FILE_OF("o.bin", "objects", 0, 10, 10) "],\"digests\":[],\"objects\":["
                   "{\"name\":\"o\",\"kind\":\"json\",\"rank\":1,\"file\":\"o.bin\",\"offset\":0,\"size\":1,\"digest\":" HEX "}]}",
                   "world size");
}

Test(manifest, a_world_of_no_ranks_is_refused)
{
    assert_refused("{\"tspool_manifest\":1," ID ",\"sequence\":1,\"world_size\":0,\"files\":[],\"digests\":[]}", "world size");
}

Test(manifest, ids_and_digests_are_hex)
{
    assert_refused("{\"tspool_manifest\":1,\"save_id\":\"0000000000000000000000000000000\",\"sequence\":1,\"world_size\":1,"
                   "\"files\":[],\"digests\":[]}", "hex");
    assert_refused("{\"tspool_manifest\":1,\"save_id\":\"0000000000000000000000000000000G\",\"sequence\":1,\"world_size\":1,"
                   "\"files\":[],\"digests\":[]}", "hex");
    assert_refused("{\"tspool_manifest\":1," ID ",\"sequence\":1,\"world_size\":0,\"files\":[" FILE_OF("a", "index", 0, 1, 1) "],"
                   "\"digests\":[]}", "world size");
}

/* A byte for which another stands: letters for letters leave it legal, and only the digest sees them. */
Test(manifest, every_exchanged_letter_and_digit_is_refused)
{
    struct manifest given = sample(), got;
    size_t size, patch[2], tried = 0;
    char *json = build(&given, &size, patch);
    const char *reason;

    for (size_t i = 0; i < size; i++) {
        char was = json[i];

        for (const char *to = "09afzAZ_"; *to; to++) {
            if (was == *to || !((was >= '0' && was <= '9') || (was >= 'a' && was <= 'z')))
                continue;
            json[i] = *to;
            cr_assert_eq(manifest_parse(json, size, &got, &reason), -EBADMSG, "byte %zu: %c for %c", i, *to, was);
            json[i] = was;
            tried++;
        }
    }
    cr_assert(tried > size, "few bytes were tried: %zu of %zu", tried, size);
    free(json);
}

Test(manifest, every_truncation_is_refused)
{
    struct manifest given = sample(), got;
    size_t size, patch[2];
    char *json = build(&given, &size, patch);
    const char *reason;

    for (size_t cut = 0; cut < size - 1; cut++) { /* the last byte is a line break */
        char *copy = malloc(cut ? cut : 1);

        memcpy(copy, json, cut);
        cr_assert_eq(manifest_parse(copy, cut, &got, &reason), -EBADMSG, "%zu of %zu", cut, size);
        free(copy);
    }
    free(json);
}

/* The last byte is a line break: white space for white space changes nothing. */
Test(manifest, every_flipped_byte_is_refused)
{
    struct manifest given = sample(), got;
    size_t size, patch[2];
    char *json = build(&given, &size, patch);
    const unsigned char flips[] = { 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x5a };

    for (size_t i = 0; i < size; i++)
        for (size_t f = 0; f < sizeof flips; f++) {
            const char *reason = NULL;

            json[i] ^= (char)flips[f];
            cr_assert_eq(manifest_parse(json, size, &got, &reason), -EBADMSG, "byte %zu ^ %02x", i, flips[f]);
            cr_assert_not_null(reason);
            json[i] ^= (char)flips[f];
        }
    free(json);
}

/* A tie per tensor of the largest state dict: seconds would be paid at each open. */
Test(manifest, a_million_aliases_go_there_and_back, .timeout = 30)
{
    enum { COUNT = 1000000 };
    char (*names)[16] = malloc(COUNT * sizeof *names);
    struct manifest given = { .world_size = 1, .aliases = malloc(COUNT * sizeof *given.aliases), .alias_count = COUNT }, got;
    const char *reason = "";
    char *json;
    size_t size;

    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "alias.%zu", i);
        given.aliases[i] = (struct manifest_alias){ names[i], "stored" };
    }
    json = build(&given, &size, NULL);
    cr_assert_eq(manifest_parse(json, size, &got, &reason), 0, "%s", reason);
    cr_assert_eq(got.alias_count, COUNT);
    for (size_t i = 0; i < COUNT; i++)
        cr_assert_str_eq(got.aliases[i].alias, names[i]);
    manifest_deinit(&got);
    free(json);
    free(given.aliases);
    free(names);
}
