/* Opening: what is taken for which kind, what an entry says, and what is refused. */
#include "made.h"

#include <format/manifest.h>
#include <sys/stat.h>
#include <unistd.h>

static struct made_tensor small[] = {
    { "empty", TSPOOL_F32, 2, { 3, 0 } },
    { "weight", TSPOOL_F32, 2, { 40, 30 } },
    { "bias", TSPOOL_BF16, 1, { 7 } },
    { "scalar", TSPOOL_I64, 0, { 0 } },
};
#define SMALL_COUNT (sizeof small / sizeof *small)

static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void)
{
    root = scratch_make();
    made_fill(small, SMALL_COUNT, 1);
}

static void teardown(void)
{
    made_free(small, SMALL_COUNT);
    scratch_remove(root);
}

static struct tspool_checkpoint *opened(const char *path)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = tspool_checkpoint_open(path, NULL, &checkpoint, &failure);

    cr_assert_eq(error, 0, "%s", failure.message);
    return checkpoint;
}

static int open_error(const char *path)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = tspool_checkpoint_open(path, NULL, &checkpoint, &failure);

    cr_assert_null(checkpoint, "opened: %s", path);
    return error;
}

static struct tspool_checkpoint_info info_of(const struct tspool_checkpoint *checkpoint)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;

    cr_assert_eq(tspool_checkpoint_info(checkpoint, &info), 0);
    return info;
}

static struct tspool_tensor_info tensor_of(const struct tspool_checkpoint *checkpoint, const char *name)
{
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    size_t index = 0;

    cr_assert_eq(tspool_checkpoint_find(checkpoint, name, &index), 0, "%s", name);
    cr_assert_eq(tspool_checkpoint_tensor(checkpoint, index, &info), 0);
    return info;
}

Test(open, reads_a_checkpoint_of_ours_with_ties_objects_and_metadata, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { small, SMALL_COUNT, .per_file = 2, .alias = "head", .alias_of = "weight", .object = "hello",
                                    .step = "1000", .sequence = 42, .save_id = 0xab };
    struct tspool_checkpoint *checkpoint;
    const char *key, *value, *name, *kind;
    uint64_t size64;
    size_t size;
    void *bytes;

    made_checkpoint(path_of(root, "step"), &made);
    checkpoint = opened(path_of(root, "step"));
    cr_assert_eq(info_of(checkpoint).kind, TSPOOL_KIND_TSPOOL);
    cr_assert_eq(info_of(checkpoint).has_digests, 1);
    cr_assert_eq(info_of(checkpoint).files, 2);
    cr_assert_eq(info_of(checkpoint).sequence, 42);
    cr_assert_eq(info_of(checkpoint).save_id[3], 0xab);
    cr_assert_eq(info_of(checkpoint).tensor_bytes, 4800 + 14 + 8);
    cr_assert_eq(tspool_checkpoint_count(checkpoint), SMALL_COUNT + 1);
    cr_assert_str_eq(tensor_of(checkpoint, "head").tied_to, "weight");
    cr_assert_eq(tensor_of(checkpoint, "head").file_offset, tensor_of(checkpoint, "weight").file_offset);
    cr_assert_null(tensor_of(checkpoint, "weight").tied_to);
    cr_assert_eq(tensor_of(checkpoint, "weight").has_digest, 1);
    cr_assert_eq(tensor_of(checkpoint, "bias").dtype, TSPOOL_BF16);
    cr_assert_str_eq(tensor_of(checkpoint, "bias").file, "model-00002-of-00002.safetensors");
    cr_assert_eq(tensor_of(checkpoint, "scalar").rank, 0);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, "absent", &size), -ENOENT);
    cr_assert_str_eq(tspool_checkpoint_metadata(checkpoint, "step"), "1000");
    cr_assert_null(tspool_checkpoint_metadata(checkpoint, "epoch"));
    cr_assert_eq(tspool_checkpoint_metadata_at(checkpoint, 0, &key, &value), 0);
    cr_assert_str_eq(key, "step");
    cr_assert_eq(tspool_checkpoint_metadata_at(checkpoint, 1, &key, &value), -ENOENT);
    cr_assert_eq(tspool_checkpoint_object_count(checkpoint), 1);
    cr_assert_eq(tspool_checkpoint_object(checkpoint, 0, &name, &kind, &size64), 0);
    cr_assert_str_eq(name, "note");
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "note", &bytes, &size, &failure), 0, "%s", failure.message);
    cr_assert_eq(size, 5);
    cr_assert_arr_eq(bytes, "hello", 5);
    free(bytes);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "none", &bytes, &size, &failure), -ENOENT);
    tspool_checkpoint_close(checkpoint);
}

Test(open, gives_shards_of_one_name_their_offsets_and_global_shape, .init = setup, .fini = teardown)
{
    struct made_tensor shards[] = {
        { "w", TSPOOL_F32, 2, { 2, 3 }, true, { 0, 0 }, { 4, 3 } },
        { "w", TSPOOL_F32, 2, { 2, 3 }, true, { 2, 0 }, { 4, 3 } },
    };
    struct made_checkpoint made = { shards, 1 };
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_checkpoint *checkpoint;

    made_fill(shards, 2, 5);
    made_checkpoint(path_of(root, "one"), &made);
    checkpoint = opened(path_of(root, "one"));
    info = tensor_of(checkpoint, "w");
    cr_assert_not_null(info.global_shape);
    cr_assert_eq(info.global_shape[0], 4);
    tspool_checkpoint_close(checkpoint);

    mkdir(path_of(root, "two"), 0777); /* as HuggingFaceStorageWriter leaves it: no manifest, no index */
    made_file(path_of(root, "two/shard-00001-model-00001-of-00001.safetensors"), &shards[0], 1, 4096);
    made_file(path_of(root, "two/shard-00002-model-00001-of-00001.safetensors"), &shards[1], 1, 4096);
    checkpoint = opened(path_of(root, "two"));
    cr_assert_eq(tspool_checkpoint_count(checkpoint), 2);
    cr_assert_eq(tspool_checkpoint_tensor(checkpoint, 1, &info), 0);
    cr_assert_eq(info.global_offsets[0], 2);
    cr_assert_eq(info_of(checkpoint).kind, TSPOOL_KIND_HUGGINGFACE);
    cr_assert_eq(info_of(checkpoint).has_digests, 0);
    tspool_checkpoint_close(checkpoint);
    made_free(shards, 2);
}

Test(open, takes_a_plain_file_and_a_link_to_it_that_the_user_names, .init = setup, .fini = teardown)
{
    struct tspool_checkpoint *checkpoint;

    made_file(path_of(root, "plain.safetensors"), small, SMALL_COUNT, 1);
    cr_assert_eq(symlink("plain.safetensors", path_of(root, "link")), 0);
    checkpoint = opened(path_of(root, "link"));
    cr_assert_eq(info_of(checkpoint).kind, TSPOOL_KIND_FILE);
    cr_assert_eq(info_of(checkpoint).has_digests, 0);
    cr_assert_eq(tspool_checkpoint_count(checkpoint), SMALL_COUNT);
    tspool_checkpoint_close(checkpoint);
}

Test(open, refuses_links_pipes_and_directories_in_the_place_of_files, .init = setup, .fini = teardown)
{
    made_file(path_of(root, "plain.safetensors"), small, SMALL_COUNT, 4096);
    mkdir(path_of(root, "a"), 0777);
    cr_assert_eq(symlink("../plain.safetensors", path_of(root, "a/model.safetensors")), 0);
    cr_assert_lt(open_error(path_of(root, "a")), 0);
    cr_assert_not_null(strstr(failure.message, "a/model.safetensors"), "%s", failure.message);
    mkdir(path_of(root, "b"), 0777);
    cr_assert_eq(mkfifo(path_of(root, "b/model.safetensors"), 0666), 0);
    cr_assert_lt(open_error(path_of(root, "b")), 0);
    cr_assert_lt(open_error(path_of(root, "b/model.safetensors")), 0);
    mkdir(path_of(root, "c"), 0777);
    mkdir(path_of(root, "c/model.safetensors"), 0777);
    cr_assert_eq(open_error(path_of(root, "c")), -EISDIR);
    cr_assert_eq(open_error("/dev/null"), -EBADMSG);
}

Test(open, says_what_is_not_there, .init = setup, .fini = teardown)
{
    cr_assert_eq(open_error(path_of(root, "nothing")), -ENOENT);
    mkdir(path_of(root, "empty"), 0777);
    cr_assert_eq(open_error(path_of(root, "empty")), -ENOENT);
    cr_assert_eq(open_error(""), -EINVAL);
    cr_assert_eq(open_error(NULL), -EINVAL);
}

Test(open, follows_an_index_and_refuses_one_that_lies, .init = setup, .fini = teardown)
{
    const char *good = "{\"metadata\":{\"total_size\":4822},"
                       "\"weight_map\":{\"empty\":\"a.safetensors\",\"weight\":\"a.safetensors\","
                       "\"bias\":\"b.safetensors\",\"scalar\":\"b.safetensors\"}}";
    const char *missing = "{\"weight_map\":{\"weight\":\"a.safetensors\",\"bias\":\"c.safetensors\"}}";
    const char *wrong = "{\"weight_map\":{\"weight\":\"b.safetensors\"}}";
    const char *outside = "{\"weight_map\":{\"weight\":\"../a.safetensors\"}}";
    struct tspool_checkpoint *checkpoint;
    char *index;

    mkdir(path_of(root, "hf"), 0777);
    made_file(path_of(root, "hf/a.safetensors"), small, 2, 1);
    made_file(path_of(root, "hf/b.safetensors"), small + 2, 2, 1);
    made_file(path_of(root, "a.safetensors"), small, 2, 1);
    index = strdup(path_of(root, "hf/model.safetensors.index.json"));
    file_write(index, good, strlen(good));
    checkpoint = opened(path_of(root, "hf"));
    cr_assert_eq(tspool_checkpoint_count(checkpoint), 4);
    cr_assert_str_eq(tensor_of(checkpoint, "bias").file, "b.safetensors");
    tspool_checkpoint_close(checkpoint);
    file_write(index, missing, strlen(missing));
    cr_assert_eq(open_error(path_of(root, "hf")), -ENOENT);
    cr_assert_not_null(strstr(failure.path, "c.safetensors"), "%s", failure.message);
    file_write(index, wrong, strlen(wrong));
    cr_assert_eq(open_error(path_of(root, "hf")), -EBADMSG);
    cr_assert_str_eq(failure.tensor, "weight");
    file_write(index, outside, strlen(outside));
    cr_assert_eq(open_error(path_of(root, "hf")), -EBADMSG);
    file_write(index, "[", 1);
    cr_assert_eq(open_error(path_of(root, "hf")), -EBADMSG);
    free(index);
}

Test(open, refuses_one_tensor_in_two_files, .init = setup, .fini = teardown)
{
    mkdir(path_of(root, "twice"), 0777);
    made_file(path_of(root, "twice/a.safetensors"), small, 2, 1);
    made_file(path_of(root, "twice/b.safetensors"), small + 1, 2, 1);
    cr_assert_eq(open_error(path_of(root, "twice")), -EBADMSG);
    cr_assert_str_eq(failure.tensor, "weight");
}

Test(open, finds_ties_in_the_header_of_a_plain_file, .init = setup, .fini = teardown)
{
    const char *json = "{\"__metadata__\":{\"b\":\"a\",\"format\":\"pt\",\"note\":\"x\"},"
                       "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
    uint8_t bytes[256] = { 0 };
    struct tspool_checkpoint *checkpoint;

    bytes[0] = (uint8_t)strlen(json);
    memcpy(bytes + 8, json, strlen(json));
    memcpy(bytes + 8 + strlen(json), "\1\2\3\4", 4);
    file_write(path_of(root, "tied"), bytes, 8 + strlen(json) + 4);
    checkpoint = opened(path_of(root, "tied"));
    cr_assert_str_eq(tensor_of(checkpoint, "b").tied_to, "a");
    cr_assert_str_eq(tspool_checkpoint_metadata(checkpoint, "note"), "x");
    cr_assert_null(tspool_checkpoint_metadata(checkpoint, "b"));
    tspool_checkpoint_close(checkpoint);
}

Test(open, finds_each_of_many_names, .init = setup, .fini = teardown)
{
    enum { MANY = 20000 };
    struct made_tensor *many = calloc(MANY, sizeof *many);
    struct tspool_checkpoint *checkpoint;
    size_t index;

    for (size_t i = 0; i < MANY; i++) {
        char *name = NULL;

        cr_assert_geq(asprintf(&name, "layer.%zu.weight", i), 0);
        many[i] = (struct made_tensor){ name, TSPOOL_U8, 1, { 1 } };
    }
    made_fill(many, MANY, 3);
    made_file(path_of(root, "many"), many, MANY, 4096);
    checkpoint = opened(path_of(root, "many"));
    for (size_t i = 0; i < MANY; i++) {
        cr_assert_eq(tspool_checkpoint_find(checkpoint, many[i].name, &index), 0);
        cr_assert_eq(index, i);
        free((char *)many[i].name);
    }
    tspool_checkpoint_close(checkpoint);
    made_free(many, MANY);
    free(many);
}

Test(open, of_a_hostile_length_or_manifest_takes_no_memory_and_fails, .init = setup, .fini = teardown)
{
    uint8_t huge[16] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, '{' };
    struct made_checkpoint made = { small, SMALL_COUNT };
    size_t size;
    uint8_t *json;

    file_write(path_of(root, "huge"), huge, sizeof huge);
    cr_assert_eq(open_error(path_of(root, "huge")), -EBADMSG);
    file_write(path_of(root, "short"), huge, 5);
    cr_assert_eq(open_error(path_of(root, "short")), -EBADMSG);
    made_checkpoint(path_of(root, "step"), &made);
    json = file_bytes(path_of(root, "step/tspool.manifest.json"), &size);
    for (size_t cut = 0; cut < size - 1; cut += 13) { /* the last byte is a line break */
        file_write(path_of(root, "step/tspool.manifest.json"), json, cut);
        cr_assert_eq(open_error(path_of(root, "step")), -EBADMSG, "cut at %zu", cut);
    }
    free(json);
}

Test(open, refuses_a_manifest_of_a_newer_format, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { small, SMALL_COUNT };
    char *json, *version;
    size_t size;

    made_checkpoint(path_of(root, "step"), &made);
    json = (char *)file_bytes(path_of(root, "step/tspool.manifest.json"), &size);
    json[size] = '\0';
    version = strstr(json, "\"tspool_manifest\"");
    cr_assert_not_null(version);
    *strchr(version, '1') = '9';
    manifest_seal(json, size - strlen("\"}\n") - DIGEST_HEX_BYTES);
    file_write(path_of(root, "step/tspool.manifest.json"), json, size);
    cr_assert_eq(open_error(path_of(root, "step")), -EPROTO);
    free(json);
}

Test(open, refuses_options_that_make_no_sense, .init = setup, .fini = teardown)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;

    made_file(path_of(root, "plain"), small, SMALL_COUNT, 4096);
    options.item_bytes = 1000;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "plain"), &options, &checkpoint, &failure), -EINVAL);
    options.item_bytes = 0;
    options.depth = 5000;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "plain"), &options, &checkpoint, NULL), -EINVAL);
}
