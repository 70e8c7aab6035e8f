/* save/supervisor.c - see supervisor.h. The machine's frame: completions in, deadlines, verdicts out. What the writer says is
 * in answers.c, what it is told in outbox.c, how it comes and goes in restart.c, what becomes of its saves in replay.c.
 */
#include <save/supervisor.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <save/replay.h>
#include <save/restart.h>
#include <save/save.h>

#define TICKS_OF_SILENCE 4u                                /* heartbeat_ns is divided into this many ticks */
#define DEADLINE_GRACE_NS ((uint64_t)1000000000)           /* the writer enforces the deadline; we, when it does not */

/* Completions -------------------------------------------------------------------------------------------------------- */

static void recovery_completed(struct supervisor *supervisor, struct tspool_save *save, int64_t result)
{
    recovery_step(&save->recovery, supervisor->io, result);
    if (!save->recovery.in_flight)
        attempt_recovered(supervisor, save);
}

static void wake_arm(struct supervisor *supervisor)
{
    supervisor->wake_op = (struct op){ .kind = OP_WATCH, .handle = supervisor->roster->wake.handle, .owner = supervisor };
    supervisor->watching = io_submit(supervisor->io, &supervisor->wake_op) == 0;
}

static void received(struct supervisor *supervisor, int64_t result)
{
    struct writer_link *link = &supervisor->link;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct message message;
    int error = link_take(link, result, &message);

    link->receiving = false;
    if (error == 0 && !(MUTANT(DEATH_BEFORE_LAST_ANSWERS) && link->state == LINK_DRAINING))
        error = supervisor_answer(supervisor, &message);
    if (error == -EBADMSG || error == -EPROTO) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, -error, FAILURE_AT(.operation = "receive"),
                    "the writer (pid %d) sent what makes no sense and was stopped; library and writer may be of different "
                    "builds", link->handle.pid);
        link_end(link, supervisor->io, &failure);
    }
    if (error == -EAGAIN && link->state != LINK_DRAINING) {
        if (MUTANT(EOF_TAKEN_FOR_WRITERS_DEATH)) {
            link_drain(link, supervisor->io);
            return;
        }
        /* End of the stream: it is on its way out, and its pidfd will say so. One that stays is killed. */
        if (link->state != LINK_ENDING)
            link->due_ns = io_now(supervisor->io) + supervisor->settings.heartbeat_ns;
        link->state = LINK_ENDING;
        return;
    }
    if (error != -EAGAIN)
        link_receive(link, supervisor->io);
}

static void sent(struct supervisor *supervisor, int64_t result)
{
    struct writer_link *link = &supervisor->link;

    link->sending = false;
    if (link->is_leaving && link->outgoing.kind == MESSAGE_CLOSE && result >= 0) {
        supervisor->roster->close_sent = true;
        roster_changed(supervisor->roster);
    }
    if (result >= 0)
        supervisor_told(supervisor);
    /* EPIPE, ECONNRESET: it is dying; the pidfd is believed, not the socket. */
}

static void completed(struct supervisor *supervisor, const struct completion *completion)
{
    struct writer_link *link = &supervisor->link;
    const struct op *op = completion->op;

    if (op == &supervisor->wake_op) {
        supervisor->roster->wake.clear(&supervisor->roster->wake);
        wake_arm(supervisor);
    } else if (op == &supervisor->timer_op) {
        supervisor->timing = supervisor->timer_cancelled = false;
    } else if (op == &link->recv_op) {
        received(supervisor, completion->result);
    } else if (op == &link->send_op) {
        sent(supervisor, completion->result);
    } else if (op == &link->death_op) {
        link->watching = false;
        link->dead |= completion->result >= 0;
        if (link->state != LINK_DRAINING)
            link_drain(link, supervisor->io);
    } else {
        recovery_completed(supervisor, op->owner, completion->result);
    }
}

/* What is due -------------------------------------------------------------------------------------------------------- */

static bool is_past(uint64_t due_ns, uint64_t now_ns) { return now_ns >= due_ns; }

static bool has_begun(const struct roster *roster)
{
    const struct tspool_save *save = roster->first;

    while (save && save->state != SAVE_BEGUN)
        save = save->next_active;
    return save != NULL;
}

/* A stopped trainer sees all its timers end at once; ticks, not times, are counted, so that the writer's answers are read
 * before it is judged. */
static void heartbeat(struct supervisor *supervisor, uint64_t now_ns)
{
    uint64_t interval = max_u64(supervisor->settings.heartbeat_ns / TICKS_OF_SILENCE, 1000000);
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct writer_link *link = &supervisor->link;

    if (!has_begun(supervisor->roster) || link->state != LINK_UP) {
        supervisor->tick_due_ns = 0;
        supervisor->silent_ticks = 0;
        return;
    }
    if (supervisor->tick_due_ns && !is_past(supervisor->tick_due_ns, now_ns))
        return;
    if (supervisor->tick_due_ns && ++supervisor->silent_ticks > TICKS_OF_SILENCE) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, ETIMEDOUT, FAILURE_AT(.operation = "heartbeat"),
                    "the writer (pid %d) was silent for %llu ms and was killed; it was last seen in %s", link->handle.pid,
                    (unsigned long long)(supervisor->settings.heartbeat_ns / 1000000),
                    link->last_seen[0] ? link->last_seen : "nothing that takes time");
        link_end(link, supervisor->io, &failure);
        return;
    }
    supervisor->ping_wanted = supervisor->tick_due_ns != 0;
    supervisor->tick_due_ns = now_ns + interval;
}

static void link_due(struct supervisor *supervisor, uint64_t now_ns)
{
    struct writer_link *link = &supervisor->link;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    if ((link->state != LINK_GREETING && link->state != LINK_ENDING) || !is_past(link->due_ns, now_ns))
        return;
    if (link->killed) {
        link_drain(link, supervisor->io); /* it hangs in the kernel: abandoned, never joined */
        return;
    }
    failure_set(&failure, TSPOOL_STAGE_WRITER, ETIMEDOUT,
                FAILURE_AT(.operation = link->state == LINK_GREETING ? "start" : "stop"),
                link->state == LINK_GREETING ? "the writer (pid %d) did not answer within start_timeout_ns and was killed"
                                             : "the writer (pid %d) closed its channel, did not end, and was killed",
                link->handle.pid);
    link_end(link, supervisor->io, &failure);
}

/* When the trainer acts on the save's deadline itself; UINT64_MAX: never. */
static uint64_t deadline_of(const struct tspool_save *save)
{
    uint64_t due;

    if (save->state == SAVE_RECOVERING)
        return save->recovery_due_ns;
    if (save->state == SAVE_SUBMITTED)
        return save->result.level >= TSPOOL_STAGED ? save_deadline(save) : UINT64_MAX; /* waits for its next writer */
    if (save->state != SAVE_BEGUN || !checked_add(save_deadline(save), min_u64(save->deadline_ns, DEADLINE_GRACE_NS), &due))
        return UINT64_MAX;
    return due;
}

static void save_due(struct supervisor *supervisor, struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    if (save->state == SAVE_RECOVERING) {
        save_decide(save, TSPOOL_OUTCOME_UNKNOWN, &save->intended);
        return;
    }
    if (save->state == SAVE_SUBMITTED) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, ETIMEDOUT, FAILURE_AT(.operation = "deadline", .path = save->name),
                    "the save was not durable %llu ms after it was staged, and waited for another writer; before: %.220s",
                    (unsigned long long)(save->deadline_ns / 1000000), save->result.retry_cause);
        save_decide(save, TSPOOL_OUTCOME_FAILED, &failure);
        return;
    }
    if (supervisor->link.state != LINK_UP)
        return; /* being ended already */
    failure_set(&failure, TSPOOL_STAGE_WRITER, ETIMEDOUT, FAILURE_AT(.operation = "deadline", .path = save->name),
                "the save was not durable %llu ms after it was staged, and its writer (pid %d) did not end it: killed; it was "
                "last seen in %s", (unsigned long long)(save->deadline_ns / 1000000), supervisor->link.handle.pid,
                supervisor->link.last_seen[0] ? supervisor->link.last_seen : "nothing that takes time");
    save_give_up(save, &failure); /* this one is over; others of the same writer are replayed */
    link_end(&supervisor->link, supervisor->io, &failure);
}

static void saves_due(struct supervisor *supervisor, uint64_t now_ns)
{
    struct tspool_save *save, *next;

    for (save = supervisor->roster->first; save; save = next) {
        next = save->next_active;
        if (save->state == SAVE_ENDING)
            save_settle(save);
        else if (save->state == SAVE_SUBMITTED && save->abandon_wanted)
            save_decide(save, TSPOOL_OUTCOME_FAILED, &save->intended);
        else if (save->state == SAVE_SUBMITTED && save->restage_wanted)
            save_restage(save);
        else if (save->state == SAVE_RECOVERING && !save->recovery.in_flight)
            attempt_recovered(supervisor, save); /* every operation was refused */
        else if (is_past(deadline_of(save), now_ns))
            save_due(supervisor, save);
    }
}

static void pump(struct supervisor *supervisor)
{
    int fds[OP_FDS_MAX];
    unsigned fd_count;

    if (supervisor->link.state != LINK_UP || supervisor->link.sending)
        return;
    if (supervisor_compose(supervisor, fds, &fd_count))
        link_send(&supervisor->link, supervisor->io, fds, fd_count);
}

/* It got SIGTERM and has finished what it had: it should be gone in a moment, and what waits for the next one waits for that. */
static void retirement_due(struct supervisor *supervisor, uint64_t now_ns)
{
    struct writer_link *link = &supervisor->link;

    if (link->state != LINK_UP || !link->is_retiring || has_begun(supervisor->roster))
        return;
    link->state = LINK_ENDING;
    link->due_ns = now_ns + supervisor->settings.heartbeat_ns;
}

/* The io is about to go; what recoveries have open goes before it. True while one is in flight, whose op io_destroy would wait
 * for as well. */
static bool recoveries_stop(struct supervisor *supervisor)
{
    bool any = false;

    for (struct tspool_save *save = supervisor->roster->first; save; save = save->next_active) {
        recovery_stop(&save->recovery, supervisor->io);
        any |= save->recovery.in_flight;
    }
    return any;
}

/* Wishes, deaths and deadlines, whatever woke us. */
static void act(struct supervisor *supervisor)
{
    struct roster *roster = supervisor->roster;
    uint64_t now_ns = io_now(supervisor->io);

    heartbeat(supervisor, now_ns);
    retirement_due(supervisor, now_ns);
    link_due(supervisor, now_ns);
    if (link_is_over(&supervisor->link))
        writer_bury(supervisor);
    saves_due(supervisor, now_ns);
    restart_due(supervisor, now_ns);
    pump(supervisor);
    if (roster->want_close && supervisor->link.state == LINK_DOWN && !roster->close_sent) {
        roster->close_sent = true; /* nobody to tell */
        roster_changed(roster);
    }
    supervisor->done = roster->want_stop && !recoveries_stop(supervisor);
}

static uint64_t next_due(const struct supervisor *supervisor)
{
    uint64_t due = UINT64_MAX;
    const struct tspool_save *save;

    if (supervisor->link.state == LINK_GREETING || supervisor->link.state == LINK_ENDING)
        due = supervisor->link.due_ns;
    if (supervisor->tick_due_ns)
        due = min_u64(due, supervisor->tick_due_ns);
    due = min_u64(due, restart_deadline(supervisor));
    for (save = supervisor->roster->first; save; save = save->next_active)
        if (save->state != SAVE_BEGUN || supervisor->link.state == LINK_UP)
            due = min_u64(due, deadline_of(save));
    return due;
}

/* One timer, for what is due first. One that ends too early does no harm: it is armed again. */
static void timer_arm(struct supervisor *supervisor)
{
    uint64_t due_ns = next_due(supervisor);

    if (supervisor->timing) {
        if (due_ns < supervisor->timer_due_ns && !supervisor->timer_cancelled) {
            supervisor->timer_cancelled = true;
            io_cancel(supervisor->io, &supervisor->timer_op);
        }
        return;
    }
    if (due_ns == UINT64_MAX)
        return;
    supervisor->timer_op = (struct op){ .kind = OP_TIMER, .deadline_ns = due_ns, .owner = supervisor };
    supervisor->timer_due_ns = due_ns;
    supervisor->timing = io_submit(supervisor->io, &supervisor->timer_op) == 0;
}

void supervisor_step(struct supervisor *supervisor, const struct completion *completion)
{
    pthread_mutex_lock(&supervisor->roster->lock);
    if (completion)
        completed(supervisor, completion);
    else
        wake_arm(supervisor);
    act(supervisor);
    timer_arm(supervisor);
    pthread_mutex_unlock(&supervisor->roster->lock);
}

void supervisor_init(struct supervisor *supervisor, struct io *io, struct roster *roster,
                     struct writer_launcher *launcher, const struct supervisor_settings *settings)
{
    *supervisor = (struct supervisor){ .io = io, .roster = roster, .settings = *settings };
    link_init(&supervisor->link, launcher);
}

void supervisor_deinit(struct supervisor *supervisor)
{
    struct writer_link *link = &supervisor->link;
    char how[96];

    if (link->state == LINK_DOWN)
        return;
    if (!supervisor->roster->close_sent)
        link->launcher->kill(link->launcher, &link->handle); /* it would wait for us as long as we live */
    link_bury(link, how, sizeof(how));
}
