/* api/refusals.c - bad input: a clear error that names the thing, nothing written, and the spool goes on. */
#include "rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct rig rig;
static struct state state;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_PROCESS);
    state_init(&state, 2, 100, 1);
}

static void teardown(void)
{
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(refusals, .init = setup, .fini = teardown, .timeout = 60);

static void assert_open_refused(int error, const char *what)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = NULL;

    cr_assert_eq(tspool_open(&rig.options, &spool, &failure), -error, "%s", what);
    cr_assert_null(spool);
    cr_assert_eq(failure.error, error);
    cr_assert(strstr(failure.message, what), "'%s' does not name '%s'", failure.message, what);
}

Test(refusals, open_names_the_option_that_is_wrong)
{
    const struct tspool_options good = rig.options;

    rig.options.root = NULL;
    assert_open_refused(EINVAL, "root");
    rig.options.root = "";
    assert_open_refused(EINVAL, "root");
    rig.options = good, rig.options.item_bytes = 5000;
    assert_open_refused(EINVAL, "item_bytes");
    rig.options = good, rig.options.item_bytes = 32 << 20;
    assert_open_refused(EINVAL, "item_bytes");
    rig.options = good, rig.options.depth = 1025;
    assert_open_refused(EINVAL, "depth");
    rig.options = good, rig.options.io = (enum tspool_io)7;
    assert_open_refused(EINVAL, "io");
    rig.options = good, rig.options.isolation = (enum tspool_isolation)7;
    assert_open_refused(EINVAL, "isolation");
    rig.options = good, rig.options.staging_threads = 65;
    assert_open_refused(EINVAL, "staging_threads");
    rig.options = good, rig.options.hash_threads = 65;
    assert_open_refused(EINVAL, "hash_threads");
    rig.options = good, rig.options.arena_bytes = 4096;
    assert_open_refused(EINVAL, "arena_bytes");
    rig.options = good, rig.options.rank = 1;
    assert_open_refused(EINVAL, "rank");
    rig.options = good, rig.options.excluded_cpus = "3-";
    assert_open_refused(EINVAL, "excluded_cpus");
    rig.options = good, rig.options.size = 0;
    assert_open_refused(EINVAL, "size");
    cr_assert_eq(tspool_open(NULL, NULL, NULL), -EINVAL);
}

Test(refusals, open_names_the_root_that_is_no_directory)
{
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "%s/missing", rig.root);
    rig.options.root = path;
    assert_open_refused(ENOENT, path);
    file = fopen(path, "w");
    fclose(file);
    assert_open_refused(ENOTDIR, path);
}

Test(refusals, open_names_the_writer_that_is_missing)
{
    rig.options.writer_path = "/nowhere/tspool-writer";
    assert_open_refused(ENOENT, "/nowhere/tspool-writer");
}

/* /bin/true takes the channel, says nothing and ends. */
Test(refusals, open_reports_a_writer_that_ends_before_it_is_ready)
{
    rig.options.writer_path = "/bin/true";
    assert_open_refused(EPIPE, "exited with status 0");
}

/* A program that never answers and never ends. */
Test(refusals, open_gives_up_on_a_writer_that_never_answers)
{
    char path[300];
    FILE *script;

    snprintf(path, sizeof(path), "%s/sleeper", rig.root);
    script = fopen(path, "w");
    fputs("#!/bin/sh\nexec sleep 1000 >/dev/null 2>&1\n", script);
    fclose(script);
    chmod(path, 0755);
    rig.options.writer_path = path;
    rig.options.start_timeout_ns = 100 * MILLISECOND_NS;
    assert_open_refused(ETIMEDOUT, "start_timeout_ns");
}

static void assert_name_refused(struct tspool *spool, const char *name)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;

    cr_assert_eq(tspool_save_begin(spool, name, NULL, &save, &failure), -EINVAL, "%s", name);
    cr_assert_null(save);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_DECLARE);
}

Test(refusals, names_that_are_no_single_component)
{
    struct tspool *spool = rig_open(&rig);
    char name[182];

    memset(name, 'a', 181);
    name[181] = '\0';
    assert_name_refused(spool, "");
    assert_name_refused(spool, ".");
    assert_name_refused(spool, "..");
    assert_name_refused(spool, ".hidden");
    assert_name_refused(spool, "a/b");
    assert_name_refused(spool, "../a");
    assert_name_refused(spool, "line\nbreak");
    assert_name_refused(spool, "\xff\xfe");
    assert_name_refused(spool, name);
    assert_name_refused(spool, NULL);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
}

Test(refusals, options_that_contradict_each_other)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = NULL;

    options.staging = TSPOOL_STAGING_BACKGROUND;
    cr_assert_eq(tspool_save_begin(spool, "a", &options, &save, NULL), -EINVAL);
    options.guarded = 1;
    options.staging = TSPOOL_STAGING_CALLER;
    options.check_torn = 1;
    cr_assert_eq(tspool_save_begin(spool, "a", &options, &save, NULL), -EINVAL);
    options.staging = (enum tspool_staging)9;
    cr_assert_eq(tspool_save_begin(spool, "a", &options, &save, NULL), -EINVAL);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

Test(refusals, duplicate_tensor_is_named_and_writes_nothing)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "twice", TSPOOL_STAGING_NOW);

    state_add(&state, save, true);
    state_add(&state, save, true);
    cr_assert_eq(tspool_save_submit(save, &failure), -EEXIST);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_PLAN);
    cr_assert_neq(failure.tensor[0], '\0');
    tspool_save_free(save);
    save = submit(spool, "once", &state); /* and the next save is not told of what its caller was told */
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, (const char *const[]){ "once" }, 1);
}

static void assert_tensor_refused(struct tspool_save *save, const struct tspool_tensor *tensor, int error)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    cr_assert_eq(tspool_save_add(save, tensor, &failure), -error, "%s", failure.message);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_DECLARE);
}

Test(refusals, tensors_that_cannot_be)
{
    const uint64_t shape[] = { 10, 10 }, huge[] = { UINT64_MAX / 2, 8 };
    const int64_t strides[] = { 10, -1 };
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "bad", TSPOOL_STAGING_NOW);
    struct tspool_tensor good = TSPOOL_TENSOR_INIT, bad;

    good.name = "x", good.dtype = TSPOOL_F32, good.rank = 2, good.shape = shape, good.data = state.data[0];
    bad = good, bad.size = 1;
    assert_tensor_refused(save, &bad, EINVAL);
    bad = good, bad.dtype = TSPOOL_DTYPE_COUNT;
    assert_tensor_refused(save, &bad, EINVAL);
    bad = good, bad.shape = huge;
    assert_tensor_refused(save, &bad, EOVERFLOW);
    bad = good, bad.strides = strides;
    assert_tensor_refused(save, &bad, EINVAL);
    bad = good, bad.data = NULL;
    assert_tensor_refused(save, &bad, EINVAL);
    bad = good, bad.name = "";
    assert_tensor_refused(save, &bad, EINVAL);
    cr_assert_eq(tspool_save_add(save, &good, NULL), 0);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
}

/* A caller built against a later header: its struct is longer. */
Test(refusals, fields_of_a_newer_caller_only_when_they_are_set)
{
    struct { struct tspool_options known; uint64_t later; } newer = { rig.options, 0 };
    struct tspool *spool = NULL;

    newer.known.size = sizeof(newer);
    cr_assert_eq(tspool_open(&newer.known, &spool, NULL), 0);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    newer.later = 1;
    cr_assert_eq(tspool_open(&newer.known, &spool, NULL), -E2BIG);
}

/* A caller built against an earlier header: its struct ends sooner, and memory behind it is not touched. */
Test(refusals, nothing_of_an_older_caller)
{
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = submit(spool, "older", &state);
    struct tspool_save_result result = { .size = offsetof(struct tspool_save_result, tensor_bytes), .tensor_bytes = 77 };

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_eq(result.outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result.tensor_bytes, 77);
    result.size = 0;
    cr_assert_eq(tspool_save_result(save, &result), -EINVAL);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}

Test(refusals, a_changed_tensor_is_named)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *save = begin(spool, "raced", TSPOOL_STAGING_CALLER);
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    const uint64_t shape[] = { 100 };
    uint64_t version = 5;

    tensor.name = "layer.weight", tensor.dtype = TSPOOL_F32, tensor.rank = 1, tensor.shape = shape;
    tensor.version = &version;
    cr_assert_eq(tspool_save_add(save, &tensor, &failure), 0);
    cr_assert_eq(tspool_save_submit(save, &failure), 0);
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    memcpy(span.data, state.data[0], span.bytes);
    version++; /* an optimizer step between submit and STAGED */
    tspool_save_filled(save, &span);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), -EBUSY);
    cr_assert_eq(tspool_save_result(save, &result), 0);
    cr_assert_str_eq(result.failure.tensor, "layer.weight");
    cr_assert_eq(result.failure.stage, TSPOOL_STAGE_STAGE);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    assert_nothing_but(&rig, NULL, 0);
}

Test(refusals, rebinding_one_of_two_tied_tensors)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool *spool = rig_open(&rig);
    struct tspool_save *first = begin(spool, "tied", TSPOOL_STAGING_NOW), *second;
    const uint64_t shape[] = { 100 };

    tensor.name = "a", tensor.dtype = TSPOOL_F32, tensor.rank = 1, tensor.shape = shape, tensor.data = state.data[0];
    cr_assert_eq(tspool_save_add(first, &tensor, NULL), 0);
    tensor.name = "b";
    cr_assert_eq(tspool_save_add(first, &tensor, NULL), 0);
    cr_assert_eq(tspool_save_submit(first, NULL), 0);
    cr_assert_eq(tspool_save_again(spool, "untied", first, NULL, &second, NULL), 0);
    cr_assert_eq(tspool_save_rebind(second, 1, state.data[1]), 0);
    cr_assert_eq(tspool_save_submit(second, &failure), -EINVAL);
    cr_assert_str_eq(failure.tensor, "b");
    cr_assert_eq(tspool_save_rebind(second, 0, state.data[1]), 0); /* both: still tied */
    cr_assert_eq(tspool_save_submit(second, &failure), 0, "%s", failure.message);
    tspool_save_free(first);
    tspool_save_free(second);
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
}
