/* tspool/checkpoint.h - reading checkpoints: ours, and plain safetensors files and Hugging Face folders of others.
 *
 * Threads: a checkpoint may be used by several threads at once, except for tspool_checkpoint_close.
 * Files are never trusted: sizes, offsets, names and digests are checked before they are used.
 */
#ifndef TSPOOL_CHECKPOINT_H
#define TSPOOL_CHECKPOINT_H

#include <tspool/spool.h>
#include <tspool/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tspool_checkpoint;

struct tspool_checkpoint_options {
    size_t size;               /* sizeof(struct tspool_checkpoint_options), set by TSPOOL_CHECKPOINT_OPTIONS_INIT */
    enum tspool_io io;
    uint32_t item_bytes;       /* one read; 0: 512 KiB */
    uint32_t depth;            /* reads in flight; 0: 32 */
    uint32_t hash_threads;     /* threads that check leaves; 0: 2, or 1 on a single core */
    uint8_t buffered;          /* nonzero: never O_DIRECT */
    uint8_t unverified;        /* nonzero: do not check digests of tensors and objects; explicit, never the default. Headers,
                                * sizes and the manifest are checked all the same. Also the only way to open what has
                                * digests and has lost its manifest, as the plain folder that it is without it */
    uint8_t tolerant;          /* nonzero: open in spite of missing and damaged files, for tspool_checkpoint_verify, which
                                * names them: their tensors are then absent. Never load from such a checkpoint */
};
#define TSPOOL_CHECKPOINT_OPTIONS_INIT { sizeof(struct tspool_checkpoint_options), TSPOOL_IO_AUTO, 0, 0, 0, 0, 0, 0 }

/* Opens a checkpoint directory (tspool or Hugging Face) or one .safetensors file. `options` may be NULL.
 * -ENOENT, -EBADMSG (damaged: the record names file and offset), -EPROTO (a newer format), ... */
int tspool_checkpoint_open(const char *path, const struct tspool_checkpoint_options *options,
                           struct tspool_checkpoint **checkpoint, struct tspool_failure *failure);
void tspool_checkpoint_close(struct tspool_checkpoint *checkpoint);

enum tspool_checkpoint_kind {
    TSPOOL_KIND_TSPOOL = 1,   /* a manifest was found: digests, objects, metadata */
    TSPOOL_KIND_HUGGINGFACE,  /* a folder with *.safetensors, indexed or not: no digests */
    TSPOOL_KIND_FILE          /* one safetensors file: no digests */
};
struct tspool_checkpoint_info {
    size_t size;                          /* sizeof(struct tspool_checkpoint_info), set by its _INIT */
    enum tspool_checkpoint_kind kind;
    uint8_t has_digests;                  /* 0: reads are not verified, because nothing was recorded to verify against */
    uint8_t save_id[TSPOOL_SAVE_ID_BYTES];
    uint64_t sequence;                    /* commit sequence: larger is newer; 0 when unknown */
    uint64_t tensor_bytes, file_bytes;
    uint32_t files, world_size;
    uint32_t format_version;              /* of the manifest; 0 without one */
    uint8_t direct;                       /* O_DIRECT is in force for reads */
    char backend[16];
};
#define TSPOOL_CHECKPOINT_INFO_INIT { .size = sizeof(struct tspool_checkpoint_info) }
int tspool_checkpoint_info(const struct tspool_checkpoint *checkpoint, struct tspool_checkpoint_info *info);

/* Entries: stored tensors in file order, then the names tied to one of them. Strings and arrays live as long as the
 * checkpoint. */
struct tspool_tensor_info {
    size_t size;                    /* sizeof(struct tspool_tensor_info), set by its _INIT */
    const char *name;
    enum tspool_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;          /* of the part stored here */
    const uint64_t *global_shape;   /* NULL when whole or not recorded */
    const uint64_t *global_offsets; /* NULL when whole */
    uint64_t bytes;
    const char *file;               /* relative to the checkpoint */
    uint64_t file_offset;           /* absolute, of the first byte */
    const char *tied_to;            /* NULL, or the stored name that this one shares its bytes with */
    uint8_t has_digest;
    uint8_t digest[16];             /* XXH3-128, canonical (big-endian) form */
};
#define TSPOOL_TENSOR_INFO_INIT { .size = sizeof(struct tspool_tensor_info) }
size_t tspool_checkpoint_count(const struct tspool_checkpoint *checkpoint);
int tspool_checkpoint_tensor(const struct tspool_checkpoint *checkpoint, size_t index, struct tspool_tensor_info *info);
/* The entry of that name; -ENOENT. With several shards of one name: the first; the others follow by index. */
int tspool_checkpoint_find(const struct tspool_checkpoint *checkpoint, const char *name, size_t *index);

/* User metadata by key: NULL when absent; by number: -ENOENT past the last. Strings live as long as the checkpoint. */
const char *tspool_checkpoint_metadata(const struct tspool_checkpoint *checkpoint, const char *key);
int tspool_checkpoint_metadata_at(const struct tspool_checkpoint *checkpoint, size_t number, const char **key, const char **value);

/* Objects. *bytes of tspool_checkpoint_object_read is malloc'ed: free() it. The digest is checked. */
size_t tspool_checkpoint_object_count(const struct tspool_checkpoint *checkpoint);
int tspool_checkpoint_object(const struct tspool_checkpoint *checkpoint, size_t number, const char **name, const char **kind, uint64_t *size);
int tspool_checkpoint_object_read(struct tspool_checkpoint *checkpoint, const char *name, void **bytes, size_t *size,
                                  struct tspool_failure *failure);

/* One tensor, a slice of it, or a range of its bytes, into the caller's memory, contiguous, last dimension fastest. */
struct tspool_read_request {
    size_t size;             /* sizeof(struct tspool_read_request), set by its _INIT */
    size_t tensor;           /* index of the entry */
    const uint64_t *start;   /* NULL: the whole tensor; else `rank` first indices, in elements */
    const uint64_t *extent;  /* `rank` counts, in elements; NULL when start is NULL */
    void *data;
    uint64_t bytes;          /* room at data: exactly what the slice takes, else -EINVAL */
    void *user;              /* the caller's; not looked at */
    uint64_t first_byte;     /* with by_bytes: the range's first byte, counted in the contiguous tensor */
    uint8_t by_bytes;        /* nonzero: bytes [first_byte, first_byte + bytes) and not a box; start and extent are NULL */
};
#define TSPOOL_READ_REQUEST_INIT { sizeof(struct tspool_read_request), 0, NULL, NULL, NULL, 0, NULL, 0, 0 }

/* Reads many at once: ranges are coalesced and read in file order, leaves checked by threads. On failure the
 * destinations' contents are undefined. on_piece (may be NULL) is called from the calling thread when request number
 * `request` is complete and checked (ship it to the GPU while the rest is read); it must not use the checkpoint. */
typedef void (*tspool_on_piece)(void *context, size_t request);
int tspool_checkpoint_read(struct tspool_checkpoint *checkpoint, const struct tspool_read_request *requests, size_t count,
                           tspool_on_piece on_piece, void *context, struct tspool_failure *failure);

/* Reads every byte against its digest and looks for what is missing or does not belong. on_damage is called from the
 * calling thread for each finding; a nonzero return stops. 0: whole; -EBADMSG: damaged; -ENODATA: nothing recorded to
 * verify against (headers and sizes were checked). */
enum tspool_damage_kind { TSPOOL_DAMAGE_TENSOR = 1, TSPOOL_DAMAGE_FILE, TSPOOL_DAMAGE_MISSING, TSPOOL_DAMAGE_FOREIGN };
struct tspool_damage {
    enum tspool_damage_kind kind; /* FOREIGN: a file that the manifest does not list; reported, not counted as damage */
    const char *tensor;           /* NULL unless TENSOR */
    const char *file;
    uint64_t file_offset, bytes;  /* the damaged range, as narrow as the digests tell (a leaf: at most 4 MiB) */
    const char *reason;
};
typedef int (*tspool_on_damage)(void *context, const struct tspool_damage *damage);
typedef void (*tspool_on_progress)(void *context, uint64_t bytes_done, uint64_t bytes_total);
struct tspool_verify_report {
    size_t size;                  /* sizeof(struct tspool_verify_report), set by its _INIT */
    uint64_t bytes, tensors, leaves, damaged, missing, foreign;
};
#define TSPOOL_VERIFY_REPORT_INIT { sizeof(struct tspool_verify_report), 0, 0, 0, 0, 0, 0 }
int tspool_checkpoint_verify(struct tspool_checkpoint *checkpoint, tspool_on_damage on_damage, tspool_on_progress on_progress,
                             void *context, struct tspool_verify_report *report, struct tspool_failure *failure);

/* The newest published checkpoint below root: by the user metadata "step" (as a number) where all have it, else by
 * commit sequence. *path is malloc'ed. -ENOENT when there is none. */
int tspool_latest(const char *root, char **path, struct tspool_failure *failure);

/* A trainer that died may have left a writer that still finishes what was staged: an orphan. It is waited for, so that the
 * answer is not the step before the one that is published a moment later. A save of a trainer that lives delays nothing.
 * timeout_ns: at most so long; 0: look once and do not wait; UINT64_MAX: for ever. tspool_latest waits 10 seconds.
 * At the timeout the newest published checkpoint is the answer, and the report says what is still under way. */
struct tspool_latest_report {
    size_t size;               /* sizeof(struct tspool_latest_report), set by TSPOOL_LATEST_REPORT_INIT */
    uint64_t waited_ns;        /* 0: there was nothing to wait for */
    uint32_t orphans_seen;     /* saves of dead trainers that were under way; seen = finished + left */
    uint32_t orphans_finished; /* published, or given up and swept */
    uint32_t orphans_left;     /* still under way at the timeout */
    char orphan_left[181];     /* checkpoint name of one of those; "": none is left */
};
#define TSPOOL_LATEST_REPORT_INIT { .size = sizeof(struct tspool_latest_report) }
/* report may be NULL; it is filled also when there is no checkpoint. */
int tspool_latest_wait(const char *root, uint64_t timeout_ns, char **path, struct tspool_latest_report *report,
                       struct tspool_failure *failure);

#ifdef __cplusplus
}
#endif
#endif
