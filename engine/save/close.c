/* save/close.c - ending a spool: bounded, whatever the writer does. All but tspool_close runs with roster.lock held. */
#include <save/spool.h>

#include <base/failure.h>
#include <errno.h>
#include <save/save.h>
#include <save/structs.h>

/* For sweeping what is aborted, for CLOSE to go out, for a writer with nothing to publish to end. */
#define CLOSE_GRACE_NS (5 * (uint64_t)1000000000)

static bool is_whole(const struct tspool_save *save) { return save_is_copied(save); }

static uint32_t unfinished_give_up(struct roster *roster, enum tspool_close_mode mode)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save;
    uint32_t count = 0;

    failure_set(&failure, TSPOOL_STAGE_NONE, ECANCELED, FAILURE_AT(.operation = "close"), "the spool was closed");
    for (save = roster->first; save; save = save->next_active)
        if (mode == TSPOOL_CLOSE_ABORT || !is_whole(save)) {
            save->looked = true;
            save_give_up(save, &failure);
            count++;
        }
    return count;
}

/* Its writer was told of all of it: it needs us no more. */
static bool is_told(const struct tspool_save *save)
{
    return save->state == SAVE_BEGUN && save->staged_sent == save_plan(save)->chunk_count;
}

/* Saves that a writer can finish without us, once it was `told`, and ones that it could if it were. */
static uint32_t whole_count(const struct roster *roster, bool told)
{
    const struct tspool_save *save = roster->first;
    uint32_t count = 0;

    for (; save; save = save->next_active)
        count += !save->abandon_wanted && is_whole(save) && is_told(save) == told;
    return count;
}

/* CLOSE goes out behind everything staged, and has the writer sweep the rest. */
static void writer_dismiss(struct roster *roster, bool abandon)
{
    uint64_t deadline_ns = deadline_after(CLOSE_GRACE_NS);
    int waited = 0;

    /* What is between two writers goes to the next one first. */
    while (whole_count(roster, false) > 0 && !roster->broken && waited == 0)
        waited = roster_wait(roster, deadline_ns);
    deadline_ns = deadline_after(CLOSE_GRACE_NS);
    waited = 0;
    roster->want_close = true;
    roster->close_abandon = abandon;
    roster_wake(roster);
    while (!roster->close_sent && !roster->broken && waited == 0)
        waited = roster_wait(roster, deadline_ns);
    /* One that has nothing to publish ends soon, and is reaped; one that does not is left behind. */
    while (whole_count(roster, true) == 0 && roster->presence == WRITER_SERVING && !roster->broken && waited == 0)
        waited = roster_wait(roster, deadline_ns);
}

static int saves_await(struct roster *roster, uint64_t deadline_ns)
{
    int waited = 0;

    while (roster->first && waited == 0 && !roster->broken)
        waited = roster_wait(roster, deadline_ns);
    return roster->first ? -ETIMEDOUT : 0;
}

static int close_locked(struct roster *roster, uint64_t timeout_ns, struct tspool_close_report *report)
{
    uint64_t published = roster->published, failed = roster->failed;
    int result = saves_await(roster, deadline_after(timeout_ns));
    uint32_t whole;

    report->failed = (uint32_t)(roster->failed - failed);
    if (result < 0)
        report->aborted = unfinished_give_up(roster, report->mode);
    if (report->mode == TSPOOL_CLOSE_ABORT)
        saves_await(roster, deadline_after(CLOSE_GRACE_NS));
    writer_dismiss(roster, report->mode == TSPOOL_CLOSE_ABORT);
    report->published = (uint32_t)(roster->published - published);
    whole = whole_count(roster, true) + whole_count(roster, false);
    report->left = roster->close_sent ? whole_count(roster, true) : 0;
    report->aborted += whole - report->left; /* the writer could not be told of all of it */
    report->writer_pid = report->left ? roster->writer_pid : 0;
    return result;
}

int tspool_close(struct tspool *spool, uint64_t timeout_ns, struct tspool_close_report *report)
{
    struct tspool_close_report own = TSPOOL_CLOSE_REPORT_INIT;
    int error, result;

    if (!spool)
        return 0;
    error = spool_check(spool);
    if (error == 0 && report)
        error = struct_take(&own, sizeof(own), report);
    if (error == -EPERM)
        return error;
    if (error < 0 || (unsigned)own.mode > TSPOOL_CLOSE_ABORT)
        own = (struct tspool_close_report)TSPOOL_CLOSE_REPORT_INIT; /* ended all the same: whatever it returns */
    own.published = own.failed = own.left = own.aborted = 0;
    own.writer_pid = 0;
    pthread_mutex_lock(&spool->roster.lock);
    result = close_locked(&spool->roster, timeout_ns, &own);
    pthread_mutex_unlock(&spool->roster.lock);
    spool_destroy(spool);
    if (error == 0 && report)
        struct_give(report, &own, sizeof(own));
    return error < 0 ? error : result;
}
