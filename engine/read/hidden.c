/* read/hidden.c - see hidden.h. */
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <format/manifest.h>
#include <read/checkpoint.h>
#include <read/hidden.h>
#include <stdlib.h>
#include <string.h>

#define REPAIR_LOOKS 3
#define REPAIR_PAUSE_NS 100000000u

/* The commit sequence of a hidden directory that holds a whole manifest, or -errno. */
static int hidden_sequence(struct io *io, int root, const char *hidden, uint64_t *sequence)
{
    struct manifest manifest = { 0 };
    int directory = file_open(io, root, hidden, OPEN_READ | OPEN_DIRECTORY), error;

    if (directory < 0)
        return directory;
    error = manifest_load(io, directory, hidden, &manifest, NULL);
    if (error == 0)
        *sequence = manifest.sequence;
    manifest_deinit(&manifest);
    file_close(io, directory);
    return error;
}

/* The newest whole hidden directory of `name` in the list, and how many there are; -errno when one cannot be looked at. */
static int hidden_candidates(struct io *io, int root, const struct io_list *list, const char *name, const char **newest)
{
    char base[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];
    uint64_t best = 0, sequence = 0;
    int count = 0, error;

    for (size_t i = 0; i < list->count; i++) {
        if (!hidden_name_parse(list->names[i], base, save_id) || strcmp(base, name) != 0)
            continue;
        error = hidden_sequence(io, root, list->names[i], &sequence);
        if (error < 0 && !error_is_no_checkpoint(error))
            return error;
        if (error < 0)
            continue;
        if (count++ == 0 || sequence > best) {
            best = sequence;
            *newest = list->names[i];
        }
    }
    return count;
}

static int put_back(struct io *io, int root, const char *hidden, const char *name)
{
    struct op rename = { .kind = OP_RENAME, .handle = root, .name = hidden, .to_handle = root, .to_name = name,
                         .flags = RENAME_OP_NOREPLACE };
    struct op sync = { .kind = OP_FSYNC, .handle = root };
    int error = (int)io_call(io, &rename);

    if (error == -EINVAL || error == -ENOSYS || error == -EOPNOTSUPP) {
        rename.flags = RENAME_PLAIN;
        error = (int)io_call(io, &rename);
    }
    return error < 0 ? error : (int)io_call(io, &sync);
}

static bool stands(struct io *io, int root, const char *name)
{
    struct io_stat stat = { 0 };

    return file_stat(io, root, name, &stat) == 0;
}

int name_repair(struct io *io, int root, const char *name)
{
    struct io_list list = { 0 };
    const char *newest = NULL;
    int error = directory_list(io, root, &list);

    if (error == 0)
        error = hidden_candidates(io, root, &list, name, &newest);
    if (error >= 0)
        error = error < 2 ? -ENOENT : 0;
    for (unsigned look = 0; look < REPAIR_LOOKS && error == 0 && !stands(io, root, name); look++)
        pause_for(io, REPAIR_PAUSE_NS);
    if (error == 0 && !stands(io, root, name))
        error = put_back(io, root, newest, name);
    io_list_free(&list);
    return error == -ENOENT && stands(io, root, name) ? 0 : error;
}

/* "runs/a/" -> "runs" and "a"; "a" -> "." and "a". 0; -ENOENT when the last component cannot be a checkpoint's name. */
static int path_split(const char *path, char **parent, char **name)
{
    size_t end = strlen(path), start;
    const char *reason;

    while (end > 1 && path[end - 1] == '/')
        end--;
    for (start = end; start > 0 && path[start - 1] != '/'; start--)
        ;
    *name = strndup(path + start, end - start);
    *parent = start ? strndup(path, start) : strdup(".");
    if (!*name || !*parent)
        return -ENOMEM;
    return checkpoint_name_check(*name, &reason) == 0 ? 0 : -ENOENT;
}

int path_repair(struct io *io, const char *path)
{
    char *parent = NULL, *name = NULL;
    int error = path_split(path, &parent, &name), root = -1;

    if (error == 0)
        root = error = file_open(io, IO_CWD, parent, OPEN_READ | OPEN_DIRECTORY);
    if (root >= 0)
        error = name_repair(io, root, name);
    file_close(io, root);
    free(parent);
    free(name);
    return error;
}
