/* commands/source_set.h - what a copy reads from: one checkpoint, or several safetensors files taken together. */
#ifndef COMMANDS_SOURCE_SET_H
#define COMMANDS_SOURCE_SET_H

#include "origins.h"

struct source_set {
    struct tspool_checkpoint **checkpoints;
    size_t count;
    struct origins origins;   /* of the declared tensors, by number */
    char *addresses;          /* one byte per origin: tied tensors are declared with the same address, never followed */
};

/* Opens all. 0, or -errno with the record. */
int source_set_open(struct source_set *set, char **paths, int count, const struct tspool_checkpoint_options *options,
                    struct tspool_failure *failure);
void source_set_close(struct source_set *set);
/* Declares every tensor, tie, object and metadata entry in the save. */
int source_set_declare(struct source_set *set, struct tspool_save *save, struct tspool_failure *failure);
uint64_t source_set_bytes(const struct source_set *set);

#endif
