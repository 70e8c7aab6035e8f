/* Any bytes as a manifest: parsing never crashes or over-reads; what it accepts stays in its directory; and a manifest
 * built from it says the same again. */
#include <assert.h>
#include <base/names.h>
#include <format/manifest.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void assert_safe(const struct manifest *manifest)
{
    assert(manifest->version == MANIFEST_VERSION && manifest->world_size > 0);
    for (size_t i = 0; i < manifest->file_count; i++)
        assert(file_name_is_safe(manifest->files[i].name) && manifest->files[i].header_size <= manifest->files[i].size);
    for (size_t i = 0; i < manifest->digests_count; i++)
        assert(file_name_is_safe(manifest->digests[i].name) && manifest->digests[i].rank < manifest->world_size);
    for (size_t i = 0; i < manifest->object_count; i++)
        assert(file_name_is_safe(manifest->objects[i].file));
}

static void rebuild(const struct manifest *manifest)
{
    size_t *patch = calloc(manifest->digests_count + 1, sizeof *patch), size, size_again;
    struct manifest again;
    const char *reason;
    char *json, *json_again;

    assert(!manifest_build(manifest, &json, &size, patch));
    for (size_t i = 0; i < manifest->digests_count; i++)
        memset(json + patch[i], '0', DIGEST_HEX_BYTES);
    assert(!manifest_parse(json, size, &again, &reason));
    assert(!manifest_build(&again, &json_again, &size_again, patch));
    assert(size == size_again && !memcmp(json, json_again, size));
    manifest_deinit(&again);
    free(json_again);
    free(json);
    free(patch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest manifest;
    const char *reason = NULL;

    if (manifest_parse((const char *)data, size, &manifest, &reason)) {
        assert(reason);
        return 0;
    }
    assert_safe(&manifest);
    rebuild(&manifest);
    manifest_deinit(&manifest);
    return 0;
}
