/* save/texts.c - see texts.h.
 *
 *   appendix_front | objects file | model.safetensors.index.json | tspool.manifest.json     each at a multiple of 4096
 *
 * With several ranks the last text is this rank's part record, a manifest of its files alone, and there is no index.
 */
#include <save/texts.h>

#include <arena/arena.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <format/digests.h>
#include <format/index.h>
#include <format/manifest.h>
#include <io/io.h>
#include <format/name_table.h>
#include <stdlib.h>
#include <string.h>
#include <wire/sheet.h>

#define FRONT_BYTES 256u /* of the manifest: format version, save id, sequence and time are in it */

struct texts {
    const struct tspool_save *save;
    char objects_name[SHARD_FILE_NAME_MAX + 1], digests_name[SHARD_FILE_NAME_MAX + 1], manifest_name[SHARD_FILE_NAME_MAX + 1];
    char *index, *manifest;
    size_t index_size, manifest_size, digest_patch, self_patch;
    uint64_t digests_size;
};

static bool wants_index(const struct plan *plan) { return plan->file_count > 1 && !plan->sharded; }

static const char *declared_name(const struct tspool_save *save, uint32_t index)
{
    struct tspool_tensor tensor;

    state_dict_tensor(save->layout->dict, index, &tensor);
    return tensor.name;
}

static bool has_name(const struct io_list *names, const char *name)
{
    for (size_t i = 0; i < names->count; i++)
        if (strcmp(names->names[i], name) == 0)
            return true;
    return false;
}

bool texts_are_all_there(const struct tspool_save *save, const struct io_list *names)
{
    const struct plan *plan = save_plan(save);
    char objects[SHARD_FILE_NAME_MAX + 1];

    objects_name_make(save->rank, objects);
    for (uint32_t i = 0; i < plan->file_count; i++)
        if (!has_name(names, plan->files[i].name))
            return false;
    return (save->object_size == 0 || has_name(names, objects)) && (!wants_index(plan) || has_name(names, INDEX_NAME))
        && has_name(names, DIGESTS_NAME) && has_name(names, MANIFEST_NAME);
}

static int index_compose(struct texts *texts)
{
    const struct plan *plan = save_plan(texts->save);
    struct index_entry *entries;
    int error;

    if (!wants_index(plan))
        return 0;
    entries = calloc(plan->entry_count ? plan->entry_count : 1, sizeof(*entries));
    if (!entries)
        return -ENOMEM;
    for (size_t i = 0; i < plan->entry_count; i++)
        entries[i] = (struct index_entry){ declared_name(texts->save, plan->entries[i].source),
                                           plan->files[plan->entries[i].file].name };
    error = index_build(entries, plan->entry_count, plan->tensor_bytes, &texts->index, &texts->index_size);
    free(entries);
    return error;
}

/* The manifest's lists ---------------------------------------------------------------------------------------------- */

static int list_files(const struct texts *texts, struct manifest *manifest)
{
    const struct plan *plan = save_plan(texts->save);
    struct manifest_file *file = calloc((size_t)plan->file_count + 2, sizeof(*file));

    manifest->files = file;
    if (!file)
        return -ENOMEM;
    for (uint32_t i = 0; i < plan->file_count; i++)
        *file++ = (struct manifest_file){ plan->files[i].name, MANIFEST_SAFETENSORS, texts->save->rank, plan->files[i].size,
                                          plan->files[i].header_size, plan->files[i].header_digest };
    if (texts->save->object_size > 0)
        *file++ = (struct manifest_file){ texts->objects_name, MANIFEST_OBJECTS, texts->save->rank, texts->save->object_size,
                                          texts->save->object_size,
                                          hash_bytes(texts->save->object_bytes, texts->save->object_size) };
    if (texts->index)
        *file++ = (struct manifest_file){ INDEX_NAME, MANIFEST_INDEX, texts->save->rank, texts->index_size, texts->index_size,
                                          hash_bytes(texts->index, texts->index_size) };
    manifest->file_count = (size_t)(file - manifest->files);
    return 0;
}

static int list_objects(const struct texts *texts, struct manifest *manifest)
{
    const struct tspool_save *save = texts->save;

    manifest->objects = calloc(save->object_count + 1, sizeof(*manifest->objects));
    if (!manifest->objects)
        return -ENOMEM;
    for (size_t i = 0; i < save->object_count; i++) {
        const struct save_object *object = &save->objects[i];

        manifest->objects[i] = (struct manifest_object){
            object->name, object->kind, texts->objects_name, save->rank, object->file_offset, object->size,
            hash_bytes(save->object_bytes + object->file_offset, object->size) };
    }
    manifest->object_count = save->object_count;
    return 0;
}

static int list_aliases(const struct texts *texts, struct manifest *manifest)
{
    const struct plan *plan = save_plan(texts->save);

    manifest->aliases = calloc(plan->alias_count + 1, sizeof(*manifest->aliases));
    if (!manifest->aliases)
        return -ENOMEM;
    for (size_t i = 0; i < plan->alias_count; i++)
        manifest->aliases[i] = (struct manifest_alias){ declared_name(texts->save, plan->aliases[i].alias),
                                                        declared_name(texts->save, plan->aliases[i].stored) };
    manifest->alias_count = plan->alias_count;
    return 0;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(((const struct manifest_shape *)left)->name, ((const struct manifest_shape *)right)->name);
}

/* Several shards of one name, in files of their own, have one shape: that they agree was checked with the plan. */
static int shapes_unite(struct manifest *manifest)
{
    int repeated = manifest->shape_count ? names_repeat(manifest->shapes, sizeof(*manifest->shapes), manifest->shape_count) : 0;
    size_t kept = 0;

    if (repeated <= 0)
        return repeated;
    qsort(manifest->shapes, manifest->shape_count, sizeof(*manifest->shapes), by_name);
    for (size_t i = 0; i < manifest->shape_count; i++)
        if (kept == 0 || by_name(&manifest->shapes[kept - 1], &manifest->shapes[i]) != 0)
            manifest->shapes[kept++] = manifest->shapes[i];
    manifest->shape_count = kept;
    return 0;
}

static int list_shapes(const struct texts *texts, struct manifest *manifest)
{
    const struct plan *plan = save_plan(texts->save);
    struct tspool_tensor tensor;

    if (!plan->sharded)
        return 0;
    manifest->shapes = calloc(plan->entry_count + 1, sizeof(*manifest->shapes));
    if (!manifest->shapes)
        return -ENOMEM;
    for (size_t i = 0; i < plan->entry_count; i++) {
        state_dict_tensor(texts->save->layout->dict, plan->entries[i].source, &tensor);
        if (tensor.global_shape)
            manifest->shapes[manifest->shape_count++] = (struct manifest_shape){ tensor.name, tensor.rank, tensor.global_shape };
    }
    return shapes_unite(manifest);
}

static int manifest_compose(struct texts *texts, uint64_t sequence, uint64_t time_seconds)
{
    const struct tspool_save *save = texts->save;
    struct manifest_digests digests = { .name = texts->digests_name, .rank = save->rank, .size = texts->digests_size };
    struct manifest manifest = { .version = MANIFEST_VERSION, .world_size = save->world_size, .sequence = sequence,
                                 .time_seconds = time_seconds, .metadata = save->metadata,
                                 .metadata_count = save->metadata_count, .digests = &digests, .digests_count = 1,
                                 .is_part = save->world_size > 1, .part = save->rank, .replace = save->replace };
    int error;

    memcpy(manifest.save_id, save->attempt.save_id, sizeof(manifest.save_id));
    error = list_files(texts, &manifest);
    if (error == 0)
        error = list_objects(texts, &manifest);
    if (error == 0)
        error = list_aliases(texts, &manifest);
    if (error == 0)
        error = list_shapes(texts, &manifest);
    if (error == 0)
        error = manifest_build(&manifest, &texts->manifest, &texts->manifest_size, &texts->digest_patch, &texts->self_patch);
    free(manifest.files);
    free(manifest.objects);
    free(manifest.aliases);
    free(manifest.shapes);
    return error;
}

/* The appendix ------------------------------------------------------------------------------------------------------ */

static uint64_t text_place(struct appendix_front *front, uint64_t end, enum text_kind kind, const char *name, uint64_t size)
{
    struct appendix_text *text = &front->texts[front->text_count++];

    text->kind = kind;
    memcpy(text->name, name, strlen(name) + 1);
    text->offset = align_up(end, APPENDIX_ALIGN);
    text->size = size;
    return text->offset + size;
}

static uint64_t front_compose(const struct texts *texts, struct appendix_front *front)
{
    uint64_t end = sizeof(*front);

    memset(front, 0, sizeof(*front));
    front->magic = APPENDIX_MAGIC;
    front->version = SHEET_VERSION;
    front->digests_patch = texts->digest_patch;
    front->self_patch = texts->self_patch;
    front->digests_size = texts->digests_size;
    memcpy(front->digests_name, texts->digests_name, sizeof(front->digests_name));
    if (texts->save->object_size > 0)
        end = text_place(front, end, TEXT_OBJECTS, texts->objects_name, texts->save->object_size);
    if (texts->index)
        end = text_place(front, end, TEXT_INDEX, INDEX_NAME, texts->index_size);
    return text_place(front, end, TEXT_MANIFEST, texts->manifest_name, texts->manifest_size);
}

static const void *text_bytes(const struct texts *texts, uint32_t kind)
{
    return kind == TEXT_OBJECTS ? texts->save->object_bytes : kind == TEXT_INDEX ? texts->index : texts->manifest;
}

static int appendix_seal(const struct texts *texts, struct tspool_save *save, struct tspool_failure *failure)
{
    struct appendix_front front;
    uint64_t size = front_compose(texts, &front);
    uint8_t *bytes = calloc(1, size);
    int error;

    if (!bytes)
        return failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_AT(.operation = "appendix"), NULL);
    memcpy(bytes, &front, sizeof(front));
    for (uint32_t i = 0; i < front.text_count; i++)
        memcpy(bytes + front.texts[i].offset, text_bytes(texts, front.texts[i].kind), front.texts[i].size);
    error = sealed_create("tspool-appendix", bytes, size, &save->appendix_fd, failure);
    free(bytes);
    if (error == 0)
        save->appendix_bytes = size;
    return error;
}

static int front_remember(const struct texts *texts, struct tspool_save *save)
{
    size_t size = min_u64(min_u64(FRONT_BYTES, texts->digest_patch), texts->manifest_size);

    save->manifest_front = malloc(size);
    if (!save->manifest_front)
        return -ENOMEM;
    memcpy(save->manifest_front, texts->manifest, size);
    save->manifest_front_size = size;
    return 0;
}

int texts_compose(struct tspool_save *save, uint64_t sequence, uint64_t time_seconds, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    struct texts texts = { .save = save, .digests_size = digests_file_size(plan->entry_count, plan->leaf_count) };
    int error;

    if (save->appendix_fd >= 0)
        return 0;
    objects_name_make(save->rank, texts.objects_name);
    digests_name_make(save->rank, save->world_size, texts.digests_name);
    if (save->world_size > 1)
        part_manifest_name_make(save->rank, texts.manifest_name);
    else
        memcpy(texts.manifest_name, MANIFEST_NAME, sizeof(MANIFEST_NAME));
    error = index_compose(&texts);
    if (error == 0)
        error = manifest_compose(&texts, sequence, time_seconds);
    if (error == 0)
        error = front_remember(&texts, save);
    if (error < 0)
        failure_set(failure, TSPOOL_STAGE_PLAN, -error, FAILURE_AT(.operation = "manifest"), NULL);
    else
        error = appendix_seal(&texts, save, failure);
    free(texts.index);
    free(texts.manifest);
    return error;
}
