/* A value of a kind that fits nowhere stands in the place of each value in turn: whatever member it is, however deep, the text
 * is refused, for a reason that is not forgotten, and nothing is given out. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/index.h>
#include <format/manifest.h>
#include <format/safetensors.h>
#include <stdlib.h>
#include <string.h>

#define MISFIT "[[1]]"

static const char *const header =
    "{\"__metadata__\":{\"step\":\"1\",\"DCP_SHARDING_INFO\":\"{\\\"a\\\":{\\\"saved_offsets\\\":[7]}}\"},"
    "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
    "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[1,5]}}";
static const char *const sharding = "{\"a\":{\"saved_offsets\":[7]},\"z\":{\"saved_offsets\":[]}}";
static const char *const index_text = "{\"metadata\":{\"total_size\":5},\"weight_map\":{\"a\":\"f1\",\"b\":\"f2\"}}";
#define HEX "\"00112233445566778899aabbccddeeff\""
static const char *const manifest_text =
    "{\"tspool_manifest\":1,\"save_id\":" HEX ",\"sequence\":7,\"time\":\"2026-11-22T02:25:00Z\",\"world_size\":2,"
    "\"metadata\":{\"step\":\"1000\"},"
    "\"files\":[{\"name\":\"model.safetensors\",\"kind\":\"safetensors\",\"rank\":0,\"size\":5000,\"header_size\":4096,"
    "\"header_digest\":" HEX "},{\"name\":\"objects-00001.bin\",\"kind\":\"objects\",\"rank\":1,\"size\":10,\"header_size\":10,"
    "\"header_digest\":" HEX "}],"
    "\"digests\":[{\"name\":\"tspool.digests\",\"rank\":0,\"size\":64,\"digest\":" HEX "}],"
    "\"objects\":[{\"name\":\"o\",\"kind\":\"json\",\"rank\":0,\"file\":\"objects-00001.bin\",\"offset\":1,\"size\":9,"
    "\"digest\":" HEX "}],\"aliases\":{\"tied\":\"stored\"},\"shards\":{\"w\":[1,2]}}";

/* Each returns 0 or -errno, and asserts that a refusal has its reason and changed nothing. */
static int header_take(const char *text, size_t size)
{
    struct parsed_header parsed = { .count = 99 };
    const char *reason = NULL;
    size_t position = SIZE_MAX;
    int error = header_parse(text, size, 5, &parsed, &reason, &position);

    if (error < 0)
        cr_assert(reason && position <= size && parsed.count == 99);
    else
        parsed_header_deinit(&parsed);
    return error;
}

static int sharding_take(const char *info, size_t size)
{
    const char *const front = "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"", *const back = "\"},"
                      "\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}}";
    char text[1024];
    size_t used = strlen(front);

    memcpy(text, front, used);
    for (size_t i = 0; i < size; i++) {
        if (info[i] == '"')
            text[used++] = '\\';
        text[used++] = info[i];
    }
    strcpy(text + used, back);
    return header_take(text, strlen(text));
}

static int index_take(const char *text, size_t size)
{
    struct parsed_index parsed = { .entry_count = 99 };
    const char *reason = NULL;
    int error = index_parse(text, size, &parsed, &reason);

    if (error < 0)
        cr_assert(reason && parsed.entry_count == 99);
    else
        parsed_index_deinit(&parsed);
    return error;
}

/* Sealed again: damage is not what is wrong with it. */
static int manifest_take(const char *text, size_t size)
{
    static const char member[] = ",\"digest\":\"", tail[] = "\"}";
    size_t self = size - 1 + strlen(member);
    char *sealed = malloc(self + DIGEST_HEX_BYTES + sizeof tail);
    struct manifest parsed = { .version = 99 };
    const char *reason = NULL;
    int error;

    memcpy(sealed, text, size - 1);
    memcpy(sealed + size - 1, member, strlen(member));
    manifest_seal(sealed, self);
    strcpy(sealed + self + DIGEST_HEX_BYTES, tail);
    error = manifest_parse(sealed, strlen(sealed), &parsed, &reason);
    free(sealed);
    if (error < 0)
        cr_assert(reason && parsed.version == 99);
    else
        manifest_deinit(&parsed);
    return error;
}

/* The text's values ------------------------------------------------------------------------------------------------- */

static const char *string_end(const char *at)
{
    for (at++; *at != '"'; at++)
        at += *at == '\\';
    return at + 1;
}

static const char *value_end(const char *at)
{
    unsigned depth = 0;

    if (*at == '"')
        return string_end(at);
    if (*at != '{' && *at != '[')
        return at + strcspn(at, ",]}");
    do {
        depth += *at == '{' || *at == '[';
        depth -= *at == '}' || *at == ']';
        at = *at == '"' ? string_end(at) : at + 1;
    } while (depth);
    return at;
}

static bool value_begins(const char *text, const char *at)
{
    return at == text || at[-1] == ':' || (at[-1] == '[' && *at != ']') || (at[-1] == ',' && *at != '"');
}

/* With something else in the place of [from, to). */
static int take_with(const char *text, const char *from, const char *to, const char *instead, int (*take)(const char *, size_t))
{
    size_t front = (size_t)(from - text), size = front + strlen(instead) + strlen(to);
    char *changed = malloc(size + 1);
    int error;

    memcpy(changed, text, front);
    strcpy(changed + front, instead);
    strcat(changed, to);
    error = take(changed, size);
    free(changed);
    return error;
}

/* `ignored`: values that begin so belong to others and may be anything; NULL at its end. */
static bool is_ignored(const char *at, const char *const *ignored)
{
    for (; *ignored; ignored++)
        if (strncmp(at, *ignored, strlen(*ignored)) == 0)
            return true;
    return false;
}

static void each_value_misfits(const char *text, unsigned values, const char *const *ignored, int (*take)(const char *, size_t))
{
    unsigned count = 0;

    cr_assert_eq(take(text, strlen(text)), 0);
    for (const char *at = text; *at;) {
        if (!value_begins(text, at)) {
            at = *at == '"' ? string_end(at) : at + 1;
            continue;
        }
        count++;
        cr_assert_eq(take_with(text, at, value_end(at), MISFIT, take), is_ignored(at, ignored) ? 0 : -EBADMSG, "at %s", at);
        at = *at == '{' || *at == '[' ? at + 1 : value_end(at);
    }
    cr_assert_eq(count, values, "%u", count);
}

static const char *const nothing[] = { NULL };
static const char *const index_metadata[] = { "{\"total_size\"", "5}", NULL };

Test(misfits, are_refused_in_headers) { each_value_misfits(header, 17, nothing, header_take); }
Test(misfits, are_refused_in_sharding_info) { each_value_misfits(sharding, 6, nothing, sharding_take); }
Test(misfits, are_refused_in_indices_but_for_their_metadata) { each_value_misfits(index_text, 6, index_metadata, index_take); }
Test(misfits, are_refused_in_manifests) { each_value_misfits(manifest_text, 44, nothing, manifest_take); }
