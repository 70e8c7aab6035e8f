/* publish/find.c - what stands below the root: manifests, and other saves of the same name. */
#include <publish/publication.h>

#include <base/array.h>
#include <base/failure.h>
#include <errno.h>
#include <publish/disk.h>
#include <publish/publish.h>
#include <stdlib.h>
#include <string.h>

int manifest_in(struct io *io, int directory, const char *name, struct manifest *manifest, const char **reason)
{
    uint64_t size = 0;
    void *json = NULL;
    int error = disk_load_file(io, directory, name, MANIFEST_MAX_BYTES, &json, &size);

    *reason = error < 0 ? failure_likely_cause(-error) : "the format is newer";
    if (error < 0)
        return error;
    error = manifest_parse(json, size, manifest, reason);
    free(json);
    return error;
}

/* Ids that were mixed up are the usual reason for a part that never comes. */
static bool has_part_of(struct io *io, int root, const char *hidden, uint32_t rank)
{
    char part[SHARD_FILE_NAME_MAX + 1], list[SHARD_FILE_NAME_MAX + 1];
    int directory = disk_open_directory(io, root, hidden);
    struct io_stat stat = { 0 };
    bool has;

    if (directory < 0)
        return false;
    part_name_make(rank, part);
    part_manifest_name_make(rank, list);
    has = file_stat(io, directory, part, &stat) == 0 || file_stat(io, directory, list, &stat) == 0;
    disk_close(io, &directory);
    return has;
}

static bool is_other_save_of(const char *hidden, const char *name, const uint8_t save_id[16], struct digest *id)
{
    char base[CHECKPOINT_NAME_MAX + 1];

    return hidden_name_parse(hidden, base, id->bytes) && strcmp(base, name) == 0 && memcmp(id->bytes, save_id, 16) != 0;
}

void other_id_of(const struct publication *publication, uint32_t rank, char hex[DIGEST_HEX_BYTES + 1])
{
    struct io_list list = { 0 };
    struct digest id;

    hex[0] = '\0';
    if (directory_list(publication->io, publication->root, &list) < 0)
        return;
    for (size_t i = 0; i < list.count && !hex[0]; i++)
        if (is_other_save_of(list.names[i], publication->name, publication->save_id, &id) &&
            has_part_of(publication->io, publication->root, list.names[i], rank))
            digest_to_hex(id, hex);
    io_list_free(&list);
}

/* Unpublished saves ----------------------------------------------------------------------------------------------------- */

/* How many ranks the first part that can be read speaks of, and how many whole parts stand there. */
static void parts_count(struct io *io, int directory, struct unpublished *save)
{
    struct io_list list = { 0 };
    uint32_t number;

    if (directory_list(io, directory, &list) < 0)
        return;
    for (size_t i = 0; i < list.count; i++) {
        struct manifest part = { 0 };
        const char *reason;

        if (!part_manifest_name_parse(list.names[i], &number) ||
            manifest_in(io, directory, list.names[i], &part, &reason) < 0)
            continue;
        save->world_size = save->world_size ? save->world_size : part.world_size;
        save->parts += part.is_part && part.part == number - 1 && part.part < save->world_size &&
                       memcmp(part.save_id, save->save_id, sizeof(save->save_id)) == 0;
        manifest_deinit(&part);
    }
    io_list_free(&list);
}

static void unpublished_look(struct io *io, int root, struct unpublished *save)
{
    int directory = disk_open_directory(io, root, save->hidden);

    if (directory < 0)
        return;
    parts_count(io, directory, save);
    disk_close(io, &directory);
}

static int unpublished_collect(struct io *io, int root, const char *name, struct unpublished_list *found)
{
    struct io_list list = { 0 };
    size_t capacity = 0;
    int error = directory_list(io, root, &list);

    for (size_t i = 0; i < list.count && error == 0; i++) {
        struct unpublished save = { .world_size = 0 };
        char base[CHECKPOINT_NAME_MAX + 1];

        if (!hidden_name_parse(list.names[i], base, save.save_id) || strcmp(base, name) != 0)
            continue;
        memcpy(save.hidden, list.names[i], strlen(list.names[i]) + 1);
        unpublished_look(io, root, &save);
        if (save.parts == 0)
            continue;
        error = array_reserve((void **)&found->items, &capacity, found->count + 1, sizeof(save));
        if (error == 0)
            found->items[found->count++] = save;
    }
    io_list_free(&list);
    return error;
}

int unpublished_on(struct io *io, const char *root, const char *name, struct unpublished_list *list,
                   struct tspool_failure *failure)
{
    struct unpublished_list found = { NULL, 0 };
    int handle = disk_open_directory(io, IO_CWD, root), error = handle < 0 ? handle : 0;

    if (error == 0)
        error = unpublished_collect(io, handle, name, &found);
    disk_close(io, &handle);
    if (error < 0) {
        free(found.items);
        return failure_set(failure, TSPOOL_STAGE_PUBLISH, -error, FAILURE_AT(.operation = "list", .path = root), NULL);
    }
    *list = found;
    return 0;
}
