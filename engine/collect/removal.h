/* collect/removal.h - one directory on its way out: taken down under a name of its own, then deleted in slices.
 *
 * Unlinking a written GiB can take a second, in which a save that runs beside is several times slower: so large files are cut
 * slice by slice, each made durable in the same pause, and between two slices a pause in the saving is waited for: a bounded
 * while, or as long as who collects between its own saves says. A file that somebody still has
 * open is never cut, only unlinked: who reads it, reads it to the end.
 */
#ifndef COLLECT_REMOVAL_H
#define COLLECT_REMOVAL_H

#include <collect/collect.h>

struct removal {
    struct io *io;
    int root;
    uint64_t slice_bytes;
    void *context;
    bool (*is_stopped)(void *context);
    enum collect_pace (*pace)(void *context); /* NULL: looks, for 10 s at most */
    uint64_t freed_bytes;      /* since the last look whether a save runs */
};

/* Between saves only: waits until the next checkpoint's turn has come, or it is stopped. */
void removal_await_turn(struct removal *removal);

/* Renames `name` to a fresh name that marks it as gone, into *gone (GONE_NAME_MAX + 1), and makes that durable. `directory` is
 * the handle through which it was looked over: another that has the name by now gets it back.
 * 0; -ENOENT when it is not there any more (another collector, or its writer, was faster); -errno. */
int removal_take_down(struct removal *removal, const char *name, int directory, const char *hidden, char *gone);
/* Gives a name back to what was taken down by mistake. */
int removal_put_back(struct removal *removal, const char *gone, const char *name);

enum { REMOVAL_DONE = 0, REMOVAL_STOPPED = 1, REMOVAL_BUSY = 2, REMOVAL_FOREIGN = 3 };
/* Deletes what is ours in a directory that is gone, then it. *bytes: what was freed. REMOVAL_DONE; _STOPPED: the rest is for
 * the next collection; _BUSY: another collector is at it; _FOREIGN: a file of somebody else keeps it, *foreign is its name
 * (the caller frees it); -errno. */
int removal_delete(struct removal *removal, const char *gone, uint64_t *bytes, char **foreign);

#endif
