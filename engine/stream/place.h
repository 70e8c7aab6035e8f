/* stream/place.h - a file on its way to a name: opened hidden and locked beside it, published by one rename, or removed.
 *
 * Blocking calls of one io with nothing else in flight. The directory is held open: what a thread does to the current
 * directory, or anybody to the directory's own name, changes nothing.
 */
#ifndef STREAM_PLACE_H
#define STREAM_PLACE_H

#include <base/names.h>
#include <io/io.h>
#include <limits.h>
#include <stdbool.h>

struct place {
    struct io *io;
    char *path;                 /* as given; for records */
    const char *name;           /* its last component */
    char partial[NAME_MAX + 1]; /* the hidden name */
    int directory, handle;      /* -1: not open */
    bool keep;                  /* nobody's file may be replaced */
    bool direct;
    bool hidden_stands;         /* the hidden name is in the directory */
    uint32_t align;             /* of offsets, sizes and memory of writes; 1 when not direct */
};

struct place_request { const char *path; bool keep, buffered; };

/* Removes what dead processes left of this name first. On failure *place is such that place_abandon is right, as it is on a
 * zeroed one. */
int place_open(struct io *io, const struct place_request *request, struct place *place, struct tspool_failure *failure);
/* All writes have ended. On failure place_abandon is still to be called. */
int place_publish(struct place *place, uint64_t size, struct tspool_failure *failure);
void place_abandon(struct place *place); /* io NULL: what is on disk stays for the next stream of that name */

/* Records at the place's path. Returns -error. */
int place_refuse(const struct place *place, enum tspool_stage stage, const char *operation, int error, uint64_t file_offset,
                 const char *cause, struct tspool_failure *failure);

#endif
