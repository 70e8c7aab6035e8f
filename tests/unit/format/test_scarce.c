/* Memory runs out at each allocation in turn: every parser and every emitter says so, gives nothing out, and keeps nothing. */
#include "../../support/scarce.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <format/digests.h>
#include <format/index.h>
#include <format/manifest.h>
#include <format/safetensors.h>
#include <stdlib.h>
#include <string.h>

static const char *reason;
static size_t position;

/* Headers ---------------------------------------------------------------------------------------------------------- */

static const uint64_t shape[] = { 2, 3 }, offsets[] = { 4, 0 };
static const struct header_entry entries[] = {
    { "a \"quoted\" name", TSPOOL_F32, 2, shape, 0, 24, offsets },
    { "b\n", TSPOOL_U8, 0, NULL, 24, 25, NULL },
    { "c", TSPOOL_U8, 1, shape, 25, 27, NULL },
};
static const struct header_pair pairs[] = { { "step", "1" }, { "tie", "c" } };

/* Sharding info that names the tensors in another order, so that they are looked up by a table. */
static const char *const backwards =
    "{\"__metadata__\":{\"DCP_SHARDING_INFO\":\"{\\\"c\\\":{\\\"saved_offsets\\\":[1]},\\\"a\\\":{\\\"saved_offsets\\\":[7]}}\"},"
    "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
    "\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}";

static int header_emits(void)
{
    void *bytes = NULL;
    size_t size = 0;
    int error = header_build(entries, 3, 1, pairs, 2, SAFETENSORS_DATA_ALIGN, &bytes, &size);

    cr_assert(error < 0 ? !bytes : bytes != NULL);
    free(bytes);
    return error;
}

static int header_parses(void)
{
    struct parsed_header header = { .count = 99 };
    int error = header_parse(backwards, strlen(backwards), 2, &header, &reason, &position);

    if (error < 0)
        cr_assert_eq(header.count, 99);
    else
        cr_assert(header.tensors[0].global_offsets[0] == 7 && header.tensors[1].global_offsets[0] == 1);
    if (error == 0)
        parsed_header_deinit(&header);
    return error;
}

/* Manifest, index, digests ----------------------------------------------------------------------------------------- */

static struct header_pair metadata[] = { { "step", "1" }, { "note", "x" } };
static struct manifest_file files[] = { { "model.safetensors", MANIFEST_SAFETENSORS, 0, 100, 50, { { 1 } } },
                                        { "objects-00001.bin", MANIFEST_OBJECTS, 0, 10, 10, { { 2 } } } };
static struct manifest_digests digests[] = { { "tspool.digests", 0, 64, { { 3 } } } };
static struct manifest_object objects[] = { { "o", "json", "objects-00001.bin", 0, 1, 2, { { 4 } } } };
static struct manifest_alias aliases[] = { { "tied", "w" }, { "tied too", "w" } };
static struct manifest_shape shapes[] = { { "w", 2, shape } };
static const struct manifest sample = { .world_size = 1, .sequence = 3, .time_seconds = 1795314300,
    .metadata = metadata, .metadata_count = 2, .files = files, .file_count = 2, .digests = digests, .digests_count = 1,
    .objects = objects, .object_count = 1, .aliases = aliases, .alias_count = 2, .shapes = shapes, .shape_count = 1 };
static const struct index_entry holdings[] = { { "z", "f2" }, { "a", "f1" }, { "m", "f2" } };

static char *text;
static size_t text_size;

static int manifest_text_make(char **json, size_t *size)
{
    size_t patch[1], self;

    return manifest_build(&sample, json, size, patch, &self);
}

static int manifest_emits(void)
{
    char *json = NULL;
    size_t size;
    int error = manifest_text_make(&json, &size);

    cr_assert(error < 0 ? !json : json != NULL);
    free(json);
    return error;
}

static int manifest_parses(void)
{
    struct manifest manifest = { .version = 99 };
    int error = manifest_parse(text, text_size, &manifest, &reason);

    cr_assert_eq(manifest.version, error < 0 ? 99 : MANIFEST_VERSION);
    if (error == 0)
        manifest_deinit(&manifest);
    return error;
}

static int index_emits(void)
{
    char *json = NULL;
    size_t size;
    int error = index_build(holdings, 3, 7, &json, &size);

    cr_assert(error < 0 ? !json : json != NULL);
    free(json);
    return error;
}

static int index_parses(void)
{
    struct parsed_index index = { .entry_count = 99 };
    int error = index_parse(text, text_size, &index, &reason);

    cr_assert_eq(index.entry_count, error < 0 ? 99 : 3);
    if (error == 0)
        parsed_index_deinit(&index);
    return error;
}

static int digests_parses(void)
{
    const uint64_t sizes[] = { 5, 0 };
    const struct digest leaf = hash_bytes("hello", 5);
    uint8_t bytes[64 + 48 + 16];
    struct parsed_digests parsed = { .tensor_count = 99 };
    int error;

    digests_emit(sizes, 2, &leaf, 1, bytes);
    error = digests_parse(bytes, sizeof bytes, &parsed, &reason);
    cr_assert_eq(parsed.tensor_count, error < 0 ? 99 : 2);
    if (error == 0)
        parsed_digests_deinit(&parsed);
    return error;
}

/* ------------------------------------------------------------------------------------------------------------------- */

/* How many allocations it makes. That a text's memory cannot be fitted to what was used does not matter: twice at most. */
static unsigned each_fails(int (*act)(void))
{
    unsigned number = 0, refused = 0;
    bool reached = true;

    cr_assert_eq(act(), 0);
    while (reached) {
        int error;

        scarce_begin(++number);
        error = act();
        reached = scarce_end();
        cr_assert(error == 0 || (reached && error == -ENOMEM), "allocation %u: %d", number, error);
        refused += error < 0;
    }
    cr_assert_geq(refused + 2, number - 1, "of %u allocations %u mattered", number - 1, refused);
    return number - 1;
}

Test(scarce, header_is_built_or_refused) { cr_assert_gt(each_fails(header_emits), 2); }
Test(scarce, header_is_parsed_or_refused) { cr_assert_gt(each_fails(header_parses), 4); }
Test(scarce, manifest_is_built_or_refused) { cr_assert_gt(each_fails(manifest_emits), 2); }
Test(scarce, index_is_built_or_refused) { cr_assert_gt(each_fails(index_emits), 1); }
Test(scarce, digests_are_parsed_or_refused) { cr_assert_eq(each_fails(digests_parses), 1); }

Test(scarce, manifest_is_parsed_or_refused)
{
    cr_assert_eq(manifest_text_make(&text, &text_size), 0);
    cr_assert_gt(each_fails(manifest_parses), 6);
    free(text);
}

Test(scarce, index_is_parsed_or_refused)
{
    cr_assert_eq(index_build(holdings, 3, 7, &text, &text_size), 0);
    cr_assert_gt(each_fails(index_parses), 2);
    free(text);
}
