/* publish/parts.c - the parts of a save: one per rank, all of one save and one world, each with the files that it lists.
 *
 * A part record stands under its name only when everything that it lists is durable (write/shared.c). What is checked here all
 * the same is what people do: ranks that were started with other numbers, files that were moved or cut by hand.
 */
#include <publish/publication.h>

#include <base/mutant.h>
#include <errno.h>
#include <publish/disk.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A part that is not there ---------------------------------------------------------------------------------------------- */

/* Its lock tells a rank that is at work from one that died. A record that nobody holds may be about to be locked: its writer
 * takes a moment between the two, and is not disturbed by our trying once it has it. */
static bool is_at_work(const struct publication *publication, uint32_t rank)
{
    char part[SHARD_FILE_NAME_MAX + 1];
    int handle, locked;

    part_name_make(rank, part);
    handle = file_open(publication->io, publication->directory, part, OPEN_READ);
    if (handle < 0)
        return false;
    locked = file_lock(publication->io, handle, 0);
    disk_close(publication->io, &handle);
    return locked == -EWOULDBLOCK;
}

static int missing(const struct publication *publication, uint32_t rank)
{
    char part[SHARD_FILE_NAME_MAX + 1], other[DIGEST_HEX_BYTES + 1], hint[160] = "";
    struct io_stat stat = { 0 };

    part_name_make(rank, part);
    if (is_at_work(publication, rank))
        return publish_refuse(publication, EAGAIN, "publish", publication->hidden,
                              "rank %u of %u is still writing its part; publish when it is durable", rank,
                              publication->world_size);
    other_id_of(publication, rank, other);
    if (other[0])
        snprintf(hint, sizeof(hint), "; there is a part of this rank under the save id %s: were two ids mixed?", other);
    if (file_stat(publication->io, publication->directory, part, &stat) == 0)
        return publish_refuse(publication, ENOENT, "publish", publication->hidden, "rank %u of %u did not finish its part: its "
                              "writer is dead; save this rank again under the same save id%s", rank,
                              publication->world_size, hint);
    return publish_refuse(publication, ENOENT, "publish", publication->hidden, "the part of rank %u of %u is missing; let it "
                          "save under this save id first%s", rank, publication->world_size, hint);
}

/* Loading ------------------------------------------------------------------------------------------------------------------ */

static int part_check(const struct publication *publication, uint32_t rank, const struct manifest *part, const char *path)
{
    struct digest id;
    char hex[DIGEST_HEX_BYTES + 1];

    memcpy(id.bytes, part->save_id, sizeof(id.bytes));
    digest_to_hex(id, hex);
    if (memcmp(part->save_id, publication->save_id, sizeof(part->save_id)) != 0 && !MUTANT(PART_OF_ANOTHER_SAVE_ACCEPTED))
        return publish_refuse(publication, EINVAL, "publish", path, "this part is of another save, %s: two save ids are "
                              "mixed; rank 0 makes one and broadcasts it", hex);
    if (part->world_size != publication->world_size)
        return publish_refuse(publication, EINVAL, "publish", path, "rank %u saved as one of %u ranks, to be published are %u; "
                              "all must agree on the world size", rank, part->world_size, publication->world_size);
    if (!part->is_part || part->part != rank)
        return publish_refuse(publication, EBADMSG, "publish", path, "this is not the part of rank %u; were files renamed?",
                              rank);
    return 0;
}

static int part_load(struct publication *publication, uint32_t rank)
{
    char name[SHARD_FILE_NAME_MAX + 1], *path;
    const char *reason = "";
    int error;

    part_manifest_name_make(rank, name);
    error = manifest_in(publication->io, publication->directory, name, &publication->parts[rank], &reason);
    if (error == -ENOENT)
        return MUTANT(MISSING_PART_ACCEPTED) ? 0 : missing(publication, rank);
    path = publication_path(publication, name);
    if (error < 0)
        error = publish_refuse(publication, -error, "read", path, "%s", reason);
    else
        error = part_check(publication, rank, &publication->parts[rank], path);
    free(path);
    return error;
}

/* A rank beyond the world: somebody counted otherwise. */
static int strangers_check(const struct publication *publication)
{
    struct io_list list = { 0 };
    uint32_t number, stranger = 0;
    int error = directory_list(publication->io, publication->directory, &list);

    for (size_t i = 0; i < list.count; i++)
        if (part_manifest_name_parse(list.names[i], &number) && number > publication->world_size)
            stranger = number - 1;
    io_list_free(&list);
    if (error < 0)
        return publish_fail(publication, -error, "list", publication->hidden);
    return stranger == 0 ? 0 : publish_refuse(publication, EINVAL, "publish", publication->hidden, "rank %u saved a part too, to "
                                              "be published are %u ranks; all must agree on the world size", stranger,
                                              publication->world_size);
}

int parts_load(struct publication *publication)
{
    int error = strangers_check(publication);

    if (error < 0)
        return error;
    if (!(publication->parts = calloc(publication->world_size, sizeof(*publication->parts))))
        return publish_fail(publication, ENOMEM, "publish", publication->hidden);
    for (uint32_t rank = 0; rank < publication->world_size && error == 0; rank++)
        error = part_load(publication, rank);
    return error;
}

void parts_drop(struct publication *publication)
{
    for (uint32_t rank = 0; publication->parts && rank < publication->world_size; rank++)
        manifest_deinit(&publication->parts[rank]);
    free(publication->parts);
    publication->parts = NULL;
}

bool parts_all_replace(const struct publication *publication)
{
    for (uint32_t rank = 0; rank < publication->world_size; rank++)
        if (!publication->parts[rank].replace)
            return false;
    return true;
}

/* Files -------------------------------------------------------------------------------------------------------------------- */

static int file_check(const struct publication *publication, uint32_t rank, const char *name, uint64_t size)
{
    struct io_stat stat = { 0 };
    int error = file_stat(publication->io, publication->directory, name, &stat);
    char *path = publication_path(publication, name);

    if (!file_name_is_of_rank(name, rank))
        error = publish_refuse(publication, EBADMSG, "publish", path, "rank %u lists a file that does not carry its number",
                               rank);
    else if (error == -ENOENT)
        error = publish_refuse(publication, EBADMSG, "publish", path, "rank %u lists this file, and it is missing; save this "
                               "rank again under the same save id", rank);
    else if (error < 0)
        error = publish_fail(publication, -error, "stat", path);
    else if (!stat.is_regular || (stat.size != size && !MUTANT(PART_FILE_SIZE_NOT_COMPARED)))
        error = publish_refuse(publication, EBADMSG, "publish", path, "the file has %llu bytes, rank %u says %llu; save this "
                               "rank again under the same save id", (unsigned long long)stat.size, rank,
                               (unsigned long long)size);
    free(path);
    return error;
}

int parts_check_files(const struct publication *publication)
{
    int error = 0;

    for (uint32_t rank = 0; rank < publication->world_size; rank++) {
        const struct manifest *part = &publication->parts[rank];

        for (size_t i = 0; i < part->file_count && error == 0; i++)
            error = file_check(publication, rank, part->files[i].name, part->files[i].size);
        for (size_t i = 0; i < part->digests_count && error == 0; i++)
            error = file_check(publication, rank, part->digests[i].name, part->digests[i].size);
    }
    return error;
}
