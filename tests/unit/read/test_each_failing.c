/* Anything may fail while a checkpoint is read: an operation of the disk, an allocation. Whatever it is, the reader says so,
 * or it did not matter and every byte is right; never is an older checkpoint given out, and nothing stays open. */
#include "../../support/scarce.h"
#include "scenes.h"

/* An io above another that lets one op end with an error without carrying it out, and timers at once. */
struct failing { struct io io; struct io *below; unsigned count, fail_at; int error; struct op *over; int64_t result; };

static int failing_submit(struct io *io, struct op *op)
{
    struct failing *failing = (struct failing *)io;
    bool fails = op->kind != OP_CLOSE && ++failing->count == failing->fail_at;

    if (!fails && op->kind != OP_TIMER)
        return io_submit(failing->below, op);
    failing->over = op;
    failing->result = fails ? -failing->error : 0;
    return 0;
}

static int failing_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct failing *failing = (struct failing *)io;

    if (!failing->over)
        return io_wait(failing->below, completions, capacity, deadline_ns);
    completions[0] = (struct completion){ failing->over, failing->result };
    failing->over = NULL;
    return 1;
}

static uint64_t failing_now(struct io *io) { return io_now(((struct failing *)io)->below); }

static const struct io_ops failing_ops = { .submit = failing_submit, .wait = failing_wait, .now = failing_now };

static const char *root;
static struct io *below;

static void setup(void)
{
    struct io_settings settings = { .depth = 32 };

    root = scratch_make();
    scenes_init();
    cr_assert_eq(io_create_threads(&settings, &below, NULL), 0);
}

static void teardown(void)
{
    io_destroy(below);
    scenes_deinit();
    scratch_remove(root);
}

/* Plays the scene with each op failing in turn; how many there are. */
static unsigned each_op_fails(const struct scene *scene, int errno_wanted)
{
    for (unsigned number = 1;; number++) {
        struct failing failing = { .io = { .ops = &failing_ops, .backend = "failing" }, .below = below, .fail_at = number,
                                   .error = errno_wanted };
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        int error;

        scene->make(root);
        error = scene->run(&failing.io, root, &failure);
        cr_assert_null(failing.over, "%s, op %u: nobody waited for it", scene->name, number);
        cr_assert(error == scene->expected || (failure.error > 0 && *failure.message), "%s, op %u with %s: %d without a record",
                  scene->name, number, strerror(errno_wanted), error);
        if (failing.count < number) {
            cr_assert_eq(error, scene->expected, "%s: %d, %s", scene->name, error, failure.message);
            return number;
        }
    }
}

Test(each_failing, operation_is_told_or_does_not_matter, .init = setup, .fini = teardown, .timeout = 120)
{
    static const int errnos[] = { EIO, EMFILE, ENOENT, EACCES, ENOTDIR, ELOOP, EISDIR };

    for (size_t i = 0; i < scene_count; i++)
        for (size_t k = 0; k < (i == 0 ? 1 : scenes[i].forgiving ? 2 : sizeof errnos / sizeof *errnos); k++)
            cr_assert_gt(each_op_fails(&scenes[i], errnos[k]), 5);
}

/* Over an io of the checkpoint's own, whose memory may run out too; or over the test's. */
static int scarce_run(const struct scene *scene, unsigned number, bool *reached, struct tspool_failure *failure)
{
    struct failing failing = { .io = { .ops = &failing_ops, .backend = "failing" }, .below = below };
    int error;

    scene->make(root);
    scarce_begin(number);
    error = scene->run(scene->pauses ? &failing.io : NULL, root, failure);
    *reached = scarce_end();
    return error;
}

Test(each_failing, allocation_is_told_or_does_not_matter, .init = setup, .fini = teardown, .timeout = 120)
{
    for (size_t i = 0; i < scene_count; i++) {
        unsigned before = descriptors_open(), number = 0;
        bool reached = true;

        while (reached) {
            struct tspool_failure failure = TSPOOL_FAILURE_INIT;
            int error = scarce_run(&scenes[i], ++number, &reached, &failure);

            cr_assert(error == scenes[i].expected || (reached && error == -ENOMEM && failure.error == ENOMEM),
                      "%s, allocation %u: %d, %s", scenes[i].name, number, error, failure.message);
        }
        cr_assert_gt(number, 10, "%s allocates", scenes[i].name);
        cr_assert_eq(descriptors_open(), before, "%s: something stayed open", scenes[i].name);
    }
}
