/* format/sharding.h - DCP_SHARDING_INFO: where in its global tensor each tensor of a file lies.
 *
 * A JSON text inside a string of the header's metadata: {"<name>": {"saved_offsets": [o0, o1, ...]}, ...}. PyTorch's
 * HuggingFaceStorageWriter defined it; its reader wants an entry for every tensor of a file that has the key.
 */
#ifndef FORMAT_SHARDING_H
#define FORMAT_SHARDING_H

#include <format/pool.h>
#include <format/safetensors.h>
#include <format/text.h>

#define SHARDING_INFO_KEY "DCP_SHARDING_INFO"
#define SHARDING_VERSION_KEY "DCP_VERSION"

void sharding_emit(struct text *text, const struct header_entry *entries, size_t count);
/* Sets global_offsets (in `pool`) of the tensors that `info` names; what it says of others is skipped. The tensors' names
 * are distinct. 0, -ENOMEM, or -EBADMSG with *reason: malformed, an offset count that is not the tensor's rank, a part
 * that ends past 64 bits, a name given twice. */
int sharding_parse(const char *info, size_t size, struct parsed_tensor *tensors, size_t count, struct pool *pool,
                   const char **reason);

#endif
