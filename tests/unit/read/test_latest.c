/* Latest: which checkpoint a restarted trainer resumes from. */
#include "made.h"

#include <claim/claim.h>
#include <fcntl.h>
#include <format/part.h>
#include <proc/identity.h>
#include <read/read.h>
#include <read/source.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static struct made_tensor tensors[] = { { "w", TSPOOL_U8, 1, { 10 } } };
static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void)
{
    root = scratch_make();
    made_fill(tensors, 1, 31);
}

static void teardown(void)
{
    made_free(tensors, 1);
    scratch_remove(root);
}

static void make(const char *name, const char *step, uint64_t sequence)
{
    struct made_checkpoint made = { tensors, 1, .step = step, .sequence = sequence };

    made_checkpoint(path_of(root, name), &made);
}

static void age(const char *path)
{
    struct timespec times[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000 } };

    cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void latest_is(const char *name)
{
    char *path = NULL;
    int error = tspool_latest(root, &path, &failure);

    cr_assert_eq(error, 0, "%s", failure.message);
    cr_assert_str_eq(path, path_of(root, name));
    free(path);
}

Test(latest, is_by_step_as_a_number_where_all_have_one, .init = setup, .fini = teardown)
{
    make("step-9", "9", 3);
    make("step-10", "10", 2);
    make("step-2", "2", 4);
    latest_is("step-10");
}

Test(latest, is_by_commit_sequence_where_one_has_no_step, .init = setup, .fini = teardown)
{
    make("a", "9", 3);
    make("b", "1000", 2);
    make("c", NULL, 4);
    latest_is("c");
}

Test(latest, looks_past_hidden_damaged_and_foreign_directories, .init = setup, .fini = teardown)
{
    make("good", "1", 1);
    make(".hidden", "5", 5);
    make("damaged", "6", 6);
    file_write(path_of(root, "damaged/tspool.manifest.json"), "{", 1);
    mkdir(path_of(root, "nothing"), 0777);
    file_write(path_of(root, "file"), "x", 1);
    cr_assert_eq(symlink("good", path_of(root, "link")), 0);
    latest_is("good");
}

Test(latest, of_an_empty_or_missing_root_is_none, .init = setup, .fini = teardown)
{
    char *path = NULL;

    cr_assert_eq(tspool_latest(root, &path, &failure), -ENOENT);
    cr_assert_eq(tspool_latest(path_of(root, "absent"), &path, &failure), -ENOENT);
    cr_assert_eq(tspool_latest(NULL, &path, &failure), -EINVAL);
    cr_assert_null(path);
}

#define HIDDEN_A ".step.000102030405060708090a0b0c0d0e0f"
#define HIDDEN_B ".step.100102030405060708090a0b0c0d0e0f"

Test(latest, puts_back_a_name_whose_replacement_was_interrupted, .init = setup, .fini = teardown)
{
    struct tspool_checkpoint *checkpoint = NULL;

    make("old", "1", 1);
    make(HIDDEN_A, "5", 5);
    make(HIDDEN_B, "6", 6);
    age(path_of(root, HIDDEN_A));
    age(path_of(root, HIDDEN_B));
    latest_is("step");
    cr_assert_neq(access(path_of(root, HIDDEN_B), F_OK), 0, "the newer one was put under the name");
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), NULL, &checkpoint, &failure), 0, "%s", failure.message);
    cr_assert_str_eq(tspool_checkpoint_metadata(checkpoint, "step"), "6");
    tspool_checkpoint_close(checkpoint);
}

Test(latest, opening_the_missing_name_puts_it_back_too, .init = setup, .fini = teardown)
{
    struct tspool_checkpoint *checkpoint = NULL;

    make(HIDDEN_A, "5", 5);
    make(HIDDEN_B, "6", 6);
    cr_assert_eq(tspool_checkpoint_open(path_of(root, "step"), NULL, &checkpoint, &failure), 0, "%s", failure.message);
    tspool_checkpoint_close(checkpoint);
}

Test(latest, does_not_bring_back_what_was_never_published, .init = setup, .fini = teardown)
{
    char *path = NULL;

    make(HIDDEN_A, "5", 5);
    age(path_of(root, HIDDEN_A));
    cr_assert_eq(tspool_latest(root, &path, &failure), -ENOENT);
}

/* An attempt whose record is locked by us, as its writer holds it. */
struct held { int part; char name[64]; };

static struct held attempt_hold(const char *hidden, const struct part_record *record, off_t size)
{
    struct held held;
    char text[PART_TEXT_BYTES];
    char *part;

    mkdir(path_of(root, hidden), 0777);
    part = path_join(path_of(root, hidden), "tspool.part-00001");
    held.part = open(part, O_RDWR | O_CREAT, 0666);
    cr_assert_geq(held.part, 0);
    cr_assert_eq(flock(held.part, LOCK_EX | LOCK_NB), 0);
    if (record) {
        part_emit(record, text);
        cr_assert_eq(write(held.part, text, sizeof text), sizeof text);
    }
    if (size)
        cr_assert_eq(ftruncate(held.part, size), 0);
    age(part);
    age(path_of(root, hidden));
    free(part);
    return held;
}

static struct part_record record_of(const struct process_identity *trainer)
{
    struct part_record record = { .writer_pid = (uint32_t)getpid(), .trainer_pid = trainer->pid,
                                  .trainer_start = trainer->start, .pid_namespace = trainer->pid_namespace };

    memcpy(record.boot_id, trainer->boot_id, sizeof record.boot_id);
    return record;
}

static struct process_identity own_identity(void)
{
    struct process_identity self = { 0 };

    cr_assert_eq(process_identify(&self), 0);
    return self;
}

#define SHORT_NS 60000000u /* three looks */

static struct tspool_latest_report waited(uint64_t timeout_ns)
{
    struct tspool_latest_report report = TSPOOL_LATEST_REPORT_INIT;
    char *path = NULL;
    int error = tspool_latest_wait(root, timeout_ns, &path, &report, &failure);

    cr_assert_eq(error, 0, "%s", failure.message);
    free(path);
    return report;
}

static void is_not_waited_for(struct held held)
{
    struct tspool_latest_report report = waited(UINT64_MAX); /* or the test never ends */

    cr_expect_eq(report.orphans_seen, 0);
    cr_expect_eq(report.waited_ns, 0);
    close(held.part);
}

static void is_waited_for(struct held held)
{
    struct tspool_latest_report report = waited(SHORT_NS);

    cr_expect_eq(report.orphans_seen, 1);
    cr_expect_eq(report.orphans_left, 1);
    cr_expect_str_eq(report.orphan_left, "step");
    cr_expect_geq(report.waited_ns, SHORT_NS);
    close(held.part);
    report = waited(UINT64_MAX);
    cr_expect_eq(report.orphans_seen, 0, "its lock fell: it is dead");
}

Test(latest, does_not_wait_for_a_living_trainers_save, .init = setup, .fini = teardown)
{
    struct process_identity self = own_identity();
    struct part_record record = record_of(&self);

    make("good", "1", 1);
    is_not_waited_for(attempt_hold(HIDDEN_A, &record, 0));
}

Test(latest, waits_for_a_save_whose_trainer_is_dead, .init = setup, .fini = teardown)
{
    struct process_identity other = own_identity();
    struct part_record record;

    other.start--; /* somebody had our pid before */
    record = record_of(&other);
    make("good", "1", 1);
    is_waited_for(attempt_hold(HIDDEN_A, &record, 0));
}

Test(latest, believes_the_writers_mark_where_it_cannot_look_itself, .init = setup, .fini = teardown)
{
    struct process_identity other = own_identity();
    struct part_record record;

    other.boot_id[0] ^= 1; /* another machine's */
    record = record_of(&other);
    make("good", "1", 1);
    is_not_waited_for(attempt_hold(HIDDEN_A, &record, 0));
    is_waited_for(attempt_hold(HIDDEN_B, &record, PART_ORPHAN_BYTES));
    is_waited_for(attempt_hold(".step.200102030405060708090a0b0c0d0e0f", NULL, PART_ORPHAN_BYTES));
}

Test(latest, does_not_wait_for_an_empty_record_that_is_old, .init = setup, .fini = teardown)
{
    make("good", "1", 1);
    is_not_waited_for(attempt_hold(HIDDEN_A, NULL, 0));
}

Test(latest, waits_for_what_is_just_begun_until_it_says_whose_it_is, .init = setup, .fini = teardown)
{
    struct tspool_latest_report report;

    make("good", "1", 1);
    mkdir(path_of(root, HIDDEN_A), 0777); /* young and empty: two seconds at most */
    report = waited(SHORT_NS);
    cr_expect_eq(report.orphans_seen, 0);
    cr_expect_geq(report.waited_ns, SHORT_NS);
    age(path_of(root, HIDDEN_A));
    cr_expect_eq(waited(UINT64_MAX).waited_ns, 0);
}

/* The record is dropped before the rename; the lock on the directory stays. */
Test(latest, waits_for_what_is_just_being_published, .init = setup, .fini = teardown)
{
    int directory;

    make("good", "1", 1);
    make(HIDDEN_A, "2", 2);
    age(path_of(root, HIDDEN_A));
    cr_expect_eq(waited(UINT64_MAX).waited_ns, 0, "a dead one");
    directory = open(path_of(root, HIDDEN_A), O_RDONLY | O_DIRECTORY);
    cr_assert_eq(flock(directory, LOCK_EX | LOCK_NB), 0);
    cr_expect_geq(waited(SHORT_NS).waited_ns, SHORT_NS);
    close(directory);
}

Test(latest, refuses_a_report_without_a_size, .init = setup, .fini = teardown)
{
    struct tspool_latest_report report = { 0 };
    char *path = NULL;

    make("good", "1", 1);
    cr_assert_eq(tspool_latest_wait(root, 0, &path, &report, &failure), -EINVAL);
    cr_assert_null(path);
}

Test(latest, knows_a_live_attempt_by_the_lock_on_its_part_record, .init = setup, .fini = teardown)
{
    struct io_settings settings = { .depth = 1 };
    char *part;
    struct io *io;
    int handle, held;

    mkdir(path_of(root, HIDDEN_A), 0777);
    part = strdup(path_of(root, HIDDEN_A "/tspool.part-00001"));
    file_write(part, "", 0);
    age(part);
    age(path_of(root, HIDDEN_A));
    cr_assert_eq(io_create_threads(&settings, &io, &failure), 0);
    handle = open(root, O_RDONLY | O_DIRECTORY);
    cr_assert_not(attempt_is_alive(io, handle, HIDDEN_A, 1000000000), "nobody holds it");
    held = open(part, O_RDONLY);
    cr_assert_eq(flock(held, LOCK_EX | LOCK_NB), 0);
    cr_assert(attempt_is_alive(io, handle, HIDDEN_A, 1000000000), "its writer holds it");
    close(held);
    cr_assert_not(attempt_is_alive(io, handle, HIDDEN_A, 1000000000));
    cr_assert_not(attempt_is_alive(io, handle, ".gone.000102030405060708090a0b0c0d0e0f", 1000000000));
    close(handle);
    io_destroy(io);
    free(part);
}
