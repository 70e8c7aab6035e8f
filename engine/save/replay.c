/* save/replay.c - see replay.h. */
#include <save/replay.h>

#include <arena/arena.h>
#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <save/restart.h>
#include <save/save.h>
#include <save/stager.h>
#include <save/supervisor.h>
#include <save/texts.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define RECOVERY_PATIENCE_NS (30 * (uint64_t)1000000000) /* to look at the name, on a file system that may hang */
#define EIO_ATTEMPTS_MAX 3u                              /* a device that failed three times is no accident */

/* The attempt ends --------------------------------------------------------------------------------------------------- */

/* Until STAGED is reported the caller keeps its tensors as they are; afterwards only the arena has them. */
static enum replay_way way_of(const struct tspool_save *save, enum attempt_end end)
{
    if (save->abandon_wanted || end == ATTEMPT_HELD || save->result.level >= TSPOOL_DURABLE)
        return REPLAY_NOT;
    if (save->replayable || MUTANT(REPLAYED_FROM_FREED_SLOTS))
        return REPLAY_FROM_ARENA;
    return save->result.level < TSPOOL_STAGED && save->staging != TSPOOL_STAGING_CALLER ? REPLAY_RESTAGED : REPLAY_NOT;
}

/* Whole chunks give their slots back at once: a thread may be waiting for one, with a chunk of this very save in hand, and no
 * writer would ever release them. Chunks in hand follow in save_restage. */
static void staging_pause(struct tspool_save *save)
{
    save->restage_wanted = true;
    stager_remove(save->stager, save);
    for (uint32_t chunk = 0; chunk < save_plan(save)->chunk_count; chunk++)
        if (save->chunks[chunk] == CHUNK_STAGED)
            save_free_slot(save, chunk);
}

static bool are_all_there(const void *save, const struct io_list *names) { return texts_are_all_there(save, names); }

void attempt_end(struct supervisor *supervisor, struct tspool_save *save, const struct tspool_failure *why, enum attempt_end end)
{
    save->state = SAVE_RECOVERING;
    save->end = end;
    save->way = way_of(save, end);
    save->deaths += end != ATTEMPT_ANSWERED;
    if (!save->abandon_wanted)
        save->intended = *why;
    if (save->way == REPLAY_RESTAGED)
        staging_pause(save);
    else if (save->way == REPLAY_NOT)
        save_stop_staging(save);
    save->recovery_due_ns = io_now(supervisor->io) + RECOVERY_PATIENCE_NS;
    save->recovery.op.owner = save;
    save->recovery.are_all_there = are_all_there;
    if (recovery_start(&save->recovery, supervisor->io, end == ATTEMPT_HELD ? RECOVERY_LOOKS : RECOVERY_SWEEPS,
                       supervisor->settings.root_fd, save->name, save->attempt.save_id, save->rank, save->world_size,
                       save->manifest_front, save->manifest_front_size) < 0)
        save->recovery.outcome = RECOVERY_UNCLEAR; /* no memory to look */
}

bool answer_is_retried(struct supervisor *supervisor, struct tspool_save *save, const struct tspool_failure *said)
{
    struct writer_link *link = &supervisor->link;

    if (save->abandon_wanted)
        return false;
    /* Its pages are lost to the kernel and its blocks are not to be trusted; the arena still has the bytes, for new files. */
    if (said->error == EIO && said->stage >= TSPOOL_STAGE_WRITE && said->stage <= TSPOOL_STAGE_SYNC)
        return ++save->io_errors < EIO_ATTEMPTS_MAX;
    /* Unasked, only a writer that got SIGTERM says this: it finishes what is staged and ends. The next one takes the rest. */
    if (said->error == ECANCELED && !link->is_leaving && !supervisor->roster->want_close) {
        link->is_retiring = true;
        return true;
    }
    return false;
}

/* One name ------------------------------------------------------------------------------------------------------------- */

/* Until its end a begun save is ahead of what replays behind it; one that recovers may turn out to be published. */
bool begin_waits(const struct tspool_save *save)
{
    const struct tspool_save *other = save->roster->first;

    for (; other != save; other = other->next_active)
        if ((other->state == SAVE_SUBMITTED || other->state == SAVE_RECOVERING) && strcmp(other->name, save->name) == 0)
            return true;
    for (other = save->next_active; other && save->attempt.number > 1; other = other->next_active)
        if ((other->state == SAVE_BEGUN || other->state == SAVE_RECOVERING) && strcmp(other->name, save->name) == 0)
            return true;
    return false;
}

/* Waiting for one that still needs slots could be for ever: this save holds some, and its caller may fill spans in any order. A
 * writer that leaves refuses such a one anyway. */
static bool is_outrun(const struct supervisor *supervisor, const struct tspool_save *save)
{
    const struct tspool_save *later = save->next_active;

    for (; later && !supervisor->link.is_retiring; later = later->next_active)
        if (later->state == SAVE_BEGUN && !save_is_copied(later) && strcmp(later->name, save->name) == 0)
            return true;
    return false;
}

void replay_supersede(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *earlier = save->roster->first;

    for (; earlier != save; earlier = earlier->next_active) {
        if ((earlier->state != SAVE_SUBMITTED && earlier->state != SAVE_RECOVERING) || strcmp(earlier->name, save->name) != 0)
            continue;
        failure_set(&failure, TSPOOL_STAGE_WRITER, ESTALE, FAILURE_AT(.operation = "replay", .path = save->name),
                    "a later save of the same name was published while this one waited for another attempt; before: %.220s",
                    earlier->state == SAVE_RECOVERING ? earlier->intended.cause : earlier->result.retry_cause);
        save_give_up(earlier, &failure);
    }
}

/* Records ------------------------------------------------------------------------------------------------------------- */

/* Adds a sentence to the cause. */
static void __attribute__((format(printf, 2, 3))) failure_add(struct tspool_failure *failure, const char *format, ...)
{
    size_t length = strlen(failure->cause), room = sizeof(failure->cause) - length;
    int lead = snprintf(failure->cause + length, room, length ? "; " : "");
    va_list arguments;

    va_start(arguments, format);
    if ((size_t)lead < room)
        vsnprintf(failure->cause + length + lead, room - (size_t)lead, format, arguments);
    va_end(arguments);
    failure_compose(failure);
}

static void arena_describe(const struct tspool_save *save, struct tspool_failure *failure)
{
    unsigned long long needed = (unsigned long long)save_plan(save)->chunk_count * CHUNK_BYTES;

    *failure = save->intended;
    if (save->result.level >= TSPOOL_STAGED)
        failure_add(failure, "the state is larger than the arena, so that after STAGED nothing was left to write it from again: "
                    "arena_bytes of at least %llu would have kept it", needed);
    else
        failure_add(failure, "the state is larger than the arena and its spans are filled by the caller, so that it cannot be "
                    "staged again: save again; with arena_bytes of at least %llu it would have been kept", needed);
}

static void left_describe(const struct tspool_save *save, struct tspool_failure *failure)
{
    const struct recovery *recovery = &save->recovery;

    failure_set(failure, save->intended.stage, recovery->left_error ? recovery->left_error : EEXIST,
                FAILURE_AT(.operation = "sweep", .path = recovery->hidden),
                "what attempt %u left there could not be removed%s, so that no other attempt can be made; 'tspool gc' removes it "
                "later; the attempt ended because: %.250s", save->attempt.number,
                recovery->left_error == EWOULDBLOCK ? " (somebody holds its lock)" : "", save->intended.cause);
}

/* Why there is no next attempt; false: there is. */
static bool replay_is_refused(const struct supervisor *supervisor, const struct tspool_save *save, struct tspool_failure *failure)
{
    *failure = save->intended;
    if (save->abandon_wanted)
        return true;
    if (save->way == REPLAY_NOT)
        arena_describe(save, failure);
    else if (save->end == ATTEMPT_DIED && (supervisor->deaths >= DEATHS_MAX || save->deaths >= SAVE_DEATHS_MAX))
        deaths_describe(max_u64(save->deaths, supervisor->deaths), &save->intended, failure);
    else if (save->recovery.left)
        left_describe(save, failure);
    else if (is_outrun(supervisor, save))
        failure_add(failure, "a later save of the same name is on its way, so that this one is not tried again");
    else
        return false;
    return true;
}

/* The next one ---------------------------------------------------------------------------------------------------------- */

static void cause_keep(struct tspool_save *save)
{
    struct tspool_save_result *result = &save->result;

    snprintf(result->retry_cause, sizeof(result->retry_cause), "%.*s", (int)sizeof(result->retry_cause) - 1,
             save->intended.message);
}

/* Levels stand: what was reported once stays true for the caller. Progress begins again, as far as it was not complete. */
static void replay_begin(struct tspool_save *save)
{
    cause_keep(save);
    save->intended = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    save->attempt.number += !MUTANT(REPLAYED_UNDER_OLD_NUMBER);
    save->staged_sent = 0;
    for (uint32_t chunk = 0; chunk < save_plan(save)->chunk_count; chunk++)
        if (save->chunks[chunk] == CHUNK_RELEASED)
            save->chunks[chunk] = CHUNK_STAGED;
    if (save->result.level < TSPOOL_WRITTEN)
        save->result.written_bytes = 0;
    save->state = SAVE_SUBMITTED;
    if (save->restage_wanted)
        save_restage(save);
}

/* At the line's end now: a later save of its name may hold the slots that this one needs, and is published after it. */
static bool is_outrun_in_line(const struct tspool_save *save)
{
    const struct tspool_save *later = save->next_active;

    while (later && strcmp(later->name, save->name) != 0)
        later = later->next_active;
    return later != NULL;
}

void save_restage(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    if (save->copying > 0)
        return; /* the last one wakes us */
    if (is_outrun_in_line(save)) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, ESTALE, FAILURE_AT(.operation = "replay", .path = save->name),
                    "a later save of the same name is on its way, so that this one is not copied again; before: %.220s",
                    save->result.retry_cause);
        save_give_up(save, &failure);
        return;
    }
    save_free_slots(save);
    memset(save->chunks, CHUNK_WAITING, save_plan(save)->chunk_count);
    save->taken = save->staged_count = save->staged_sent = 0;
    save->staged_at_ns = 0;
    save->result.staged_bytes = 0;
    save->restage_wanted = false;
    stager_enter(save->stager, save);
    roster_changed(save->roster); /* a caller that waits in submit copies along again */
}

static bool is_told(const struct tspool_save *save) { return save->staged_sent == save_plan(save)->chunk_count; }

/* A hung writer may be inside the very rename. One that was not told of all chunks cannot get there: that save surely failed,
 * though its directory stays until the process is gone and gc comes by. */
static enum tspool_outcome held_outcome(const struct tspool_save *save)
{
    return is_told(save) ? TSPOOL_OUTCOME_UNKNOWN : TSPOOL_OUTCOME_FAILED;
}

static void held_decide(struct tspool_save *save)
{
    struct tspool_failure failure = save->intended;

    failure_add(&failure, is_told(save) ? "it may yet publish the save, so that nothing of it was removed or written again: open "
                                          "the checkpoint to find out"
                                        : "nothing of the save was removed or written again while that writer may be alive: save "
                                          "again under another name");
    save_decide(save, held_outcome(save), &failure);
}

void attempt_recovered(struct supervisor *supervisor, struct tspool_save *save)
{
    struct tspool_failure failure;

    recovery_deinit(&save->recovery);
    if (save->state != SAVE_RECOVERING) {
        save_release(save); /* it was not waited for any longer */
        return;
    }
    /* DURABLE of a one-rank save was said after the rename and its sync: the name may be another's by now, the word stands. */
    if (save->recovery.outcome == RECOVERY_PUBLISHED || save->result.level >= TSPOOL_DURABLE) {
        supervisor->deaths = 0;
        save_reach(save, TSPOOL_PUBLISHED, io_now(supervisor->io));
        replay_supersede(save);
        save_decide(save, TSPOOL_OUTCOME_PUBLISHED, NULL);
    } else if (save->recovery.outcome == RECOVERY_DURABLE) {
        supervisor->deaths = 0;
        save_reach(save, TSPOOL_DURABLE, io_now(supervisor->io));
        save_decide(save, TSPOOL_OUTCOME_DURABLE, NULL);
    } else if (save->recovery.outcome == RECOVERY_UNCLEAR && !MUTANT(UNCLEAR_TAKEN_FOR_ABSENT)) {
        save_decide(save, TSPOOL_OUTCOME_UNKNOWN, &save->intended);
    } else if (save->recovery.outcome == RECOVERY_HELD) {
        held_decide(save);
    } else if (replay_is_refused(supervisor, save, &failure)) {
        save_decide(save, TSPOOL_OUTCOME_FAILED, &failure);
    } else {
        replay_begin(save);
    }
}
