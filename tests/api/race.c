/* api/race.c - everything at once on one spool, for ThreadSanitizer. First with thread isolation: callers' threads, staging
 * threads, the supervisor, the writer and the threads of both backends are all in this process. Then with writer processes,
 * which are killed again and again: no save may notice. Retention deletes what was saved before the callers began.
 *
 * A plain program: Criterion's sandbox does not start under ThreadSanitizer.
 */
#include <errno.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/tspool.h>
#include <unistd.h>

#define CALLERS 4u
#define ROUNDS 3u
#define OLD 3u
#define ELEMENTS 5000011u /* two chunks */
#define MINUTE_NS (60 * (uint64_t)1000000000)

static struct tspool *spool;
static float *data[CALLERS];
static char root[] = "/tmp/tspool-race-XXXXXX";
static unsigned published;          /* atomic */
static bool callers_done;           /* atomic */

static void fail(const char *what, int line)
{
    fprintf(stderr, "race.c:%d: %s\n", line, what);
    abort();
}
#define REQUIRE(holds) ((holds) ? (void)0 : fail(#holds, __LINE__))

static void save_fail(struct tspool_save *save, int line)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    REQUIRE(tspool_save_result(save, &result) == 0);
    fail(result.failure.message, line);
}

static struct tspool_save *declare(unsigned caller, const char *name, enum tspool_staging staging)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    const uint64_t shape[] = { ELEMENTS };
    struct tspool_save *save;
    char text[8];

    options.staging = staging;
    options.guarded = 1;
    options.replace = 1;
    REQUIRE(tspool_save_begin(spool, name, &options, &save, NULL) == 0);
    tensor.name = "weights", tensor.dtype = TSPOOL_F32, tensor.rank = 1, tensor.shape = shape;
    tensor.data = staging == TSPOOL_STAGING_CALLER ? NULL : data[caller];
    REQUIRE(tspool_save_add(save, &tensor, NULL) == 0);
    snprintf(text, sizeof(text), "%u", caller);
    REQUIRE(tspool_save_metadata(save, "caller", text, NULL) == 0);
    return save;
}

static void fill(unsigned caller, struct tspool_save *save)
{
    struct tspool_span span = TSPOOL_SPAN_INIT;
    int got;

    while ((got = tspool_save_next_span(save, &span, MINUTE_NS)) == 1) {
        memcpy(span.data, (const char *)data[caller] + span.tensor_offset, span.bytes);
        REQUIRE(tspool_save_filled(save, &span) == 0);
    }
    if (got < 0)
        save_fail(save, __LINE__);
}

/* Follows it by its descriptor, as an event loop would. */
static enum tspool_outcome follow(struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct pollfd news = { .fd = tspool_save_fd(save), .events = POLLIN };

    do {
        REQUIRE(poll(&news, 1, 60000) == 1);
        REQUIRE(tspool_save_result(save, &result) == 0);
    } while (result.outcome == TSPOOL_OUTCOME_PENDING);
    return result.outcome;
}

static void change(unsigned caller, unsigned round)
{
    for (size_t i = 0; i < ELEMENTS; i++)
        data[caller][i] = (float)(caller * 1000 + round);
}

static void *caller_main(void *argument)
{
    unsigned caller = (unsigned)(uintptr_t)argument;
    enum tspool_staging staging = (enum tspool_staging)(caller % 3);
    struct tspool_save_options replacing = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save, *again;
    char name[16];

    replacing.replace = 1;
    snprintf(name, sizeof(name), "caller-%u", caller);
    for (unsigned round = 0; round < ROUNDS; round++) {
        change(caller, round);
        save = declare(caller, name, staging);
        if (tspool_save_submit(save, &failure) < 0)
            fail(failure.message, __LINE__);
        if (staging == TSPOOL_STAGING_CALLER)
            fill(caller, save);
        if (tspool_save_wait(save, TSPOOL_STAGED, MINUTE_NS) < 0)
            save_fail(save, __LINE__);
        change(caller, 100); /* allowed now, and must reach nobody */
        REQUIRE(follow(save) == TSPOOL_OUTCOME_PUBLISHED);
        __atomic_add_fetch(&published, 1, __ATOMIC_RELAXED);
        if (round == 0 && staging != TSPOOL_STAGING_CALLER) {
            REQUIRE(tspool_save_again(spool, "again", save, &replacing, &again, NULL) == 0);
            REQUIRE(tspool_save_submit(again, NULL) == 0);
            tspool_save_abort(again); /* whichever comes first */
            follow(again);
            tspool_save_free(again);
        }
        tspool_save_free(save);
    }
    return NULL;
}

static void check(unsigned caller)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    struct tspool_checkpoint *checkpoint;
    char path[64];

    snprintf(path, sizeof(path), "%s/caller-%u", root, caller);
    REQUIRE(tspool_checkpoint_open(path, NULL, &checkpoint, NULL) == 0);
    request.data = data[caller];
    request.bytes = ELEMENTS * sizeof(float);
    REQUIRE(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, NULL) == 0);
    for (size_t i = 0; i < ELEMENTS; i++)
        REQUIRE(data[caller][i] == (float)(caller * 1000 + ROUNDS - 1));
    tspool_checkpoint_close(checkpoint);
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(path);
}

/* One death for each save that gets through: five in a row would be too many. */
static void *killer_main(void *argument)
{
    unsigned *kills = argument;

    while (!__atomic_load_n(&callers_done, __ATOMIC_RELAXED)) {
        unsigned before = __atomic_load_n(&published, __ATOMIC_RELAXED);
        int pid = tspool_writer_pid(spool);

        if (pid > 0 && kill(pid, SIGKILL) == 0)
            ++*kills;
        while (pid > 0 && __atomic_load_n(&published, __ATOMIC_RELAXED) == before
               && !__atomic_load_n(&callers_done, __ATOMIC_RELAXED))
            sched_yield();
        sched_yield();
    }
    return NULL;
}

static char *old_path(unsigned number, char path[64])
{
    snprintf(path, 64, "%s/old-%u", root, number);
    return path;
}

static void old_save(void)
{
    for (unsigned i = 0; i < OLD; i++) {
        char path[64];
        struct tspool_save *save = declare(0, strrchr(old_path(i, path), '/') + 1, TSPOOL_STAGING_NOW);

        REQUIRE(tspool_save_submit(save, NULL) == 0);
        REQUIRE(follow(save) == TSPOOL_OUTCOME_PUBLISHED);
        tspool_save_free(save);
    }
}

/* The last of them stays when "again" was given up each time. */
static void old_are_gone(void)
{
    char path[64];

    for (unsigned i = 0; i < OLD - 1; i++)
        REQUIRE(access(old_path(i, path), F_OK) < 0);
}

static void run(enum tspool_isolation isolation)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    pthread_t threads[CALLERS], killer;
    unsigned kills = 0;

    callers_done = false;
    options.root = root;
    options.writer_path = TEST_WRITER_PATH;
    options.arena_bytes = 48 << 20; /* three slots: the callers must wait for each other's, and in one order */
    options.isolation = isolation;
    options.io = TSPOOL_IO_THREADS;
    options.heartbeat_ns = 20000000000; /* sanitizers are slow */
    options.keep = CALLERS + 1; /* theirs and "again" */
    REQUIRE(tspool_open(&options, &spool, NULL) == 0);
    for (unsigned i = 0; i < CALLERS; i++)
        REQUIRE((data[i] = calloc(ELEMENTS, sizeof(float))) != NULL);
    old_save();
    for (unsigned i = 0; i < CALLERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, caller_main, (void *)(uintptr_t)i) == 0);
    if (isolation == TSPOOL_ISOLATION_PROCESS)
        REQUIRE(pthread_create(&killer, NULL, killer_main, &kills) == 0);
    for (unsigned i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    __atomic_store_n(&callers_done, true, __ATOMIC_RELAXED);
    if (isolation == TSPOOL_ISOLATION_PROCESS) {
        pthread_join(killer, NULL);
        REQUIRE(kills > 0);
        printf("%u writers were killed\n", kills);
    }
    REQUIRE(tspool_close(spool, MINUTE_NS, NULL) == 0);
    if (isolation == TSPOOL_ISOLATION_THREAD) /* the last writer process may have had nothing to publish */
        old_are_gone();
    for (unsigned i = 0; i < CALLERS; i++) {
        check(i);
        free(data[i]);
    }
}

int main(void)
{
    REQUIRE(mkdtemp(root) != NULL);
    run(TSPOOL_ISOLATION_THREAD);
    run(TSPOOL_ISOLATION_PROCESS);
    nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
