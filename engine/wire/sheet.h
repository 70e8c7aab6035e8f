/* wire/sheet.h - one save's plan and texts, as sealed memfds that go with BEGIN. Pure: bytes in, views out.
 *
 * The sheet (constant per plan) tells the writer which files to make and where tensors lie in them:
 *     struct sheet_front | struct sheet_file[file_count] | struct sheet_tensor[tensor_count]
 * Tensors are in file order, then by file offset, as digests are recorded. Shard files are images whose every byte comes
 * through the arena (header included): CHUNK_BYTES pieces numbered through file after file.
 *
 * File names ascend in byte order, as shard_name_make's do up to SHEET_FILES_MAX: so they are distinct without a set.
 *
 * The appendix (per save) holds the other files' bytes, each from an offset that is a multiple of APPENDIX_ALIGN:
 *     struct appendix_front | texts: objects file, index, manifest
 * The writer writes them from there; in its private copy of the manifest it fills in the digest of tspool.digests and then
 * the manifest's own.
 */
#ifndef WIRE_SHEET_H
#define WIRE_SHEET_H

#include <base/names.h>
#include <stddef.h>
#include <stdint.h>

#define SHEET_MAGIC 0x54454853u
#define APPENDIX_MAGIC 0x444e4541u
#define SHEET_VERSION 1u
#define CHUNK_BYTES ((uint64_t)16 << 20)
#define SHEET_LEAF_BYTES ((uint64_t)4 << 20) /* equals LEAF_BYTES of format/; checked by an assertion where both are seen */
#define APPENDIX_ALIGN 4096u
#define APPENDIX_TEXTS_MAX 4u

#define SHEET_FILES_MAX 99999u    /* five digits in a shard's name */

struct sheet_front {
    uint32_t magic, version;      /* SHEET_MAGIC, SHEET_VERSION */
    uint32_t file_count, chunk_count;
    uint64_t tensor_count, leaf_count;
};
struct sheet_file {
    char name[SHARD_FILE_NAME_MAX + 1];
    uint64_t size;                /* final, exact */
    uint64_t tensor_first, tensor_count;
    uint32_t chunk_first, chunk_count; /* chunk_count == divide_up(size, CHUNK_BYTES) */
};
struct sheet_tensor { uint64_t file_offset, size; };

struct sheet {                    /* views into the caller's memory */
    const struct sheet_front *front;
    const struct sheet_file *files;
    const struct sheet_tensor *tensors;
};
uint64_t sheet_bytes(uint32_t file_count, uint64_t tensor_count); /* 0 on overflow */
/* Checks everything the writer relies on: counts, safe and ascending names, sizes, chunk numbering, tensors inside their
 * file, ordered and not overlapping. `bytes` is 8-byte aligned. 0 or -EBADMSG with *reason (static). */
int sheet_view(const void *bytes, uint64_t size, struct sheet *sheet, const char **reason);

enum text_kind { TEXT_OBJECTS = 1, TEXT_INDEX = 2, TEXT_MANIFEST = 3 };
struct appendix_text { uint32_t kind; char name[SHARD_FILE_NAME_MAX + 1]; uint64_t offset, size; };
struct appendix_front {
    uint32_t magic, version;      /* APPENDIX_MAGIC, SHEET_VERSION */
    uint32_t text_count, reserved;
    uint64_t digests_patch;       /* byte in the manifest where 32 hex digits of the digests file's digest go */
    uint64_t self_patch;          /* and, after it, where those of the manifest's digest of all bytes before them go */
    uint64_t digests_size;        /* what tspool.digests will have: digests_file_size(tensors, leaves) */
    char digests_name[SHARD_FILE_NAME_MAX + 1];
    struct appendix_text texts[APPENDIX_TEXTS_MAX]; /* the manifest is the last */
};
struct appendix { const struct appendix_front *front; const uint8_t *bytes; };
/* Checks it likewise: texts in ascending, aligned, disjoint ranges; distinct safe names; the patches inside the manifest, one
 * after the other. */
int appendix_view(const void *bytes, uint64_t size, struct appendix *appendix, const char **reason);

#endif
