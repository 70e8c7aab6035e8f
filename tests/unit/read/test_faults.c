/* A disk that answers short, and one whose every operation fails once: over the same seam that the simulated disk uses. */
#include "made.h"

#include <io/io.h>
#include <read/read.h>

/* An io above another that spoils what goes through it. */
struct tap {
    struct io io;
    struct io *below;
    unsigned count, fail_at;      /* ops seen; the one that fails, from 1; 0: none */
    bool refuse;                  /* it is refused at submit, not completed with an error */
    bool shorten;                 /* reads get one sector, or half of what they ask for */
    unsigned random;
    struct { struct op *op; int handle; size_t size; } changed[64];
};

static struct tap *tap_of(struct io *io) { return (struct tap *)io; }

static void tap_remember(struct tap *tap, struct op *op)
{
    unsigned i = 0;

    while (tap->changed[i].op)
        i++;
    tap->changed[i].op = op;
    tap->changed[i].handle = op->handle;
    tap->changed[i].size = op->size;
}

static int tap_submit(struct io *io, struct op *op)
{
    struct tap *tap = tap_of(io);
    bool fails = op->kind != OP_CLOSE && ++tap->count == tap->fail_at;

    if (fails && (tap->refuse || op->kind == OP_COMPUTE || op->handle == IO_CWD))
        return -EIO;
    if (fails || (tap->shorten && op->kind == OP_READ)) {
        tap_remember(tap, op);
        if (fails)
            op->handle = -1;
        else if (op->size > 4096)
            op->size = tap->random++ % 2 || op->size < 8192 ? 4096 : op->size / 2 & ~(size_t)4095;
    }
    return io_submit(tap->below, op);
}

static void tap_restore(struct tap *tap, struct op *op)
{
    for (unsigned i = 0; i < 64; i++)
        if (tap->changed[i].op == op) {
            op->handle = tap->changed[i].handle;
            op->size = tap->changed[i].size;
            tap->changed[i].op = NULL;
        }
}

static int tap_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct tap *tap = tap_of(io);
    int count = io_wait(tap->below, completions, capacity, deadline_ns);

    for (int i = 0; i < count; i++)
        tap_restore(tap, completions[i].op);
    return count;
}

static uint64_t tap_now(struct io *io) { return io_now(tap_of(io)->below); }

static const struct io_ops tap_ops = { .submit = tap_submit, .wait = tap_wait, .now = tap_now };

static struct made_tensor tensors[] = {
    { "large", TSPOOL_U8, 1, { 5 << 20 } },
    { "odd", TSPOOL_U8, 1, { 300001 } },
    { "small", TSPOOL_F32, 1, { 33 } },
};
#define COUNT (sizeof tensors / sizeof *tensors)

static const char *root;
static struct io *below;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void)
{
    struct made_checkpoint made = { tensors, COUNT, .per_file = 2, .object = "note", .step = "1" };
    struct io_settings settings = { .depth = 32 };

    root = scratch_make();
    made_fill(tensors, COUNT, 61);
    made_checkpoint(path_of(root, "step"), &made);
    cr_assert_eq(io_create_threads(&settings, &below, &failure), 0);
}

static void teardown(void)
{
    io_destroy(below);
    made_free(tensors, COUNT);
    scratch_remove(root);
}

/* Opens, reads everything, verifies. 0 with the right bytes, or the first error. */
static int whole_pass(struct tap *tap)
{
    struct tspool_checkpoint *checkpoint = NULL;
    struct tspool_read_request requests[COUNT];
    int error = checkpoint_open_on(&tap->io, path_of(root, "step"), NULL, &checkpoint, &failure);

    for (size_t i = 0; i < COUNT && error == 0; i++) {
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        cr_assert_eq(tspool_checkpoint_find(checkpoint, tensors[i].name, &requests[i].tensor), 0);
        requests[i].data = aligned_alloc(4096, 6 << 20);
        requests[i].bytes = tensors[i].bytes;
    }
    if (error < 0)
        return error;
    error = tspool_checkpoint_read(checkpoint, requests, COUNT, NULL, NULL, &failure);
    for (size_t i = 0; i < COUNT; i++) {
        cr_assert(error < 0 || memcmp(requests[i].data, tensors[i].data, tensors[i].bytes) == 0);
        free(requests[i].data);
    }
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, &failure);
    tspool_checkpoint_close(checkpoint);
    return error;
}

Test(faults, short_reads_are_advanced_to_the_right_bytes, .init = setup, .fini = teardown)
{
    for (unsigned seed = 0; seed < 4; seed++) {
        struct tap tap = { .io = { .ops = &tap_ops, .backend = "tap" }, .below = below, .shorten = true, .random = seed };

        cr_assert_eq(whole_pass(&tap), 0, "%s", failure.message);
    }
}

static unsigned fail_each_once(bool refuse)
{
    for (unsigned number = 1;; number++) {
        struct tap tap = { .io = { .ops = &tap_ops, .backend = "tap" }, .below = below, .fail_at = number, .refuse = refuse };
        int error;

        failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
        error = whole_pass(&tap);
        for (unsigned i = 0; i < 64; i++)
            cr_assert_null(tap.changed[i].op, "op %u: all came back", number);
        if (tap.count < number)
            return number;
        cr_assert(error == 0 || failure.error > 0, "op %u: %d without a record", number, error);
        cr_assert(error == 0 || *failure.message, "op %u: an empty message", number);
    }
}

Test(faults, each_operation_failing_once_gives_a_record_or_does_not_matter, .init = setup, .fini = teardown, .timeout = 60)
{
    cr_assert_gt(fail_each_once(false), 40, "the pass has operations");
    cr_assert_gt(fail_each_once(true), 40);
}

Test(faults, latest_of_a_disk_that_fails_is_an_error_or_right_and_never_an_older_one, .init = setup, .fini = teardown)
{
    struct made_checkpoint older = { tensors, COUNT, .step = "0" };

    made_checkpoint(path_of(root, "older"), &older);
    for (unsigned number = 1; number < 200; number++) {
        struct tap tap = { .io = { .ops = &tap_ops, .backend = "tap" }, .below = below, .fail_at = number };
        char *path = NULL;
        int error = latest_on(&tap.io, root, &path, &failure);

        cr_assert(error < 0 || strcmp(path, path_of(root, "step")) == 0, "op %u", number);
        free(path);
        if (tap.count < number)
            return;
    }
}
