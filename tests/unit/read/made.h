/* made.h - checkpoints on disk for the reader's tests, put together from the format room's emitters (the writer is tested
 * elsewhere), and plain files as others write them. */
#ifndef MADE_H
#define MADE_H

#include <criterion/criterion.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/tspool.h>

/* A directory of the test's own; gone with scratch_remove. */
const char *scratch_make(void);
void scratch_remove(const char *path);
char *path_of(const char *directory, const char *name); /* static ring of a few */

struct made_tensor {
    const char *name;
    enum tspool_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    bool sharded;
    uint64_t offsets[4], global[4];
    uint8_t *data;           /* filled by made_fill */
    uint64_t bytes;
};
/* Sizes and deterministic contents, different for each number and seed. */
void made_fill(struct made_tensor *tensors, size_t count, unsigned seed);
void made_free(struct made_tensor *tensors, size_t count);

/* One safetensors file whose data starts at header + padding to `align` (1: wherever the JSON ends, as others write). */
void made_file(const char *path, const struct made_tensor *tensors, size_t count, uint32_t align);

struct made_checkpoint {
    struct made_tensor *tensors;
    size_t count;
    size_t per_file;                  /* 0: all in one file */
    const char *alias, *alias_of;     /* NULL: none */
    const char *object;               /* text of the object "note", kind "bytes"; NULL: none */
    const char *step;                 /* metadata "step"; NULL: none */
    uint64_t sequence;
    uint8_t save_id;                  /* all 16 bytes */
};
/* A published checkpoint of ours in the directory `path`, which is made. */
void made_checkpoint(const char *path, const struct made_checkpoint *made);

void file_write(const char *path, const void *bytes, size_t size);
uint8_t *file_bytes(const char *path, size_t *size);
void file_flip(const char *path, uint64_t offset);

#endif
