/* What the loop makes of a backend's answers, with a backend that answers as told: kernels rarely say these on request. */
#include <criterion/criterion.h>
#include <errno.h>
#include <io/loop.h>
#include <stdlib.h>

struct scripted {
    struct loop loop;
    int64_t answers[4];
    unsigned answered;
    struct op *op;
    int refusal;      /* of transfer() */
    int gather_error;
};

static int scripted_transfer(struct loop *loop, struct op *op)
{
    struct scripted *scripted = (struct scripted *)loop;

    if (scripted->refusal)
        return scripted->refusal;
    scripted->op = op;
    return 0;
}

static int scripted_gather(struct loop *loop, uint64_t until_ns)
{
    struct scripted *scripted = (struct scripted *)loop;
    struct op *op = scripted->op;

    scripted->op = NULL;
    if (op)
        loop_transferred(loop, op, scripted->answers[scripted->answered++]);
    return scripted->gather_error;
}

static int scripted_arm(struct loop *loop, struct op *op) { return -ENOMEM; }
static void scripted_release(struct loop *loop) { }

static const struct loop_backend scripted_backend = {
    .transfer = scripted_transfer, .arm = scripted_arm, .gather = scripted_gather, .release = scripted_release,
};

static struct scripted *scripted_create(void)
{
    struct scripted *scripted = calloc(1, sizeof *scripted);

    cr_assert(scripted);
    cr_assert_eq(loop_init(&scripted->loop, "scripted", &scripted_backend, &(struct io_settings){ 0 }, 0, NULL), 0);
    return scripted;
}

Test(loop, a_write_that_moved_nothing_is_EIO)
{
    struct scripted *scripted = scripted_create();
    struct op op = { .kind = OP_WRITE, .size = 1 };

    cr_assert_eq(io_call(&scripted->loop.io, &op), -EIO);
    op.kind = OP_READ;
    cr_assert_eq(io_call(&scripted->loop.io, &op), 0, "a read of nothing is the end of the file");
    io_destroy(&scripted->loop.io);
}

Test(loop, transfers_are_tried_again_after_EAGAIN_and_EINTR)
{
    struct scripted *scripted = scripted_create();
    struct op op = { .kind = OP_WRITE, .size = 9 };

    scripted->answers[0] = -EAGAIN;
    scripted->answers[1] = -EINTR;
    scripted->answers[2] = 9;
    cr_assert_eq(io_call(&scripted->loop.io, &op), 9);
    cr_assert_eq(scripted->answered, 3);
    io_destroy(&scripted->loop.io);
}

Test(loop, a_transfer_that_was_not_taken_does_not_count)
{
    struct scripted *scripted = scripted_create();
    struct op op = { .kind = OP_WRITE, .size = 1 };

    scripted->refusal = -ENXIO;
    for (unsigned i = 0; i < 100; i++)
        cr_assert_eq(io_submit(&scripted->loop.io, &op), -ENXIO);
    scripted->refusal = 0;
    scripted->answers[0] = 1;
    cr_assert_eq(io_call(&scripted->loop.io, &op), 1);
    io_destroy(&scripted->loop.io);
}

Test(loop, a_backend_beyond_use_still_returns_what_is_ready)
{
    struct scripted *scripted = scripted_create();
    struct op op = { .kind = OP_WRITE, .size = 1 };
    struct completion completion;

    scripted->answers[0] = 1;
    scripted->gather_error = -EBADF;
    cr_assert_eq(io_submit(&scripted->loop.io, &op), 0);
    cr_assert_eq(io_wait(&scripted->loop.io, &completion, 1, IO_FOREVER), 1);
    cr_assert_eq(io_wait(&scripted->loop.io, &completion, 1, IO_FOREVER), -EBADF);
    io_destroy(&scripted->loop.io);
}

Test(loop, what_cannot_be_armed_completes_with_the_reason)
{
    struct scripted *scripted = scripted_create();
    struct op op = { .kind = OP_WATCH, .handle = scripted->loop.pool ? pool_event(scripted->loop.pool) : -1 };

    cr_assert_eq(io_call(&scripted->loop.io, &op), -ENOMEM);
    io_destroy(&scripted->loop.io);
}
