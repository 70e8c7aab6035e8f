/* format/safetensors.h - the header of a safetensors file: emitting and parsing. Pure: bytes in, bytes out.
 *
 * File: u64 little-endian length N (<= SAFETENSORS_HEADER_MAX), N bytes of JSON padded with spaces, data. We pad so that
 * data starts at a multiple of SAFETENSORS_DATA_ALIGN. Entries are contiguous, in file order, no holes; the file ends
 * at the last byte. Rules of the format: https://github.com/huggingface/safetensors (README, "Format").
 */
#ifndef FORMAT_SAFETENSORS_H
#define FORMAT_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include <tspool/failure.h>
#include <tspool/tensor.h>

#define SAFETENSORS_HEADER_MAX 100000000u
#define SAFETENSORS_DATA_ALIGN 4096u

/* Emitting ------------------------------------------------------------------------------------------------------- */

/* One entry to emit. Strings and arrays are the caller's. */
struct header_entry {
    const char *name;
    enum tspool_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    uint64_t begin, end;            /* bytes, relative to the start of data */
    const uint64_t *global_offsets; /* NULL: whole */
};
struct header_pair { const char *key, *value; };

/* Upper bound of the JSON bytes one entry takes in the header, its share of DCP_SHARDING_INFO included when `sharded`.
 * Cheap; used to decide where a shard file ends. */
size_t header_entry_bound(const struct header_entry *entry, int sharded);
/* The same of one pair of __metadata__. */
size_t header_pair_bound(const struct header_pair *pair);
/* What a header takes besides entries, pairs and the padding up to data_align. */
#define HEADER_FRAME_BOUND 128u
/* Builds the whole header: length, JSON, padding up to `data_align` (a power of two, at least SAFETENSORS_DATA_ALIGN).
 * `sharded`: every entry gets DCP_SHARDING_INFO (zero offsets where global_offsets is NULL), with "DCP_VERSION": "1.0"
 * and "format": "pt", as PyTorch's HuggingFaceStorageReader reads it. `pairs` go into __metadata__ (ties: alias -> kept
 * name, as safetensors.torch.save_model records them). *bytes is malloc'ed.
 * In a sharded header those three keys win over pairs of the same key.
 * -E2BIG beyond SAFETENSORS_HEADER_MAX; -EINVAL for a name that no reader takes: "__metadata__", or not UTF-8. */
int header_build(const struct header_entry *entries, size_t count, int sharded, const struct header_pair *pairs,
                 size_t pair_count, uint32_t data_align, void **bytes, size_t *size);

/* Parsing: hostile input ------------------------------------------------------------------------------------------ */

struct parsed_tensor {
    const char *name;              /* NUL-terminated, unescaped; in the header's own memory */
    enum tspool_dtype dtype;
    uint32_t rank;
    const uint64_t *shape;
    const uint64_t *global_offsets;/* NULL unless DCP_SHARDING_INFO gives them */
    uint64_t begin, end;           /* relative to the start of data; checked */
};
struct parsed_header {
    struct parsed_tensor *tensors; /* sorted by (begin, end, name): no holes, no overlaps, sizes agree with dtype and shape */
    size_t count;
    struct header_pair *metadata;  /* __metadata__, DCP_SHARDING_INFO included */
    size_t metadata_count;
    uint64_t data_bytes;           /* end of the last tensor */
    void *memory;
};
/* Checks the 8 bytes at the front: *json_size on success. -EBADMSG. `file_size` bounds it. */
int header_length_check(const uint8_t prefix[8], uint64_t file_size, uint64_t *json_size, const char **reason);
/* Parses `json` (not NUL-terminated) of a file whose data part has `data_bytes` bytes. Memory used is bounded by a small
 * multiple of json_size. 0, or -ENOMEM, -EBADMSG with *reason (static) and *position (byte in json). Accepts nothing that
 * Python's safetensors refuses (duplicate keys, holes, overlaps, wrong sizes, bytes after the end). */
int header_parse(const char *json, size_t json_size, uint64_t data_bytes, struct parsed_header *header,
                 const char **reason, size_t *position);
void parsed_header_deinit(struct parsed_header *header);

#endif
