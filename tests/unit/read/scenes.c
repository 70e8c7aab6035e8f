/* scenes.c - see scenes.h. */
#include "scenes.h"

#include <base/names.h>
#include <dirent.h>
#include <fcntl.h>
#include <read/read.h>
#include <sys/stat.h>
#include <unistd.h>

#define HIDDEN_A ".step.000102030405060708090a0b0c0d0e0f"
#define HIDDEN_B ".step.ffffffffffffffffffffffffffffffff"

static struct made_tensor tensors[] = {
    { "large", TSPOOL_U8, 1, { 5 << 20 } },
    { "part", TSPOOL_F32, 2, { 30, 7 }, .sharded = true, .offsets = { 30, 0 }, .global = { 60, 7 } },
    { "odd", TSPOOL_U8, 1, { 300001 } },
    { "empty", TSPOOL_I64, 1, { 0 } },
    { "small", TSPOOL_F32, 1, { 33 } },
};
#define COUNT (sizeof tensors / sizeof *tensors)
static size_t first; /* those before it are left out: what is made again for each failure is small, but for the first scene */

void scenes_init(void) { made_fill(tensors, COUNT, 17); }
void scenes_deinit(void) { made_free(tensors, COUNT); }

unsigned descriptors_open(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* Reading ------------------------------------------------------------------------------------------------------------ */

static int checkpoint_get(struct io *io, const char *path, bool tolerant, struct tspool_checkpoint **checkpoint,
                          struct tspool_failure *failure)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;

    options.tolerant = tolerant;
    return io ? checkpoint_open_on(io, path, &options, checkpoint, failure)
              : tspool_checkpoint_open(path, &options, checkpoint, failure);
}

static _Alignas(4096) uint8_t places[COUNT][6 << 20]; /* no allocation of the test's own may fail */

static int tensors_read(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    struct tspool_read_request requests[COUNT];
    int error;

    for (size_t i = first; i < COUNT; i++) {
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        cr_assert_eq(tspool_checkpoint_find(checkpoint, tensors[i].name, &requests[i].tensor), 0);
        requests[i].data = places[i];
        memset(places[i], 0xa5, tensors[i].bytes);
        requests[i].bytes = tensors[i].bytes;
    }
    error = tspool_checkpoint_read(checkpoint, requests + first, COUNT - first, NULL, NULL, failure);
    for (size_t i = first; i < COUNT; i++)
        cr_assert(error < 0 || memcmp(places[i], tensors[i].data, tensors[i].bytes) == 0, "%s", tensors[i].name);
    return error;
}

static int column_read(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    const uint64_t start[] = { 1, 2 }, extent[] = { 29, 1 };
    uint32_t column[29];
    int error;

    cr_assert_eq(tspool_checkpoint_find(checkpoint, "part", &request.tensor), 0);
    request.start = start;
    request.extent = extent;
    request.data = column;
    request.bytes = sizeof column;
    error = tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, failure);
    for (size_t i = 0; i < 29 && error == 0; i++)
        cr_assert_eq(memcmp(&column[i], tensors[1].data + 4 * (7 * (i + 1) + 2), 4), 0);
    return error;
}

static int note_read(struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    void *bytes = NULL;
    size_t size = 0;
    int error = tspool_checkpoint_object_read(checkpoint, "note", &bytes, &size, failure);

    cr_assert(error < 0 || (size == 5 && memcmp(bytes, "hello", 5) == 0));
    free(bytes);
    return error;
}

/* A checkpoint of ours, all of it ------------------------------------------------------------------------------------- */

static void checkpoint_make(const char *root, size_t without)
{
    struct made_checkpoint made = { tensors + without, COUNT - without, .per_file = 2, .alias = "tied", .alias_of = "odd",
                                    .object = "hello", .step = "1" };

    first = without;
    made_checkpoint(path_of(root, "step"), &made);
    file_write(path_of(root, "step/tokenizer.json"), "{}", 2);
}

static void whole_make(const char *root) { checkpoint_make(root, 0); }

static int whole_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "step"), false, &checkpoint, failure);

    if (error == 0)
        error = tensors_read(checkpoint, failure);
    if (error == 0)
        error = column_read(checkpoint, failure);
    if (error == 0)
        error = note_read(checkpoint, failure);
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

/* One that is damaged in several places, opened to be verified -------------------------------------------------------- */

static void damaged_make(const char *root)
{
    scratch_remove(path_of(root, "step"));
    checkpoint_make(root, 1);
    unlink(path_of(root, "step/model-00001-of-00002.safetensors"));
    file_flip(path_of(root, "step/model-00002-of-00002.safetensors"), 4096 + 10);
    file_flip(path_of(root, "step/objects-00001.bin"), 1);
}

static int damaged_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_verify_report report = TSPOOL_VERIFY_REPORT_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "step"), true, &checkpoint, failure);

    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, &report, failure);
    cr_assert(error != -EBADMSG || !checkpoint || report.damaged + report.missing > 0);
    tspool_checkpoint_close(checkpoint);
    return error;
}

/* Folders and files of others ----------------------------------------------------------------------------------------- */

static void loose_make(const char *root)
{
    mkdir(path_of(root, "hf"), 0777);
    first = 1;
    made_file(path_of(root, "hf/model-00001-of-00002.safetensors"), tensors + 1, 2, 1);
    made_file(path_of(root, "hf/model-00002-of-00002.safetensors"), tensors + 3, COUNT - 3, 1);
    file_write(path_of(root, "hf/config.json"), "{}", 2);
}

static void indexed_make(const char *root)
{
    static const char index[] =
        "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {"
        "\"part\": \"model-00001-of-00002.safetensors\", \"odd\": \"model-00001-of-00002.safetensors\","
        "\"empty\": \"model-00002-of-00002.safetensors\", \"small\": \"model-00002-of-00002.safetensors\"}}";

    loose_make(root);
    file_write(path_of(root, "hf/" INDEX_NAME), index, sizeof index - 1);
}

static int folder_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "hf"), false, &checkpoint, failure);

    if (error == 0)
        error = tensors_read(checkpoint, failure);
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

static void indexed_damaged_make(const char *root)
{
    indexed_make(root);
    file_write(path_of(root, "hf/model-00002-of-00002.safetensors"), "short", 5);
}

static int folder_tolerant_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "hf"), true, &checkpoint, failure);

    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

static void file_make(const char *root)
{
    first = 1;
    made_file(path_of(root, "one.safetensors"), tensors + 1, COUNT - 1, 1);
}

static int file_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "one.safetensors"), false, &checkpoint, failure);

    if (error == 0)
        error = tensors_read(checkpoint, failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

/* The newest of several ----------------------------------------------------------------------------------------------- */

static void several_make(const char *root)
{
    struct made_checkpoint made = { tensors + 3, 2, .step = "7", .sequence = 1, .save_id = 7 };
    struct made_checkpoint older = { tensors + 3, 2, .step = "6", .sequence = 2, .save_id = 6 };

    made_checkpoint(path_of(root, "seven"), &made);
    made_checkpoint(path_of(root, "six"), &older);
    mkdir(path_of(root, "logs"), 0777);
    mkdir(path_of(root, HIDDEN_A), 0777);
    file_write(path_of(root, HIDDEN_A "/model.safetensors.partial"), "x", 1);
}

static int newest_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    char *path = NULL;
    int error = io ? latest_on(io, root, &path, failure) : tspool_latest(root, &path, failure);

    cr_assert(error < 0 || strcmp(path, path_of(root, "seven")) == 0, "an older one: %s", path);
    free(path);
    return error;
}

/* One whose replacement was interrupted, where two directories cannot be exchanged ------------------------------------- */

static const struct timespec long_ago[2] = { { .tv_sec = 1 }, { .tv_sec = 1 } };

static void interrupted_make(const char *root)
{
    struct made_checkpoint newer = { tensors + 3, 2, .step = "7", .sequence = 9, .save_id = 7 };
    struct made_checkpoint older = { tensors + 3, 2, .step = "6", .sequence = 2, .save_id = 6 };

    scratch_remove(path_of(root, "step"));
    scratch_remove(path_of(root, HIDDEN_A));
    made_checkpoint(path_of(root, HIDDEN_A), &newer);
    made_checkpoint(path_of(root, HIDDEN_B), &older);
    utimensat(AT_FDCWD, path_of(root, HIDDEN_A), long_ago, 0); /* young, they would be waited for */
    utimensat(AT_FDCWD, path_of(root, HIDDEN_B), long_ago, 0);
}

static int interrupted_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = checkpoint_get(io, path_of(root, "step"), false, &checkpoint, failure);

    cr_assert(error < 0 || strcmp(tspool_checkpoint_metadata(checkpoint, "step"), "7") == 0, "the older one was put back");
    tspool_checkpoint_close(checkpoint);
    return error;
}

/* The same, looked for among others ------------------------------------------------------------------------------------ */

static void hidden_newest_make(const char *root)
{
    struct made_checkpoint other = { tensors + 3, 2, .step = "5", .sequence = 1, .save_id = 5 };

    interrupted_make(root);
    made_checkpoint(path_of(root, "five"), &other);
    scratch_remove(path_of(root, "six"));
    scratch_remove(path_of(root, "seven"));
}

static int hidden_newest_run(struct io *io, const char *root, struct tspool_failure *failure)
{
    char *path = NULL;
    int error = io ? latest_on(io, root, &path, failure) : tspool_latest(root, &path, failure);

    cr_assert(error < 0 || strcmp(path, path_of(root, "step")) == 0, "an older one: %s", path);
    free(path);
    return error;
}

const struct scene scenes[] = {
    { "whole", whole_make, whole_run, 0 },
    { "damaged", damaged_make, damaged_run, -EBADMSG },
    { "loose", loose_make, folder_run, -ENODATA },
    { "indexed", indexed_make, folder_run, -ENODATA },
    { "indexed, damaged", indexed_damaged_make, folder_tolerant_run, -EBADMSG },
    { "file", file_make, file_run, 0 },
    { "newest", several_make, newest_run, 0, .forgiving = true },
    { "interrupted", interrupted_make, interrupted_run, 0, .pauses = true, .forgiving = true },
    { "newest, interrupted", hidden_newest_make, hidden_newest_run, 0, .pauses = true, .forgiving = true },
};
const size_t scene_count = sizeof scenes / sizeof *scenes;
