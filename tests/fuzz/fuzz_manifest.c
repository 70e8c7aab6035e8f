/* Any bytes as a manifest: parsing never crashes or over-reads; what it accepts stays in its directory; and a manifest
 * built from it says the same again.
 *
 * No mutation gets the digest right, so that each input is parsed twice: as it is, and with its right digest added as the last
 * member, which leads beyond that check. */
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
    size_t *patch = calloc(manifest->digests_count + 1, sizeof *patch), self, size, size_again;
    struct manifest again;
    const char *reason;
    char *json, *json_again;

    assert(!manifest_build(manifest, &json, &size, patch, &self));
    for (size_t i = 0; i < manifest->digests_count; i++)
        memset(json + patch[i], '0', DIGEST_HEX_BYTES);
    manifest_seal(json, self);
    assert(!manifest_parse(json, size, &again, &reason));
    assert(!manifest_build(&again, &json_again, &size_again, patch, &self));
    assert(size == size_again && !memcmp(json, json_again, size));
    manifest_deinit(&again);
    free(json_again);
    free(json);
    free(patch);
}

static void parse(const char *text, size_t size)
{
    struct manifest manifest;
    const char *reason = NULL;

    if (manifest_parse(text, size, &manifest, &reason)) {
        assert(reason);
        return;
    }
    assert_safe(&manifest);
    rebuild(&manifest);
    manifest_deinit(&manifest);
}

static void parse_sealed(const uint8_t *data, size_t size)
{
    static const char member[] = ",\"digest\":\"", tail[] = "\"}";
    size_t self = size - 1 + sizeof member - 1;
    char *text = malloc(self + DIGEST_HEX_BYTES + sizeof tail - 1);

    memcpy(text, data, size - 1); /* without its last byte, which was a brace if it was anything */
    memcpy(text + size - 1, member, sizeof member - 1);
    manifest_seal(text, self);
    memcpy(text + self + DIGEST_HEX_BYTES, tail, sizeof tail - 1);
    parse(text, self + DIGEST_HEX_BYTES + sizeof tail - 1);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse((const char *)data, size);
    if (size > 0)
        parse_sealed(data, size);
    return 0;
}
