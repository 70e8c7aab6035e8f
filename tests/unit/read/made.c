/* made.c - see made.h. */
#include "made.h"

#include <base/checked.h>
#include <base/names.h>
#include <fcntl.h>
#include <format/digests.h>
#include <format/manifest.h>
#include <format/safetensors.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

static char scratch[64];

const char *scratch_make(void)
{
    strcpy(scratch, "/tmp/tspool-read-XXXXXX");
    cr_assert_not_null(mkdtemp(scratch));
    return scratch;
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *ftw) { return remove(path); }

void scratch_remove(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

char *path_of(const char *directory, const char *name)
{
    static char ring[8][1024];
    static unsigned next;
    char *path = ring[next++ % 8];

    snprintf(path, sizeof ring[0], "%s/%s", directory, name);
    return path;
}

void made_fill(struct made_tensor *tensors, size_t count, unsigned seed)
{
    for (size_t i = 0; i < count; i++) {
        struct made_tensor *tensor = &tensors[i];
        uint64_t elements = 1, state = seed * 1000003u + i * 7919u + 1;

        for (uint32_t d = 0; d < tensor->rank; d++)
            elements *= tensor->shape[d];
        tensor->bytes = elements * tspool_dtype_bits(tensor->dtype) / 8;
        tensor->data = malloc(tensor->bytes + 1);
        for (uint64_t j = 0; j < tensor->bytes; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            tensor->data[j] = (uint8_t)(state >> 56);
        }
    }
}

void made_free(struct made_tensor *tensors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(tensors[i].data);
}

void file_write(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");

    cr_assert_not_null(file, "%s", path);
    cr_assert_eq(fwrite(bytes, 1, size, file), size);
    fclose(file);
}

uint8_t *file_bytes(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes;

    cr_assert_not_null(file, "%s", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    bytes = malloc(*size + 1);
    cr_assert_eq(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

void file_flip(const char *path, uint64_t offset)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;

    cr_assert_geq(fd, 0);
    cr_assert_eq(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x20;
    cr_assert_eq(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static void header_of(const struct made_tensor *tensors, size_t count, void **bytes, size_t *size)
{
    struct header_entry *entries = calloc(count + 1, sizeof *entries);
    uint64_t at = 0;
    int sharded = 0;

    for (size_t i = 0; i < count; i++) {
        const struct made_tensor *tensor = &tensors[i];

        entries[i] = (struct header_entry){ tensor->name, tensor->dtype, tensor->rank, tensor->shape, at, at + tensor->bytes,
                                            tensor->sharded ? tensor->offsets : NULL };
        at += tensor->bytes;
        sharded |= tensor->sharded;
    }
    cr_assert_eq(header_build(entries, count, sharded, NULL, 0, 4096, bytes, size), 0);
    free(entries);
}

/* The padding taken away down to `align`, the length put right. */
static size_t header_trim(uint8_t *header, size_t size, uint32_t align)
{
    uint64_t json;

    while (size > 8 && header[size - 1] == ' ' && (size - 1) % align == 0)
        size--;
    if (align == 1)
        while (header[size - 1] == ' ')
            size--;
    json = size - 8;
    for (unsigned i = 0; i < 8; i++)
        header[i] = (uint8_t)(json >> (8 * i));
    return size;
}

static size_t file_emit(const char *path, const struct made_tensor *tensors, size_t count, uint32_t align,
                        struct digest *header_digest,
                        uint64_t *header_size)
{
    FILE *file = fopen(path, "wb");
    void *header;
    size_t size, total;

    cr_assert_not_null(file, "%s", path);
    header_of(tensors, count, &header, &size);
    size = align == 1 ? header_trim(header, size, 1) : size;
    fwrite(header, 1, size, file);
    total = size;
    for (size_t i = 0; i < count; i++) {
        fwrite(tensors[i].data, 1, tensors[i].bytes, file);
        total += tensors[i].bytes;
    }
    *header_digest = hash_bytes(header, size);
    *header_size = size;
    free(header);
    cr_assert_eq(fclose(file), 0);
    return total;
}

void made_file(const char *path, const struct made_tensor *tensors, size_t count, uint32_t align)
{
    struct digest digest;
    uint64_t header_size;

    file_emit(path, tensors, count, align, &digest, &header_size);
}

static struct manifest_digests digests_emit_file(const char *path, const struct made_checkpoint *made)
{
    uint64_t *sizes = calloc(made->count + 1, sizeof *sizes), leaf_count = 0, next = 0;
    struct manifest_digests listed = { .name = DIGESTS_NAME };
    struct digest *leaves;
    void *bytes;

    for (size_t i = 0; i < made->count; i++) {
        sizes[i] = made->tensors[i].bytes;
        leaf_count += leaf_count_of(sizes[i]);
    }
    leaves = calloc(leaf_count + 1, sizeof *leaves);
    for (size_t i = 0; i < made->count; i++)
        for (uint64_t at = 0; at < sizes[i]; at += LEAF_BYTES)
            leaves[next++] = hash_bytes(made->tensors[i].data + at, min_u64(LEAF_BYTES, sizes[i] - at));
    listed.size = digests_file_size(made->count, leaf_count);
    bytes = malloc(listed.size);
    digests_emit(sizes, made->count, leaves, leaf_count, bytes);
    listed.digest = hash_bytes(bytes, listed.size);
    file_write(path_of(path, DIGESTS_NAME), bytes, listed.size);
    free(bytes);
    free(leaves);
    free(sizes);
    return listed;
}

/* Tensors must be given as a file orders them: empty ones first where they share an offset. */
void made_checkpoint(const char *given, const struct made_checkpoint *made)
{
    char *path = strdup(given); /* often from path_of's ring, which comes round before we are done */
    size_t per_file = made->per_file ? made->per_file : made->count ? made->count : 1;
    uint32_t file_count = made->count ? (uint32_t)((made->count + per_file - 1) / per_file) : 1;
    char (*names)[SHARD_FILE_NAME_MAX + 1] = calloc(file_count + 1, sizeof *names);
    struct manifest_file *files = calloc(file_count + 1, sizeof *files);
    struct manifest_digests digests;
    struct manifest_alias alias = { made->alias, made->alias_of };
    struct header_pair step = { "step", made->step };
    struct manifest_object object = { .name = "note", .kind = "bytes", .file = names[file_count] };
    struct manifest_shape *shapes = calloc(made->count + 1, sizeof *shapes);
    struct manifest manifest = { .version = 1, .world_size = 1, .sequence = made->sequence, .time_seconds = 1795314300,
                                 .files = files,
                                 .file_count = file_count, .digests = &digests, .digests_count = 1, .aliases = &alias,
                                 .alias_count = made->alias != NULL, .metadata = &step, .metadata_count = made->step != NULL,
                                 .objects = &object, .object_count = made->object != NULL, .shapes = shapes };
    size_t patch[1], self, size;
    char *json;

    cr_assert(mkdir(path, 0777) == 0 || errno == EEXIST);
    memset(manifest.save_id, made->save_id, sizeof manifest.save_id);
    for (uint32_t i = 0; i < file_count; i++) {
        size_t first = i * per_file;

        shard_name_make(false, 0, i + 1, file_count, names[i]);
        files[i] = (struct manifest_file){ .name = names[i], .kind = MANIFEST_SAFETENSORS };
        files[i].size = file_emit(path_of(path, names[i]), made->tensors + first,
                                  min_u64(per_file, made->count - first), 4096, &files[i].digest, &files[i].header_size);
    }
    for (size_t i = 0; i < made->count; i++)
        if (made->tensors[i].sharded)
            shapes[manifest.shape_count++] = (struct manifest_shape){ made->tensors[i].name, made->tensors[i].rank,
                                                                      made->tensors[i].global };
    if (made->object) {
        objects_name_make(0, names[file_count]);
        object.size = strlen(made->object);
        object.digest = hash_bytes(made->object, object.size);
        file_write(path_of(path, names[file_count]), made->object, object.size);
        files[manifest.file_count++] = (struct manifest_file){ .name = names[file_count], .kind = MANIFEST_OBJECTS,
                                                               .size = object.size };
    }
    digests = digests_emit_file(path, made);
    cr_assert_eq(manifest_build(&manifest, &json, &size, patch, &self), 0);
    file_write(path_of(path, MANIFEST_NAME), json, size);
    free(json);
    free(shapes);
    free(files);
    free(names);
    free(path);
}
