/* publish/publish.h - publishing what several ranks wrote, over an io of the caller's choice. See tspool/publish.h for the
 * promise, which is all that this room is for.
 *
 * Nothing is kept between calls and nobody is trusted: each call reads what stands on disk and goes on from there, whoever
 * was cut off before it, and at whatever place. Publishers keep each other out by a lock on PUBLISH_NAME in the shared
 * directory; so does a rank that begins again and is about to remove what its dead attempt had finished.
 */
#ifndef PUBLISH_PUBLISH_H
#define PUBLISH_PUBLISH_H

#include <base/names.h>
#include <io/io.h>
#include <stdint.h>
#include <tspool/publish.h>

int publish_on(struct io *io, const char *root, const char *name, const uint8_t save_id[16], uint32_t world_size,
               struct tspool_failure *failure);

/* An unpublished save of several ranks, as its directory shows it. */
struct unpublished {
    char hidden[HIDDEN_NAME_MAX + 1];
    uint8_t save_id[16];
    uint32_t world_size;     /* as the parts say */
    uint32_t parts;          /* whole ones */
};
struct unpublished_list { struct unpublished *items; size_t count; };
/* Those of `name` below the root that have a part at least; malloc'ed, in the order of their ids. */
int unpublished_on(struct io *io, const char *root, const char *name, struct unpublished_list *list,
                   struct tspool_failure *failure);

#endif
