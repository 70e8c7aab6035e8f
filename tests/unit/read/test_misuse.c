/* Requests that cannot be meant are refused and leave the checkpoint usable; what a disk says of itself is believed only where
 * it can be true. */
#include "scenes.h"

#include <read/read.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void)
{
    root = scratch_make();
    scenes_init();
    scenes[0].make(root);
}

static void teardown(void)
{
    scenes_deinit();
    scratch_remove(root);
}

TestSuite(misuse, .init = setup, .fini = teardown, .timeout = 60);

static struct tspool_checkpoint *opened(const struct tspool_checkpoint_options *options)
{
    struct tspool_checkpoint *checkpoint = NULL;

    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), options, &checkpoint, &failure), 0, "%s", failure.message);
    return checkpoint;
}

Test(misuse, of_names_and_numbers)
{
    struct tspool_checkpoint *checkpoint = opened(NULL);
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT, sizeless = { 0 };
    const char *name, *kind;
    uint64_t bytes;
    void *read;
    size_t index, size;

    cr_assert_eq(tspool_checkpoint_tensor(checkpoint, tspool_checkpoint_count(checkpoint), &info), -ENOENT);
    cr_assert_eq(tspool_checkpoint_tensor(checkpoint, 0, &sizeless), -EINVAL);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, NULL, &index), -ENOENT);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, "nobody", &index), -ENOENT);
    cr_assert_eq(tspool_checkpoint_object(checkpoint, 1, &name, &kind, &bytes), -ENOENT);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, NULL, &read, &size, &failure), -ENOENT);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "nobody", &read, &size, &failure), -ENOENT);
    cr_assert_str_eq(failure.tensor, "nobody");
    cr_assert_eq(tspool_checkpoint_metadata_at(checkpoint, 99, &name, &kind), -ENOENT);
    cr_assert_eq(tspool_checkpoint_read(checkpoint, NULL, 0, NULL, NULL, &failure), 0, "nothing is nothing");
    tspool_checkpoint_close(checkpoint);
}

Test(misuse, of_requests)
{
    static uint8_t memory[1 << 20];
    struct tspool_checkpoint *checkpoint = opened(NULL);
    const uint64_t start[] = { 1, 1 }, extent[] = { 2, 2 };
    struct tspool_read_request good = TSPOOL_READ_REQUEST_INIT, bad[2];

    cr_assert_eq(tspool_checkpoint_find(checkpoint, "part", &good.tensor), 0);
    good.data = memory;
    good.bytes = 30 * 7 * 4;
    bad[0] = good, bad[0].start = start;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "start without extent");
    bad[0] = good, bad[0].extent = extent;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "extent without start");
    bad[0] = good, bad[0].data = NULL;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "no memory");
    bad[0] = good, bad[0].by_bytes = 1, bad[0].start = start, bad[0].extent = extent;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "bytes and a box");
    bad[0] = good, bad[0].by_bytes = 1, bad[0].first_byte = 1;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "past the end");
    bad[0].first_byte = UINT64_MAX;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "far past the end");
    bad[0] = good, bad[0].size = sizeof(size_t) + 1;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 1, NULL, NULL, &failure), -EINVAL, "an absurd size");
    bad[0] = bad[1] = good, bad[1].size -= sizeof(size_t);
    cr_assert_eq(tspool_checkpoint_read(checkpoint, bad, 2, NULL, NULL, &failure), -EINVAL, "two sizes");
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &good, 1, NULL, NULL, &failure), 0, "%s", failure.message);
    good.size = offsetof(struct tspool_read_request, first_byte);
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &good, 1, NULL, NULL, &failure), 0, "an older caller's");
    tspool_checkpoint_close(checkpoint);
}

Test(misuse, of_options)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;

    options.io = (enum tspool_io)9;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), &options, &checkpoint, &failure), -EINVAL);
    options.io = TSPOOL_IO_THREADS, options.item_bytes = 512 << 20;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), &options, &checkpoint, &failure), -EINVAL);
    options.item_bytes = 0, options.hash_threads = 1000;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), &options, &checkpoint, &failure), -EINVAL);
    cr_assert_null(checkpoint);
    options.hash_threads = 3;
    tspool_checkpoint_close(opened(&options));
}

Test(misuse, unverified_reading_is_explicit_and_gives_the_damage)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint;
    void *bytes = NULL;
    size_t size = 0;

    file_flip(path_of(root, "step/objects-00001.bin"), 0);
    checkpoint = opened(NULL);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "note", &bytes, &size, &failure), -EBADMSG);
    tspool_checkpoint_close(checkpoint);
    options.unverified = 1;
    checkpoint = opened(&options);
    cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "note", &bytes, &size, &failure), 0);
    cr_assert(size == 5 && memcmp(bytes, "Hello", 5) == 0, "with its flipped bit");
    free(bytes);
    tspool_checkpoint_close(checkpoint);
}

static int stop(void *context, const struct tspool_damage *damage)
{
    ++*(unsigned *)context;
    return 1;
}

Test(misuse, verify_that_is_stopped_stops)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    static const char *const damaged[] = { "step/model-00001-of-00003.safetensors", "step/objects-00001.bin",
                                          "step/tspool.digests" };
    struct tspool_checkpoint *checkpoint;
    unsigned found = 0;

    options.tolerant = 1;
    for (size_t i = 0; i < 3; i++)
        file_flip(path_of(root, damaged[i]), 3);
    checkpoint = opened(&options);
    cr_assert_eq(tspool_checkpoint_verify(checkpoint, stop, NULL, &found, NULL, &failure), -EBADMSG);
    cr_assert_eq(found, 1);
    tspool_checkpoint_close(checkpoint);
}

/* Roots ------------------------------------------------------------------------------------------------------------- */

Test(misuse, latest_follows_the_link_that_the_user_names_and_no_file)
{
    char *path = NULL, link[1024], expected[1100];

    snprintf(link, sizeof link, "%s/link", root);
    snprintf(expected, sizeof expected, "%s/step", link);
    cr_assert_eq(symlink(".", link), 0);
    cr_assert_eq(tspool_latest(link, &path, &failure), 0, "%s", failure.message);
    cr_assert_str_eq(path, expected);
    free(path);
    cr_assert_eq(tspool_latest(path_of(root, "step/tokenizer.json"), &path, &failure), -ENOTDIR);
    cr_assert_eq(tspool_latest(NULL, &path, &failure), -EINVAL);
    cr_assert_eq(tspool_latest("", &path, &failure), -ENOENT);
}

Test(misuse, trailing_slashes_lead_to_the_same)
{
    struct tspool_checkpoint *checkpoint = NULL;
    char path[1024];

    snprintf(path, sizeof path, "%s/step//", root);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), 0, "%s", failure.message);
    tspool_checkpoint_close(checkpoint);
    snprintf(path, sizeof path, "%s/absent//", root);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), -ENOENT);
    cr_assert_eq(tspool_checkpoint_open("/", NULL, &checkpoint, &failure), -ENOENT, "no checkpoint is in it");
    cr_assert_eq(tspool_checkpoint_open("absent", NULL, &checkpoint, &failure), -ENOENT);
}

/* Disks that say odd things of themselves ------------------------------------------------------------------------------ */

struct disguise { struct io io; struct io *below; uint32_t offset_align, memory_align; };

static int disguise_submit(struct io *io, struct op *op) { return io_submit(((struct disguise *)io)->below, op); }

static int disguise_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct disguise *disguise = (struct disguise *)io;
    int count = io_wait(disguise->below, completions, capacity, deadline_ns);

    for (int i = 0; i < count; i++)
        if (completions[i].op->kind == OP_STAT && completions[i].result == 0) {
            completions[i].op->stat->direct_offset_align = disguise->offset_align;
            completions[i].op->stat->direct_memory_align = disguise->memory_align;
        }
    return count;
}

static uint64_t disguise_now(struct io *io) { return io_now(((struct disguise *)io)->below); }

Test(misuse, alignment_is_believed_where_it_can_be_true)
{
    static const uint32_t aligns[][2] = { { 0, 0 }, { 4096, 0 }, { 4096, 4096 }, { 512, 3 }, { 3, 512 }, { 1u << 31, 512 },
                                          { 4096, 1u << 31 }, { 8192, 512 } };
    static const struct io_ops ops = { .submit = disguise_submit, .wait = disguise_wait, .now = disguise_now };
    struct io_settings settings = { .depth = 32 };
    struct io *below;

    cr_assert_eq(io_create_threads(&settings, &below, &failure), 0);
    for (size_t i = 0; i < sizeof aligns / sizeof *aligns; i++) {
        struct disguise disguise = { { .ops = &ops, .backend = "disguise" }, below, aligns[i][0], aligns[i][1] };

        cr_assert_eq(scenes[0].run(&disguise.io, root, &failure), 0, "%u, %u: %s", aligns[i][0], aligns[i][1], failure.message);
    }
    io_destroy(below);
}
