/* save/test_supervisor.c - the trainer's machine against a writer that follows the rules, and against ones that do not. */
#include "scripted.h"

#include <arena/arena.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

static struct scripted scripted;

static void setup(void) { scripted_init(&scripted); }
static void teardown(void) { scripted_deinit(&scripted); }

TestSuite(supervisor, .init = setup, .fini = teardown, .timeout = 20);

static const struct tspool_save_result *result(void) { return &scripted.save->result; }

Test(supervisor, greets_begins_and_stages_in_order)
{
    struct message told;

    scripted_told(&scripted, MESSAGE_HELLO);
    scripted_stage(&scripted, 2); /* staged before the writer is there */
    cr_assert(scripted_told_nothing(&scripted));
    scripted_say_kind(&scripted, MESSAGE_READY);
    scripted_turn(&scripted);
    told = scripted_told(&scripted, MESSAGE_BEGIN);
    cr_assert_str_eq(told.begin.name, "scripted-7");
    cr_assert_eq(told.attempt.number, 1);
    told = scripted_told(&scripted, MESSAGE_STAGED);
    cr_assert_eq(told.staged.chunk, 2);
    cr_assert_eq(told.staged.slot, 2);
    scripted_stage(&scripted, 0);
    scripted_stage(&scripted, 1);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_STAGED).staged.chunk, 0);
    cr_assert_eq(scripted_told(&scripted, MESSAGE_STAGED).staged.chunk, 1);
    cr_assert_eq(result()->level, TSPOOL_STAGED);
    cr_assert(scripted_told_nothing(&scripted));
}

/* From STAGED on the save outlives its trainer: only a writer that knows of every chunk can see to that. */
Test(supervisor, is_staged_when_the_writer_was_told_of_the_last_chunk)
{
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_stage(&scripted, chunk);
    cr_assert_lt(result()->level, TSPOOL_STAGED, "there is no writer yet");
    scripted_told(&scripted, MESSAGE_HELLO);
    scripted_say_kind(&scripted, MESSAGE_READY);
    scripted_turn(&scripted);
    scripted_told(&scripted, MESSAGE_BEGIN);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_told(&scripted, MESSAGE_STAGED);
    cr_assert_eq(result()->level, TSPOOL_STAGED);
}

Test(supervisor, resolves_once_and_gives_the_slots_back_at_durable)
{
    uint32_t first;

    scripted_stage_all(&scripted);
    for (uint32_t chunk = 0; chunk < 3; chunk++)
        scripted_released(&scripted, chunk, chunk);
    cr_assert_eq(arena_acquire_run(scripted.arena, 6, &first, NULL), -EAGAIN); /* kept for a replay */
    scripted_say_kind(&scripted, MESSAGE_WRITTEN);
    scripted_turn(&scripted);
    cr_assert_eq(result()->level, TSPOOL_WRITTEN);
    cr_assert_eq(arena_acquire_run(scripted.arena, 6, &first, NULL), -EAGAIN); /* written is not durable */
    scripted_say_kind(&scripted, MESSAGE_DURABLE);
    scripted_turn(&scripted);
    cr_assert_eq(result()->level, TSPOOL_DURABLE);
    cr_assert_eq(arena_acquire_run(scripted.arena, 6, &first, NULL), 0);
    scripted_say_kind(&scripted, MESSAGE_PUBLISHED);
    scripted_say_kind(&scripted, MESSAGE_FAILED); /* after the end: ignored */
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(scripted.save->state, SAVE_RESOLVED);
    cr_assert_eq(scripted.kills, 0);
}

Test(supervisor, ignores_another_attempt)
{
    const struct attempt later = { { 7 }, 2 }, stranger = { { 8 }, 1 };
    struct message message;

    scripted_stage_all(&scripted);
    message_init(&message, MESSAGE_ABANDONED, &later);
    scripted_say(&scripted, &message);
    message_init(&message, MESSAGE_ABANDONED, &stranger);
    scripted_say(&scripted, &message);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.save->state, SAVE_BEGUN);
    cr_assert_eq(scripted.kills, 0);
}

Test(supervisor, names_the_tensor_at_the_place_that_failed)
{
    scripted_stage_all(&scripted);
    scripted_say_kind(&scripted, MESSAGE_FAILED);
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_FAILED);
    cr_assert_eq(result()->failure.error, ENOSPC);
    cr_assert_str_eq(result()->failure.tensor, "t");
    cr_assert_eq(result()->failure.file_offset, 1 << 20);
    cr_assert(scripted.save->is_unlooked);
}

Test(supervisor, unknown_is_not_failed)
{
    scripted_stage_all(&scripted);
    scripted_say_kind(&scripted, MESSAGE_UNKNOWN);
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_UNKNOWN);
}

static void assert_ended_for_nonsense(void)
{
    scripted_turn(&scripted);
    cr_assert_eq(scripted.kills, 1);
    cr_assert_eq(scripted.save->attempt.number, 2); /* another writer takes it up */
    cr_assert(strstr(result()->retry_cause, "makes no sense"), "%s", result()->retry_cause);
}

/* Believing it would give memory that it still reads to another save. */
Test(supervisor, ends_a_writer_that_releases_a_slot_of_another_chunk)
{
    scripted_stage_all(&scripted);
    scripted_released(&scripted, 0, 1);
    assert_ended_for_nonsense();
}

Test(supervisor, ends_a_writer_that_releases_twice)
{
    scripted_stage_all(&scripted);
    scripted_released(&scripted, 0, 0);
    scripted_released(&scripted, 0, 0);
    assert_ended_for_nonsense();
}

Test(supervisor, ends_a_writer_that_published_what_it_was_not_told_of)
{
    scripted_told(&scripted, MESSAGE_HELLO);
    scripted_say_kind(&scripted, MESSAGE_READY);
    scripted_turn(&scripted);
    scripted_told(&scripted, MESSAGE_BEGIN);
    scripted_say_kind(&scripted, MESSAGE_PUBLISHED);
    assert_ended_for_nonsense();
}

Test(supervisor, ends_a_writer_that_answers_unasked)
{
    scripted_stage_all(&scripted);
    scripted_say_kind(&scripted, MESSAGE_ABANDONED);
    assert_ended_for_nonsense();
}

Test(supervisor, refuses_a_writer_of_another_version)
{
    struct message ready;

    scripted_told(&scripted, MESSAGE_HELLO);
    message_init(&ready, MESSAGE_READY, NULL);
    strcpy(ready.ready.version, "9.9.9");
    scripted_say(&scripted, &ready);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.roster.presence, WRITER_REFUSED);
    cr_assert_eq(scripted.roster.writer_failure.error, EPROTO);
    cr_assert_eq(result()->failure.error, EPROTO); /* what waited for it fails, rather than for ever */
    cr_assert_eq(scripted.starts, 1);
}

/* A writer that cannot serve says why and ends; whether its death is seen before its words are read is chance. */
Test(supervisor, hears_the_refusal_of_a_writer_whose_death_was_seen_first)
{
    struct completion completion, words = { .op = NULL };
    struct message ready;

    scripted_told(&scripted, MESSAGE_HELLO);
    message_init(&ready, MESSAGE_READY, NULL);
    ready.ready.error = EROFS;
    strcpy(ready.ready.note, "the root is read-only");
    scripted_say(&scripted, &ready);
    cr_assert_eq(io_wait(scripted.io, &words, 1, IO_FOREVER), 1); /* in hand, not yet looked at */
    scripted_die(&scripted);
    cr_assert_eq(io_wait(scripted.io, &completion, 1, IO_FOREVER), 1);
    supervisor_step(&scripted.supervisor, &completion);
    supervisor_step(&scripted.supervisor, &words);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.roster.presence, WRITER_REFUSED);
    cr_assert_eq(scripted.roster.writer_failure.error, EROFS);
    cr_assert(strstr(scripted.roster.writer_failure.message, "the root is read-only"));
}

/* Messages queued before a death are still facts. */
Test(supervisor, reads_a_dead_writer_out_before_it_judges)
{
    scripted_stage_all(&scripted);
    scripted_say_kind(&scripted, MESSAGE_WRITTEN);
    scripted_say_kind(&scripted, MESSAGE_DURABLE);
    scripted_say_kind(&scripted, MESSAGE_PUBLISHED);
    scripted_die(&scripted);
    scripted_turn(&scripted);
    cr_assert_eq(result()->outcome, TSPOOL_OUTCOME_PUBLISHED);
    cr_assert_eq(scripted.roster.presence, WRITER_ABSENT);
}

/* A socket can break while the process behind it still writes: only its pidfd tells of its death. */
Test(supervisor, end_of_the_stream_is_not_death)
{
    scripted_stage_all(&scripted);
    cr_assert_eq(shutdown(scripted.peer, SHUT_WR), 0);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.save->state, SAVE_BEGUN);
    cr_assert_eq(scripted.roster.presence, WRITER_SERVING);
    scripted_die(&scripted);
    scripted_turn(&scripted);
    cr_assert_neq(scripted.roster.presence, WRITER_SERVING);
}

Test(supervisor, abandons_what_was_given_up_and_keeps_its_reason)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    scripted_stage_all(&scripted);
    failure.error = ECANCELED;
    pthread_mutex_lock(&scripted.roster.lock);
    save_give_up(scripted.save, &failure);
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
    scripted_told(&scripted, MESSAGE_ABANDON);
    cr_assert_eq(scripted.save->state, SAVE_BEGUN); /* its slots are the writer's until it answers */
    scripted_say_kind(&scripted, MESSAGE_ABANDONED);
    scripted_turn(&scripted);
    cr_assert_eq(result()->failure.error, ECANCELED);
}

/* Answers keep it alive; their absence does not. */
Test(supervisor, pings_while_a_save_is_in_flight_and_kills_for_silence)
{
    struct completion completion;
    unsigned pings = 0;

    scripted.supervisor.settings.heartbeat_ns = 200000000;
    scripted_stage_all(&scripted);
    while (scripted.save->state == SAVE_BEGUN && io_wait(scripted.io, &completion, 1, IO_FOREVER) == 1) {
        supervisor_step(&scripted.supervisor, &completion);
        if (scripted.kills == 0 && !scripted_told_nothing(&scripted)) {
            char bytes[sizeof(struct message)];

            cr_assert_gt(recv(scripted.peer, bytes, sizeof(bytes), 0), 0);
            if (++pings < 6)
                scripted_say_kind(&scripted, MESSAGE_PONG);
        }
    }
    cr_assert_eq(scripted.kills, 1);
    cr_assert_geq(pings, 6);
    scripted_turn(&scripted);
    cr_assert_eq(scripted.starts, 2);
    cr_assert(strstr(result()->retry_cause, "silent"), "%s", result()->retry_cause);
}

Test(supervisor, says_close_behind_everything_staged)
{
    scripted_stage_all(&scripted);
    pthread_mutex_lock(&scripted.roster.lock);
    scripted.roster.want_close = true;
    roster_wake(&scripted.roster);
    pthread_mutex_unlock(&scripted.roster.lock);
    scripted_turn(&scripted);
    scripted_told(&scripted, MESSAGE_CLOSE);
    cr_assert(scripted.roster.close_sent);
}
