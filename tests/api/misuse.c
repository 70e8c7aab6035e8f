/* api/misuse.c - calls that cannot be meant: nothing where something must be, the wrong order, another spool's. Each is
 * refused, changes nothing, and the spool goes on. */
#include "rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static struct rig rig;
static struct state state;
static struct tspool *spool;

static void setup(void)
{
    rig_init(&rig, TSPOOL_ISOLATION_THREAD);
    rig.options.arena_bytes = 32 << 20;
    state_init(&state, 2, 100, 1);
    spool = rig_open(&rig);
}

static void teardown(void)
{
    cr_assert_eq(tspool_close(spool, MINUTE_NS, NULL), 0);
    state_deinit(&state);
    rig_deinit(&rig);
}

TestSuite(misuse, .init = setup, .fini = teardown, .timeout = 60);

static void assert_spool_goes_on(void)
{
    struct tspool_save *save = submit(spool, "after", &state);

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    tspool_save_free(save);
    assert_holds(&rig, "after", &state);
}

Test(misuse, nothing_where_a_save_must_be)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;
    struct tspool_save *save = NULL;
    uint8_t id[TSPOOL_SAVE_ID_BYTES];

    cr_assert_eq(tspool_save_begin(NULL, "a", NULL, &save, &failure), -EINVAL);
    cr_assert_eq(tspool_save_begin(spool, "a", NULL, NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_save_begin(spool, NULL, NULL, &save, &failure), -EINVAL);
    cr_assert_eq(tspool_save_again(spool, "a", NULL, NULL, &save, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add(NULL, &tensor, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(NULL, "a", "json", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(NULL, "a", "b", &failure), -EINVAL);
    cr_assert_eq(tspool_save_rebind(NULL, 0, &tensor), -EINVAL);
    cr_assert_eq(tspool_save_submit(NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_save_next_span(NULL, &span, 0), -EINVAL);
    cr_assert_eq(tspool_save_filled(NULL, &span), -EINVAL);
    cr_assert_eq(tspool_save_wait(NULL, TSPOOL_STAGED, 0), -EINVAL);
    cr_assert_eq(tspool_save_fd(NULL), -EINVAL);
    cr_assert_eq(tspool_save_result(NULL, &result), -EINVAL);
    cr_assert_eq(tspool_save_abort(NULL), -EINVAL);
    cr_assert_eq(tspool_save_id(spool, NULL), -EINVAL);
    cr_assert_eq(tspool_save_id(NULL, id), -EINVAL);
    cr_assert_eq(tspool_reserve(NULL, 1, &failure), -EINVAL);
    cr_assert_eq(tspool_close(NULL, 0, NULL), 0, "as free(NULL)");
    tspool_save_free(NULL);
    cr_assert_null(save);
    assert_spool_goes_on();
}

Test(misuse, nothing_where_its_description_must_be)
{
    struct tspool_save *save = begin(spool, "a", TSPOOL_STAGING_NOW);
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    cr_assert_eq(tspool_save_add(save, NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, NULL, "json", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "", "json", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "\xff", "json", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "a", NULL, "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "a", "", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "a", "json", NULL, 5, &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(save, NULL, "b", &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(save, "", "b", &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(save, "a", NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(save, "a", "\xc0\x80", &failure), -EINVAL);
    cr_assert_eq(tspool_save_metadata(save, "\xed\xa0\x80", "b", &failure), -EINVAL);
    cr_assert_eq(tspool_save_result(save, NULL), -EINVAL);
    cr_assert_eq(tspool_save_wait(save, 0, 0), -EINVAL);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED + 1, 0), -EINVAL);
    tspool_save_free(save);
    assert_spool_goes_on();
}

Test(misuse, of_the_order)
{
    struct tspool_save *save = begin(spool, "a", TSPOOL_STAGING_NOW), *again = NULL;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;

    state_add(&state, save, true);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_STAGED, 0), -EINVAL, "it was not submitted");
    cr_assert_eq(tspool_save_next_span(save, &span, 0), -EINVAL, "its tensors are staged for it");
    cr_assert_eq(tspool_save_again(spool, "b", save, NULL, &again, &failure), -EINVAL, "it was not submitted");
    cr_assert_eq(tspool_save_rebind(save, 99, state.data[0]), -EINVAL, "no such tensor");
    cr_assert_eq(tspool_save_rebind(save, 0, NULL), -EINVAL, "no memory to stage from");
    cr_assert_eq(tspool_save_submit(save, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_save_submit(save, &failure), -EINVAL, "twice");
    cr_assert_eq(tspool_save_add(save, &tensor, &failure), -EINVAL);
    cr_assert(strstr(failure.message, "submitted already"), "%s", failure.message);
    cr_assert_eq(tspool_save_metadata(save, "a", "b", &failure), -EINVAL);
    cr_assert_eq(tspool_save_add_object(save, "a", "json", "", 0, &failure), -EINVAL);
    cr_assert_eq(tspool_save_rebind(save, 0, state.data[0]), -EINVAL);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(tspool_save_abort(save), -EALREADY);
    cr_assert_eq(tspool_save_again(spool, "b", save, NULL, &again, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_save_add(again, &tensor, &failure), -EINVAL, "it has the first one's tensors");
    tspool_save_free(again);
    tspool_save_free(save);
    assert_spool_goes_on();
}

Test(misuse, of_another_spools_save)
{
    struct tspool *other = rig_open(&rig);
    struct tspool_save *save = submit(other, "a", &state), *again = NULL;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, MINUTE_NS), 0);
    cr_assert_eq(tspool_save_again(spool, "b", save, NULL, &again, &failure), -EINVAL);
    cr_assert_null(again);
    tspool_save_free(save);
    cr_assert_eq(tspool_close(other, MINUTE_NS, NULL), 0);
    assert_spool_goes_on();
}

Test(misuse, of_spans)
{
    struct tspool_save *save = begin(spool, "a", TSPOOL_STAGING_CALLER);
    struct tspool_span span = TSPOOL_SPAN_INIT, sizeless = { 0 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    state_add(&state, save, false);
    cr_assert_eq(tspool_save_next_span(save, &span, 0), -EINVAL, "it was not submitted");
    cr_assert_eq(tspool_save_submit(save, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_save_next_span(save, NULL, 0), -EINVAL);
    cr_assert_eq(tspool_save_filled(save, NULL), -EINVAL);
    cr_assert_eq(tspool_save_filled(save, &sizeless), -EINVAL);
    cr_assert_eq(tspool_save_next_span(save, &span, MINUTE_NS), 1);
    memset(span.data, 0, span.bytes);
    cr_assert_eq(tspool_save_filled(save, &span), 0);
    cr_assert_eq(tspool_save_filled(save, &span), -EINVAL, "twice");
    span.token = UINT64_MAX;
    cr_assert_eq(tspool_save_filled(save, &span), -EINVAL, "never handed out");
    cr_assert_eq(tspool_save_abort(save), 0);
    tspool_save_free(save);
    assert_spool_goes_on();
}

/* Its results stay; whatever needs the spool is refused. */
Test(misuse, of_a_save_whose_spool_was_closed)
{
    struct tspool *other = rig_open(&rig);
    struct tspool_save *save = submit(other, "a", &state), *again = NULL;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_span span = TSPOOL_SPAN_INIT;

    cr_assert_eq(tspool_close(other, MINUTE_NS, NULL), 0);
    cr_assert_eq(tspool_save_fd(save), -EINVAL);
    cr_assert_eq(tspool_save_wait(save, TSPOOL_PUBLISHED, 0), -EINVAL);
    cr_assert_eq(tspool_save_result(save, &result), -EINVAL);
    cr_assert_eq(tspool_save_abort(save), -EINVAL);
    cr_assert_eq(tspool_save_rebind(save, 0, state.data[0]), -EINVAL);
    cr_assert_eq(tspool_save_submit(save, &failure), -EINVAL);
    cr_assert_eq(tspool_save_next_span(save, &span, 0), -EINVAL);
    cr_assert_eq(tspool_save_filled(save, &span), -EINVAL);
    cr_assert_eq(tspool_save_again(spool, "b", save, NULL, &again, &failure), -EINVAL);
    tspool_save_free(save);
    assert_holds(&rig, "a", &state);
    assert_spool_goes_on();
}

/* It is closed all the same, as if no report had been asked for. */
Test(misuse, of_the_report_of_a_close)
{
    struct tspool_close_report sizeless = { 0 }, unknown = TSPOOL_CLOSE_REPORT_INIT;
    struct tspool *other = rig_open(&rig);

    tspool_save_free(submit(other, "a", &state));
    cr_assert_eq(tspool_close(other, MINUTE_NS, &sizeless), -EINVAL);
    assert_holds(&rig, "a", &state);
    other = rig_open(&rig);
    tspool_save_free(submit(other, "b", &state));
    unknown.mode = (enum tspool_close_mode)7;
    cr_assert_eq(tspool_close(other, MINUTE_NS, &unknown), 0);
    assert_holds(&rig, "b", &state);
}

Test(misuse, of_names_that_something_else_has)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;
    char path[300];

    snprintf(path, sizeof(path), "%s/file", rig.root);
    close(open(path, O_CREAT | O_WRONLY, 0666));
    cr_assert_eq(tspool_save_begin(spool, "file", NULL, &save, &failure), -EEXIST);
    snprintf(path, sizeof(path), "%s/empty", rig.root);
    cr_assert_eq(mkdir(path, 0777), 0);
    cr_assert_eq(tspool_save_begin(spool, "empty", NULL, &save, &failure), 0, "it can be published onto");
    tspool_save_free(save);
    snprintf(path, sizeof(path), "%s/empty/theirs", rig.root);
    close(open(path, O_CREAT | O_WRONLY, 0666));
    cr_assert_eq(tspool_save_begin(spool, "empty", NULL, &save, &failure), -EEXIST, "not any more");
    options.replace = 1;
    cr_assert_eq(tspool_save_begin(spool, "empty", &options, &save, &failure), 0, "that is seen when it is replaced");
    tspool_save_free(save);
    options.size = 0;
    cr_assert_eq(tspool_save_begin(spool, "sizeless", &options, &save, &failure), -EINVAL);
    assert_spool_goes_on();
}

Test(misuse, of_several_ranks)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;
    struct rig ranks = rig;
    struct tspool *rank;

    ranks.options.world_size = 2;
    ranks.options.rank = 1;
    rank = rig_open(&ranks);
    cr_assert_eq(tspool_save_begin(rank, "a", NULL, &save, &failure), -EINVAL);
    cr_assert(strstr(failure.message, "save_id"), "%s", failure.message);
    cr_assert_eq(tspool_close(rank, MINUTE_NS, NULL), 0);
    assert_spool_goes_on();
}

/* Out of descriptors: said, and not for ever. */
Test(misuse, of_descriptors_that_ran_out)
{
    struct tspool_save *save = begin(spool, "a", TSPOOL_STAGING_NOW);
    struct rlimit limit, none;

    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 0;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
    cr_expect_eq(tspool_save_fd(save), -EMFILE);
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    cr_assert_geq(tspool_save_fd(save), 0);
    tspool_save_free(save);
    assert_spool_goes_on();
}
