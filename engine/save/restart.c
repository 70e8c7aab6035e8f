/* save/restart.c - see restart.h. */
#include <save/restart.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <save/replay.h>
#include <save/save.h>
#include <save/supervisor.h>

#define BACKOFF_NS ((uint64_t)50000000)       /* before the second start in a row; each time twice as long */
#define BACKOFF_MAX_NS ((uint64_t)2000000000)
#define BACKOFF_DOUBLINGS 6u                  /* beyond the maximum */

/* Coming -------------------------------------------------------------------------------------------------------------- */

static bool writer_is_wanted(const struct roster *roster)
{
    const struct tspool_save *save = roster->first;

    while (save && (save->state != SAVE_SUBMITTED || save->abandon_wanted))
        save = save->next_active;
    return (roster->want_writer || save) && !roster->want_stop;
}

static void submitted_fail(struct roster *roster, const struct tspool_failure *failure)
{
    struct tspool_save *save, *next;

    for (save = roster->first; save; save = next) {
        next = save->next_active;
        if (save->state == SAVE_SUBMITTED)
            save_decide(save, TSPOOL_OUTCOME_FAILED, failure);
    }
}

/* No writer can be had: what waits for one fails with the reason. */
static void writer_refuse(struct supervisor *supervisor, const struct tspool_failure *failure)
{
    struct roster *roster = supervisor->roster;

    roster->presence = WRITER_REFUSED;
    roster->writer_failure = *failure;
    roster->want_writer = false;
    submitted_fail(roster, failure);
    roster_changed(roster);
}

static uint64_t backoff(unsigned deaths)
{
    return deaths <= 1 ? 0 : min_u64(BACKOFF_NS << min_u64(deaths - 2, BACKOFF_DOUBLINGS), BACKOFF_MAX_NS);
}

void deaths_describe(uint64_t deaths, const struct tspool_failure *last, struct tspool_failure *failure)
{
    struct tspool_failure latest = *last; /* may be the very record that is filled */

    failure_set(failure, TSPOOL_STAGE_WRITER, latest.error, FAILURE_AT(.operation = "restart"),
                "%llu writers died one after another, so that the save is given up; training can go on, and a later save tries "
                "one again; after signal 9 look for the OOM killer in dmesg, else at the writer's stderr; the last one: %.220s",
                (unsigned long long)deaths, latest.cause);
}

/* One more that died, or could not even be started. tspool_open wants to hear of that at once. */
static void writer_lost(struct supervisor *supervisor, const struct tspool_failure *failure)
{
    struct roster *roster = supervisor->roster;
    struct tspool_failure record = TSPOOL_FAILURE_INIT;

    roster->presence = WRITER_ABSENT;
    supervisor->deaths += !MUTANT(DEATHS_NOT_COUNTED);
    supervisor->restart_due_ns = io_now(supervisor->io) + backoff(supervisor->deaths);
    if (roster->want_writer) {
        writer_refuse(supervisor, failure);
    } else if (supervisor->deaths >= DEATHS_MAX) {
        deaths_describe(supervisor->deaths, failure, &record);
        submitted_fail(roster, &record);
    }
    roster_changed(roster);
}

static void hello_send(struct supervisor *supervisor)
{
    const int fds[] = { supervisor->settings.arena_fd, supervisor->settings.root_fd, supervisor->settings.trainer_pidfd };

    message_init(&supervisor->link.outgoing, MESSAGE_HELLO, NULL);
    supervisor->link.outgoing.hello = supervisor->settings.hello;
    link_send(&supervisor->link, supervisor->io, fds, supervisor->settings.trainer_pidfd < 0 ? 2 : 3);
}

static void writer_start(struct supervisor *supervisor, uint64_t now_ns)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint64_t deadline = UINT64_MAX;

    (void)checked_add(now_ns, supervisor->settings.start_timeout_ns, &deadline);
    supervisor->silent_ticks = 0;
    supervisor->ping_wanted = false;
    if (link_start(&supervisor->link, supervisor->io, deadline, &failure) < 0) {
        writer_lost(supervisor, &failure);
        return;
    }
    supervisor->roster->presence = WRITER_STARTING;
    hello_send(supervisor);
}

uint64_t restart_deadline(const struct supervisor *supervisor)
{
    return supervisor->link.state == LINK_DOWN && writer_is_wanted(supervisor->roster) ? supervisor->restart_due_ns : UINT64_MAX;
}

void restart_due(struct supervisor *supervisor, uint64_t now_ns)
{
    if (restart_deadline(supervisor) <= now_ns)
        writer_start(supervisor, now_ns);
}

/* Going --------------------------------------------------------------------------------------------------------------- */

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
                "the writer (pid %d) %s while it worked on this save", link->handle.pid, how);
}

static unsigned attempts_end(struct supervisor *supervisor, const struct tspool_failure *failure)
{
    enum attempt_end end = supervisor->link.dead || MUTANT(HUNG_TAKEN_FOR_DEAD) ? ATTEMPT_DIED : ATTEMPT_HELD;
    unsigned count = 0;

    for (struct tspool_save *save = supervisor->roster->first; save; save = save->next_active)
        if (save->state == SAVE_BEGUN) {
            attempt_end(supervisor, save, failure, end);
            count++;
        }
    return count;
}

/* One that was dismissed, and owed us nothing, did not die. */
void writer_bury(struct supervisor *supervisor)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct roster *roster = supervisor->roster;
    unsigned ended;
    char how[96];

    link_bury(&supervisor->link, how, sizeof(how));
    death_describe(supervisor, how, &failure);
    roster->presence = WRITER_ABSENT;
    roster->writer_pid = 0;
    ended = attempts_end(supervisor, &failure);
    if (supervisor->link.refused)
        writer_refuse(supervisor, &failure);
    else if (ended || !supervisor->link.is_leaving)
        writer_lost(supervisor, &failure);
    roster_changed(roster);
}
