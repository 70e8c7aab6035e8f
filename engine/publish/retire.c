/* publish/retire.c - the checkpoint that is replaced: what others put there is kept, what is ours is removed. As a replacing save
 * of one rank does it (write/replace.c), and in the same order.
 */
#include <publish/publication.h>

#include <errno.h>
#include <publish/disk.h>

/* Errors that say "not by a link": it is moved afterwards instead. */
static bool link_is_refused(int error)
{
    return error == -EPERM || error == -EMLINK || error == -EOPNOTSUPP || error == -ENOSYS || error == -EXDEV || error == -EEXIST;
}

int retire_keep(const struct publication *publication)
{
    struct io_list list = { 0 };
    int error = directory_list(publication->io, publication->old, &list);

    for (size_t i = 0; i < list.count && error == 0; i++) {
        if (file_name_is_ours(list.names[i]))
            continue;
        error = disk_link(publication->io, publication->old, list.names[i], publication->directory);
        if (error == -ENOENT || link_is_refused(error))
            error = 0;
    }
    io_list_free(&list);
    return error < 0 ? publish_fail(publication, -error, "link", publication->name) : 0;
}

/* Which of the names that are not ours have a second link: they stand in the new one already. */
static bool is_linked(const struct publication *publication, int old, const char *name)
{
    struct io_stat there = { 0 }, here = { 0 };
    struct io *io = publication->io;

    return file_stat(io, old, name, &there) == 0 && file_stat(io, publication->directory, name, &here) == 0 &&
           there.inode == here.inode && there.device == here.device;
}

/* Errors matter to nobody: the new one is published. What cannot be moved keeps the directory, hidden, for gc to look after. */
void retire_old(const struct publication *publication, const char *hidden)
{
    struct io *io = publication->io;
    struct io_list list = { 0 };
    int old = disk_open_directory(io, publication->root, hidden);

    if (old < 0)
        return;
    if (directory_list(io, old, &list) == 0)
        for (size_t i = 0; i < list.count; i++) {
            if (file_name_is_ours(list.names[i]) || is_linked(publication, old, list.names[i]))
                file_unlink(io, old, list.names[i], 0);
            else
                disk_rename(io, old, list.names[i], publication->directory, list.names[i], RENAME_OP_NOREPLACE);
        }
    io_list_free(&list);
    disk_close(io, &old);
    file_unlink(io, publication->root, hidden, UNLINK_DIRECTORY);
}
