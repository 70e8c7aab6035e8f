/* read/checkpoint.h - an open checkpoint: its files, and the entries that their headers list.
 *
 *   open -> manifest | index | one file  ->  files (header read, digested, parsed)  ->  entries in file order, then ties
 *
 * Every file is opened when the checkpoint is and stays open: an exchange of the directory afterwards cannot mix two
 * checkpoints. Immutable after the open, except for what the lane guards.
 */
#ifndef READ_CHECKPOINT_H
#define READ_CHECKPOINT_H

#include <base/mutant.h>
#include <format/digests.h>
#include <format/manifest.h>
#include <format/name_table.h>
#include <format/safetensors.h>
#include <read/lane.h>
#include <read/source.h>
#include <tspool/checkpoint.h>

struct digest_set {                    /* one tspool.digests: those of one rank's files */
    void *bytes;
    struct parsed_digests parsed;
    uint32_t rank;
    bool loaded;
    uint64_t used;                     /* tensors that files have taken from it so far */
};

struct checkpoint_file {
    struct source source;
    struct parsed_header header;
    uint64_t data_start;
    const struct digest_set *digests;  /* NULL: none were recorded */
    uint64_t digest_first;             /* number of the file's first tensor in there */
    const struct manifest_file *listed;/* NULL without a manifest */
    bool broken;                       /* tolerated: it has no entries */
};

struct entry {
    const char *name;
    const uint64_t *global_shape;      /* NULL when whole or not recorded */
    uint32_t file, tensor;             /* number in the file's header.tensors, which are in the order of the digests */
    uint32_t stored;                   /* its own number, or the entry that it is tied to */
};

struct entry_key { uint64_t hash; uint32_t entry; };

/* What was wrong at the open and tolerated, for verify. */
struct finding {
    enum tspool_damage_kind kind;
    char *file, *reason;
    uint64_t file_offset, bytes;
};

struct tspool_checkpoint {
    char *path;
    enum tspool_checkpoint_kind kind;
    bool buffered, unverified, tolerant;
    uint32_t item_bytes, depth;
    struct lane lane;
    int directory;                     /* -1 for one file */
    struct manifest manifest;          /* zero without one */
    struct name_table object_names;    /* of its objects; empty where two have one name */
    struct checkpoint_file *files;
    uint32_t file_count;
    struct digest_set *digest_sets;    /* one per manifest.digests */
    struct entry *entries;
    size_t entry_count, stored_count, entry_capacity;
    struct entry_key *keys;            /* of all entries, sorted by (hash, entry) */
    struct header_pair *metadata;      /* views */
    size_t metadata_count, metadata_capacity;
    struct finding *findings;
    size_t finding_count, finding_capacity;
};

/* tspool_kind.c, huggingface.c: fill files and what belongs to the kind. */
int tspool_kind_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure);
int huggingface_load(struct tspool_checkpoint *checkpoint, struct io *io, struct tspool_failure *failure);
/* Reads and parses the manifest in `directory`; `path` is the checkpoint's, for records. */
int manifest_load(struct io *io, int directory, const char *path, struct manifest *manifest, struct tspool_failure *failure);
/* The same from a file of another name. */
int manifest_load_from(struct io *io, int directory, const char *path, const char *name, struct manifest *manifest,
                       struct tspool_failure *failure);

/* objects.c: so that an object among a hundred thousand is found by name. */
int objects_index(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure);

/* files.c */
int files_allocate(struct tspool_checkpoint *checkpoint, size_t count, struct tspool_failure *failure);
/* Opens one safetensors file, checks and parses its header (against `listed` where there is a manifest). */
int file_load(struct tspool_checkpoint *checkpoint, struct io *io, struct checkpoint_file *file, const char *name,
              const struct manifest_file *listed, struct tspool_failure *failure);
void file_deinit(struct checkpoint_file *file, struct io *io);
/* Damage and absence can be looked past, and be found; no memory, too many open files, a newer format cannot. */
bool error_is_damage(int error);
/* What says that a directory is no checkpoint, or a damaged one. Anything else (EIO, ESTALE, no memory, a newer format) must
 * not pass for that: the trainer would resume from an older one, or from scratch, and nobody would know. EACCES is for
 * "lost+found". */
bool error_is_no_checkpoint(int error);
/* Takes note of a failure that a tolerant open goes on after: 0 when noted, else `error` again. */
int finding_note(struct tspool_checkpoint *checkpoint, int error, const char *file, uint64_t size,
                 struct tspool_failure *failure);

/* entries.c */
int entries_build(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure);
const struct parsed_tensor *entry_tensor(const struct tspool_checkpoint *checkpoint, size_t index);
uint64_t entry_file_offset(const struct tspool_checkpoint *checkpoint, size_t index);
uint64_t entry_bytes(const struct tspool_checkpoint *checkpoint, size_t index);
/* Its number among the digests of its file's set. */
uint64_t entry_digest_number(const struct tspool_checkpoint *checkpoint, size_t index);
/* The first entry of that name among the first `count`, which the table was built of; `count` when there is none. */
size_t keys_find(const struct tspool_checkpoint *checkpoint, size_t count, const char *name);
/* The digests of the entry's leaves; NULL when none were recorded (or the tensor is empty). */
const struct digest *entry_leaves(const struct tspool_checkpoint *checkpoint, size_t index);

/* contents.c: gives a caller-sized struct as much of ours as it has room for; keeps its size member. -EINVAL when
 * that is absurd. */
int give_sized(void *to, const void *from, size_t size);

#endif
