/* plan/plan.h - state dict -> shard files -> chunks -> write items. Pure; one plan serves every save of the same shapes.
 *
 *   declared tensors --ties--> stored tensors --order--> files --> image of each file: header | tensors, no holes
 *   image of each file --> chunks of CHUNK_BYTES (the last one shorter) --> pieces (staging) and items (writing)
 *
 * Order: sizes that are multiples of 4096 first (in the caller's order), then by descending element size (in the caller's
 * order for equal ones), empty tensors last (by name: entries are counted by (begin, end, name)). All first shards of their
 * names come before all second ones, in files of their own: one chunk per name and file.
 * A file ends before the tensor that would take it past shard_bytes of data or past the header's limit; a tensor never
 * spans two files. O(n log n).
 *
 * Worked example, 512 KiB items, 4096 alignment, a file of 1,048,580 bytes (header 4096, data 1,044,484):
 *   chunk 0: [0, 1048580)   items: [0, 524288) [524288, 1048576) [1048576, 1052672) -- the last is padded by zeros up to
 *   the alignment (the arena slot has them) and the file is cut to 1,048,580 at commit.
 */
#ifndef PLAN_PLAN_H
#define PLAN_PLAN_H

#include <base/hash.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tspool/failure.h>
#include <tspool/tensor.h>
#include <wire/sheet.h>

/* A state dict as declared: owns copies of names, shapes, strides. Grows by add; duplicates are found at plan_build. */
struct state_dict;
struct state_dict *state_dict_create(void);
void state_dict_destroy(struct state_dict *dict);
/* Checks name, dtype, shape overflow, strides (>= 0), shard inside its global shape, data present. -EINVAL, -EOVERFLOW,
 * -ENAMETOOLONG, -ENOMEM with the record. data_required: false for caller staging. */
int state_dict_add(struct state_dict *dict, const struct tspool_tensor *tensor, bool data_required,
                   struct tspool_failure *failure);
size_t state_dict_count(const struct state_dict *dict);
/* A view of declared tensor `index`; pointers live as long as the dict and until the next add. `strides` is NULL when they
 * said no more than "contiguous". */
void state_dict_tensor(const struct state_dict *dict, size_t index, struct tspool_tensor *tensor);

struct plan_rules {
    uint64_t shard_bytes;    /* 0: 4 GiB */
    uint32_t header_bytes;   /* 0: SAFETENSORS_HEADER_MAX */
    uint32_t offset_align;   /* of O_DIRECT; data starts at a multiple of max(4096, this); power of two */
    uint32_t rank, world_size;
};

struct plan_entry {          /* a stored tensor, in file order */
    uint32_t file;
    uint32_t source;         /* number of the declared tensor */
    uint64_t file_offset;
    uint64_t size;
};
struct plan_file {
    char name[SHARD_FILE_NAME_MAX + 1];
    void *header;            /* length, JSON and padding: the first header_size bytes of the file */
    uint64_t header_size;
    struct digest header_digest;
    uint64_t size;           /* header_size + tensor bytes: the file's final size */
    size_t entry_first, entry_count;
    uint32_t chunk_first, chunk_count;
};
struct plan_alias { uint32_t alias, stored; }; /* numbers of declared tensors */

struct plan {
    struct plan_file *files;   uint32_t file_count;
    struct plan_entry *entries; size_t entry_count;
    struct plan_alias *aliases; size_t alias_count; /* sorted by (stored, alias); also in __metadata__ of the stored one's file */
    uint32_t chunk_count;
    uint32_t *chunk_order;     /* order of staging and so of writing: round-robin over up to 4 files at a time */
    uint64_t leaf_count;
    uint64_t tensor_bytes, file_bytes;
    bool sharded;
};

/* -EEXIST for a duplicate name, -EINVAL for shards of one name that disagree, -E2BIG, -EOVERFLOW, -ENOMEM with the record.
 * *plan is freed with plan_destroy; it keeps no pointer into `dict`. An empty state dict makes one file without tensors. */
int plan_build(const struct state_dict *dict, const struct plan_rules *rules, struct plan **plan, struct tspool_failure *failure);
void plan_destroy(struct plan *plan);
/* The sheet (wire/sheet.h) of this plan; malloc'ed. */
int plan_sheet(const struct plan *plan, void **bytes, uint64_t *size);

/* Chunks ---------------------------------------------------------------------------------------------------------- */
struct plan_chunk { uint32_t file; uint64_t file_offset, size; };
struct plan_chunk plan_chunk_at(const struct plan *plan, uint32_t chunk);

/* Staging: what a chunk is filled with, in order, without gaps: pieces cover [0, size). */
enum piece_kind { PIECE_HEADER = 1, PIECE_TENSOR };
struct plan_piece {
    enum piece_kind kind;
    size_t entry;            /* PIECE_TENSOR */
    uint64_t source_offset;  /* within the header or the tensor's contiguous form */
    uint64_t chunk_offset;
    uint64_t size;           /* > 0 */
};
struct plan_cursor { uint32_t chunk, file; uint64_t chunk_offset; size_t entry; };
void plan_cursor_init(struct plan_cursor *cursor, const struct plan *plan, uint32_t chunk); /* O(log n) */
bool plan_cursor_next(struct plan_cursor *cursor, const struct plan *plan, struct plan_piece *piece); /* O(1) */

/* Copies bytes [offset, offset + size) of the tensor's contiguous form to `to`; strided tensors are gathered. `offset`
 * and `size` need not be element-aligned. Large contiguous runs go past the caches (non-temporal stores). */
void tensor_copy(const struct tspool_tensor *tensor, uint64_t offset, uint64_t size, void *to);

#endif
