/* save/answers.c - what the writer says, checked against what it can know.
 *
 * An answer for an ended save, or for another attempt of a living one, is ignored. One that makes no sense for a living
 * attempt (a slot that the chunk does not have, a level before its time) ends the writer: memory that it still reads must
 * not be given to another save on its word.
 */
#include <save/save.h>
#include <save/supervisor.h>

#include <arena/arena.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct tspool_save *save_find(struct roster *roster, const struct attempt *attempt)
{
    struct tspool_save *save = roster->first;

    while (save && ((save->attempt.number != attempt->number && !MUTANT(ANSWER_OF_ANOTHER_ATTEMPT_TAKEN))
                    || memcmp(save->attempt.save_id, attempt->save_id, sizeof(attempt->save_id)) != 0))
        save = save->next_active;
    return save && save->state == SAVE_BEGUN ? save : NULL;
}

/* The handshake ----------------------------------------------------------------------------------------------------- */

static int answer_ready(struct supervisor *supervisor, const struct message_ready *ready)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct roster *roster = supervisor->roster;

    if (supervisor->link.state == LINK_UP)
        return -EPROTO;
    if (ready->error) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, ready->error, FAILURE_AT(.operation = "start"), "%s", ready->note);
        supervisor->link.refused = true;
        link_end(&supervisor->link, supervisor->io, &failure);
        return 0;
    }
    if (strcmp(ready->version, supervisor->settings.hello.version) != 0) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, EPROTO, FAILURE_AT(.operation = "start"),
                    "the writer is of version %s and the library of version %s; install both from one build",
                    ready->version, supervisor->settings.hello.version);
        supervisor->link.refused = true;
        link_end(&supervisor->link, supervisor->io, &failure);
        return 0;
    }
    if (supervisor->link.state != LINK_GREETING)
        return 0; /* it died, or was too late, with that on its lips */
    supervisor->link.state = LINK_UP;
    supervisor->link.was_up = true;
    supervisor->link.ready = *ready;
    roster->ready = *ready;
    roster->writer_pid = supervisor->link.handle.pid;
    roster->presence = WRITER_SERVING;
    roster->want_writer = false;
    roster_changed(roster);
    return 0;
}

/* Progress ---------------------------------------------------------------------------------------------------------- */

static int answer_released(struct tspool_save *save, const struct message_released *released)
{
    uint32_t chunk = released->chunk;

    if (chunk >= save_plan(save)->chunk_count || save->chunks[chunk] != CHUNK_STAGED
        || (save->slots[chunk] != released->slot && !MUTANT(RELEASE_OF_ANOTHER_SLOT_TAKEN)))
        return -EBADMSG;
    save->chunks[chunk] = CHUNK_RELEASED;
    if (save->result.level < TSPOOL_WRITTEN) /* an earlier attempt may have come that far */
        save->result.written_bytes += plan_chunk_at(save_plan(save), chunk).size;
    if (!save->replayable)
        save_free_slot(save, chunk);
    return 0;
}

/* Times come from the same clock, but from another process: never before submit. */
static uint64_t since_submit(const struct tspool_save *save, uint64_t at_ns)
{
    return at_ns > save->submit_ns ? at_ns - save->submit_ns : 1;
}

static void take_facts(struct supervisor *supervisor, struct tspool_save *save, const struct message_progress *progress)
{
    struct tspool_save_result *result = &save->result;
    const struct message_ready *ready = &supervisor->link.ready;

    result->writes = progress->writes;
    result->short_writes = progress->short_writes;
    result->hash_cpu_ns = progress->hash_cpu_ns;
    result->item_bytes = progress->item_bytes;
    result->depth = progress->depth;
    result->direct = progress->direct;
    result->registered = progress->registered;
    result->removed = progress->kept.removed;
    result->removed_bytes = progress->kept.removed_bytes;
    result->keep_error = progress->kept.error;
    memcpy(result->keep_left, progress->kept.left, sizeof(result->keep_left));
    if (progress->synced_ns)
        result->synced_ns = since_submit(save, progress->synced_ns);
    memcpy(result->backend, ready->backend, sizeof(result->backend));
    memcpy(result->io_note, ready->note, sizeof(result->io_note));
}

static int answer_progress(struct supervisor *supervisor, struct tspool_save *save, const struct message *message)
{
    static const enum tspool_level levels[] = { [MESSAGE_PREPARED] = 0, [MESSAGE_WRITTEN] = TSPOOL_WRITTEN,
                                                [MESSAGE_DURABLE] = TSPOOL_DURABLE, [MESSAGE_PUBLISHED] = TSPOOL_PUBLISHED };
    enum tspool_level level = levels[message->kind];

    take_facts(supervisor, save, &message->progress);
    if (message->kind == MESSAGE_PREPARED)
        return 0;
    if (save->staged_sent < save_plan(save)->chunk_count)
        return -EBADMSG; /* it cannot have written what it was not told of */
    if (level >= TSPOOL_WRITTEN)
        save->result.written_bytes = save->result.file_bytes;
    save_reach(save, level, message->progress.at_ns);
    if (level >= TSPOOL_DURABLE)
        supervisor->deaths = 0;
    if (level == TSPOOL_PUBLISHED) {
        replay_supersede(save);
        save_decide(save, TSPOOL_OUTCOME_PUBLISHED, NULL);
    } else if (level == TSPOOL_DURABLE && save->world_size > 1)
        save_decide(save, TSPOOL_OUTCOME_DURABLE, NULL);
    return 0;
}

/* What lies in the channel is delivered even when we are killed now. */
void supervisor_told(struct supervisor *supervisor)
{
    const struct message *message = &supervisor->link.outgoing;
    struct tspool_save *save = message->kind == MESSAGE_STAGED ? save_find(supervisor->roster, &message->attempt) : NULL;

    if (!save || save->staged_sent < save_plan(save)->chunk_count)
        return;
    save_reach(save, TSPOOL_STAGED, save->staged_at_ns);
    roster_changed(supervisor->roster); /* of a replay, whose levels stood before: tspool_close may leave it to its writer now */
}

/* Verdicts ---------------------------------------------------------------------------------------------------------- */

/* The tensor that has a byte at that place of a shard file; empty when none has. */
static void tensor_at(const struct tspool_save *save, uint32_t file, uint64_t file_offset, char *name, size_t size)
{
    const struct plan *plan = save_plan(save);
    struct tspool_tensor tensor;
    size_t low, high;

    if (file >= plan->file_count || file_offset == TSPOOL_NO_OFFSET || plan->files[file].entry_count == 0
        || file_offset < plan->entries[plan->files[file].entry_first].file_offset)
        return;
    low = plan->files[file].entry_first;
    high = low + plan->files[file].entry_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (plan->entries[middle].file_offset <= file_offset)
            low = middle;
        else
            high = middle;
    }
    state_dict_tensor(save->layout->dict, plan->entries[low].source, &tensor);
    snprintf(name, size, "%s", tensor.name);
}

static void answer_failure(struct supervisor *supervisor, struct tspool_save *save, const struct message *message)
{
    const struct message_failure *said = &message->failure;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char tensor[TSPOOL_TENSOR_NAME_MAX + 1] = "";

    if (said->stage == TSPOOL_STAGE_WRITE)
        tensor_at(save, said->file, said->file_offset, tensor, sizeof(tensor));
    failure_set(&failure, (enum tspool_stage)said->stage, said->error,
                (struct failure_at){ said->operation, tensor[0] ? tensor : NULL, said->path[0] ? said->path : save->name,
                                     said->file_offset }, said->cause[0] ? "%s" : NULL, said->cause);
    if (message->kind == MESSAGE_FAILED && answer_is_retried(supervisor, save, &failure)) {
        attempt_end(supervisor, save, &failure, ATTEMPT_ANSWERED);
        return;
    }
    /* What we gave up ends with our reason; what the writer met while it swept does not matter. */
    if (message->kind == MESSAGE_FAILED && save->abandon_wanted)
        failure = save->intended;
    save_decide(save, message->kind == MESSAGE_UNKNOWN && !MUTANT(UNKNOWN_TAKEN_FOR_FAILED) ? TSPOOL_OUTCOME_UNKNOWN : TSPOOL_OUTCOME_FAILED, &failure);
}

static int answer_abandoned(struct tspool_save *save)
{
    if (!save->abandon_sent)
        return -EBADMSG;
    save_decide(save, TSPOOL_OUTCOME_FAILED, &save->intended);
    return 0;
}

static void answer_pong(struct supervisor *supervisor, const struct message_pong *pong)
{
    if (pong->oldest_op[0])
        snprintf(supervisor->link.last_seen, sizeof(supervisor->link.last_seen), "%s of %s", pong->oldest_op,
                 pong->oldest_path);
}

int supervisor_answer(struct supervisor *supervisor, const struct message *message)
{
    struct tspool_save *save;

    supervisor->silent_ticks = 0;
    if (message->kind == MESSAGE_READY)
        return answer_ready(supervisor, &message->ready);
    if (message->kind == MESSAGE_PONG) {
        answer_pong(supervisor, &message->pong);
        return 0;
    }
    if (message->kind < MESSAGE_READY)
        return -EPROTO; /* ours, echoed */
    save = save_find(supervisor->roster, &message->attempt);
    if (!save)
        return 0;
    switch ((enum message_kind)message->kind) {
    case MESSAGE_RELEASED:
        return answer_released(save, &message->released);
    case MESSAGE_PREPARED:
    case MESSAGE_WRITTEN:
    case MESSAGE_DURABLE:
    case MESSAGE_PUBLISHED:
        return answer_progress(supervisor, save, message);
    case MESSAGE_FAILED:
    case MESSAGE_UNKNOWN:
        answer_failure(supervisor, save, message);
        return 0;
    case MESSAGE_ABANDONED:
        return answer_abandoned(save);
    default:
        return -EPROTO;
    }
}
