/* api/stream.c - streams on the real file system, over both backends: what is under the name, who may use them, what is refused.
 * Errors of the disk, kills and power cuts are tried on the simulated one (sim/stream.c).
 */
#include "../support/scarce.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <tspool/stream.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define FOREVER UINT64_MAX

static char root[64], path[512];
static struct tspool_failure failure;
static struct tspool_stream_options options;

static void setup(void)
{
    snprintf(root, sizeof(root), "/tmp/tspool-stream-XXXXXX");
    cr_assert_not_null(mkdtemp(root));
    snprintf(path, sizeof(path), "%s/file", root);
    failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    options = (struct tspool_stream_options)TSPOOL_STREAM_OPTIONS_INIT;
}

static int remove_entry(const char *entry, const struct stat *status, int kind, struct FTW *where)
{
    (void)status, (void)kind, (void)where;
    return remove(entry);
}

static void teardown(void) { nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

TestSuite(stream, .init = setup, .fini = teardown, .timeout = 100);

static uint8_t *bytes_make(size_t size)
{
    uint8_t *bytes = malloc(size + 1);

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 31 + i / 4093);
    return bytes;
}

static struct tspool_stream *opened(void)
{
    struct tspool_stream *stream = NULL;

    cr_assert_eq(tspool_stream_open(path, &options, &stream, &failure), 0, "%s", failure.message);
    return stream;
}

static void assert_file_is(const uint8_t *wanted, size_t size)
{
    uint8_t *found = malloc(size + 1);
    FILE *file = fopen(path, "r");

    cr_assert_not_null(file);
    cr_assert_eq(fread(found, 1, size + 1, file), size);
    cr_assert(memcmp(found, wanted, size) == 0, "other bytes");
    fclose(file);
    free(found);
}

static unsigned names_in(const char *directory_path)
{
    DIR *directory = opendir(directory_path);
    unsigned count = 0;

    for (struct dirent *entry; (entry = readdir(directory));)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return count;
}

static void write_and_commit(const uint8_t *bytes, size_t size, size_t piece)
{
    struct tspool_stream *stream = opened();

    for (size_t at = 0; at < size; at += piece) {
        cr_assert_eq(tspool_stream_tell(stream), at);
        cr_assert_eq(tspool_stream_write(stream, bytes + at, piece < size - at ? piece : size - at, &failure), 0);
    }
    cr_assert_eq(tspool_stream_commit(stream, &failure), 0, "%s", failure.message);
}

Test(stream, file_is_what_was_written_in_pieces_of_any_size)
{
    static const size_t sizes[] = { 0, 1, 4095, 4096, 4097, 65536, 65537, 3 * MIB + 11 };
    static const size_t pieces[] = { 700, 4096, 65536, 2 * MIB };

    for (int io = TSPOOL_IO_AUTO; io <= TSPOOL_IO_THREADS; io += TSPOOL_IO_THREADS)
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
            for (size_t j = 0; j < sizeof(pieces) / sizeof(*pieces); j++) {
                uint8_t *bytes = bytes_make(sizes[i]);

                options.io = (enum tspool_io)io;
                options.block_bytes = 65536;
                options.depth = 4;
                write_and_commit(bytes, sizes[i], pieces[j]);
                assert_file_is(bytes, sizes[i]);
                cr_assert_eq(names_in(root), 1);
                free(bytes);
            }
}

Test(stream, sync_keeps_the_block_at_hand_and_the_old_file)
{
    uint8_t *bytes = bytes_make(5 * MIB);
    struct tspool_stream *stream;
    size_t at = 0;

    write_and_commit(bytes, 100, 100);
    stream = opened();
    for (size_t piece = 1; at + piece < 5 * MIB; at += piece, piece = piece * 3 + 1) {
        cr_assert_eq(tspool_stream_write(stream, bytes + at, piece, &failure), 0);
        cr_assert_eq(tspool_stream_sync(stream, &failure), 0, "%s", failure.message);
        assert_file_is(bytes, 100);
    }
    cr_assert_eq(tspool_stream_commit(stream, &failure), 0);
    assert_file_is(bytes, at);
    free(bytes);
}

/* Others may look: at all that was written and nothing more, and without a way to write into the middle. */
Test(stream, descriptor_is_for_looking)
{
    uint8_t *bytes = bytes_make(5 * MIB), *found = malloc(5 * MIB);
    struct tspool_stream *stream = opened();
    size_t at = 0;
    int fd = -1;

    for (size_t piece = 1; at + piece < 5 * MIB; at += piece, piece = piece * 3 + 1) {
        struct stat status;
        int again = tspool_stream_fd(stream, &failure);

        cr_assert(again >= 0 && (fd < 0 || again == fd), "%s", failure.message);
        fd = again;
        cr_assert_eq(fstat(fd, &status), 0);
        cr_assert_eq((size_t)status.st_size, at);
        cr_assert_eq(pread(fd, found, 5 * MIB, 0), (ssize_t)at);
        cr_assert(memcmp(found, bytes, at) == 0);
        cr_assert(write(fd, "x", 1) < 0 && errno == EBADF);
        cr_assert_eq(tspool_stream_write(stream, bytes + at, piece, &failure), 0);
    }
    cr_assert_eq(tspool_stream_commit(stream, &failure), 0, "%s", failure.message);
    cr_assert(fcntl(fd, F_GETFD) < 0, "it is still open");
    assert_file_is(bytes, at);
    free(bytes);
    free(found);
}

Test(stream, abort_leaves_what_was_there)
{
    uint8_t *bytes = bytes_make(5 * MIB);
    struct tspool_stream *stream;

    write_and_commit(bytes, 100, 100);
    stream = opened();
    cr_assert_eq(tspool_stream_write(stream, bytes, 5 * MIB, &failure), 0);
    tspool_stream_abort(stream);
    tspool_stream_abort(NULL);
    assert_file_is(bytes, 100);
    cr_assert_eq(names_in(root), 1);
    free(bytes);
}

Test(stream, room_is_at_least_a_byte_and_never_waits_once_told)
{
    struct tspool_stream *stream;
    uint8_t *bytes = bytes_make(MIB);
    uint64_t written = 0;

    options.block_bytes = 65536;
    options.depth = 2;
    stream = opened();
    while (written < 10 * MIB) {
        int64_t room = tspool_stream_room(stream, FOREVER, &failure);

        cr_assert(room > 0 && room <= 65536);
        room = room > 1000 ? room - 999 : room;
        cr_assert_eq(tspool_stream_write(stream, bytes, (size_t)room, &failure), 0);
        written += (uint64_t)room;
    }
    cr_assert_geq(tspool_stream_room(stream, 0, &failure), 0);
    cr_assert_eq(tspool_stream_tell(stream), written);
    cr_assert_eq(tspool_stream_commit(stream, &failure), 0);
    free(bytes);
}

Test(stream, report_tells_how_the_bytes_go)
{
    struct tspool_stream_report report = TSPOOL_STREAM_REPORT_INIT;
    uint8_t *bytes = bytes_make(3 * MIB);
    struct tspool_stream *stream;

    options.io = TSPOOL_IO_THREADS;
    options.buffered = 1;
    stream = opened();
    cr_assert_eq(tspool_stream_write(stream, bytes, 3 * MIB, &failure), 0);
    cr_assert_eq(tspool_stream_sync(stream, &failure), 0);
    cr_assert_eq(tspool_stream_report(stream, &report), 0);
    cr_assert_str_eq(report.backend, "threads");
    cr_assert_eq(report.direct, 0);
    cr_assert_geq(report.writes, 3);
    report.size = sizeof(report) + 1;
    cr_assert_eq(tspool_stream_report(stream, &report), -EINVAL);
    tspool_stream_abort(stream);
    free(bytes);
}

/* Threads and processes -------------------------------------------------------------------------------------------- */

struct hand { struct tspool_stream *stream; const uint8_t *bytes; };

static void *hand_work(void *argument)
{
    struct hand *hand = argument;

    cr_assert_eq(tspool_stream_write(hand->stream, hand->bytes, MIB + 7, NULL), 0);
    return NULL;
}

Test(stream, may_pass_from_thread_to_thread)
{
    struct hand hand = { opened(), bytes_make(MIB + 7) };
    uint8_t *wanted = malloc(5 * (MIB + 7));

    for (size_t i = 0; i < 5; i++) {
        pthread_t thread;

        memcpy(wanted + i * (MIB + 7), hand.bytes, MIB + 7);
        cr_assert_eq(pthread_create(&thread, NULL, hand_work, &hand), 0);
        pthread_join(thread, NULL);
    }
    cr_assert_eq(tspool_stream_commit(hand.stream, &failure), 0);
    assert_file_is(wanted, 5 * (MIB + 7));
    free(wanted);
    free((void *)hand.bytes);
}

static int child_tries(struct tspool_stream *stream, const uint8_t *bytes)
{
    struct tspool_stream_report report = TSPOOL_STREAM_REPORT_INIT;
    bool refused = tspool_stream_write(stream, bytes, 1, &failure) == -EPERM && failure.cause[0] &&
                   tspool_stream_room(stream, 0, NULL) == -EPERM && tspool_stream_fd(stream, NULL) == -EPERM &&
                   tspool_stream_sync(stream, NULL) == -EPERM && tspool_stream_report(stream, &report) == -EPERM;

    tspool_stream_abort(stream);
    return refused ? 0 : 1;
}

Test(stream, forked_child_is_refused_and_takes_nothing_away)
{
    uint8_t *bytes = bytes_make(20 * MIB);
    struct tspool_stream *stream = opened();
    int status = 1;
    pid_t child;

    cr_assert_eq(tspool_stream_write(stream, bytes, 10 * MIB + 5, &failure), 0); /* in flight, some of it */
    child = fork();
    if (child == 0)
        _exit(child_tries(stream, bytes));
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_eq(tspool_stream_write(stream, bytes + 10 * MIB + 5, 10 * MIB - 5, &failure), 0);
    cr_assert_eq(tspool_stream_commit(stream, &failure), 0, "%s", failure.message);
    assert_file_is(bytes, 20 * MIB);
    free(bytes);
}

/* A process that is killed leaves its hidden file; one that lives keeps it. */
Test(stream, what_the_dead_left_goes_and_what_the_living_have_stays)
{
    uint8_t *bytes = bytes_make(MIB);
    struct tspool_stream *living = opened(), *next;
    int ready[2];
    pid_t child;
    char byte;

    cr_assert_eq(pipe(ready), 0);
    child = fork();
    if (child == 0) {
        opened();
        cr_assert_eq(write(ready[1], "x", 1), 1);
        pause();
    }
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(names_in(root), 2);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    next = opened();
    cr_assert_eq(names_in(root), 2, "the dead one's should be gone");
    cr_assert_eq(tspool_stream_write(living, bytes, MIB, &failure), 0);
    cr_assert_eq(tspool_stream_commit(living, &failure), 0, "%s", failure.message);
    tspool_stream_abort(next);
    assert_file_is(bytes, MIB);
    cr_assert_eq(names_in(root), 1);
    free(bytes);
}

/* Refusals --------------------------------------------------------------------------------------------------------- */

static void assert_refused(int error, const char *at)
{
    struct tspool_stream *stream = NULL;

    cr_assert_eq(tspool_stream_open(at, &options, &stream, &failure), error, "%s", failure.message);
    cr_assert_null(stream);
    cr_assert_eq(failure.error, -error);
    cr_assert_str_not_empty(failure.cause);
}

Test(stream, what_cannot_be_opened_is_told)
{
    char name[512];

    snprintf(name, sizeof(name), "%s/no/file", root);
    assert_refused(-ENOENT, name);
    assert_refused(-EISDIR, root);
    snprintf(name, sizeof(name), "%s/", root);
    assert_refused(-EISDIR, name);
    assert_refused(-ENOENT, "");
    assert_refused(-EINVAL, NULL);
    snprintf(name, sizeof(name), "%s/%0223d", root, 1);
    assert_refused(-ENAMETOOLONG, name);
    snprintf(name, sizeof(name), "%s/%0222d", root, 1);
    strcpy(path, name);
    write_and_commit((const uint8_t *)"x", 1, 1);
    options.keep = 1;
    assert_refused(-EEXIST, path);
    cr_assert_eq(names_in(root), 1);
}

Test(stream, options_that_cannot_be_are_refused)
{
    static const struct tspool_stream_options bad[] = {
        { .size = 1 }, { .size = sizeof(options) + 1 }, { .size = sizeof(options), .block_bytes = 1000 },
        { .size = sizeof(options), .block_bytes = 32 << 20 }, { .size = sizeof(options), .depth = 1 },
        { .size = sizeof(options), .depth = 257 }, { .size = sizeof(options), .io = (enum tspool_io)9 },
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        options = bad[i];
        assert_refused(-EINVAL, path);
    }
    cr_assert_eq(names_in(root), 0);
}

Test(stream, nothing_where_a_stream_must_be)
{
    struct tspool_stream_report report = TSPOOL_STREAM_REPORT_INIT;
    struct tspool_stream *stream = opened();

    cr_assert_eq(tspool_stream_open(path, NULL, NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_write(NULL, "x", 1, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_room(NULL, 0, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_sync(NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_fd(NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_commit(NULL, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_report(NULL, &report), -EINVAL);
    cr_assert_eq(tspool_stream_report(stream, NULL), -EINVAL);
    cr_assert_eq(tspool_stream_tell(NULL), 0);
    cr_assert_eq(tspool_stream_write(stream, NULL, 1, &failure), -EINVAL);
    cr_assert_eq(tspool_stream_write(stream, NULL, 0, &failure), 0);
    cr_assert_eq(tspool_stream_write(stream, "abc", 3, NULL), 0);
    cr_assert_eq(tspool_stream_commit(stream, NULL), 0);
    assert_file_is((const uint8_t *)"abc", 3);
}

/* A limit on the file's size is refused in the same places as a full disk. */
Test(stream, first_error_is_told_by_every_later_call_and_abort_cleans_up)
{
    struct rlimit limit = { 3 * MIB, 3 * MIB };
    uint8_t *bytes = bytes_make(MIB);
    struct tspool_failure again = TSPOOL_FAILURE_INIT;
    struct tspool_stream *stream;
    int error = 0;

    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int commits = 0; commits < 2; commits++) {
        stream = opened();
        for (int i = 0; i < 100 && error == 0; i++)
            error = tspool_stream_write(stream, bytes, MIB - 7, &failure); /* blocks are begun, too */
        cr_assert_eq(error, -EFBIG, "%s", failure.message);
        cr_assert_eq(failure.stage, TSPOOL_STAGE_WRITE);
        cr_assert_str_eq(failure.path, path);
        cr_assert_leq(failure.file_offset, 3 * MIB);
        cr_assert_eq(tspool_stream_sync(stream, &again), -EFBIG);
        cr_assert_str_eq(again.message, failure.message);
        cr_assert_eq(tspool_stream_room(stream, FOREVER, NULL), -EFBIG);
        cr_assert_eq(tspool_stream_write(stream, bytes, 1, NULL), -EFBIG);
        if (commits)
            cr_assert_eq(tspool_stream_commit(stream, &again), -EFBIG);
        else
            tspool_stream_abort(stream);
        cr_assert_eq(names_in(root), 0);
        error = 0;
    }
    free(bytes);
}

/* The kernel's side of the io goes away: every io_uring of this process becomes a descriptor of something else. */
static unsigned rings_take_away(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int other = open("/dev/null", O_RDWR);
    unsigned count = 0;

    for (struct dirent *entry; (entry = readdir(directory));) {
        char link[64] = "", name[300];

        snprintf(name, sizeof(name), "/proc/self/fd/%s", entry->d_name);
        if (readlink(name, link, sizeof(link) - 1) > 0 && strcmp(link, "anon_inode:[io_uring]") == 0)
            count += dup2(other, atoi(entry->d_name)) >= 0;
    }
    close(other);
    closedir(directory);
    return count;
}

/* Found by the write that is submitted, by the watch that is armed, or in the wait: as it comes. */
static void io_is_lost(const uint8_t *bytes, bool in_flight)
{
    struct tspool_stream *stream = opened();
    int error = 0;

    if (in_flight)
        cr_assert_eq(tspool_stream_write(stream, bytes, MIB, &failure), 0);
    else
        cr_assert_eq(tspool_stream_sync(stream, &failure), 0);
    cr_assert_eq(rings_take_away(), 1);
    for (int i = 0; i < 1000 && error == 0; i++)
        error = tspool_stream_write(stream, bytes, MIB, &failure);
    cr_assert_lt(error, 0);
    cr_assert_str_eq(failure.path, path);
    cr_assert_eq(tspool_stream_sync(stream, NULL), error);
    cr_assert_eq(tspool_stream_commit(stream, &failure), error);
    assert_file_is(bytes, 100);
}

Test(stream, io_that_is_beyond_use_is_an_error_and_not_a_hang)
{
    uint8_t *bytes = bytes_make(MIB);
    struct tspool_stream *stream = NULL;
    time_t patience = time(NULL) + 60;

    write_and_commit(bytes, 100, 100);
    options.io = TSPOOL_IO_URING;
    if (tspool_stream_open(path, &options, &stream, &failure) < 0)
        cr_skip_test("no io_uring here: %s", failure.message);
    tspool_stream_abort(stream);
    for (int i = 0; i < 40; i++)
        io_is_lost(bytes, i % 2);
    options.io = TSPOOL_IO_THREADS;
    do
        write_and_commit(bytes, MIB, MIB);
    while (names_in(root) > 1 && time(NULL) < patience); /* the kernel takes a ring down when it likes, and its files after it */
    cr_assert_eq(names_in(root), 1);
    free(bytes);
}

/* Memory that runs out --------------------------------------------------------------------------------------------- */

Test(stream, allocation_that_fails_is_told_and_nothing_stays_open)
{
    unsigned number = 0, descriptors, threads;
    bool reached = true;

    write_and_commit((const uint8_t *)"x", 1, 1);
    descriptors = names_in("/proc/self/fd");
    threads = names_in("/proc/self/task");
    while (reached) {
        struct tspool_stream *stream = NULL;
        int error;

        scarce_begin(++number);
        error = tspool_stream_open(path, &options, &stream, &failure);
        reached = scarce_end();
        cr_assert(error == 0 || (reached && error == -ENOMEM && failure.error == ENOMEM), "allocation %u: %s", number,
                  failure.message);
        tspool_stream_abort(stream);
    }
    cr_assert_gt(number, 3);
    cr_assert_eq(names_in(root), 1);
    cr_assert_eq(names_in("/proc/self/fd"), descriptors);
    cr_assert_eq(names_in("/proc/self/task"), threads);
}
