/* format/manifest.h - tspool.manifest.json, the commit record: a checkpoint with one is whole, one without is not. Pure.
 *
 * The trainer composes it before the digests are known; the writer, which parses no JSON, patches two fields of fixed
 * width: the 32 hex digits of the digests file's digest, at `digest_patch`, and then those of the manifest's digest of
 * itself, at `self_patch`. Everything else is final.
 *
 *   { "tspool_manifest": 1,                     format version
 *     "save_id": "<32 hex>", "sequence": N, "time": "2026-11-22T02:25:00Z", "world_size": 1,
 *     "metadata": { "step": "1000", ... },
 *     "files":   [ {"name", "kind": "safetensors"|"objects"|"index", "rank", "size", "header_size", "header_digest"} ],
 *     "digests": [ {"name": "tspool.digests", "rank", "size", "digest"} ],
 *     "objects": [ {"name", "kind", "rank", "file", "offset", "size", "digest"} ],
 *     "aliases": { "<tied name>": "<stored name>" },
 *     "shards":  { "<name>": [global shape] },    of sharded tensors
 *     "part": 0, "replace": false,                only in a part, see below
 *     "digest":  "<32 hex>"                       of every byte before its first hex digit
 *   }
 * header_digest covers bytes [0, header_size) of a safetensors file (the length included); for "index" files the whole
 * file. Unknown members are ignored by readers; a larger "tspool_manifest" is refused with -EPROTO.
 *
 * With several ranks each one's part record, "tspool.part-<rank + 1>.json", is a manifest of that rank's files alone: it has
 * the member "part", that rank, and "replace", whether a published checkpoint of the name may be exchanged. The published
 * manifest is merged from them.
 *
 * "digest" is the last member: after its hex digits come the quote, white space and the closing brace, and nothing else. So
 * the one file that vouches for all others vouches for itself too: no byte of it changes unnoticed.
 */
#ifndef FORMAT_MANIFEST_H
#define FORMAT_MANIFEST_H

#include <base/hash.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <format/safetensors.h>

#define MANIFEST_VERSION 1
#define MANIFEST_MAX_BYTES (1u << 30)

enum manifest_file_kind { MANIFEST_SAFETENSORS = 1, MANIFEST_OBJECTS, MANIFEST_INDEX };

struct manifest_file {
    const char *name;
    enum manifest_file_kind kind;
    uint32_t rank;
    uint64_t size, header_size;  /* header_size: bytes covered by `digest` */
    struct digest digest;
};
struct manifest_digests { const char *name; uint32_t rank; uint64_t size; struct digest digest; };
struct manifest_object {
    const char *name, *kind, *file;
    uint32_t rank;
    uint64_t file_offset, size;
    struct digest digest;
};
struct manifest_alias { const char *alias, *stored; };
struct manifest_shape { const char *name; uint32_t rank /* dimensions */; const uint64_t *global_shape; }; /* sharded tensors */

struct manifest {
    uint32_t version, world_size, part; /* part: the rank, of a part */
    bool is_part, replace;              /* replace: of a part */
    uint8_t save_id[16];
    uint64_t sequence, time_seconds;
    struct header_pair *metadata;     size_t metadata_count;
    struct manifest_file *files;      size_t file_count;
    struct manifest_digests *digests; size_t digests_count;
    struct manifest_object *objects;  size_t object_count;
    struct manifest_alias *aliases;   size_t alias_count;
    struct manifest_shape *shapes;    size_t shape_count;
    void *memory;                     /* of a parsed one */
};

/* 0, -ENOMEM, -EINVAL for a time after the year 9999, -E2BIG beyond MANIFEST_MAX_BYTES.
 * *json is malloc'ed (not NUL-terminated) and sealed; digest_patch[i]: byte position of the 32 hex digits of
 * digests[i].digest, which are emitted as given. `digest_patch` has room for digests_count. *self_patch: byte position of
 * the manifest's own digest. Emitted directly: a million aliases are fine. */
int manifest_build(const struct manifest *manifest, char **json, size_t *size, size_t *digest_patch, size_t *self_patch);
/* Puts the digest of the bytes before `self_patch` there: after everything else was patched. */
void manifest_seal(char *json, size_t self_patch);
/* Hostile input. 0, or -ENOMEM, -EPROTO (newer), -EBADMSG with *reason (static). The digest is right, file names are safe
 * and distinct over `files` and `digests`, ranks are below world_size, objects lie within files of kind "objects", aliases
 * and metadata keys are distinct and no alias is tied to itself. What an alias is tied to is the reader's to look up. */
int manifest_parse(const char *json, size_t size, struct manifest *manifest, const char **reason);
void manifest_deinit(struct manifest *manifest); /* only parsed ones */

#endif
