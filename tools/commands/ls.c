/* commands/ls.c - what a checkpoint holds: tensors, metadata, objects. Reads headers and the manifest only. */
#include "command.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

struct widths { int name, dtype, shape, size; };

static int widest(int width, const char *text)
{
    int length = (int)strlen(text);

    return length > width ? length : width;
}

static struct tspool_tensor_info tensor_at(const struct tspool_checkpoint *checkpoint, size_t index)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

    tspool_checkpoint_tensor(checkpoint, index, &info);
    return info;
}

/* Control bytes in a name would move the cursor: they are shown as '?'. */
static const char *plain(const char *name, char *room, size_t size)
{
    size_t length = 0;

    for (; name[length] && length + 1 < size; length++)
        room[length] = (unsigned char)name[length] < 0x20 || name[length] == 0x7f ? '?' : name[length];
    room[length] = '\0';
    return room;
}

static struct widths widths_of(const struct tspool_checkpoint *checkpoint)
{
    struct widths widths = { 4, 5, 5, 4 };

    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint); i++) {
        struct tspool_tensor_info info = tensor_at(checkpoint, i);

        widths.name = widest(widths.name, info.name);
        widths.dtype = widest(widths.dtype, tspool_dtype_name(info.dtype));
        widths.shape = widest(widths.shape, shape_text(info.rank, info.shape).bytes);
        widths.size = widest(widths.size, human_bytes(info.bytes).bytes);
    }
    return widths;
}

static void tensor_print(const struct tspool_tensor_info *info, const struct widths *widths)
{
    char name[TSPOOL_TENSOR_NAME_MAX + 1], tied[TSPOOL_TENSOR_NAME_MAX + 1];

    plain(info->name, name, sizeof name);
    printf("%-*s  %-*s  %-*s  %*s  %s", widths->name, name, widths->dtype, tspool_dtype_name(info->dtype), widths->shape,
           shape_text(info->rank, info->shape).bytes, widths->size, human_bytes(info->bytes).bytes, info->file);
    if (info->tied_to) {
        plain(info->tied_to, tied, sizeof tied);
        printf("  tied to %s", tied);
    }
    if (info->global_offsets)
        printf("  at %s", shape_text(info->rank, info->global_offsets).bytes);
    if (info->global_shape)
        printf(" of %s", shape_text(info->rank, info->global_shape).bytes);
    putchar('\n');
}

static const char *kind_name(enum tspool_checkpoint_kind kind)
{
    return kind == TSPOOL_KIND_TSPOOL ? "tspool" : kind == TSPOOL_KIND_HUGGINGFACE ? "huggingface" : "file";
}

static void extras_print(const struct tspool_checkpoint *checkpoint)
{
    const char *key, *value, *name, *kind;
    uint64_t size;

    for (size_t i = 0; tspool_checkpoint_metadata_at(checkpoint, i, &key, &value) == 0; i++)
        printf("metadata  %s = %s\n", key, value);
    for (size_t i = 0; i < tspool_checkpoint_object_count(checkpoint); i++)
        if (tspool_checkpoint_object(checkpoint, i, &name, &kind, &size) == 0)
            printf("object    %s  %s  %s\n", name, kind, human_bytes(size).bytes);
}

static void summary_print(const struct tspool_checkpoint *checkpoint, const struct tspool_checkpoint_info *info)
{
    printf("%zu tensors, %s in %u file%s; ", tspool_checkpoint_count(checkpoint), human_bytes(info->tensor_bytes).bytes,
           info->files,
           info->files == 1 ? "" : "s");
    if (info->kind == TSPOOL_KIND_TSPOOL)
        printf("save %s\n", hex_text(info->save_id, sizeof info->save_id).bytes);
    else
        printf("%s, no digests\n", info->kind == TSPOOL_KIND_FILE ? "a plain safetensors file" : "a folder of safetensors files");
}

static void table_print(const struct tspool_checkpoint *checkpoint, const struct tspool_checkpoint_info *info)
{
    struct widths widths = widths_of(checkpoint);

    printf("%-*s  %-*s  %-*s  %*s  %s\n", widths.name, "NAME", widths.dtype, "DTYPE", widths.shape, "SHAPE", widths.size, "SIZE",
           "FILE");
    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint); i++) {
        struct tspool_tensor_info tensor = tensor_at(checkpoint, i);

        tensor_print(&tensor, &widths);
    }
    extras_print(checkpoint);
    summary_print(checkpoint, info);
}

static void tensor_json(const struct tspool_tensor_info *info)
{
    struct json json = json_begin(stdout);

    json_string(&json, "type", "tensor");
    json_string(&json, "name", info->name);
    json_string(&json, "dtype", tspool_dtype_name(info->dtype));
    json_shape(&json, "shape", info->rank, info->shape);
    if (info->global_offsets)
        json_shape(&json, "global_offsets", info->rank, info->global_offsets);
    if (info->global_shape)
        json_shape(&json, "global_shape", info->rank, info->global_shape);
    json_number(&json, "bytes", info->bytes);
    json_string(&json, "file", info->file);
    json_number(&json, "file_offset", info->file_offset);
    json_string(&json, "tied_to", info->tied_to);
    json_string(&json, "digest", info->has_digest ? hex_text(info->digest, sizeof info->digest).bytes : NULL);
    json_end(&json);
}

static void extras_json(const struct tspool_checkpoint *checkpoint)
{
    const char *key, *value, *name, *kind;
    uint64_t size;

    for (size_t i = 0; tspool_checkpoint_metadata_at(checkpoint, i, &key, &value) == 0; i++) {
        struct json json = json_begin(stdout);

        json_string(&json, "type", "metadata");
        json_string(&json, "key", key);
        json_string(&json, "value", value);
        json_end(&json);
    }
    for (size_t i = 0; i < tspool_checkpoint_object_count(checkpoint); i++) {
        struct json json;

        if (tspool_checkpoint_object(checkpoint, i, &name, &kind, &size) < 0)
            continue;
        json = json_begin(stdout);
        json_string(&json, "type", "object");
        json_string(&json, "name", name);
        json_string(&json, "kind", kind);
        json_number(&json, "bytes", size);
        json_end(&json);
    }
}

static void all_json(const struct tspool_checkpoint *checkpoint, const struct tspool_checkpoint_info *info)
{
    struct json json = json_begin(stdout);

    json_string(&json, "type", "checkpoint");
    json_string(&json, "kind", kind_name(info->kind));
    json_bool(&json, "has_digests", info->has_digests);
    json_string(&json, "save_id", info->kind == TSPOOL_KIND_TSPOOL ? hex_text(info->save_id, sizeof info->save_id).bytes : NULL);
    json_number(&json, "sequence", info->sequence);
    json_number(&json, "tensors", tspool_checkpoint_count(checkpoint));
    json_number(&json, "tensor_bytes", info->tensor_bytes);
    json_number(&json, "file_bytes", info->file_bytes);
    json_number(&json, "files", info->files);
    json_number(&json, "world_size", info->world_size);
    json_number(&json, "format_version", info->format_version);
    json_end(&json);
    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint); i++) {
        struct tspool_tensor_info tensor = tensor_at(checkpoint, i);

        tensor_json(&tensor);
    }
    extras_json(checkpoint);
}

static int ls_path(const char *path, bool as_json)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;

    if (tspool_checkpoint_open(path, NULL, &checkpoint, &failure) < 0)
        return fail_with("ls", &failure);
    tspool_checkpoint_info(checkpoint, &info);
    if (as_json)
        all_json(checkpoint, &info);
    else
        table_print(checkpoint, &info);
    tspool_checkpoint_close(checkpoint);
    return EXIT_DONE;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { 0 } };
    bool as_json = false;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'j')
            return usage_error("ls", NULL);
        as_json = true;
    }
    if (argc - optind != 1)
        return usage_error("ls", "give one checkpoint");
    return ls_path(argv[optind], as_json);
}

const struct command command_ls = {
    .name = "ls",
    .summary = "list tensors, metadata and objects",
    .arguments = "[--json] CHECKPOINT",
    .description = "Lists what CHECKPOINT holds: a checkpoint directory, a Hugging Face folder or one .safetensors\n"
                   "file. Only headers and the manifest are read.\n\n"
                   "  --json     one JSON object per line: the checkpoint, each tensor, metadata entry and object\n"
                   "  -h, --help this text\n",
    .run = run,
};
