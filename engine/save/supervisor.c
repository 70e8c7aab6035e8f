/* save/supervisor.c - see supervisor.h. The machine's frame: completions in, deaths and deadlines, verdicts out. What the
 * writer says is in answers.c, what it is told in outbox.c.
 */
#include <save/supervisor.h>

#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <save/save.h>
#include <stdio.h>
#include <string.h>

#define TICKS_OF_SILENCE 4u                                /* heartbeat_ns is divided into this many ticks */
#define DEADLINE_GRACE_NS ((uint64_t)1000000000)           /* the writer enforces the deadline; we, when it does not */
#define RECOVERY_PATIENCE_NS (30 * (uint64_t)1000000000)   /* to look at the name, on a file system that may hang */

/* The writer comes --------------------------------------------------------------------------------------------------- */

static void hello_send(struct supervisor *supervisor)
{
    const int fds[] = { supervisor->settings.arena_fd, supervisor->settings.root_fd, supervisor->settings.trainer_pidfd };

    message_init(&supervisor->link.outgoing, MESSAGE_HELLO, NULL);
    supervisor->link.outgoing.hello = supervisor->settings.hello;
    link_send(&supervisor->link, supervisor->io, fds, supervisor->settings.trainer_pidfd < 0 ? 2 : 3);
}

/* No writer can be had: what waits for one fails with the reason. */
static void writer_refuse(struct supervisor *supervisor, const struct tspool_failure *failure)
{
    struct roster *roster = supervisor->roster;
    struct tspool_save *save, *next;

    roster->presence = WRITER_REFUSED;
    roster->writer_failure = *failure;
    roster->want_writer = false;
    for (save = roster->first; save; save = next) {
        next = save->next_active;
        if (save->state == SAVE_SUBMITTED)
            save_decide(save, TSPOOL_OUTCOME_FAILED, failure);
    }
    roster_changed(roster);
}

static bool is_writer_wanted(const struct roster *roster)
{
    const struct tspool_save *save = roster->first;

    while (save && save->state != SAVE_SUBMITTED)
        save = save->next_active;
    return (roster->want_writer || save) && !roster->want_stop;
}

static void writer_start(struct supervisor *supervisor)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint64_t deadline = UINT64_MAX;
    int error;

    (void)checked_add(io_now(supervisor->io), supervisor->settings.start_timeout_ns, &deadline);
    supervisor->silent_ticks = 0;
    supervisor->ping_wanted = false;
    error = link_start(&supervisor->link, supervisor->io, deadline, &failure);
    if (error < 0) {
        writer_refuse(supervisor, &failure);
        return;
    }
    supervisor->roster->presence = WRITER_STARTING;
    hello_send(supervisor);
}

/* The writer goes ---------------------------------------------------------------------------------------------------- */

static void recovery_begin(struct supervisor *supervisor, struct tspool_save *save, const struct tspool_failure *failure)
{
    save->state = SAVE_RECOVERING;
    if (!save->abandon_wanted)
        save->intended = *failure;
    save_stop_staging(save);
    save->recovery_due_ns = io_now(supervisor->io) + RECOVERY_PATIENCE_NS;
    save->recovery.op.owner = save;
    if (recovery_start(&save->recovery, supervisor->io, supervisor->settings.root_fd, save->name, save->attempt.save_id,
                       save->rank, save->manifest_front, save->manifest_front_size) < 0)
        save->recovery.outcome = RECOVERY_UNCLEAR; /* no memory to look */
}

/* What a save of a dead writer is told. */
static void death_describe(const struct supervisor *supervisor, const char *how, struct tspool_failure *failure)
{
    const struct writer_link *link = &supervisor->link;

    if (link->reason.error) {
        *failure = link->reason;
        return;
    }
    if (!link->was_up) {
        failure_set(failure, TSPOOL_STAGE_WRITER, EPIPE, FAILURE_AT(.operation = "start", .path = link->launcher->path),
                    "the writer (pid %d) %s before it was ready; its own message, if any, is on stderr", link->handle.pid, how);
        return;
    }
    failure_set(failure, TSPOOL_STAGE_WRITER, EPIPE, FAILURE_AT(.operation = "writer"),
                "the writer (pid %d) %s while it worked on this save; the next save gets a fresh writer, so save again (after "
                "signal 9 look for the OOM killer in dmesg)", link->handle.pid, how);
}

static void writer_bury(struct supervisor *supervisor)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct roster *roster = supervisor->roster;
    struct tspool_save *save;
    char how[96];

    link_bury(&supervisor->link, how, sizeof(how));
    death_describe(supervisor, how, &failure);
    roster->presence = WRITER_ABSENT;
    roster->writer_pid = 0;
    if (!supervisor->link.was_up)
        writer_refuse(supervisor, &failure);
    for (save = roster->first; save; save = save->next_active)
        if (save->state == SAVE_BEGUN)
            recovery_begin(supervisor, save, &failure);
    roster_changed(roster);
}

/* Recovery's end is the save's verdict. May free the save. */
static void recovery_end(struct tspool_save *save)
{
    recovery_deinit(&save->recovery);
    if (save->state != SAVE_RECOVERING) {
        save_release(save); /* it was not waited for any longer */
        return;
    }
    if (save->recovery.outcome == RECOVERY_PUBLISHED) {
        save_reach(save, TSPOOL_PUBLISHED, monotonic_ns());
        save_decide(save, TSPOOL_OUTCOME_PUBLISHED, NULL);
        return;
    }
    save_decide(save, save->recovery.outcome == RECOVERY_ABSENT ? TSPOOL_OUTCOME_FAILED : TSPOOL_OUTCOME_UNKNOWN,
                &save->intended);
}

static void recovery_completed(struct supervisor *supervisor, struct tspool_save *save, int64_t result)
{
    recovery_step(&save->recovery, supervisor->io, result);
    if (!save->recovery.in_flight)
        recovery_end(save);
}

/* Completions -------------------------------------------------------------------------------------------------------- */

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
    if (error == 0)
        error = supervisor_answer(supervisor, &message);
    if (error == -EBADMSG || error == -EPROTO) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, -error, FAILURE_AT(.operation = "receive"),
                    "the writer (pid %d) sent what makes no sense and was stopped; library and writer may be of different "
                    "builds", link->handle.pid);
        link_end(link, supervisor->io, &failure);
    }
    if (error == -EAGAIN && link->state != LINK_DRAINING) {
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
        if (link->state != LINK_DRAINING)
            link_drain(link, supervisor->io);
    } else {
        recovery_completed(supervisor, op->owner, completion->result);
    }
}

/* What is due -------------------------------------------------------------------------------------------------------- */

static bool is_past(uint64_t due_ns, uint64_t now_ns) { return now_ns >= due_ns; }

/* A stopped trainer sees all its timers end at once; ticks, not times, are counted, so that the writer's answers are read
 * before it is judged. */
static void heartbeat(struct supervisor *supervisor, uint64_t now_ns)
{
    uint64_t interval = max_u64(supervisor->settings.heartbeat_ns / TICKS_OF_SILENCE, 1000000);
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const struct tspool_save *save = supervisor->roster->first;
    struct writer_link *link = &supervisor->link;

    while (save && save->state != SAVE_BEGUN)
        save = save->next_active;
    if (!save || link->state != LINK_UP) {
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
    if (save->state != SAVE_BEGUN || !save->deadline_ns || !save->staged_at_ns)
        return UINT64_MAX;
    if (!checked_add(save->staged_at_ns, save->deadline_ns, &due)
        || !checked_add(due, min_u64(save->deadline_ns, DEADLINE_GRACE_NS), &due))
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
    if (supervisor->link.state != LINK_UP)
        return; /* being ended already */
    failure_set(&failure, TSPOOL_STAGE_WRITER, ETIMEDOUT, FAILURE_AT(.operation = "deadline", .path = save->name),
                "the save was not durable %llu ms after it was staged, and its writer (pid %d) did not end it: killed; it was "
                "last seen in %s", (unsigned long long)(save->deadline_ns / 1000000), supervisor->link.handle.pid,
                supervisor->link.last_seen[0] ? supervisor->link.last_seen : "nothing that takes time");
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
        else if (save->state == SAVE_RECOVERING && !save->recovery.in_flight)
            recovery_end(save); /* every operation was refused */
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

/* Wishes, deaths and deadlines, whatever woke us. */
static void act(struct supervisor *supervisor)
{
    struct roster *roster = supervisor->roster;
    uint64_t now_ns = io_now(supervisor->io);

    heartbeat(supervisor, now_ns);
    link_due(supervisor, now_ns);
    saves_due(supervisor, now_ns);
    if (link_is_over(&supervisor->link))
        writer_bury(supervisor);
    if (supervisor->link.state == LINK_DOWN && is_writer_wanted(roster))
        writer_start(supervisor);
    pump(supervisor);
    if (roster->want_close && supervisor->link.state == LINK_DOWN && !roster->close_sent) {
        roster->close_sent = true; /* nobody to tell */
        roster_changed(roster);
    }
    supervisor->done = roster->want_stop;
}

static uint64_t next_due(const struct supervisor *supervisor)
{
    uint64_t due = UINT64_MAX;
    const struct tspool_save *save;

    if (supervisor->link.state == LINK_GREETING || supervisor->link.state == LINK_ENDING)
        due = supervisor->link.due_ns;
    if (supervisor->tick_due_ns)
        due = min_u64(due, supervisor->tick_due_ns);
    for (save = supervisor->roster->first; save; save = save->next_active)
        if (save->state == SAVE_RECOVERING || supervisor->link.state == LINK_UP)
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
