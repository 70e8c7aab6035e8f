/* base/hash.h - XXH3-128, one-shot and streamed. The sole user of xxHash (with its run-time CPU dispatch).
 *
 * Digests find accidents, not attackers. In memory and in files they are in canonical form: 16 bytes, big-endian,
 * what `xxhsum -H2` prints as hex.
 */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct digest { uint8_t bytes[16]; };

struct hash_stream; /* about 600 bytes, 64-byte aligned */

struct digest hash_bytes(const void *data, size_t size);
/* Of `first` followed by `second`; allocates nothing and so cannot fail. */
struct digest hash_two(const void *first, size_t first_size, const void *second, size_t second_size);
struct hash_stream *hash_stream_create(void);       /* NULL: no memory */
void hash_stream_destroy(struct hash_stream *stream);
void hash_stream_reset(struct hash_stream *stream);
void hash_stream_update(struct hash_stream *stream, const void *data, size_t size);
struct digest hash_stream_digest(const struct hash_stream *stream);

#define DIGEST_HEX_BYTES 32
void digest_to_hex(struct digest digest, char hex[DIGEST_HEX_BYTES + 1]);
/* 0, or -EINVAL unless exactly 32 lower-case hex digits followed by NUL. */
int digest_from_hex(const char *hex, struct digest *digest);
int digest_equal(struct digest a, struct digest b); /* nonzero when equal */

#endif
