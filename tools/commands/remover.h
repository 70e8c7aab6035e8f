/* commands/remover.h - deletes one checkpoint directory of ours, hidden or not, file by file, and nothing that is not ours.
 *
 * Ours is what the manifest in it lists, and what our files are called (".partial" or not). In a hidden directory a
 * foreign file with a second hard link is ours to unlink too: a replacing save links the files of others into the new
 * directory, and they live on in the old one.
 */
#ifndef COMMANDS_REMOVER_H
#define COMMANDS_REMOVER_H

#include <stddef.h>
#include <stdint.h>

struct removal {
    int parent, directory;      /* parent is the caller's */
    char *name;
    char **files;               /* in the order in which they go: the manifest first */
    size_t count;
    uint64_t bytes;             /* of the files that only live here */
    char *foreign;              /* a file that is not ours: nothing may be removed; NULL: there is none */
};

/* Looks. 0 or -errno; removal_end is right in either case. */
int removal_begin(struct removal *removal, int parent, const char *name);
/* Deletes the files, then the directory, then syncs the parent. */
int removal_run(const struct removal *removal);
void removal_end(struct removal *removal);

#endif
