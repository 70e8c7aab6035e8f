/* save/ask.c - what callers ask of a save in flight: waiting, polling, results, giving up, letting go. Never blocks but in
 * tspool_save_wait.
 */
#include <save/save.h>

#include <arena/arena.h>
#include <base/failure.h>
#include <errno.h>
#include <save/spool.h>
#include <save/structs.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* 0, the failure, or 1: not yet. Looking at a failure is what this does. */
static int level_ask(struct tspool_save *save, enum tspool_level level)
{
    if (save->result.level >= (uint32_t)level)
        return 0;
    if (save->state != SAVE_RESOLVED)
        return save->roster->broken ? -EIO : 1;
    if (save->result.outcome == TSPOOL_OUTCOME_DURABLE)
        return -EOPNOTSUPP; /* publishing is another rank's, and not heard of here */
    save_look(save); /* cannot free: the caller has the handle */
    return save_error(save);
}

int tspool_save_wait(struct tspool_save *save, enum tspool_level level, uint64_t timeout_ns)
{
    uint64_t deadline_ns;
    int error, waited = 0;

    if (!save || level < TSPOOL_STAGED || level > TSPOOL_PUBLISHED)
        return -EINVAL;
    error = save_check(save);
    if (error < 0)
        return error;
    deadline_ns = deadline_after(timeout_ns);
    pthread_mutex_lock(&save->roster->lock);
    if (save->state == SAVE_DECLARED)
        error = -EINVAL;
    while (error == 0 && (error = level_ask(save, level)) == 1 && waited == 0)
        error = 0, waited = timeout_ns ? roster_wait(save->roster, deadline_ns) : -ETIMEDOUT;
    pthread_mutex_unlock(&save->roster->lock);
    return error == 1 ? -ETIMEDOUT : error;
}

int tspool_save_fd(struct tspool_save *save)
{
    int error, fd;

    if (!save)
        return -EINVAL;
    error = save_check(save);
    if (error < 0)
        return error;
    pthread_mutex_lock(&save->roster->lock);
    if (save->fd < 0)
        save->fd = eventfd(save->has_news, EFD_CLOEXEC | EFD_NONBLOCK);
    fd = save->fd < 0 ? -errno : save->fd;
    pthread_mutex_unlock(&save->roster->lock);
    return fd;
}

static void news_clear(struct tspool_save *save)
{
    uint64_t count;

    save->has_news = false;
    if (save->fd >= 0 && read(save->fd, &count, sizeof(count)) < 0)
        return; /* was not raised */
}

int tspool_save_result(struct tspool_save *save, struct tspool_save_result *result)
{
    struct tspool_save_result snapshot;
    int error;

    if (!save || !result)
        return -EINVAL;
    error = save_check(save);
    if (error < 0)
        return error;
    pthread_mutex_lock(&save->roster->lock);
    news_clear(save);
    if (save->state == SAVE_RESOLVED)
        save_look(save);
    snapshot = save->result;
    snapshot.replayable = save->replayable;
    snapshot.stage_cpu_ns = save->stage_cpu_ns;
    snapshot.page_bytes = arena_page_bytes(save->arena);
    memcpy(snapshot.save_id, save->attempt.save_id, sizeof(snapshot.save_id));
    pthread_mutex_unlock(&save->roster->lock);
    return struct_give(result, &snapshot, sizeof(snapshot));
}

int tspool_save_abort(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    if (!save)
        return -EINVAL;
    error = save_check(save);
    if (error < 0)
        return error;
    failure_set(&failure, TSPOOL_STAGE_NONE, ECANCELED, FAILURE_AT(.operation = "abort", .path = save->name),
                "the save was aborted by its caller");
    pthread_mutex_lock(&save->roster->lock);
    if (save->state >= SAVE_ENDING)
        error = -EALREADY;
    else if (save->state == SAVE_DECLARED)
        error = -EINVAL;
    else
        save_give_up(save, &failure);
    save->looked |= error == 0; /* its caller knows */
    pthread_mutex_unlock(&save->roster->lock);
    return error;
}

/* The known list is how tspool_close finds handles that outlive the spool. */
static void handle_drop(struct tspool_save *save)
{
    save->has_handle = false;
    *save->known_link = save->next_known;
    if (save->next_known)
        save->next_known->known_link = save->known_link;
    /* Spans cannot come back: their slots are free once nothing else uses them. */
    if (save->state == SAVE_RESOLVED) {
        spans_deinit(&save->spans);
        save_free_slots(save);
    }
    save_release(save);
}

void tspool_save_free(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct roster *roster;

    if (!save || save->owner != getpid())
        return;
    if (!save->spool) { /* after tspool_close: nobody else knows it */
        save_destroy(save);
        return;
    }
    roster = save->roster;
    failure_set(&failure, TSPOOL_STAGE_STAGE, ECANCELED, FAILURE_AT(.operation = "free", .path = save->name),
                "the save was freed before its caller had filled all spans");
    pthread_mutex_lock(&roster->lock);
    if (save->is_active && save->staging == TSPOOL_STAGING_CALLER && !save_is_copied(save)) {
        spans_deinit(&save->spans);
        save_give_up(save, &failure);
    }
    handle_drop(save);
    pthread_mutex_unlock(&roster->lock);
}
