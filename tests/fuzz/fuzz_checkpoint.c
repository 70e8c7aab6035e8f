/* fuzz_checkpoint - any bytes as the files of a checkpoint's directory: what opens can be read, slice by slice and whole, and
 * what a strict open refuses, a tolerant one never calls whole.
 *
 * Input: one byte of flags, then files: which one (a number into file_names), u16 LE size, bytes. Digests would keep a fuzzer
 * at the gate, so it may ask for them to be mended: sizes and digests in the manifest, and a digests file made anew.
 */
#include "memory_io.h"

#include <base/names.h>
#include <errno.h>
#include <format/digests.h>
#include <format/manifest.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MEND_MANIFEST = 1, MEND_DIGESTS = 2, DIRECT = 4, UNVERIFIED = 8 };

static const char *const file_names[MEMORY_FILES_MAX] = {
    MANIFEST_NAME, "model.safetensors", DIGESTS_NAME, INDEX_NAME, "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors", "objects-00001.bin", "tokenizer.json",
};

static void require(int condition)
{
    if (!condition)
        abort();
}

/* The directory ---------------------------------------------------------------------------------------------------- */

static void file_set(struct memory_io *memory, const char *name, const void *bytes, size_t size)
{
    struct memory_file *file = memory_io_find(memory, name);

    if (!file && memory->file_count == MEMORY_FILES_MAX)
        return;
    if (!file)
        file = &memory->files[memory->file_count++];
    free(file->bytes);
    *file = (struct memory_file){ name, malloc(size ? size : 1), size };
    memcpy(file->bytes, bytes, size);
}

static void files_take(struct memory_io *memory, const uint8_t *data, size_t size)
{
    while (size >= 3) {
        size_t wanted = data[1] | (size_t)data[2] << 8, taken = wanted < size - 3 ? wanted : size - 3;

        file_set(memory, file_names[data[0] % MEMORY_FILES_MAX], data + 3, taken);
        data += 3 + taken;
        size -= 3 + taken;
    }
}

/* Mending ---------------------------------------------------------------------------------------------------------- */

static struct manifest_digests *digests_listed(const struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->digests_count; i++)
        if (strcmp(manifest->digests[i].name, DIGESTS_NAME) == 0)
            return &manifest->digests[i];
    return NULL;
}

struct leaves { uint64_t sizes[512]; struct digest digests[512]; uint64_t tensors, count; };

static void leaves_take(struct leaves *leaves, const struct memory_file *file)
{
    struct parsed_header header;
    const char *reason;
    uint64_t json_size = 0;
    size_t position;

    if (file->size < 8 || header_length_check(file->bytes, file->size, &json_size, &reason) ||
        header_parse((const char *)file->bytes + 8, json_size, file->size - 8 - json_size, &header, &reason, &position))
        return;
    for (size_t i = 0; i < header.count && leaves->tensors < 512; i++) {
        uint64_t bytes = header.tensors[i].end - header.tensors[i].begin; /* below one leaf: inputs are small */

        leaves->sizes[leaves->tensors++] = bytes;
        if (bytes)
            leaves->digests[leaves->count++] = hash_bytes(file->bytes + 8 + json_size + header.tensors[i].begin, bytes);
    }
    parsed_header_deinit(&header);
}

static void digests_mend(struct memory_io *memory, const struct manifest *manifest)
{
    const struct manifest_digests *listed = digests_listed(manifest);
    struct leaves *leaves = calloc(1, sizeof *leaves);
    uint64_t size;
    void *bytes;

    for (size_t i = 0; listed && i < manifest->file_count; i++) {
        const struct memory_file *file = memory_io_find(memory, manifest->files[i].name);

        if (file && manifest->files[i].kind == MANIFEST_SAFETENSORS && manifest->files[i].rank == listed->rank)
            leaves_take(leaves, file);
    }
    size = digests_file_size(leaves->tensors, leaves->count);
    bytes = malloc(size);
    digests_emit(leaves->sizes, leaves->tensors, leaves->digests, leaves->count, bytes);
    file_set(memory, DIGESTS_NAME, bytes, size);
    free(bytes);
    free(leaves);
}

static void listed_mend(struct memory_io *memory, struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->file_count; i++) {
        struct manifest_file *listed = &manifest->files[i];
        const struct memory_file *file = memory_io_find(memory, listed->name);
        uint64_t json_size = 0;
        const char *reason;

        if (!file)
            continue;
        listed->size = listed->header_size = file->size;
        if (listed->kind == MANIFEST_SAFETENSORS && file->size >= 8 &&
            header_length_check(file->bytes, file->size, &json_size, &reason) == 0)
            listed->header_size = 8 + json_size;
        listed->digest = hash_bytes(file->bytes, listed->header_size);
    }
    for (size_t i = 0; i < manifest->digests_count; i++) {
        const struct memory_file *file = memory_io_find(memory, manifest->digests[i].name);

        if (file) {
            manifest->digests[i].size = file->size;
            manifest->digests[i].digest = hash_bytes(file->bytes, file->size);
        }
    }
}

static void objects_mend(struct memory_io *memory, struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->object_count; i++) {
        struct manifest_object *object = &manifest->objects[i];
        const struct memory_file *file = memory_io_find(memory, object->file);

        if (!file || object->file_offset > file->size)
            continue;
        if (object->size > file->size - object->file_offset)
            object->size = file->size - object->file_offset;
        object->digest = hash_bytes(file->bytes + object->file_offset, object->size);
    }
}

/* As it is, or with its right digest added as the last member. */
static int manifest_take(const struct memory_file *file, struct manifest *manifest)
{
    static const char member[] = ",\"digest\":\"", tail[] = "\"}";
    size_t self = file->size - 1 + sizeof member - 1, size = self + DIGEST_HEX_BYTES + sizeof tail - 1;
    const char *reason;
    char *text;
    int error = manifest_parse((const char *)file->bytes, file->size, manifest, &reason);

    if (error == 0 || file->size == 0)
        return error;
    text = malloc(size);
    memcpy(text, file->bytes, file->size - 1);
    memcpy(text + file->size - 1, member, sizeof member - 1);
    manifest_seal(text, self);
    memcpy(text + self + DIGEST_HEX_BYTES, tail, sizeof tail - 1);
    error = manifest_parse(text, size, manifest, &reason);
    free(text);
    return error;
}

static void mend(struct memory_io *memory, bool digests_too)
{
    const struct memory_file *file = memory_io_find(memory, MANIFEST_NAME);
    struct manifest manifest;
    size_t *patch, size, self;
    char *json;

    if (!file || manifest_take(file, &manifest))
        return;
    if (digests_too)
        digests_mend(memory, &manifest);
    listed_mend(memory, &manifest);
    objects_mend(memory, &manifest);
    patch = calloc(manifest.digests_count + 1, sizeof *patch);
    require(manifest_build(&manifest, &json, &size, patch, &self) == 0);
    file_set(memory, MANIFEST_NAME, json, size);
    free(patch);
    free(json);
    manifest_deinit(&manifest);
}

/* Reading ---------------------------------------------------------------------------------------------------------- */

static int request_read(struct tspool_checkpoint *checkpoint, struct tspool_read_request *request, uint64_t bytes)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    request->data = malloc(bytes ? bytes : 1);
    request->bytes = bytes;
    error = tspool_checkpoint_read(checkpoint, request, 1, NULL, NULL, &failure);
    require(error == 0 || failure.error == -error);
    return error;
}

/* Whole, then the second half of its last dimension, then some bytes of it. */
static int tensor_read(struct tspool_checkpoint *checkpoint, const struct memory_io *memory, size_t index)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    const struct memory_file *file;
    int error;

    require(tspool_checkpoint_tensor(checkpoint, index, &info) == 0);
    file = memory_io_find((struct memory_io *)memory, info.file);
    require(file && info.file_offset <= file->size && info.bytes <= file->size - info.file_offset);
    request.tensor = index;
    error = request_read(checkpoint, &request, info.bytes);
    if (error == 0)
        require(memcmp(request.data, file->bytes + info.file_offset, info.bytes) == 0);
    free(request.data);
    if (info.bytes > 3) {
        request.by_bytes = 1;
        request.first_byte = info.bytes / 3;
        if (request_read(checkpoint, &request, info.bytes / 2) == 0)
            require(memcmp(request.data, file->bytes + info.file_offset + info.bytes / 3, info.bytes / 2) == 0);
        else
            require(error < 0);
        free(request.data);
    }
    return error;
}

static void slice_read(struct tspool_checkpoint *checkpoint, size_t index)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    uint64_t start[TSPOOL_RANK_MAX] = { 0 }, extent[TSPOOL_RANK_MAX], elements = 1;

    require(tspool_checkpoint_tensor(checkpoint, index, &info) == 0 && info.rank <= TSPOOL_RANK_MAX);
    for (uint32_t i = 0; i < info.rank; i++) {
        start[i] = info.shape[i] / 2;
        extent[i] = info.shape[i] - start[i];
        elements *= extent[i]; /* at most the tensor's own: checked by the parser */
    }
    request.tensor = index;
    request.start = start;
    request.extent = extent;
    if (tspool_dtype_bits(info.dtype) % 8 == 0)
        request_read(checkpoint, &request, elements * (tspool_dtype_bits(info.dtype) / 8));
    free(request.data);
}

static int objects_read(struct tspool_checkpoint *checkpoint)
{
    int worst = 0;

    for (size_t i = 0; i < tspool_checkpoint_object_count(checkpoint); i++) {
        const char *name, *kind;
        uint64_t bytes;
        void *read = NULL;
        size_t size = 0;
        int error;

        require(tspool_checkpoint_object(checkpoint, i, &name, &kind, &bytes) == 0);
        error = tspool_checkpoint_object_read(checkpoint, name, &read, &size, NULL);
        worst = error ? error : worst;
        free(read);
    }
    return worst;
}

static int everything_read(struct tspool_checkpoint *checkpoint, const struct memory_io *memory)
{
    const char *key, *value;
    int worst = objects_read(checkpoint);

    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint); i++) {
        int error = tensor_read(checkpoint, memory, i);

        slice_read(checkpoint, i);
        worst = error ? error : worst;
    }
    for (size_t i = 0; tspool_checkpoint_metadata_at(checkpoint, i, &key, &value) == 0; i++)
        require(tspool_checkpoint_metadata(checkpoint, key) != NULL);
    return worst;
}

/* 0: it opened and is whole by its digests; 1: it opened; or the open's error. */
static int strict_pass(struct memory_io *memory, bool unverified)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    int error, verdict, reads;

    options.unverified = unverified;
    error = checkpoint_open_on(&memory->io, MEMORY_DIRECTORY, &options, &checkpoint, &failure);
    if (error < 0) {
        require(failure.error == -error && failure.message[0]);
        return error;
    }
    reads = everything_read(checkpoint, memory);
    verdict = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, &failure);
    require(verdict != 0 || reads == 0); /* what verify calls whole can be read */
    require(!unverified || reads == 0 || reads == -EBADMSG);
    tspool_checkpoint_close(checkpoint);
    return verdict == 0 ? 0 : 1;
}

static int on_damage(void *context, const struct tspool_damage *damage)
{
    require(damage->file && damage->reason && (damage->kind == TSPOOL_DAMAGE_TENSOR) == (damage->tensor != NULL));
    return 0;
}

/* Verify's word about a directory that is opened in spite of damage; the open's error. */
static int tolerant_pass(struct memory_io *memory)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    int error;

    options.tolerant = 1;
    error = checkpoint_open_on(&memory->io, MEMORY_DIRECTORY, &options, &checkpoint, NULL);
    if (error == 0) {
        error = tspool_checkpoint_verify(checkpoint, on_damage, NULL, NULL, NULL, NULL);
        tspool_checkpoint_close(checkpoint);
    }
    return error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct memory_io memory;
    uint8_t flags = size ? data[0] : 0;
    int strict, tolerant;

    memory_io_init(&memory);
    files_take(&memory, data + (size > 0), size - (size > 0));
    if (flags & MEND_MANIFEST)
        mend(&memory, flags & MEND_DIGESTS);
    memory.direct_align = flags & DIRECT ? 512 : 0;
    strict = strict_pass(&memory, flags & UNVERIFIED);
    tolerant = tolerant_pass(&memory);
    require(tolerant != 0 || strict == 0); /* only what opens strictly, and is whole, is called whole */
    require(strict != 0 || tolerant == 0);
    memory_io_deinit(&memory);
    for (unsigned i = 0; i < memory.file_count; i++)
        free(memory.files[i].bytes);
    return 0;
}
