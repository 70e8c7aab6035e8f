/* What stands in the place of a checkpoint's file is no file: a link, a pipe that nobody writes to, a socket, a directory.
 * Nothing is followed, nothing is waited for, and what it is gets said. Damaged bytes are in sim/damage.c.
 */
#include "made.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;
static struct made_tensor tensors[] = { { "a", TSPOOL_U8, 1, { 5000 } }, { "b", TSPOOL_I32, 2, { 5, 7 } },
                                        { "c", TSPOOL_BF16, 1, { 9 } } };
#define COUNT (sizeof tensors / sizeof *tensors)
static const char *const names[] = { "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "objects-00001.bin",
                                     "tspool.digests", "tspool.manifest.json" };

static void setup(void)
{
    root = scratch_make();
    made_fill(tensors, COUNT, 31);
}

static void teardown(void)
{
    made_free(tensors, COUNT);
    scratch_remove(root);
}

TestSuite(impostor, .init = setup, .fini = teardown, .timeout = 20);

/* A link to the very bytes: whoever swaps what it leads to changes the checkpoint. */
static void link_put(const char *path)
{
    char moved[1100];

    snprintf(moved, sizeof moved, "%s.moved", path);
    cr_assert_eq(rename(path, moved), 0);
    cr_assert_eq(symlink(strrchr(moved, '/') + 1, path), 0);
}

static void pipe_put(const char *path)
{
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(mkfifo(path, 0666), 0);
}

static void directory_put(const char *path)
{
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(mkdir(path, 0777), 0);
}

static void socket_put(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    cr_assert_eq(unlink(path), 0);
    cr_assert_lt(snprintf(address.sun_path, sizeof address.sun_path, "%s", path), (int)sizeof address.sun_path);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
}

struct seen { const char *expected; unsigned count; };

static int note(void *context, const struct tspool_damage *damage)
{
    struct seen *seen = context;

    if (damage->kind == TSPOOL_DAMAGE_FOREIGN)
        return 0; /* the file that the link leads to */
    cr_assert_str_eq(damage->file, seen->expected, "%s is accused: %s", damage->file, damage->reason);
    cr_assert_eq(damage->kind, TSPOOL_DAMAGE_FILE);
    seen->count++;
    return 0;
}

static int verify(const char *path, struct seen *seen)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    int error;

    options.tolerant = 1;
    error = tspool_checkpoint_open(path, &options, &checkpoint, &failure);
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, note, NULL, seen, NULL, &failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

static void each_is_refused(void (*put)(const char *path))
{
    struct made_checkpoint made = { tensors, COUNT, .per_file = 2, .object = "an object", .step = "7" };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct tspool_checkpoint *checkpoint = NULL;
        struct seen seen = { .expected = names[i] };
        char path[512], file[1024];

        snprintf(path, sizeof path, "%s/%zu", root, i);
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        made_checkpoint(path, &made);
        put(file);
        cr_assert_lt(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), 0, "%s", names[i]);
        cr_assert_str_eq(failure.path, file, "%s", failure.message);
        cr_assert_lt(verify(path, &seen), 0, "%s", names[i]);
        cr_assert_eq(seen.count, i + 1 < sizeof names / sizeof *names, "%s", names[i]); /* without a manifest it does not open */
        cr_assert_str_eq(failure.path, file, "%s", failure.message);
    }
}

Test(impostor, link_in_the_place_of_a_file_is_not_followed) { each_is_refused(link_put); }
Test(impostor, pipe_in_the_place_of_a_file_is_not_waited_for) { each_is_refused(pipe_put); }
Test(impostor, directory_in_the_place_of_a_file_is_named) { each_is_refused(directory_put); }
Test(impostor, socket_in_the_place_of_a_file_is_named) { each_is_refused(socket_put); }

/* Loading without verification is asked for, never fallen into: a lost manifest takes the digests' use with it. */
Test(impostor, checkpoint_that_lost_its_manifest_is_no_plain_folder)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct made_checkpoint made = { tensors, COUNT, .step = "7" };
    struct tspool_checkpoint *checkpoint = NULL;

    made_checkpoint(path_of(root, "step"), &made);
    cr_assert_eq(unlink(path_of(root, "step/tspool.manifest.json")), 0);
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), NULL, &checkpoint, &failure), -ENOENT);
    cr_assert_str_eq(failure.path, path_of(root, "step/tspool.manifest.json"));
    options.unverified = 1;
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), &options, &checkpoint, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_checkpoint_count(checkpoint), COUNT);
    tspool_checkpoint_close(checkpoint);
}

/* The default verifies; what is damaged is given out only to a caller who said that it wants no verification. */
Test(impostor, damaged_bytes_are_read_only_by_whom_asks_for_it)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct made_checkpoint made = { tensors, COUNT, .object = "an object", .step = "7" };
    struct tspool_checkpoint *checkpoint = NULL;
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    uint8_t bytes[5000];
    void *object = NULL;
    size_t size;

    made_checkpoint(path_of(root, "step"), &made);
    file_flip(path_of(root, "step/model.safetensors"), 4096 + 77);
    file_flip(path_of(root, "step/objects-00001.bin"), 3);
    request.data = bytes;
    request.bytes = sizeof bytes;
    for (options.unverified = 0; options.unverified < 2; options.unverified++) {
        int expected = options.unverified ? 0 : -EBADMSG;

        cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), &options, &checkpoint, &failure), 0, "%s", failure.message);
        cr_assert_eq(tspool_checkpoint_find(checkpoint, "a", &request.tensor), 0);
        cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), expected);
        cr_assert_eq(tspool_checkpoint_object_read(checkpoint, "note", &object, &size, &failure), expected);
        tspool_checkpoint_close(checkpoint);
    }
    cr_assert_eq(bytes[77], tensors[0].data[77] ^ 0x20);
    free(object);
}
