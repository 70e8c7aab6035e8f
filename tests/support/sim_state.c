/* support/sim_state.c - see sim_state.h. */
#include "sim_state.h"

#include <base/checked.h>
#include <errno.h>
#include <format/digests.h>
#include <format/index.h>
#include <format/manifest.h>
#include <inttypes.h>
#include <read/read.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/checkpoint.h>
#include <tspool/save.h>
#include <wire/sheet.h>

/* The last is tied to the first: the same memory under another name. */
static const struct { const char *name; enum tspool_dtype dtype; uint32_t rank; uint64_t shape[2]; } shapes[SIM_TENSORS] = {
    { "embed.weight", TSPOOL_F32, 2, { 16, 64 } },  /* 4096 bytes: first in its shard */
    { "layer.0.weight", TSPOOL_BF16, 2, { 33, 47 } },
    { "layer.0.bias", TSPOOL_F32, 1, { 47 } },
    { "layer.1.weight", TSPOOL_F64, 2, { 21, 20 } },
    { "layer.1.mask", TSPOOL_U8, 1, { 1001 } },
    { "step", TSPOOL_I64, 0, { 0 } },               /* a scalar */
    { "nothing", TSPOOL_F32, 2, { 0, 7 } },         /* empty */
    { "moments", TSPOOL_F32, 1, { 0 } },            /* `bulk` */
    { "head.weight", TSPOOL_F32, 2, { 16, 64 } },
};
#define TIED (SIM_TENSORS - 1)
#define BULK (SIM_TENSORS - 2)

static void must(bool done)
{
    if (!done)
        abort();
}

static void fill(uint8_t *bytes, size_t size, uint64_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(seed >> 56) | 1; /* never zero: a lost sector always shows */
    }
}

const uint8_t *sim_state_tensor(const struct sim_state *state, size_t index)
{
    return state->tensors[index == TIED ? 0 : index];
}

static void tensor_describe(const struct sim_state *state, unsigned number, uint64_t shape[2], struct tspool_tensor *tensor)
{
    *tensor = (struct tspool_tensor)TSPOOL_TENSOR_INIT;
    shape[0] = number == BULK ? state->bulk / 4 : shapes[number].shape[0];
    shape[1] = shapes[number].shape[1];
    tensor->name = shapes[number].name;
    tensor->dtype = shapes[number].dtype;
    tensor->rank = shapes[number].rank;
    tensor->shape = shape;
    tensor->data = sim_state_tensor(state, number);
}

static void tensor_add(struct sim_state *state, unsigned number)
{
    struct tspool_tensor tensor;
    uint64_t shape[2];
    size_t bytes = tspool_dtype_bits(shapes[number].dtype) / 8;

    tensor_describe(state, number, shape, &tensor);
    for (uint32_t i = 0; i < shapes[number].rank; i++)
        bytes *= shape[i];
    state->tensor_bytes[number] = bytes;
    if (number != TIED) {
        must((state->tensors[number] = malloc(bytes + 1)) != NULL);
        fill(state->tensors[number], bytes, state->seed * 1000 + number);
    }
    tensor.data = sim_state_tensor(state, number);
    must(state_dict_add(state->dict, &tensor, true, NULL) == 0);
}

int sim_state_declare(const struct sim_state *state, struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool_tensor tensor;
    uint64_t shape[2];
    int error = 0;

    for (unsigned i = 0; i < SIM_TENSORS && error == 0; i++) {
        tensor_describe(state, i, shape, &tensor);
        error = tspool_save_add(save, &tensor, failure);
    }
    if (error == 0)
        error = tspool_save_add_object(save, "rng", "bytes", state->objects, sizeof(state->objects), failure);
    return error ? error : tspool_save_metadata(save, "step", state->step, failure);
}

void sim_state_init(struct sim_state *state, uint64_t seed, size_t bulk) { sim_state_init_part(state, seed, bulk, 0, 1); }

void sim_state_init_part(struct sim_state *state, uint64_t seed, size_t bulk, uint32_t rank, uint32_t world_size)
{
    struct plan_rules rules = { .shard_bytes = 6144 + bulk, .offset_align = 4096, .rank = rank, .world_size = world_size };

    memset(state, 0, sizeof(*state));
    state->rank = rank;
    state->world_size = world_size;
    state->seed = seed;
    state->bulk = bulk;
    must((state->dict = state_dict_create()) != NULL);
    for (unsigned i = 0; i < SIM_TENSORS; i++)
        tensor_add(state, i);
    must(plan_build(state->dict, &rules, &state->plan, NULL) == 0);
    must(plan_sheet(state->plan, &state->sheet, &state->sheet_bytes) == 0);
    fill((uint8_t *)state->objects, sizeof(state->objects), seed);
    snprintf(state->step, sizeof(state->step), "%" PRIu64, seed);
}

void sim_state_deinit(struct sim_state *state)
{
    plan_destroy(state->plan);
    state_dict_destroy(state->dict);
    free(state->sheet);
    for (unsigned i = 0; i < SIM_TENSORS; i++)
        free(state->tensors[i]);
}

/* Staging ----------------------------------------------------------------------------------------------------------- */

void sim_state_stage(const struct sim_state *state, uint32_t chunk, uint8_t *to)
{
    const struct plan *plan = state->plan;
    struct plan_chunk at = plan_chunk_at(plan, chunk);
    struct plan_cursor cursor;
    struct plan_piece piece;
    struct tspool_tensor tensor;

    plan_cursor_init(&cursor, plan, chunk);
    while (plan_cursor_next(&cursor, plan, &piece)) {
        if (piece.kind == PIECE_HEADER) {
            memcpy(to + piece.chunk_offset, (const char *)plan->files[at.file].header + piece.source_offset, piece.size);
            continue;
        }
        state_dict_tensor(state->dict, plan->entries[piece.entry].source, &tensor);
        tensor_copy(&tensor, piece.source_offset, piece.size, to + piece.chunk_offset);
    }
    memset(to + at.size, 0, align_up(at.size, 4096) - at.size);
}

/* The appendix ------------------------------------------------------------------------------------------------------ */

struct texts {
    char *index, *manifest;
    size_t index_size, manifest_size, digest_patch, self_patch;
    char objects_name[SHARD_FILE_NAME_MAX + 1], digests_name[SHARD_FILE_NAME_MAX + 1], manifest_name[SHARD_FILE_NAME_MAX + 1];
};

static void texts_name(const struct sim_state *state, struct texts *texts)
{
    objects_name_make(state->rank, texts->objects_name);
    digests_name_make(state->rank, state->world_size, texts->digests_name);
    if (state->world_size > 1)
        part_manifest_name_make(state->rank, texts->manifest_name);
    else
        strcpy(texts->manifest_name, MANIFEST_NAME);
}

static void index_make(const struct sim_state *state, struct texts *texts)
{
    const struct plan *plan = state->plan;
    struct index_entry entries[SIM_TENSORS];

    for (size_t i = 0; i < plan->entry_count; i++)
        entries[i] = (struct index_entry){ shapes[plan->entries[i].source].name, plan->files[plan->entries[i].file].name };
    must(index_build(entries, plan->entry_count, plan->tensor_bytes, &texts->index, &texts->index_size) == 0);
}

static size_t files_list(const struct sim_state *state, const struct texts *texts, struct manifest_file *files)
{
    const struct plan *plan = state->plan;
    size_t count = 0;

    for (; count < plan->file_count; count++)
        files[count] = (struct manifest_file){ plan->files[count].name, MANIFEST_SAFETENSORS, state->rank, plan->files[count].size,
                                               plan->files[count].header_size, plan->files[count].header_digest };
    files[count++] = (struct manifest_file){ texts->objects_name, MANIFEST_OBJECTS, state->rank, sizeof(state->objects),
                                             sizeof(state->objects), hash_bytes(state->objects, sizeof(state->objects)) };
    if (texts->index)
        files[count++] = (struct manifest_file){ INDEX_NAME, MANIFEST_INDEX, 0, texts->index_size, texts->index_size,
                                                 hash_bytes(texts->index, texts->index_size) };
    return count;
}

static void manifest_make(const struct sim_state *state, const uint8_t save_id[16], struct texts *texts)
{
    const struct plan *plan = state->plan;
    struct manifest_file files[16];
    struct manifest_digests digests = { .name = texts->digests_name, .rank = state->rank, .size = digests_file_size(plan->entry_count, plan->leaf_count) };
    struct manifest_object object = { "rng", "bytes", texts->objects_name, state->rank, 0, sizeof(state->objects),
                                      hash_bytes(state->objects, sizeof(state->objects)) };
    struct manifest_alias alias = { shapes[TIED].name, shapes[0].name };
    struct header_pair step = { "step", state->step };
    struct manifest manifest = {
        .version = MANIFEST_VERSION, .world_size = state->world_size, .sequence = state->seed, .time_seconds = 1800000000,
        .metadata = &step, .metadata_count = 1, .files = files, .digests = &digests, .digests_count = 1,
        .objects = &object, .object_count = 1, .aliases = &alias, .alias_count = 1,
        .is_part = state->world_size > 1, .part = state->rank, .replace = state->replace,
    };

    memcpy(manifest.save_id, save_id, sizeof(manifest.save_id));
    manifest.file_count = files_list(state, texts, files);
    must(manifest_build(&manifest, &texts->manifest, &texts->manifest_size, &texts->digest_patch, &texts->self_patch) == 0);
}

static uint64_t text_place(struct appendix_front *front, uint64_t end, enum text_kind kind, const char *name, uint64_t size)
{
    struct appendix_text *text = &front->texts[front->text_count++];

    text->kind = kind;
    memcpy(text->name, name, strlen(name) + 1);
    text->offset = align_up(end, APPENDIX_ALIGN);
    text->size = size;
    return text->offset + size;
}

void *sim_state_appendix(const struct sim_state *state, const uint8_t save_id[16], uint64_t *size)
{
    const struct plan *plan = state->plan;
    struct appendix_front front = { .magic = APPENDIX_MAGIC, .version = SHEET_VERSION };
    struct texts texts = { .index = NULL };
    uint64_t end = sizeof(front);
    unsigned last;
    uint8_t *bytes;

    texts_name(state, &texts);
    if (state->world_size == 1)
        index_make(state, &texts);
    manifest_make(state, save_id, &texts);
    memcpy(front.digests_name, texts.digests_name, sizeof(front.digests_name));
    front.digests_patch = texts.digest_patch;
    front.self_patch = texts.self_patch;
    front.digests_size = digests_file_size(plan->entry_count, plan->leaf_count);
    end = text_place(&front, end, TEXT_OBJECTS, texts.objects_name, sizeof(state->objects));
    if (texts.index)
        end = text_place(&front, end, TEXT_INDEX, INDEX_NAME, texts.index_size);
    end = text_place(&front, end, TEXT_MANIFEST, texts.manifest_name, texts.manifest_size);
    last = front.text_count - 1;
    must((bytes = calloc(1, end)) != NULL);
    memcpy(bytes, &front, sizeof(front));
    memcpy(bytes + front.texts[0].offset, state->objects, sizeof(state->objects));
    if (texts.index)
        memcpy(bytes + front.texts[1].offset, texts.index, texts.index_size);
    memcpy(bytes + front.texts[last].offset, texts.manifest, texts.manifest_size);
    free(texts.index);
    free(texts.manifest);
    *size = end;
    return bytes;
}

/* Checking ---------------------------------------------------------------------------------------------------------- */

static int differs(char *why, size_t why_size, const char *what)
{
    snprintf(why, why_size, "it loads, but %s differs", what);
    return -EILSEQ;
}

static int tensors_check(const struct sim_state *state, struct tspool_checkpoint *checkpoint, char *why, size_t why_size)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    for (unsigned i = 0; i < SIM_TENSORS; i++) {
        struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
        size_t bytes = state->tensor_bytes[i];
        uint8_t *data = malloc(bytes + 1);
        int error = tspool_checkpoint_find(checkpoint, shapes[i].name, &request.tensor);

        must(data != NULL);
        request.data = data;
        request.bytes = bytes;
        if (error == 0 && (error = tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure)))
            snprintf(why, why_size, "%s", failure.message);
        if (error == 0 && memcmp(data, state->tensors[i == TIED ? 0 : i], bytes) != 0)
            error = differs(why, why_size, shapes[i].name);
        free(data);
        if (error)
            return error == -ENOENT ? differs(why, why_size, shapes[i].name) : error;
    }
    return 0;
}

static int extras_check(const struct sim_state *state, struct tspool_checkpoint *checkpoint, char *why, size_t why_size)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const char *step = tspool_checkpoint_metadata(checkpoint, "step");
    void *bytes = NULL;
    size_t size = 0;
    int error = tspool_checkpoint_object_read(checkpoint, "rng", &bytes, &size, &failure);

    if (error)
        snprintf(why, why_size, "%s", failure.message);
    else if (size != sizeof(state->objects) || memcmp(bytes, state->objects, size) != 0)
        error = differs(why, why_size, "the object");
    else if (!step || strcmp(step, state->step) != 0)
        error = differs(why, why_size, "the metadata");
    free(bytes);
    return error;
}

static int open_check(const struct sim_state *state, struct tspool_checkpoint *checkpoint, char *why, size_t why_size)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct tspool_verify_report report = TSPOOL_VERIFY_REPORT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = tspool_checkpoint_info(checkpoint, &info);

    if (error == 0 && info.kind != TSPOOL_KIND_TSPOOL) {
        snprintf(why, why_size, "it has no manifest: it opens as somebody else's folder, and says that nothing can be verified");
        return -ENODATA;
    }
    error = tensors_check(state, checkpoint, why, why_size);
    if (error == 0)
        error = extras_check(state, checkpoint, why, why_size);
    if (error == 0 && (error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, &report, &failure)))
        snprintf(why, why_size, "verify: %s", failure.message);
    return error;
}

int sim_state_check(const struct sim_state *state, struct io *io, const char *path, char *why, size_t why_size)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;
    int error;

    options.item_bytes = 4096;
    options.depth = 8;
    error = checkpoint_open_on(io, path, &options, &checkpoint, &failure);
    if (error) {
        snprintf(why, why_size, "%s", failure.message);
        return error;
    }
    error = open_check(state, checkpoint, why, why_size);
    tspool_checkpoint_close(checkpoint);
    return error;
}
