/* commands/copy.h - one copy: what was asked for, and how far it is. */
#ifndef COMMANDS_COPY_H
#define COMMANDS_COPY_H

#include "command.h"
#include "source_set.h"

#define LOOK_NS 100000000u /* how long a wait goes on before interrupts are looked at */

struct copy {
    bool replace, buffered, as_json, quiet;
    enum tspool_io io;
    uint64_t arena_bytes, bytes_per_second;
    const char *writer;
    char *root, *name;
    struct source_set sources;
    struct tspool *spool;
    struct tspool_save *save;
    struct tspool_failure failure;
    struct progress progress;
    uint64_t started_ns;
    uint32_t told;                        /* level that was reported */
};

struct tspool_save_result copy_result(struct copy *copy);
/* Reports each level up to the one reached that was not reported yet, and the progress. */
void copy_tell_levels(struct copy *copy);
/* feed.c: reads the sources into the save's spans until all are filled. 0, -EINTR, or -errno of the save or the source. */
int copy_fill_spans(struct copy *copy);

#endif
