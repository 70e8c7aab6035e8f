/* save/outbox.c - what the writer is told next.
 *
 * Nothing is queued: the next message follows from the state of the saves whenever the channel is free, so no memory is
 * needed, nothing can be told twice, and a save that was given up is not told of at all. One SEND is in flight at a time,
 * as operations are unordered. Saves are told of first come, first served.
 */
#include <save/save.h>
#include <save/supervisor.h>
#include <save/texts.h>

#include <base/failure.h>
#include <string.h>
#include <time.h>

static uint64_t realtime_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Strictly rising, also when the clock is set back. */
static uint64_t sequence_next(struct supervisor *supervisor)
{
    uint64_t now = realtime_ns();

    supervisor->sequence = now > supervisor->sequence ? now : supervisor->sequence + 1;
    return supervisor->sequence;
}

static bool compose_ping(struct supervisor *supervisor)
{
    if (!supervisor->ping_wanted)
        return false;
    supervisor->ping_wanted = false;
    message_init(&supervisor->link.outgoing, MESSAGE_PING, NULL);
    supervisor->link.outgoing.ping.sequence = ++supervisor->ping_sequence;
    return true;
}

/* The writer's clock starts with the last STAGED that it is told; for a replay much of the time may be gone already. */
static uint64_t deadline_left(const struct supervisor *supervisor, const struct tspool_save *save)
{
    uint64_t now_ns = io_now(supervisor->io), due_ns = save_deadline(save);

    if (save->result.level < TSPOOL_STAGED || due_ns == UINT64_MAX)
        return save->deadline_ns;
    return due_ns > now_ns ? due_ns - now_ns : 1;
}

/* BEGIN. A save whose texts cannot be composed fails; false then. */
static bool compose_begin(struct supervisor *supervisor, struct tspool_save *save, int *fds, unsigned *fd_count)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct message_begin *begin = &supervisor->link.outgoing.begin;
    uint64_t sequence = sequence_next(supervisor);
    int error;

    /* An active save stays, and what is read here does not change: stagers need the lock meanwhile. */
    pthread_mutex_unlock(&supervisor->roster->lock);
    error = layout_sheet(save->layout, &failure);
    if (error == 0)
        error = texts_compose(save, sequence, sequence / 1000000000u, &failure);
    pthread_mutex_lock(&supervisor->roster->lock);
    if (error < 0) {
        save_decide(save, TSPOOL_OUTCOME_FAILED, &failure);
        return false;
    }
    message_init(&supervisor->link.outgoing, MESSAGE_BEGIN, &save->attempt);
    memcpy(begin->name, save->name, strlen(save->name) + 1);
    begin->replace = save->replace;
    begin->hash_late = supervisor->settings.cpus_are_few && save->replayable && save->staging != TSPOOL_STAGING_CALLER;
    begin->sheet_bytes = save->layout->sheet_bytes;
    begin->appendix_bytes = save->appendix_bytes;
    begin->deadline_ns = deadline_left(supervisor, save);
    fds[0] = save->layout->sheet_fd;
    fds[1] = save->appendix_fd;
    *fd_count = 2;
    save->state = SAVE_BEGUN;
    save->result.attempts = save->attempt.number;
    save->result.writer_pid = supervisor->link.handle.pid;
    return true;
}

static bool compose_abandon(struct supervisor *supervisor, struct tspool_save *save)
{
    save->abandon_sent = true;
    message_init(&supervisor->link.outgoing, MESSAGE_ABANDON, &save->attempt);
    return true;
}

static bool compose_staged(struct supervisor *supervisor, struct tspool_save *save)
{
    uint32_t chunk = save->staged[save->staged_sent++];

    message_init(&supervisor->link.outgoing, MESSAGE_STAGED, &save->attempt);
    supervisor->link.outgoing.staged.chunk = chunk;
    supervisor->link.outgoing.staged.slot = save->slots[chunk];
    return true;
}

static bool compose_of_save(struct supervisor *supervisor, struct tspool_save *save, int *fds, unsigned *fd_count)
{
    if (save->state == SAVE_SUBMITTED && !save->abandon_wanted && !save->restage_wanted && !supervisor->link.is_retiring
        && !begin_waits(save))
        return compose_begin(supervisor, save, fds, fd_count);
    if (save->state != SAVE_BEGUN || save->abandon_sent)
        return false;
    if (save->abandon_wanted)
        return compose_abandon(supervisor, save);
    return save->staged_sent < save->staged_count && compose_staged(supervisor, save);
}

static bool compose_close(struct supervisor *supervisor)
{
    if (!supervisor->roster->want_close || supervisor->link.is_leaving)
        return false;
    supervisor->link.is_leaving = true;
    message_init(&supervisor->link.outgoing, MESSAGE_CLOSE, NULL);
    supervisor->link.outgoing.close.abandon = supervisor->roster->close_abandon;
    return true;
}

bool supervisor_compose(struct supervisor *supervisor, int fds[OP_FDS_MAX], unsigned *fd_count)
{
    struct tspool_save *save, *next;

    *fd_count = 0;
    if (compose_ping(supervisor))
        return true;
    for (save = supervisor->roster->first; save; save = next) {
        next = save->next_active; /* read again by a later call if composing changed the list */
        if (compose_of_save(supervisor, save, fds, fd_count))
            return true;
    }
    return compose_close(supervisor);
}
