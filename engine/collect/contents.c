/* collect/contents.c - see contents.h. Trusts nobody: names, manifests and kinds of files may be anybody's. */
#include <base/array.h>
#include <base/mutant.h>
#include <base/names.h>
#include <collect/contents.h>
#include <errno.h>
#include <fnmatch.h>
#include <format/manifest.h>
#include <io/calls.h>
#include <read/checkpoint.h>
#include <stdlib.h>
#include <string.h>

/* "model-00001-of-00004.safetensors", "objects-00001.bin", ...: with or without ".partial". */
static bool is_our_name(const char *name)
{
    static const char *const patterns[] = { "model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors",
                                            "shard-[0-9]*-model-[0-9]*-of-[0-9]*.safetensors", "objects-[0-9]*.bin", INDEX_NAME,
                                            "tspool.*" };
    size_t length = strlen(name), suffix = strlen(PARTIAL_SUFFIX);
    char stem[256];

    if (length >= sizeof stem)
        return false;
    if (length > suffix && strcmp(name + length - suffix, PARTIAL_SUFFIX) == 0)
        length -= suffix;
    memcpy(stem, name, length);
    stem[length] = '\0';
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (fnmatch(patterns[i], stem, 0) == 0)
            return true;
    return false;
}

static bool is_listed(const struct manifest *manifest, const char *name)
{
    for (size_t i = 0; i < manifest->file_count; i++)
        if (strcmp(manifest->files[i].name, name) == 0)
            return true;
    for (size_t i = 0; i < manifest->digests_count; i++)
        if (strcmp(manifest->digests[i].name, name) == 0)
            return true;
    return strcmp(name, MANIFEST_NAME) == 0;
}

/* With a manifest, only what it lists is ours under a published name; a hidden directory is ours as a whole, but for what has
 * no second name. */
static bool is_ours(const struct manifest *manifest, bool hidden, const char *name, const struct io_stat *stat)
{
    return stat->is_regular && (MUTANT(FOREIGN_FILES_COLLECTED) || is_listed(manifest, name) || (hidden && (is_our_name(name) || stat->links > 1)));
}

static int owned_add(struct contents *contents, const char *name, const struct io_stat *stat)
{
    struct owned owned = { .name = strdup(name), .size = stat->size, .links = stat->links };

    if (!owned.name ||
        array_reserve((void **)&contents->files, &contents->capacity, contents->count + 1, sizeof owned) < 0) {
        free(owned.name);
        return -ENOMEM;
    }
    contents->files[contents->count++] = owned;
    contents->bytes += stat->links == 1 ? stat->size : 0;
    return 0;
}

static int name_look(struct io *io, int directory, const struct manifest *manifest, bool hidden, const char *name,
                     struct contents *contents)
{
    struct io_stat stat = { 0 };
    int error = file_stat(io, directory, name, &stat);

    if (error < 0)
        return error == -ENOENT ? 0 : error;
    if (is_ours(manifest, hidden, name, &stat))
        return owned_add(contents, name, &stat);
    if (!contents->foreign)
        contents->foreign = strdup(name);
    return contents->foreign ? 0 : -ENOMEM;
}

static void manifest_put_last(struct contents *contents)
{
    for (size_t i = 0; i + 1 < contents->count; i++)
        if (strcmp(contents->files[i].name, MANIFEST_NAME) == 0) {
            struct owned manifest = contents->files[i];

            contents->files[i] = contents->files[contents->count - 1];
            contents->files[contents->count - 1] = manifest;
        }
}

/* Whole ---------------------------------------------------------------------------------------------------------------- */

static bool file_is_there(const struct contents *contents, const char *name, uint64_t size)
{
    for (size_t i = 0; i < contents->count; i++)
        if (strcmp(contents->files[i].name, name) == 0)
            return contents->files[i].size == size;
    return false;
}

static bool is_whole(const struct contents *contents, const struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->file_count; i++)
        if (!file_is_there(contents, manifest->files[i].name, manifest->files[i].size))
            return false;
    for (size_t i = 0; i < manifest->digests_count; i++)
        if (!file_is_there(contents, manifest->digests[i].name, manifest->digests[i].size))
            return false;
    return true;
}

/* A save of several ranks of which each said that its part is durable: any part tells how many there are. */
static bool awaits_publish(struct io *io, int directory, const struct io_list *list)
{
    uint32_t number, most = 0, count = 0, world_size = 0;

    for (size_t i = 0; i < list->count; i++) {
        struct manifest part = { 0 };

        if (!part_manifest_name_parse(list->names[i], &number))
            continue;
        if (world_size == 0 && manifest_load_from(io, directory, "", list->names[i], &part, NULL) == 0)
            world_size = part.world_size;
        manifest_deinit(&part);
        most = number > most ? number : most;
        count++;
    }
    return world_size > 0 && count == world_size && most == world_size; /* names in a directory differ */
}

/* Zero when there is no manifest that can be read: then names alone decide. */
static struct manifest manifest_get(struct io *io, int directory, struct contents *contents)
{
    struct manifest manifest = { 0 };

    contents->has_manifest = manifest_load(io, directory, "", &manifest, NULL) == 0;
    if (!contents->has_manifest)
        return (struct manifest){ 0 };
    memcpy(contents->save_id, manifest.save_id, sizeof contents->save_id);
    return manifest;
}

int contents_look(struct io *io, int directory, bool hidden, struct contents *contents)
{
    struct io_list list = { 0 };
    struct manifest manifest;
    int error;

    *contents = (struct contents){ 0 };
    error = directory_list(io, directory, &list);
    if (error < 0)
        return error;
    manifest = manifest_get(io, directory, contents);
    for (size_t i = 0; i < list.count && error == 0; i++)
        error = name_look(io, directory, &manifest, hidden, list.names[i], contents);
    manifest_put_last(contents);
    contents->is_whole = error == 0 && contents->has_manifest && is_whole(contents, &manifest);
    contents->awaits_publish = error == 0 && awaits_publish(io, directory, &list);
    manifest_deinit(&manifest);
    io_list_free(&list);
    return error;
}

void contents_deinit(struct contents *contents)
{
    for (size_t i = 0; i < contents->count; i++)
        free(contents->files[i].name);
    free(contents->files);
    free(contents->foreign);
    *contents = (struct contents){ 0 };
}
