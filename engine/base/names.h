/* base/names.h - which names are allowed, and how the files and directories of a checkpoint are called. Pure. */
#ifndef BASE_NAMES_H
#define BASE_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECKPOINT_NAME_MAX 180
#define HIDDEN_NAME_MAX (1 + CHECKPOINT_NAME_MAX + 1 + 32) /* "." name "." 32 hex digits */
#define SHARD_FILE_NAME_MAX 95                             /* without NUL */

#define MANIFEST_NAME "tspool.manifest.json"
#define DIGESTS_NAME "tspool.digests"
#define INDEX_NAME "model.safetensors.index.json"
#define PARTIAL_SUFFIX ".partial"
#define PROBE_NAME "tspool.probe" /* of the file that a writer makes, in its start, under a hidden name of this */
#define PUBLISH_NAME "tspool.publish" /* in the directory that ranks share: locked by whoever publishes it */

/* One path component, no leading '.', no '/', no control bytes, valid UTF-8, 1..CHECKPOINT_NAME_MAX bytes.
 * 0 or -EINVAL with *reason (static). */
int checkpoint_name_check(const char *name, const char **reason);
bool utf8_is_valid(const char *bytes, size_t size);

/* ".<name>.<save id in hex>"; `out` holds HIDDEN_NAME_MAX + 1. */
void hidden_name_make(const char *name, const uint8_t save_id[16], char *out);
/* Takes it apart again; false when it is not of that form. `name` holds CHECKPOINT_NAME_MAX + 1. */
bool hidden_name_parse(const char *hidden, char *name, uint8_t save_id[16]);

/* ".<name>.<save id>.gone": a directory that is being deleted. Nobody but a collector looks at it. */
#define GONE_NAME_MAX (HIDDEN_NAME_MAX + 5)
void gone_name_make(const char *hidden, char *out);          /* `out` holds GONE_NAME_MAX + 1 */
bool gone_name_parse(const char *gone, char *hidden);        /* `hidden` holds HIDDEN_NAME_MAX + 1 */

/* ".<name>.tspool-<16 hex digits>.partial": a streamed file before it has its name (stream/). `name` is one component of at most
 * STREAMED_NAME_MAX bytes, of any kind that the file system takes; `out` holds 256. */
#define STREAMED_NAME_MAX 222
void streamed_partial_make(const char *name, const uint8_t random[8], char *out);
bool streamed_partial_is_of(const char *partial, const char *name);

/* Shard files: whole state dicts of one rank "model.safetensors" or "model-00001-of-00004.safetensors"; sharded across
 * ranks "shard-00001-model-00001-of-00001.safetensors" (as HuggingFaceStorageWriter of PyTorch 2.13 names them).
 * number counts from 1. */
void shard_name_make(bool sharded, uint32_t rank, uint32_t number, uint32_t count, char out[SHARD_FILE_NAME_MAX + 1]);
void objects_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1]);  /* "objects-00001.bin" for rank 0 */
/* "tspool.digests" of the only rank; with several "tspool.digests-00001" for rank 0. */
void digests_name_make(uint32_t rank, uint32_t world_size, char out[SHARD_FILE_NAME_MAX + 1]);
/* "tspool.part-00001" for rank 0: flock'ed while its job lives. */
void part_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1]);
bool part_name_is(const char *name);
/* "tspool.part-00001.json" for rank 0: with several ranks, the manifest of this rank's files alone. */
void part_manifest_name_make(uint32_t rank, char out[SHARD_FILE_NAME_MAX + 1]);
bool part_manifest_name_parse(const char *name, uint32_t *number); /* rank + 1 */
/* A file that this rank of several writes into the directory that all share, its part record aside; ".partial" or not. */
bool file_name_is_of_rank(const char *name, uint32_t rank);
/* It has the form of our names: what a replace does not carry over. */
bool file_name_is_ours(const char *name);
/* A file name that a manifest or an index may mention: one component, no leading '.', no '/', valid UTF-8. */
bool file_name_is_safe(const char *name);

#endif
