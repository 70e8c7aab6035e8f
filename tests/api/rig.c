/* api/rig.c - see rig.h. */
#include "rig.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

void rig_init(struct rig *rig, enum tspool_isolation isolation)
{
    *rig = (struct rig){ .options = TSPOOL_OPTIONS_INIT };
    snprintf(rig->root, sizeof(rig->root), "/tmp/tspool-api-XXXXXX");
    cr_assert_not_null(mkdtemp(rig->root));
    rig->options.root = rig->root;
    rig->options.arena_bytes = (uint64_t)128 << 20;
    rig->options.isolation = isolation;
    rig->options.writer_path = TEST_WRITER_PATH;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(path);
}

void rig_deinit(struct rig *rig) { nftw(rig->root, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

struct tspool *rig_open(const struct rig *rig)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool *spool = NULL;

    cr_assert_eq(tspool_open(&rig->options, &spool, &failure), 0, "%s", failure.message);
    return spool;
}

/* States ------------------------------------------------------------------------------------------------------------ */

void state_init(struct state *state, size_t count, size_t elements, unsigned seed)
{
    *state = (struct state){ .count = count, .elements = elements, .scalar = (float)seed };
    state->data = calloc(count, sizeof(*state->data));
    for (size_t i = 0; i < count; i++) {
        state->data[i] = malloc(elements * sizeof(float));
        for (size_t j = 0; j < elements; j++)
            state->data[i][j] = (float)((i * 31 + j * 7 + seed * 131) % 1000003);
    }
}

void state_deinit(struct state *state)
{
    for (size_t i = 0; i < state->count; i++)
        free(state->data[i]);
    free(state->data);
}

static void add(struct tspool_save *save, const char *name, uint32_t rank, const uint64_t *shape, const void *data)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

    tensor.name = name;
    tensor.dtype = TSPOOL_F32;
    tensor.rank = rank;
    tensor.shape = shape;
    tensor.data = data;
    cr_assert_eq(tspool_save_add(save, &tensor, &failure), 0, "%s", failure.message);
}

void state_add(const struct state *state, struct tspool_save *save, bool with_data)
{
    const uint64_t nothing[] = { 3, 0 }, shape[] = { state->elements };
    char name[32];

    for (size_t i = 0; i < state->count; i++) {
        snprintf(name, sizeof(name), "t%zu", i);
        add(save, name, 1, shape, with_data ? state->data[i] : NULL);
    }
    add(save, "scalar", 0, NULL, with_data ? &state->scalar : NULL);
    add(save, "empty", 2, nothing, NULL);
}

/* Saves ------------------------------------------------------------------------------------------------------------- */

struct tspool_save *begin(struct tspool *spool, const char *name, enum tspool_staging staging)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;

    options.staging = staging;
    options.guarded = 1;
    cr_assert_eq(tspool_save_begin(spool, name, &options, &save, &failure), 0, "%s", failure.message);
    return save;
}

struct tspool_save *submit(struct tspool *spool, const char *name, const struct state *state)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = begin(spool, name, TSPOOL_STAGING_NOW);

    state_add(state, save, true);
    cr_assert_eq(tspool_save_submit(save, &failure), 0, "%s", failure.message);
    return save;
}

void fill_spans(struct tspool_save *save, const struct state *state)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    int got;

    while ((got = tspool_save_next_span(save, &span, MINUTE_NS)) == 1) {
        const void *source = span.tensor < state->count ? (const void *)state->data[span.tensor] : &state->scalar;

        memcpy(span.data, (const char *)source + span.tensor_offset, span.bytes);
        cr_assert_eq(tspool_save_filled(save, &span), 0);
    }
    cr_assert_eq(got, 0, "next_span: %s", strerror(-got));
}

/* Reading back ------------------------------------------------------------------------------------------------------ */

static void assert_tensor(struct tspool_checkpoint *checkpoint, const char *name, const void *bytes, size_t size)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    void *data = malloc(size + 1);

    cr_assert_eq(tspool_checkpoint_find(checkpoint, name, &request.tensor), 0, "%s is missing", name);
    request.data = data;
    request.bytes = size;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), 0, "%s", failure.message);
    cr_assert_eq(memcmp(data, bytes, size), 0, "%s differs", name);
    free(data);
}

void assert_holds(const struct rig *rig, const char *name, const struct state *state)
{
    struct tspool_verify_report report = TSPOOL_VERIFY_REPORT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    char path[300], tensor[32];

    snprintf(path, sizeof(path), "%s/%s", rig->root, name);
    cr_assert_eq(tspool_checkpoint_open(path, NULL, &checkpoint, &failure), 0, "%s", failure.message);
    cr_assert_eq(tspool_checkpoint_count(checkpoint), state->count + 2);
    for (size_t i = 0; i < state->count; i++) {
        snprintf(tensor, sizeof(tensor), "t%zu", i);
        assert_tensor(checkpoint, tensor, state->data[i], state->elements * sizeof(float));
    }
    assert_tensor(checkpoint, "scalar", &state->scalar, sizeof(float));
    assert_tensor(checkpoint, "empty", "", 0);
    cr_assert_eq(tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, &report, &failure), 0, "%s", failure.message);
    cr_assert_eq(report.foreign, 0);
    tspool_checkpoint_close(checkpoint);
}

void published_remove(const struct rig *rig, const char *name)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", rig->root, name);
    cr_assert_eq(nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

bool exists(const struct rig *rig, const char *name)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", rig->root, name);
    return access(path, F_OK) == 0;
}

void assert_nothing_but(const struct rig *rig, const char *const *published, size_t count)
{
    DIR *directory = opendir(rig->root);
    struct dirent *entry;
    size_t found = 0;

    cr_assert_not_null(directory);
    while ((entry = readdir(directory))) {
        bool known = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;

        for (size_t i = 0; i < count; i++)
            if (strcmp(entry->d_name, published[i]) == 0)
                known = true, found++;
        cr_assert(known, "%s is stray", entry->d_name);
    }
    cr_assert_eq(found, count);
    closedir(directory);
}

/* Processes --------------------------------------------------------------------------------------------------------- */

void writer_stop(struct tspool *spool)
{
    siginfo_t info;
    int pid = tspool_writer_pid(spool);

    cr_assert_gt(pid, 0);
    cr_assert_eq(kill(pid, SIGSTOP), 0);
    cr_assert_eq(waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOWAIT), 0);
}

void writer_continue(int pid) { cr_assert_eq(kill(pid, SIGCONT), 0); }

extern void __gcov_dump(void) __attribute__((weak)); /* there in a coverage build */

void child_end(int status)
{
    if (__gcov_dump)
        __gcov_dump();
    _exit(status);
}

void process_await_end(int pid)
{
    struct pollfd end = { .fd = pidfd_open(pid, 0), .events = POLLIN };

    if (end.fd < 0) /* gone and reaped */
        return;
    cr_assert_eq(poll(&end, 1, 30000), 1, "process %d did not end", pid);
    close(end.fd);
}
