/* save/submit.c - from a declared save to one in flight: plan, slots, and the line of those who are staged. */
#include <save/save.h>

#include <arena/arena.h>
#include <base/failure.h>
#include <errno.h>
#include <save/spool.h>
#include <save/stager.h>
#include <save/structs.h>
#include <stdlib.h>

/* A failure that nobody looked at is told to the next one who submits. */
static int unlooked_tell(struct roster *roster, struct tspool_failure *failure)
{
    struct tspool_save *failed;

    pthread_mutex_lock(&roster->lock);
    failed = roster->unlooked;
    if (failed) {
        failure_give(failure, &failed->result.failure);
        save_look(failed);
    }
    pthread_mutex_unlock(&roster->lock);
    return failed ? -ECANCELED : 0;
}

/* The plan of the spool's latest save, if this one declares the very same. Drops the save's own layout then. */
static bool plan_reuse(struct tspool *spool, struct tspool_save *save, const struct plan_rules *rules)
{
    struct layout *latest;

    if (save->layout->plan)
        return layout_has_rules(save->layout, rules);
    pthread_mutex_lock(&spool->roster.lock);
    latest = spool->latest ? layout_hold(spool->latest) : NULL;
    pthread_mutex_unlock(&spool->roster.lock);
    if (!latest || !layout_has_rules(latest, rules) || !layout_equal(latest, save->layout)) {
        layout_drop(latest);
        return false;
    }
    layout_drop(save->layout);
    save->layout = latest;
    return true;
}

static void plan_remember(struct tspool *spool, struct layout *layout)
{
    struct layout *old;

    pthread_mutex_lock(&spool->roster.lock);
    old = spool->latest;
    spool->latest = layout_hold(layout);
    pthread_mutex_unlock(&spool->roster.lock);
    layout_drop(old);
}

static int save_plan_get(struct tspool_save *save, struct tspool_failure *failure)
{
    struct plan_rules rules = spool_plan_rules(save->spool);
    bool reused = plan_reuse(save->spool, save, &rules);
    int error = 0;

    /* save_again after the writer came back with other alignment: the old plan is still right, its padding larger or
     * smaller than it could be; only the tail's padding must suit, and chunk_pad takes the larger of both. */
    if (!reused && !save->layout->plan)
        error = layout_plan(save->layout, &rules, failure);
    if (error < 0)
        return error;
    save->result.plan_reused = reused || save->layout_given;
    save->result.tensor_bytes = save_plan(save)->tensor_bytes;
    save->result.file_bytes = save_plan(save)->file_bytes;
    save->result.files = save_plan(save)->file_count;
    plan_remember(save->spool, save->layout);
    return 0;
}

/* A tied tensor is stored with the one that it is tied to: pointing only one of both elsewhere would lose the other. */
static int ties_follow(struct tspool_save *save, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    struct tspool_tensor alias, declared;

    for (size_t i = 0; save->data && i < plan->alias_count; i++) {
        const void *stored = save->data[plan->aliases[i].stored];

        save_tensor(save, plan->aliases[i].alias, &alias);
        state_dict_tensor(save->layout->dict, plan->aliases[i].alias, &declared);
        if (alias.data != declared.data && alias.data != stored)
            return failure_set(failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_AT(.tensor = alias.name, .operation = "rebind"),
                               "the tensor was tied to another when it was declared and now has memory of its own; declare the "
                               "tensors again with tspool_save_begin");
    }
    return 0;
}

static int chunks_create(struct tspool_save *save)
{
    uint32_t count = save_plan(save)->chunk_count;

    save->slots = malloc(count * sizeof(*save->slots));
    save->chunks = calloc(count, sizeof(*save->chunks));
    save->staged = malloc(count * sizeof(*save->staged));
    save->versions = calloc(save->layout->versioned_count + 1, sizeof(*save->versions));
    if (!save->slots || !save->chunks || !save->staged || !save->versions)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        save->slots[i] = ARENA_NO_SLOT;
    return 0;
}

static void versions_take(struct tspool_save *save)
{
    struct tspool_tensor tensor;

    for (size_t i = 0; i < save->layout->versioned_count; i++) {
        state_dict_tensor(save->layout->dict, save->layout->versioned[i], &tensor);
        save->versions[i] = __atomic_load_n(tensor.version, __ATOMIC_ACQUIRE);
    }
}

static void slots_give_back(struct tspool_save *save)
{
    for (uint32_t i = 0; i < save_plan(save)->chunk_count; i++)
        save_free_slot(save, i);
}

/* Slots that are free now: one run, else what there is, in the order in which they are needed. What is missing is acquired
 * when it is staged, in the line's order. */
static int slots_reserve(struct tspool_save *save, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    uint32_t first = 0;
    int error = arena_acquire_run(save->arena, plan->chunk_count, &first, failure);

    if (error == 0)
        for (uint32_t i = 0; i < plan->chunk_count; i++)
            save->slots[i] = first + i;
    if (error != -EAGAIN)
        return error;
    for (uint32_t i = 0; i < plan->chunk_count; i++) {
        error = arena_acquire(save->arena, 0, NULL, &save->slots[plan->chunk_order[i]], failure);
        if (error < 0)
            return error == -ETIMEDOUT ? 0 : error;
    }
    return 0;
}

/* With spool->submitting held, until the save stands in line. One that is behind another may not take slots that the other
 * still needs: it would hold them while it waits for its turn, and neither would end. */
static int save_reserve(struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool_failure ignored = TSPOOL_FAILURE_INIT;
    bool is_first;
    int error;

    save->replayable = save_plan(save)->chunk_count <= arena_slot_count(save->arena);
    pthread_mutex_lock(&save->roster->lock);
    is_first = !save->stager->first && !save->stager->acquiring;
    pthread_mutex_unlock(&save->roster->lock);
    if (!save->replayable || !is_first)
        return 0;
    error = slots_reserve(save, &ignored);
    if (error < 0) {
        slots_give_back(save);
        failure_give(failure, &ignored);
    }
    return error;
}

static bool has_all_slots(const struct tspool_save *save)
{
    for (uint32_t i = 0; i < save_plan(save)->chunk_count; i++)
        if (save->slots[i] == ARENA_NO_SLOT)
            return false;
    return true;
}

/* Into the line, unless the caller fills spans and needs nobody to wait for slots: they are all here, or the state is
 * larger than the arena and each is waited for in tspool_save_next_span. */
static void stage_begin(struct tspool_save *save)
{
    if (save->staging != TSPOOL_STAGING_CALLER || (save->replayable && !has_all_slots(save)))
        stager_enter(save->stager, save);
}

/* Staging "now": until STAGED, or until the failure is final. It may enter the line again: see replay.h. */
static int stage_wait(struct tspool_save *save, struct tspool_failure *failure)
{
    while (save->result.level < TSPOOL_STAGED && save->state != SAVE_RESOLVED && !save->roster->broken)
        if (save->in_line)
            stager_help(save->stager, save);
        else
            roster_wait(save->roster, UINT64_MAX);
    if (save->result.level >= TSPOOL_STAGED)
        return 0;
    failure_give(failure, &save->result.failure);
    save_look(save);
    return save_error(save);
}

/* Reserved and in line, with roster->lock held; or the failure, without it. */
static int line_up(struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool *spool = save->spool;
    int error;

    pthread_mutex_lock(&spool->submitting);
    error = save_reserve(save, failure);
    if (error == 0) {
        versions_take(save);
        pthread_mutex_lock(&save->roster->lock);
        roster_add(save->roster, save);
        stage_begin(save);
    }
    pthread_mutex_unlock(&spool->submitting);
    return error;
}

static int stage(struct tspool_save *save, struct tspool_failure *failure)
{
    int error = 0;

    if (save->staging == TSPOOL_STAGING_NOW)
        error = stage_wait(save, failure);
    save->result.stall_ns = monotonic_ns() - save->submit_ns;
    return error;
}

static void chunks_destroy(struct tspool_save *save)
{
    free(save->slots);
    free(save->chunks);
    free(save->staged);
    free(save->versions);
    torn_destroy(save->torn);
    save->slots = save->staged = NULL;
    save->chunks = NULL;
    save->versions = NULL;
    save->torn = NULL;
}

int tspool_save_submit(struct tspool_save *save, struct tspool_failure *failure)
{
    int error = save_declare_check(save, save, "submit", failure);

    if (error < 0)
        return error;
    error = unlooked_tell(save->roster, failure);
    if (error < 0)
        return error;
    save->submit_ns = monotonic_ns();
    error = save_plan_get(save, failure);
    if (error == 0)
        error = ties_follow(save, failure);
    if (error < 0)
        return error;
    save->result.planned_ns = monotonic_ns() - save->submit_ns;
    error = chunks_create(save);
    if (error == 0 && save->check_torn)
        error = torn_record(save);
    if (error < 0)
        failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "submit"), NULL);
    else
        error = line_up(save, failure);
    if (error < 0) {
        chunks_destroy(save);
        return error;
    }
    error = stage(save, failure);
    pthread_mutex_unlock(&save->roster->lock);
    return error;
}
