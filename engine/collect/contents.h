/* collect/contents.h - what is in a checkpoint's directory: which files are ours to remove, and whether it is whole.
 *
 * Ours is what the manifest in it lists, and in a hidden directory what our files are called (".partial" or not). In a hidden
 * one a foreign file with a second hard link is ours to unlink too: a replacing save links the files of others into the new
 * directory, and they live on there.
 */
#ifndef COLLECT_CONTENTS_H
#define COLLECT_CONTENTS_H

#include <io/io.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct owned { char *name; uint64_t size, links; };
struct contents {
    struct owned *files;      /* in the order in which they go: the manifest, which lists the others, last */
    size_t count, capacity;
    uint64_t bytes;           /* of the files that only live here */
    char *foreign;            /* a name that is not ours; NULL: there is none */
    bool has_manifest;        /* one that can be read */
    uint8_t save_id[16];      /* of the manifest */
    bool is_whole;            /* every file that the manifest lists is there, in its size */
    bool awaits_publish;      /* the parts of all ranks are durable here: nobody but a publish may end it */
};

/* 0 or -errno; contents_deinit is right in either case. */
int contents_look(struct io *io, int directory, bool hidden, struct contents *contents);
void contents_deinit(struct contents *contents);

#endif
