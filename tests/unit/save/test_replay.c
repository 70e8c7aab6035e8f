/* save/test_replay.c - a writer dies, hangs, meets EIO or gets SIGTERM at each stage of a save: the table "who survives what",
 * row by row, without a process or a thread that could come too early.
 */
#include "scripted.h"

#include <arena/arena.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <save/restart.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct scripted scripted;

static void setup(void) { scripted_init(&scripted); }
static void teardown(void) { scripted_deinit(&scripted); }

TestSuite(replay, .init = setup, .fini = teardown, .timeout = 30);
TestSuite(replay_larger, .fini = teardown, .timeout = 30); /* each begins with the staging that it is about */

static const struct tspool_save_result *result(void) { return &scripted.save->result; }

static void die(void)
{
    scripted_die(&scripted);
    scripted_turn(&scripted);
}

static void assert_begun_again(uint32_t number)
{
    struct message begin = scripted_begin(&scripted);

    cr_assert_eq(begin.attempt.number, number);
    cr_assert_eq(begin.attempt.save_id[0], 7);
}

static void assert_told_of(const struct tspool_save *save, uint32_t count)
{
    for (uint32_t chunk = 0; chunk < count; chunk++) {
        struct message staged = scripted_told(&scripted, MESSAGE_STAGED);

        cr_assert_eq(staged.attempt.save_id[0], save->attempt.save_id[0]);
        cr_assert_eq(staged.attempt.number, save->attempt.number);
        cr_assert_eq(staged.staged.chunk, chunk);
        cr_assert_eq(staged.staged.slot, save->slots[chunk]);
    }
}

static void assert_told_again(uint32_t count)
{
    assert_told_of(scripted.save, count);
    cr_assert(scripted_told_nothing(&scripted));
}

static void assert_published(uint32_t attempts)
{
    scripted_publish(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result()->attempts, attempts);
}

/* What fits the arena ------------------------------------------------------------------------------------------------ */

Test(replay, death_before_begin_was_answered)
{
    scripted_begin(&scripted);
    die();
    cr_assert_eq(scripted.starts, 2); /* the first time at once */
    assert_begun_again(2);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_stage(&scripted, chunk);
    assert_told_again(3);
    assert_published(2);
    cr_assert(strstr(result()->retry_cause, "was scripted to die"), "%s", result()->retry_cause);
}

/* Copying does not stop because a writer did. */
Test(replay, death_before_staged_while_staging_goes_on)
{
    scripted_begin(&scripted);
    scripted_stage(&scripted, 0);
    scripted_told(&scripted, MESSAGE_STAGED);
    scripted_released(&scripted, 0, scripted.save->slots[0]);
    die();
    cr_assert_not(save_is_ending(scripted.save));
    scripted_stage(&scripted, 1); /* between two writers */
    assert_begun_again(2);
    assert_told_again(2);
    scripted_released(&scripted, 0, scripted.save->slots[0]); /* a chunk is released once in each attempt */
    cr_assert_eq(scripted.kills, 0);
    scripted_stage(&scripted, 2);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_STAGED).staged.chunk, 2);
    cr_assert_eq(result()->level, TSPOOL_STAGED);
    assert_published(2);
}

Test(replay, death_after_staged)
{
    scripted_stage_all(&scripted);
    die();
    cr_assert_eq(result()->level, TSPOOL_STAGED); /* what was said stays said */
    assert_begun_again(2);
    assert_told_again(3);
    assert_published(2);
}

Test(replay, death_after_written_which_is_not_said_twice)
{
    uint64_t written_ns;

    scripted_stage_all(&scripted);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_released(&scripted, chunk, chunk);
    scripted_say_kind(&scripted, MESSAGE_WRITTEN);
    scripted_turn(&scripted);
    cr_assert_eq(result()->level, TSPOOL_WRITTEN);
    written_ns = result()->written_ns;
    die();
    assert_begun_again(2);
    assert_told_again(3);
    scripted.save->has_news = false;
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_released(&scripted, chunk, chunk);
    cr_assert_eq(result()->written_bytes, result()->file_bytes);
    scripted_say_kind(&scripted, MESSAGE_WRITTEN);
    scripted_turn(&scripted);
    cr_assert_not(scripted.save->has_news);
    cr_assert_eq(result()->level, TSPOOL_WRITTEN);
    cr_assert_eq(result()->written_ns, written_ns);
    assert_published(2);
}

/* The manifest is the same in every attempt: whichever published, recovery knows it. */
static void put_published(const struct tspool_save *save)
{
    char path[300];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", scripted.root, save->name);
    cr_assert_eq(mkdir(path, 0777), 0);
    strcat(path, "/" MANIFEST_NAME);
    fd = open(path, O_CREAT | O_WRONLY, 0666);
    cr_assert_eq(write(fd, save->manifest_front, save->manifest_front_size),
                 (ssize_t)save->manifest_front_size);
    close(fd);
}

Test(replay, death_after_the_rename_is_found_published)
{
    scripted_stage_all(&scripted);
    put_published(scripted.save);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result()->attempts, 1);
    cr_assert_eq(scripted.starts, 1);
}

Test(replay, death_after_the_rename_of_the_second_attempt_is_found_published_too)
{
    scripted_stage_all(&scripted);
    die();
    assert_begun_again(2);
    assert_told_again(3);
    put_published(scripted.save);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result()->attempts, 2);
}

/* DURABLE came, PUBLISHED not: its slots are gone, and the writer's word is that it stands. */
Test(replay, death_after_durable_needs_no_replay)
{
    scripted_stage_all(&scripted);
    scripted_say_kind(&scripted, MESSAGE_DURABLE);
    scripted_turn(&scripted);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(scripted.starts, 1);
}

/* It was sent before the death, and the pidfd was quicker, or another process passed it on late: not this attempt's. */
Test(replay, message_of_the_first_attempt_in_the_second_is_ignored)
{
    const struct attempt first = { { 7 }, 1 };
    const enum message_kind kinds[] = { MESSAGE_RELEASED, MESSAGE_PREPARED, MESSAGE_WRITTEN, MESSAGE_DURABLE, MESSAGE_PUBLISHED,
                                        MESSAGE_FAILED, MESSAGE_UNKNOWN, MESSAGE_ABANDONED };
    struct message message;

    scripted_stage_all(&scripted);
    die();
    assert_begun_again(2);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        message_init(&message, kinds[i], &first);
        if (kinds[i] == MESSAGE_FAILED || kinds[i] == MESSAGE_UNKNOWN)
            message.failure.error = EIO, message.failure.stage = TSPOOL_STAGE_SYNC;
        if (kinds[i] >= MESSAGE_PREPARED && kinds[i] <= MESSAGE_PUBLISHED && kinds[i] != MESSAGE_RELEASED)
            message.progress.item_bytes = 4096, message.progress.depth = 1;
        scripted_say(&scripted, &message);
        scripted_turn(&scripted);
        cr_assert_eq(scripted.save->state, SAVE_BEGUN, "%s", message_kind_name(kinds[i]));
    }
    cr_assert_eq(result()->level, TSPOOL_STAGED);
    cr_assert_eq(scripted.save->chunks[0], CHUNK_STAGED);
    cr_assert_eq(scripted.kills, 0);
    assert_told_again(3);
    assert_published(2);
}

/* Several deaths ----------------------------------------------------------------------------------------------------- */

Test(replay, second_death_in_a_row_is_followed_by_a_pause)
{
    scripted_stage_all(&scripted);
    die();
    assert_begun_again(2);
    die();
    cr_assert_eq(scripted.starts, 2);
    cr_assert_gt(scripted.supervisor.restart_due_ns, io_now(scripted.io));
    scripted_turn_until_starts(&scripted, 3);
    cr_assert_geq(io_now(scripted.io), scripted.supervisor.restart_due_ns);
    assert_begun_again(3);
    assert_told_again(3);
    assert_published(3);
    cr_assert_eq(scripted.supervisor.deaths, 0);
}

static void die_until(unsigned deaths)
{
    for (unsigned i = scripted.supervisor.deaths; i < deaths; i++) {
        scripted_turn_until_starts(&scripted, i + 1);
        scripted_begin(&scripted);
        die();
    }
}

Test(replay, fifth_death_in_a_row_fails_every_save_in_flight)
{
    scripted_submit_another(&scripted, "another");
    die_until(DEATHS_MAX);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->attempts, 5);
    cr_assert_eq(result()->failure.error, EPIPE);
    cr_assert(strstr(result()->failure.message, "5 writers died"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.message, "was scripted to die"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.message, "dmesg"), "%s", result()->failure.message);
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(scripted.starts, 5);
}

/* Training goes on, and so do its saves: each costs one start, until one succeeds. */
Test(replay, save_after_five_deaths_gets_one_start)
{
    die_until(DEATHS_MAX);
    scripted_submit_another(&scripted, "another");
    scripted_turn_until_starts(&scripted, 6);
    scripted_begin(&scripted);
    die();
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(scripted.another->result.attempts, 1);
    cr_assert(strstr(scripted.another->result.failure.message, "6 writers died"), "%s",
              scripted.another->result.failure.message);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.starts, 6);
}

Test(replay, death_before_ready_counts_and_is_tried_again)
{
    scripted_told(&scripted, MESSAGE_HELLO);
    die();
    cr_assert_eq(scripted.save->state, SAVE_SUBMITTED);
    cr_assert_eq(scripted.starts, 2);
    cr_assert_eq(scripted.supervisor.deaths, 1);
    assert_begun_again(1); /* no writer knew of the first attempt */
}

Test(replay, writers_that_cannot_be_started_are_tried_five_times)
{
    scripted.refusals = 5;
    scripted_told(&scripted, MESSAGE_HELLO);
    die();
    while (scripted.save->state != SAVE_RESOLVED) {
        struct completion completion;

        cr_assert_eq(io_wait(scripted.io, &completion, 1, IO_FOREVER), 1);
        supervisor_step(&scripted.supervisor, &completion);
    }
    cr_assert_eq(scripted.refusals, 1); /* one died, four were refused */
    cr_assert_eq(result()->failure.error, EAGAIN);
    cr_assert(strstr(result()->failure.message, "scripted to be refused"), "%s", result()->failure.message);
}

/* Others succeed meanwhile, so the deaths are not in a row: the save that kills each writer is bounded all the same. */
Test(replay, save_that_kills_every_writer_is_given_up)
{
    for (unsigned i = 1; i <= SAVE_DEATHS_MAX; i++) {
        cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PENDING);
        scripted_begin(&scripted);
        scripted.supervisor.deaths = 0;
        die();
    }
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert(strstr(result()->failure.message, "20 writers died"), "%s", result()->failure.message);
}

/* Errors that another attempt may mend ------------------------------------------------------------------------------- */

static void assert_eio_is_tried_three_times(enum tspool_stage stage)
{
    scripted_stage_all(&scripted);
    for (uint32_t attempt = 2; attempt <= 3; attempt++) {
        scripted_say_failed(&scripted, EIO, stage);
        cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.number, attempt);
        assert_told_again(3);
    }
    cr_assert(strstr(result()->retry_cause, "scripted to fail"), "%s", result()->retry_cause);
    scripted_say_failed(&scripted, EIO, stage);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, EIO);
    cr_assert_eq(result()->failure.stage, stage);
    cr_assert_eq(result()->attempts, 3);
    cr_assert_eq(scripted.starts, 1); /* the writer is well */
}

/* The file whose fsync failed is never synced again: the next attempt makes new ones from the arena. */
Test(replay, eio_at_sync_is_written_anew_by_the_same_writer) { assert_eio_is_tried_three_times(TSPOOL_STAGE_SYNC); }
Test(replay, eio_at_write_is_written_anew_by_the_same_writer) { assert_eio_is_tried_three_times(TSPOOL_STAGE_WRITE); }

Test(replay, eio_while_preparing_fails_at_once)
{
    scripted_stage_all(&scripted);
    scripted_say_failed(&scripted, EIO, TSPOOL_STAGE_PREPARE);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->attempts, 1);
}

Test(replay, full_disk_fails_at_once)
{
    scripted_stage_all(&scripted);
    scripted_say_failed(&scripted, ENOSPC, TSPOOL_STAGE_SYNC);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ENOSPC);
    cr_assert_eq(scripted.starts, 1);
}

/* SIGTERM: what was not staged is refused, and goes to the next writer, not to the one that is leaving. */
Test(replay, sigterm_before_staged_is_replayed_by_the_next_writer)
{
    scripted_begin(&scripted);
    scripted_say_failed(&scripted, ECANCELED, TSPOOL_STAGE_PREPARE);
    cr_assert_eq(scripted.save->state, SAVE_SUBMITTED);
    cr_assert(scripted_told_nothing(&scripted));
    cr_assert_eq(scripted.kills, 0);
    die();
    assert_begun_again(2);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_stage(&scripted, chunk);
    assert_told_again(3);
    assert_published(2);
}

/* It still has a staged one to finish, so it stays for a while: it is told of nothing new, and what it finishes counts. */
Test(replay, writer_that_leaves_finishes_what_was_staged_and_begins_nothing)
{
    struct message refusal;

    scripted_stage_all(&scripted);
    scripted_submit_another(&scripted, "another");
    cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.save_id[0], 9);
    message_init(&refusal, MESSAGE_FAILED, &scripted.another->attempt);
    refusal.failure.error = ECANCELED;
    refusal.failure.stage = TSPOOL_STAGE_PREPARE;
    scripted_say(&scripted, &refusal);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.another->state, SAVE_SUBMITTED);
    cr_assert(scripted_told_nothing(&scripted));
    assert_published(1);
    die();
    cr_assert_eq(scripted_begin(&scripted).attempt.save_id[0], 9);
    cr_assert_eq(scripted.another->result.attempts, 2);
}

Test(replay, writer_that_says_it_leaves_and_stays_is_killed)
{
    scripted.supervisor.settings.heartbeat_ns = 1000000;
    scripted_begin(&scripted);
    scripted_say_failed(&scripted, ECANCELED, TSPOOL_STAGE_PREPARE);
    scripted_turn_until_starts(&scripted, 2);
    cr_assert_eq(scripted.kills, 1);
    assert_begun_again(2);
}

/* A writer in the kernel --------------------------------------------------------------------------------------------- */

/* Killed, and not dead: our patience ends. */
static void hang(void)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    failure.error = ETIMEDOUT;
    failure.stage = TSPOOL_STAGE_WRITER;
    strcpy(failure.cause, "it was silent");
    scripted.unkillable = true;
    link_end(&scripted.supervisor.link, scripted.io, &failure);
    scripted.supervisor.link.due_ns = 0;
    scripted_poke(&scripted);
}

static void make_hidden(char path[300])
{
    char hidden[HIDDEN_NAME_MAX + 1];

    hidden_name_make(scripted.save->name, scripted.save->attempt.save_id, hidden);
    snprintf(path, 300, "%s/%s", scripted.root, hidden);
    cr_assert_eq(mkdir(path, 0777), 0);
}

/* It may be inside the rename: nothing is removed, nothing is written again, and nothing is claimed. */
Test(replay, hung_writer_that_was_told_everything_leaves_it_unknown)
{
    char hidden[300];

    scripted_stage_all(&scripted);
    make_hidden(hidden);
    hang();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_UNKNOWN);
    cr_assert(strstr(result()->failure.message, "it was silent; it may yet publish"), "%s", result()->failure.message);
    cr_assert_eq(access(hidden, F_OK), 0);
    cr_assert_eq(scripted.starts, 1);
}

Test(replay, hung_writer_that_was_not_told_everything_cannot_publish)
{
    char hidden[300];

    scripted_begin(&scripted);
    make_hidden(hidden);
    hang();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert(strstr(result()->failure.message, "may be alive"), "%s", result()->failure.message);
    cr_assert_eq(access(hidden, F_OK), 0);
}

Test(replay, hung_writer_that_had_published_is_believed)
{
    scripted_stage_all(&scripted);
    put_published(scripted.save);
    hang();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
}

Test(replay, hung_writer_does_not_keep_the_next_save_waiting)
{
    scripted_stage_all(&scripted);
    hang();
    scripted.unkillable = false;
    scripted_submit_another(&scripted, "another");
    scripted_turn_until_starts(&scripted, 2);
    cr_assert_eq(scripted_begin(&scripted).attempt.save_id[0], 9);
}

/* Looking and sweeping ----------------------------------------------------------------------------------------------- */

Test(replay, name_that_cannot_be_looked_at_leaves_it_unknown)
{
    int root_fd = scripted.supervisor.settings.root_fd;

    scripted_stage_all(&scripted);
    scripted.supervisor.settings.root_fd = -1;
    die();
    scripted.supervisor.settings.root_fd = root_fd;
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_UNKNOWN);
    cr_assert_eq(scripted.starts, 1);
}

static int hold_part(void)
{
    char path[300], part[SHARD_FILE_NAME_MAX + 1];
    int fd;

    make_hidden(path);
    part_name_make(0, part);
    strcat(path, "/");
    strcat(path, part);
    fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    cr_assert_eq(flock(fd, LOCK_EX), 0);
    return fd;
}

/* I/O in flight may hold the dead writer's files a little longer than its process lives. */
Test(replay, lock_that_is_given_back_late_is_waited_for)
{
    struct completion completion;
    int held;

    scripted_stage_all(&scripted);
    held = hold_part();
    die();
    cr_assert_eq(scripted.save->state, SAVE_RECOVERING);
    while (scripted.save->recovery.pauses < 2) {
        cr_assert_eq(io_wait(scripted.io, &completion, 1, IO_FOREVER), 1);
        supervisor_step(&scripted.supervisor, &completion);
    }
    close(held);
    scripted_turn_until_starts(&scripted, 2);
    assert_begun_again(2);
}

Test(replay, what_cannot_be_removed_fails_the_save_and_says_so)
{
    struct completion completion;
    int held;

    scripted_stage_all(&scripted);
    held = hold_part();
    die();
    while (scripted.save->state == SAVE_RECOVERING) {
        cr_assert_eq(io_wait(scripted.io, &completion, 1, IO_FOREVER), 1);
        supervisor_step(&scripted.supervisor, &completion);
    }
    close(held);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, EWOULDBLOCK);
    cr_assert(strstr(result()->failure.message, "holds its lock"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.message, "was scripted to die"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.path, "scripted-7"), "%s", result()->failure.path);
}

/* One name ----------------------------------------------------------------------------------------------------------- */

/* Both are begun and wholly told. */
static void begin_two_of_one_name(void)
{
    scripted_stage_all(&scripted);
    scripted_submit_another(&scripted, scripted.save->name);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.save_id[0], 9);
    pthread_mutex_lock(&scripted.roster.lock);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        save_chunk_staged(scripted.another, chunk);
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
    assert_told_of(scripted.another, 3);
}

/* Written anew it would replace what is newer. */
Test(replay, later_save_of_the_same_name_that_is_published_ends_the_earlier_one)
{
    begin_two_of_one_name();
    scripted_say_failed(&scripted, EIO, TSPOOL_STAGE_SYNC);
    cr_assert_eq(scripted.save->state, SAVE_SUBMITTED);
    cr_assert(scripted_told_nothing(&scripted));
    scripted_another_says(&scripted, MESSAGE_PUBLISHED);
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ESTALE);
    cr_assert(strstr(result()->failure.message, "later save of the same name"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.message, "scripted to fail"), "%s", result()->failure.message);
}

Test(replay, later_save_of_the_same_name_that_fails_lets_the_earlier_one_go_on)
{
    begin_two_of_one_name();
    scripted_say_failed(&scripted, EIO, TSPOOL_STAGE_SYNC);
    scripted_another_says(&scripted, MESSAGE_FAILED);
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.number, 2);
    assert_told_again(3);
    assert_published(2);
}

/* It holds slots that the other may need to get anywhere. */
Test(replay, later_save_of_the_same_name_that_still_stages_is_not_waited_for)
{
    scripted_stage_all(&scripted);
    scripted_submit_another(&scripted, scripted.save->name);
    scripted_told(&scripted, MESSAGE_BEGIN);
    scripted_say_failed(&scripted, EIO, TSPOOL_STAGE_SYNC);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, EIO);
    cr_assert(strstr(result()->failure.message, "later save of the same name"), "%s", result()->failure.message);
}

Test(replay, two_saves_of_one_name_begin_again_in_their_order)
{
    begin_two_of_one_name();
    die();
    cr_assert_eq(scripted_begin(&scripted).attempt.save_id[0], 7);
    assert_told_of(scripted.save, 3);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.save_id[0], 9);
    assert_told_of(scripted.another, 3);
}

/* The first one's death was its writer's; the second one is found published by recovery. */
Test(replay, later_save_of_the_same_name_found_published_ends_the_earlier_one)
{
    begin_two_of_one_name();
    put_published(scripted.another);
    die();
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ESTALE);
}

/* Given up meanwhile ------------------------------------------------------------------------------------------------- */

Test(replay, abort_between_two_writers)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    scripted_stage_all(&scripted);
    die();
    assert_begun_again(2);
    die(); /* now it waits for its time */
    cr_assert_eq(scripted.save->state, SAVE_SUBMITTED);
    failure.error = ECANCELED;
    pthread_mutex_lock(&scripted.roster.lock);
    save_give_up(scripted.save, &failure);
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ECANCELED);
    cr_assert_eq(scripted.starts, 2);
}

Test(replay, save_past_its_deadline_gets_no_other_attempt)
{
    scripted_stage_all(&scripted);
    scripted.save->deadline_ns = 1;
    scripted_die(&scripted);
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ETIMEDOUT);
    cr_assert_eq(save_error(scripted.save), -ETIME, "-ETIMEDOUT means: not yet");
    cr_assert(strstr(result()->failure.message, "not durable"), "%s", result()->failure.message);
}

/* The writer's clock begins anew with each attempt, the caller's does not. */
Test(replay, next_attempt_gets_what_is_left_of_the_deadline)
{
    struct message begin;

    scripted_begin(&scripted);
    scripted.save->deadline_ns = 3600000000000;
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_stage(&scripted, chunk);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_told(&scripted, MESSAGE_STAGED);
    die();
    begin = scripted_begin(&scripted);
    cr_assert_lt(begin.begin.deadline_ns, 3600000000000);
    cr_assert_gt(begin.begin.deadline_ns, 3500000000000);
}

/* Larger than the arena ---------------------------------------------------------------------------------------------- */

static void copy_one(void)
{
    pthread_mutex_lock(&scripted.roster.lock);
    cr_assert(stager_work(&scripted.stager));
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
}

/* Copies the next chunk and has it released, which makes room for the one after it. */
static void pass_one(uint32_t chunk)
{
    copy_one();
    cr_assert_eq(scripted_told(&scripted, MESSAGE_STAGED).staged.chunk, chunk);
    scripted_released(&scripted, chunk, scripted.save->slots[chunk]);
}

Test(replay_larger, death_before_staged_is_restaged_from_the_callers_tensors)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_BACKGROUND);
    scripted_begin(&scripted);
    pass_one(0); /* gone from the arena */
    copy_one();
    scripted_told(&scripted, MESSAGE_STAGED);
    die();
    cr_assert_eq(scripted.save->taken, 0);
    cr_assert_eq(result()->staged_bytes, 0);
    cr_assert(scripted.save->in_line);
    assert_begun_again(2);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        pass_one(chunk);
    cr_assert_eq(result()->level, TSPOOL_STAGED);
    assert_published(2);
}

/* The later one may have the slots by now, and is published after it. */
Test(replay_larger, restaging_yields_to_a_later_save_of_the_same_name)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_BACKGROUND);
    scripted_begin(&scripted);
    pass_one(0);
    scripted_submit_another(&scripted, scripted.save->name);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ESTALE);
    cr_assert(strstr(result()->failure.message, "was scripted to die"), "%s", result()->failure.message);
    cr_assert_eq(scripted.another->result.outcome, TSPOOL_OUTCOME_PENDING);
}

/* A thread has a chunk in hand, and may need a slot for it that no writer would ever release. */
Test(replay_larger, restaging_waits_for_the_thread_that_copies)
{
    uint32_t slots[2];

    scripted_init_larger(&scripted, TSPOOL_STAGING_NOW);
    scripted_begin(&scripted);
    copy_one();
    copy_one();
    scripted.save->copying = 1; /* the third chunk */
    die();
    cr_assert(scripted.save->restage_wanted);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(arena_acquire(scripted.arena, 0, NULL, &slots[i], NULL), 0, "its slots are free at once");
    scripted_told(&scripted, MESSAGE_HELLO);
    scripted_say_kind(&scripted, MESSAGE_READY);
    scripted_turn(&scripted);
    cr_assert(scripted_told_nothing(&scripted)); /* the attempt has not begun */
    scripted_stage(&scripted, 2);                /* the thread's chunk counts for nothing */
    cr_assert_eq(scripted.save->staged_count, 2);
    for (int i = 0; i < 2; i++)
        arena_release(scripted.arena, slots[i]);
    scripted.save->copying = 0;
    scripted_poke(&scripted);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_BEGIN).attempt.number, 2);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        pass_one(chunk);
    assert_published(2);
}

Test(replay_larger, death_after_staged_fails_and_names_the_arena_that_would_have_kept_it)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_BACKGROUND);
    scripted_begin(&scripted);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        pass_one(chunk);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert(strstr(result()->failure.message, "arena_bytes of at least 50331648"), "%s", result()->failure.message);
    cr_assert_eq(scripted.starts, 1);
}

Test(replay_larger, eio_at_sync_fails_and_names_the_arena_too)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_BACKGROUND);
    scripted_begin(&scripted);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        pass_one(chunk);
    scripted_say_failed(&scripted, EIO, TSPOOL_STAGE_SYNC);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, EIO);
    cr_assert_eq(result()->failure.stage, TSPOOL_STAGE_SYNC);
    cr_assert(strstr(result()->failure.message, "arena_bytes of at least 50331648"), "%s", result()->failure.message);
}

Test(replay_larger, spans_that_the_caller_filled_cannot_be_staged_again)
{
    scripted_init_larger(&scripted, TSPOOL_STAGING_CALLER);
    scripted_begin(&scripted);
    die();
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, EPIPE);
    cr_assert(strstr(result()->failure.message, "filled by the caller"), "%s", result()->failure.message);
    cr_assert(strstr(result()->failure.message, "save again"), "%s", result()->failure.message);
}
