/* format/digests.h - tspool.digests: XXH3-128 of every 4 MiB leaf of every tensor, and of every tensor. Pure.
 *
 *   offset  size
 *   0       8    "TSPLDGST"
 *   8       4    u32 LE version (1)
 *   12      4    u32 LE zero
 *   16      8    u64 LE leaf bytes (4194304)
 *   24      8    u64 LE tensor count T
 *   32      8    u64 LE leaf count L
 *   40      24   zero
 *   64      24*T per tensor, in the order of the manifest's files and, in a file, of the safetensors entries sorted by
 *                (begin, end, name): u64 LE size in bytes, 16 bytes digest
 *   ...     16*L leaf digests, tensor after tensor in the same order
 *
 * A leaf is LEAF_BYTES counted from its tensor's start (the last one is shorter; an empty tensor has none). The tensor's
 * digest is XXH3-128 over: its leaf digests in order, then its size as u64 LE.
 */
#ifndef FORMAT_DIGESTS_H
#define FORMAT_DIGESTS_H

#include <base/hash.h>
#include <stddef.h>
#include <stdint.h>

#define LEAF_BYTES 4194304u

uint64_t leaf_count_of(uint64_t tensor_bytes);
struct digest tensor_digest_of(const struct digest *leaves, uint64_t leaf_count, uint64_t tensor_bytes);

/* Size of the file. 0 on overflow. */
uint64_t digests_file_size(uint64_t tensor_count, uint64_t leaf_count);
/* Fills `out` (digests_file_size bytes): computes the tensor digests from the leaves. */
void digests_emit(const uint64_t *tensor_bytes, uint64_t tensor_count, const struct digest *leaves, uint64_t leaf_count,
                  void *out);

struct parsed_digests {
    uint64_t tensor_count, leaf_count;
    const uint8_t *tensors;      /* within the caller's bytes */
    const struct digest *leaves;
    uint64_t *first_leaf;        /* per tensor; malloc'ed */
};
/* Checks everything: magic, counts against `size`, per-tensor sizes against the leaf counts, tensor digests against
 * their leaves. `bytes` must outlive *digests. 0, -ENOMEM, -EPROTO (newer version), -EBADMSG with *reason (static). */
int digests_parse(const void *bytes, uint64_t size, struct parsed_digests *digests, const char **reason);
uint64_t digests_tensor_bytes(const struct parsed_digests *digests, uint64_t tensor);
struct digest digests_tensor(const struct parsed_digests *digests, uint64_t tensor);
void parsed_digests_deinit(struct parsed_digests *digests);

#endif
