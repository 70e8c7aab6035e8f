/* Verify: nothing that was changed goes unnoticed, and what is reported is what was changed. */
#include "made.h"

#include <sys/stat.h>
#include <unistd.h>

static struct made_tensor tensors[] = {
    { "empty", TSPOOL_F32, 1, { 0 } },
    { "small", TSPOOL_F32, 1, { 33 } },
    { "large", TSPOOL_U8, 2, { 9, 1 << 20 } },
    { "other", TSPOOL_U8, 1, { 100 } },
};
#define COUNT (sizeof tensors / sizeof *tensors)

static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void)
{
    root = scratch_make();
    made_fill(tensors, COUNT, 21);
}

static void teardown(void)
{
    made_free(tensors, COUNT);
    scratch_remove(root);
}

struct found { size_t count; struct tspool_damage damages[64]; char files[64][128], names[64][64]; uint64_t last_done, total; };

static int note(void *context, const struct tspool_damage *damage)
{
    struct found *found = context;
    size_t number = found->count++;

    cr_assert_lt(number, 64);
    found->damages[number] = *damage;
    snprintf(found->files[number], sizeof found->files[0], "%s", damage->file);
    snprintf(found->names[number], sizeof found->names[0], "%s", damage->tensor ? damage->tensor : "");
    return 0;
}

static void progressed(void *context, uint64_t done, uint64_t total)
{
    struct found *found = context;

    cr_assert_geq(done, found->last_done);
    cr_assert_leq(done, total);
    found->last_done = done;
    found->total = total;
}

static int verify(const char *path, struct found *found, struct tspool_verify_report *report)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    int error;

    memset(found, 0, sizeof *found);
    *report = (struct tspool_verify_report)TSPOOL_VERIFY_REPORT_INIT;
    options.tolerant = 1;
    error = tspool_checkpoint_open(path, &options, &checkpoint, &failure);
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, note, progressed, found, report, &failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

static void make(const char *name)
{
    struct made_checkpoint made = { tensors, COUNT, .per_file = 3, .object = "an object", .step = "7", .alias = "tied",
                                    .alias_of = "small" };

    made_checkpoint(path_of(root, name), &made);
}

Test(verify, of_a_whole_checkpoint_reads_everything_and_finds_nothing, .init = setup, .fini = teardown)
{
    struct tspool_verify_report report;
    struct found found;

    make("step");
    cr_assert_eq(verify(path_of(root, "step"), &found, &report), 0, "%s", failure.message);
    cr_assert_eq(found.count, 0);
    cr_assert_eq(report.tensors, COUNT);
    cr_assert_eq(report.leaves, 0 + 1 + 3 + 1);
    cr_assert_eq(found.last_done, found.total);
    cr_assert_geq(report.bytes, 132 + 9437184 + 100);
}

Test(verify, names_the_leaf_that_is_damaged_and_no_other, .init = setup, .fini = teardown)
{
    struct tspool_verify_report report;
    struct found found;
    size_t size;

    make("step");
    free(file_bytes(path_of(root, "step/model-00001-of-00002.safetensors"), &size));
    file_flip(path_of(root, "step/model-00001-of-00002.safetensors"), size - 1);
    cr_assert_eq(verify(path_of(root, "step"), &found, &report), -EBADMSG);
    cr_assert_eq(found.count, 1);
    cr_assert_eq(found.damages[0].kind, TSPOOL_DAMAGE_TENSOR);
    cr_assert_str_eq(found.names[0], "large");
    cr_assert_str_eq(found.files[0], "model-00001-of-00002.safetensors");
    cr_assert_eq(found.damages[0].bytes, 1 << 20, "the last leaf is shorter");
    cr_assert_eq(found.damages[0].file_offset + found.damages[0].bytes, size);
    cr_assert_str_eq(failure.tensor, "large");
}

Test(verify, names_missing_cut_extended_and_foreign_files_and_goes_on, .init = setup, .fini = teardown)
{
    struct tspool_verify_report report;
    struct found found;

    make("missing");
    cr_assert_eq(unlink(path_of(root, "missing/model-00001-of-00002.safetensors")), 0);
    file_flip(path_of(root, "missing/model-00002-of-00002.safetensors"), 4096);
    cr_assert_eq(verify(path_of(root, "missing"), &found, &report), -EBADMSG);
    cr_assert_eq(found.count, 2);
    cr_assert_eq(report.missing, 1);
    cr_assert_eq(found.damages[0].kind, TSPOOL_DAMAGE_MISSING);
    cr_assert_str_eq(found.names[1], "other", "a file after the missing one is still checked against its digests");

    make("cut");
    cr_assert_eq(truncate(path_of(root, "cut/model-00001-of-00002.safetensors"), 5000000), 0);
    cr_assert_eq(verify(path_of(root, "cut"), &found, &report), -EBADMSG);
    cr_assert_eq(found.damages[0].kind, TSPOOL_DAMAGE_FILE);
    cr_assert_eq(found.damages[0].file_offset, 5000000);

    make("extended");
    cr_assert_eq(truncate(path_of(root, "extended/model-00002-of-00002.safetensors"), 50000), 0);
    cr_assert_eq(verify(path_of(root, "extended"), &found, &report), -EBADMSG);
    cr_assert_str_eq(found.files[0], "model-00002-of-00002.safetensors");

    make("foreign");
    file_write(path_of(root, "foreign/tokenizer.json"), "{}", 2);
    cr_assert_eq(verify(path_of(root, "foreign"), &found, &report), 0, "%s", failure.message);
    cr_assert_eq(report.foreign, 1);
    cr_assert_eq(found.damages[0].kind, TSPOOL_DAMAGE_FOREIGN);
    cr_assert_str_eq(found.files[0], "tokenizer.json");

    make("objectless");
    cr_assert_eq(unlink(path_of(root, "objectless/objects-00001.bin")), 0);
    cr_assert_eq(verify(path_of(root, "objectless"), &found, &report), -EBADMSG);
    cr_assert_eq(found.count, 1);
    cr_assert_eq(report.missing, 1);
}

Test(verify, finds_a_digests_file_that_belongs_to_another_checkpoint, .init = setup, .fini = teardown)
{
    struct tspool_verify_report report;
    struct found found;
    uint8_t *bytes;
    size_t size;

    make("step");
    made_free(tensors, COUNT);
    made_fill(tensors, COUNT, 22);
    make("another");
    bytes = file_bytes(path_of(root, "another/tspool.digests"), &size);
    file_write(path_of(root, "step/tspool.digests"), bytes, size);
    free(bytes);
    cr_assert_eq(verify(path_of(root, "step"), &found, &report), -EBADMSG);
    cr_assert_str_eq(found.files[0], "tspool.digests");
}

Test(verify, stops_when_the_caller_says_so, .init = setup, .fini = teardown)
{
    struct tspool_checkpoint *checkpoint = NULL;
    struct found found = { 0 };

    make("step");
    file_write(path_of(root, "step/stray"), "x", 1);
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), NULL, &checkpoint, &failure), 0);
    cr_assert_eq(tspool_checkpoint_verify(checkpoint, note, NULL, &found, NULL, NULL), 0);
    tspool_checkpoint_close(checkpoint);
}

Test(verify, of_a_plain_file_says_that_nothing_was_recorded, .init = setup, .fini = teardown)
{
    struct tspool_verify_report report;
    struct found found;

    made_file(path_of(root, "plain"), tensors, COUNT, 1);
    cr_assert_eq(verify(path_of(root, "plain"), &found, &report), -ENODATA);
    cr_assert_eq(report.tensors, 0);
}

/* Every byte of a small checkpoint is changed once, in every file. */
static void flip_every_byte(const char *path, const char *file)
{
    char *name = strdup(path_of(path, file));
    struct tspool_verify_report report;
    struct found found;
    size_t size;

    free(file_bytes(name, &size));
    for (size_t i = 0; i < size; i++) {
        file_flip(name, i);
        cr_assert_eq(verify(path, &found, &report), -EBADMSG, "%s byte %zu", file, i);
        file_flip(name, i);
    }
    free(name);
}

Test(verify, finds_every_changed_byte, .init = setup, .fini = teardown, .timeout = 60)
{
    struct made_tensor few[] = { { "a", TSPOOL_U8, 1, { 21 } }, { "b", TSPOOL_I32, 1, { 5 } } };
    struct made_checkpoint made = { few, 2, .object = "note", .step = "3", .alias = "c", .alias_of = "a" };
    struct tspool_verify_report report;
    struct found found;
    const char *path;
    uint8_t *front;
    size_t size;

    made_fill(few, 2, 23);
    path = strdup(path_of(root, "step"));
    made_checkpoint(path, &made);
    flip_every_byte(path, "tspool.digests");
    flip_every_byte(path, "objects-00001.bin");
    flip_every_byte(path, "tspool.manifest.json");
    front = file_bytes(path_of(path, "model.safetensors"), &size);
    for (size_t i = 0; i < size; i += i > 300 && i < 4090 ? 61 : 1) { /* the padding's spaces: some of them */
        file_flip(path_of(path, "model.safetensors"), i);
        cr_assert_eq(verify(path, &found, &report), -EBADMSG, "byte %zu", i);
        file_flip(path_of(path, "model.safetensors"), i);
    }
    cr_assert_eq(verify(path, &found, &report), 0, "whole again: %s", failure.message);
    free(front);
    free((char *)path);
    made_free(few, 2);
}
