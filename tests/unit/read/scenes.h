/* scenes.h - what a reader is used for, each from beginning to end, so that a test can let any one thing fail in it. */
#ifndef SCENES_H
#define SCENES_H

#include "made.h"

#include <io/io.h>

struct scene {
    const char *name;
    void (*make)(const char *root); /* before each run: some change what they find */
    /* Plays it over `io` (NULL: one of the checkpoint's own). `expected` when all went well and every byte was right; another
     * error as it came, with the record. */
    int (*run)(struct io *io, const char *root, struct tspool_failure *failure);
    int expected;
    bool pauses;                    /* it waits for others: to be played over an io whose time is short */
    bool forgiving;                 /* a name that is said to be missing or no directory is looked past, rightly */
};
extern const struct scene scenes[];
extern const size_t scene_count;

void scenes_init(void);
void scenes_deinit(void);
unsigned descriptors_open(void);

#endif
