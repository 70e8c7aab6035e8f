/* support/sim_program.c - the trainer: threads that save through the public API as the story says, wait, abort, and close.
 *
 * Written as a careful user would write it, but for one thing: spans are filled whenever the seed likes, also after the save
 * has failed, as a caller who has not heard of it yet would.
 */
#include "sim_pair_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SPANS_OUT 3u
#define SUBMIT_TRIES 6u
#define OPEN_TRIES 8u

static void failure_note(struct pair_save *save, int error, const struct tspool_failure *failure)
{
    save->error = -error;
    snprintf(save->message, sizeof(save->message), "%.199s", failure->message);
}

static bool begin(struct sim_pair *pair, struct pair_save *save)
{
    const struct story_save *story = save->story;
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    options.staging = story->staging;
    options.guarded = 1;
    options.replace = story->replace;
    options.deadline_ns = story->deadline_ns;
    options.save_id = save->save_id;
    error = tspool_save_begin(pair->spool, story_names[story->name], &options, &save->handle, &failure);
    if (error == 0)
        error = sim_state_declare(save->state, save->handle, &failure);
    if (error)
        failure_note(save, error, &failure);
    return error == 0;
}

/* An earlier save's failure that nobody looked at is told to whoever submits, and has to be heard. */
static void submit(struct sim_pair *pair, struct pair_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error = -ECANCELED;

    for (unsigned i = 0; i < SUBMIT_TRIES && error == -ECANCELED && save->handle->state == SAVE_DECLARED; i++)
        error = tspool_save_submit(save->handle, &failure);
    save->submitted = save->handle->state != SAVE_DECLARED;
    if (error)
        failure_note(save, error, &failure);
    judge_saves(pair);
}

/* Caller staging ----------------------------------------------------------------------------------------------------- */

static void span_fill(const struct pair_save *save, const struct tspool_span *span)
{
    memcpy(span->data, sim_state_tensor(save->state, span->tensor) + span->tensor_offset, span->bytes);
}

/* Fills one that is out, any of them. */
static void span_return(struct pair_save *save, struct tspool_span *spans, unsigned *out)
{
    unsigned number = (unsigned)sim_thread_draw(*out);

    sim_thread_sleep(sim_thread_draw(200000));
    span_fill(save, &spans[number]);
    tspool_save_filled(save->handle, &spans[number]);
    spans[number] = spans[--*out];
}

static void spans_fill(struct sim_pair *pair, struct pair_save *save)
{
    struct tspool_span spans[SPANS_OUT];
    unsigned out = 0;
    int result = 1;

    while (!pair->trainer_dead && (result == 1 || result == -ETIMEDOUT)) {
        if (out == SPANS_OUT || (out && sim_thread_draw(2)))
            span_return(save, spans, &out);
        if (out == SPANS_OUT)
            continue;
        spans[out] = (struct tspool_span)TSPOOL_SPAN_INIT;
        result = tspool_save_next_span(save->handle, &spans[out], sim_thread_draw(2) ? 0 : 500000);
        out += result == 1;
        if (result == -ETIMEDOUT && out)
            span_return(save, spans, &out);
        else if (result == -ETIMEDOUT)
            sim_thread_sleep(100000);
    }
    while (out && !pair->trainer_dead)
        span_return(save, spans, &out);
}

/* Saves -------------------------------------------------------------------------------------------------------------- */

static void save_run(struct sim_pair *pair, struct pair_save *save)
{
    const struct story_save *story = save->story;

    sim_thread_sleep(story->pause_ns);
    if (pair->trainer_dead || !begin(pair, save))
        return;
    submit(pair, save);
    if (!save->submitted)
        return;
    if (story->staging == TSPOOL_STAGING_CALLER)
        spans_fill(pair, save);
    if (story->aborts && !pair->trainer_dead) {
        sim_thread_sleep(story->abort_ns);
        save->aborted = !pair->trainer_dead && tspool_save_abort(save->handle) == 0;
    }
    if (story->waits_for && !pair->trainer_dead)
        tspool_save_wait(save->handle, story->waits_for, story->wait_ns);
    judge_saves(pair);
}

struct worker { struct sim_pair *pair; unsigned number; };

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct sim_pair *pair = worker->pair;

    for (unsigned i = 0; i < pair->story.save_count && !pair->trainer_dead; i++)
        if (pair->story.saves[i].thread == worker->number)
            save_run(pair, &pair->saves[i]);
    return NULL;
}

/* As tspool_open waits for the writer's handshake; where it would fail the trainer opens again. */
static bool open_await(struct sim_pair *pair)
{
    struct roster *roster = &pair->spool->roster;

    pthread_mutex_lock(&roster->lock);
    for (unsigned tries = 0; tries < OPEN_TRIES && roster->presence != WRITER_SERVING && !pair->trainer_dead; tries++) {
        roster->want_writer = true;
        roster->presence = WRITER_ABSENT;
        roster_wake(roster);
        while (roster->presence != WRITER_SERVING && roster->presence != WRITER_REFUSED && !pair->trainer_dead)
            roster_wait(roster, UINT64_MAX);
    }
    pthread_mutex_unlock(&roster->lock);
    return roster->presence == WRITER_SERVING;
}

static void workers_run(struct sim_pair *pair)
{
    struct worker workers[STORY_SAVES_MAX];
    struct sim_thread *threads[STORY_SAVES_MAX];

    for (unsigned i = 0; i < pair->story.thread_count; i++) {
        workers[i] = (struct worker){ pair, i };
        threads[i] = sim_thread_start(pair->threads, worker_main, &workers[i]);
    }
    for (unsigned i = 0; i < pair->story.thread_count; i++)
        sim_thread_join(threads[i]);
}

static void spool_close(struct sim_pair *pair)
{
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    int result;

    judge_slots(pair);
    pair->closing = true;
    report.mode = pair->story.close_aborts ? TSPOOL_CLOSE_ABORT : TSPOOL_CLOSE_LEAVE;
    result = tspool_close(pair->spool, pair->story.close_ns, &report);
    pair->spool = NULL;
    judge_close(pair, &report, result);
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        tspool_save_free(pair->saves[i].handle);
        pair->saves[i].handle = NULL;
    }
}

void *program_main(void *argument)
{
    struct sim_pair *pair = argument;

    if (open_await(pair))
        workers_run(pair);
    spool_close(pair);
    if (!pair->trainer_dead) {
        judge_exit(pair);
        sim_io_kill(pair->trainer); /* it exits: its writer sees that */
    }
    pair->trainer_over = true;
    return NULL;
}
