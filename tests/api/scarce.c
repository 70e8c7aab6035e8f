/* api/scarce.c - memory runs out for the caller's thread, at each of its allocations in turn: the call that met it says so, what
 * was promised before it is kept, nothing stray is left and nothing stays open. */
#include "../support/scarce.h"
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>

static struct rig rig;
static struct state state;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_THREAD);
    rig.options.arena_bytes = 32 << 20;
    rig.options.excluded_cpus = "8000";
    state_init(&state, 2, 100, 1);
}

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(scarce, .init = setup, .fini = teardown, .timeout = 200);

static unsigned descriptors_open(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static int declare(struct tspool_save *save, bool sharded, struct tspool_failure *failure)
{
    static const uint64_t shape[] = { 100 }, global_shape[] = { 200 }, offsets[] = { 100 };
    static const uint64_t version = 4;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    int error;

    tensor.name = "w";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 1;
    tensor.shape = shape;
    tensor.data = state.data[0];
    tensor.version = &version;
    if (sharded)
        tensor.global_shape = global_shape, tensor.global_offsets = offsets;
    error = tspool_save_add(save, &tensor, failure);
    tensor.name = "tied";
    if (error == 0 && !sharded)
        error = tspool_save_add(save, &tensor, failure);
    tensor.name = "other";
    tensor.data = state.data[1];
    if (error == 0)
        error = tspool_save_add(save, &tensor, failure);
    if (error == 0)
        error = tspool_save_add_object(save, "note", "json", "{}", 2, failure);
    return error ? error : tspool_save_metadata(save, "step", "1", failure);
}

static int publish(struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    int error = tspool_save_submit(save, failure);

    if (error == 0)
        error = tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS);
    tspool_save_result(save, &result);
    if (error < 0 && result.failure.error)
        *failure = result.failure;
    return error;
}

/* Three saves, the second like the first with one tensor elsewhere, the third like that. The first error. */
static int three_saves(struct tspool *spool, bool sharded, struct tspool_failure *failure)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_save *first = NULL, *second = NULL, *third = NULL;
    int error;

    options.replace = 1;
    options.check_torn = 1;
    error = tspool_save_begin(spool, "one", &options, &first, failure);
    if (error == 0)
        error = declare(first, sharded, failure);
    if (error == 0)
        error = publish(first, failure);
    if (error == 0)
        error = tspool_save_again(spool, "two", first, &options, &second, failure);
    if (error == 0 && tspool_save_rebind(second, 0, state.data[1]) < 0)
        error = -ENOMEM, failure->error = ENOMEM;
    if (error == 0)
        error = publish(second, failure);
    if (error == 0)
        error = tspool_save_again(spool, "three", second, &options, &third, failure);
    if (error == 0)
        error = publish(third, failure);
    tspool_save_free(first);
    tspool_save_free(second);
    tspool_save_free(third);
    return error;
}

/* Filled by the caller, span by span. */
static int filled_save(struct tspool *spool, struct tspool_failure *failure)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool_save *save = NULL;
    int error, got = 1;

    options.replace = 1;
    options.staging = TSPOOL_STAGING_CALLER;
    error = tspool_save_begin(spool, "one", &options, &save, failure);
    if (error == 0)
        error = declare(save, false, failure);
    if (error == 0)
        error = tspool_save_submit(save, failure);
    while (error == 0 && (got = tspool_save_next_span(save, &span, MINUTE_NS)) == 1) {
        memset(span.data, 1, span.bytes);
        error = tspool_save_filled(save, &span);
    }
    if (error == 0)
        error = got < 0 ? got : tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS);
    if (error < 0 && tspool_save_result(save, &result) == 0 && result.failure.error)
        *failure = result.failure;
    if (error < 0 && !failure->error)
        failure->error = -error; /* next_span returns no more than that */
    tspool_save_free(save);
    return error;
}

enum saving { WHOLE, SHARDED, FILLED };

static int whole_life(enum saving saving, struct tspool_failure *failure)
{
    struct tspool *spool = NULL;
    int error = tspool_open(&rig.options, &spool, failure);

    if (error < 0) {
        cr_assert_null(spool);
        return error;
    }
    error = saving == FILLED ? filled_save(spool, failure) : three_saves(spool, saving == SHARDED, failure);
    tspool_close(spool, MINUTE_NS, NULL);
    return error;
}

static void each_fails(enum saving saving)
{
    static const char *const published[] = { "one", "two", "three" };
    size_t count = saving == FILLED ? 1 : 3;
    unsigned number = 0, before;
    bool reached = true;

    cr_assert_eq(whole_life(saving, &(struct tspool_failure)TSPOOL_FAILURE_INIT), 0);
    before = descriptors_open();
    while (reached) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;
        int error;

        scarce_begin(++number);
        error = whole_life(saving, &failure);
        reached = scarce_end();
        cr_assert(error == 0 || (reached && error == -ENOMEM && failure.error == ENOMEM), "allocation %u: %d, %s", number, error,
                  failure.message);
        assert_nothing_but(&rig, published, count);
    }
    cr_assert_gt(number, 50, "it allocates");
    cr_assert_eq(descriptors_open(), before, "something stayed open");
}

Test(scarce, allocation_of_the_trainer_is_told_or_does_not_matter) { each_fails(WHOLE); }

Test(scarce, allocation_of_the_trainer_with_sharded_tensors) { each_fails(SHARDED); }

Test(scarce, allocation_of_the_trainer_that_fills_spans_itself) { each_fails(FILLED); }
