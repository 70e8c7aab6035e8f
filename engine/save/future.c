/* save/future.c - how far a save came, and who is told. Levels only rise, a save resolves once, both under roster->lock;
 * resolving is the supervisor's alone.
 */
#include <save/save.h>

#include <arena/arena.h>
#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>
#include <save/spool.h>
#include <save/stager.h>
#include <save/structs.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int save_check(const struct tspool_save *save)
{
    if (save->owner != getpid())
        return -EPERM;
    return save->spool ? 0 : -EINVAL;
}

const struct plan *save_plan(const struct tspool_save *save) { return save->layout->plan; }

void save_tensor(const struct tspool_save *save, size_t index, struct tspool_tensor *tensor)
{
    state_dict_tensor(save->layout->dict, index, tensor);
    if (save->data)
        tensor->data = save->data[index];
}

bool save_is_copied(const struct tspool_save *save) { return save->staged_at_ns != 0; }

bool save_is_ending(const struct tspool_save *save) { return __atomic_load_n(&save->cancelled, __ATOMIC_RELAXED); }

uint64_t save_deadline(const struct tspool_save *save)
{
    uint64_t due;

    return save->deadline_ns && save->staged_at_ns && checked_add(save->staged_at_ns, save->deadline_ns, &due) ? due : UINT64_MAX;
}

int save_error(const struct tspool_save *save)
{
    if (save->result.outcome == TSPOOL_OUTCOME_UNKNOWN)
        return -ESTALE;
    if (save->result.failure.error == ETIMEDOUT)
        return -ETIME; /* -ETIMEDOUT says "ask again", to whoever asks in a loop */
    if (save->result.failure.error)
        return -save->result.failure.error;
    return save->intended.error ? -save->intended.error : -ECANCELED;
}

/* Memory ------------------------------------------------------------------------------------------------------------ */

static void name_is_the_objects(void *name) { (void)name; }

void save_destroy(struct tspool_save *save)
{
    tdestroy(save->object_names, name_is_the_objects);
    for (size_t i = 0; i < save->object_count; i++) {
        free(save->objects[i].name);
        free(save->objects[i].kind);
    }
    for (size_t i = 0; i < save->metadata_count; i++) {
        free((void *)(uintptr_t)save->metadata[i].key);
        free((void *)(uintptr_t)save->metadata[i].value);
    }
    spans_deinit(&save->spans);
    if (save->appendix_fd >= 0)
        close(save->appendix_fd);
    if (save->fd >= 0)
        close(save->fd);
    free(save->objects);
    free(save->object_bytes);
    free(save->metadata);
    free(save->versions);
    torn_destroy(save->torn);
    free(save->slots);
    free(save->chunks);
    free(save->staged);
    free(save->manifest_front);
    free(save->data);
    layout_drop(save->layout);
    free(save);
}

void save_release(struct tspool_save *save)
{
    if (!save->has_handle && !save->is_active && !save->is_unlooked && !save->recovery.in_flight)
        save_destroy(save);
}

/* Slots and chunks --------------------------------------------------------------------------------------------------- */

void save_free_slot(struct tspool_save *save, uint32_t chunk)
{
    if (save->slots[chunk] == ARENA_NO_SLOT)
        return;
    arena_release(save->arena, save->slots[chunk]);
    save->slots[chunk] = ARENA_NO_SLOT;
}

/* A span that is out keeps its slot: the caller may still write into it (see spans.c). */
void save_free_slots(struct tspool_save *save)
{
    for (uint32_t chunk = 0; save->slots && chunk < save_plan(save)->chunk_count; chunk++)
        if (!spans_pin(save, chunk))
            save_free_slot(save, chunk);
}

static bool version_changed(const struct tspool_save *save, size_t number, struct tspool_tensor *tensor)
{
    state_dict_tensor(save->layout->dict, save->layout->versioned[number], tensor);
    /* Acquire: pairs with the caller's raising of the counter around its change. */
    return __atomic_load_n(tensor->version, __ATOMIC_ACQUIRE) != save->versions[number];
}

/* Everything was copied. False when a tensor changed under the copying: the save is then given up, by its name. */
static bool versions_hold(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_tensor tensor;

    for (size_t i = 0; i < save->layout->versioned_count; i++)
        if (version_changed(save, i, &tensor)) {
            failure_set(&failure, TSPOOL_STAGE_STAGE, EBUSY, FAILURE_AT(.tensor = tensor.name, .operation = "copy"),
                        "the tensor's version counter rose between submit and STAGED: wait for STAGED before changing it");
            save_give_up(save, &failure);
            return false;
        }
    return true;
}

void save_chunk_staged(struct tspool_save *save, uint32_t chunk)
{
    uint32_t last = save_plan(save)->chunk_count - 1;

    if (save_is_ending(save) || save->restage_wanted)
        return;
    /* The counters are judged before the writer can know of the last chunk: it cannot publish what we refuse. */
    if (save->staged_count == last && !versions_hold(save))
        return;
    save->chunks[chunk] = CHUNK_STAGED;
    save->staged[save->staged_count++] = chunk;
    save->result.staged_bytes += plan_chunk_at(save_plan(save), chunk).size;
    if (MUTANT(STAGED_BEFORE_TOLD) && save->staged_count > last)
        save_reach(save, TSPOOL_STAGED, monotonic_ns());
    if (save->staged_count > last)
        save->staged_at_ns = monotonic_ns(); /* STAGED is reached when the writer was told: from then on it outlives us */
    roster_wake(save->roster);
}

/* Levels and verdicts ------------------------------------------------------------------------------------------------ */

static void save_notify(struct tspool_save *save)
{
    uint64_t one = 1;

    save->has_news = true;
    if (save->fd >= 0 && write(save->fd, &one, sizeof(one)) < 0)
        return; /* full means readable */
}

void save_reach(struct tspool_save *save, enum tspool_level level, uint64_t at_ns)
{
    struct tspool_save_result *result = &save->result;
    uint64_t since_ns = at_ns > save->submit_ns ? at_ns - save->submit_ns : 1;

    if (level <= result->level || save->state >= SAVE_ENDING)
        return;
    result->level = level;
    if (level >= TSPOOL_STAGED && !result->staged_ns)
        result->staged_ns = since_ns;
    if (level >= TSPOOL_WRITTEN && !result->written_ns)
        result->written_ns = since_ns;
    if (level >= TSPOOL_DURABLE && !result->durable_ns)
        result->durable_ns = since_ns;
    if (level >= TSPOOL_PUBLISHED && !result->published_ns)
        result->published_ns = since_ns;
    if (level >= (MUTANT(SLOTS_FREED_AT_WRITTEN) ? TSPOOL_WRITTEN : TSPOOL_DURABLE))
        save_free_slots(save);
    save_notify(save);
    roster_changed(save->roster);
}

void save_stop_staging(struct tspool_save *save)
{
    if (save_is_ending(save))
        return;
    /* Release: pairs with the acquire in arena_acquire, which looks again after arena_wake. */
    __atomic_store_n(&save->cancelled, true, __ATOMIC_RELEASE);
    if (save->stager)
        stager_remove(save->stager, save);
    if (save->arena)
        arena_wake(save->arena);
    roster_changed(save->roster);
}

void save_give_up(struct tspool_save *save, const struct tspool_failure *failure)
{
    if (save_is_ending(save))
        return; /* given up before, or it cannot be saved any more: that reason stands */
    save->abandon_wanted = true;
    save->intended = *failure;
    save_stop_staging(save);
    roster_wake(save->roster);
}

static void active_remove(struct roster *roster, struct tspool_save *save)
{
    struct tspool_save **link = &roster->first, *before = NULL;

    while (*link != save) {
        before = *link;
        link = &(*link)->next_active;
    }
    *link = save->next_active;
    if (roster->last == save)
        roster->last = before;
    save->is_active = false;
}

static void unlooked_add(struct roster *roster, struct tspool_save *save)
{
    struct tspool_save **link = &roster->unlooked;

    while (*link)
        link = &(*link)->next_unlooked;
    *link = save;
    save->next_unlooked = NULL;
    save->is_unlooked = true;
}

void save_look(struct tspool_save *save)
{
    struct tspool_save **link = &save->roster->unlooked;

    save->looked = true;
    if (!save->is_unlooked)
        return;
    while (*link != save)
        link = &(*link)->next_unlooked;
    *link = save->next_unlooked;
    save->is_unlooked = false;
    save_release(save);
}

void save_settle(struct tspool_save *save)
{
    struct roster *roster = save->roster;
    bool well = save->verdict == TSPOOL_OUTCOME_PUBLISHED || save->verdict == TSPOOL_OUTCOME_DURABLE;

    if (save->copying > 0)
        return;
    save_free_slots(save);
    if (save->appendix_fd >= 0)
        close(save->appendix_fd);
    save->appendix_fd = -1;
    save->state = SAVE_RESOLVED;
    save->result.outcome = save->verdict;
    roster->published += well;
    roster->failed += !well;
    active_remove(roster, save);
    if (!well && !save->looked)
        unlooked_add(roster, save);
    save_notify(save);
    roster_changed(roster);
    save_release(save);
}

void save_decide(struct tspool_save *save, enum tspool_outcome outcome, const struct tspool_failure *failure)
{
    if (save->state >= SAVE_ENDING)
        return;
    save->state = SAVE_ENDING;
    save->verdict = outcome;
    if (failure)
        save->result.failure = *failure;
    save_stop_staging(save);
    save_settle(save);
}

void roster_add(struct roster *roster, struct tspool_save *save)
{
    save->next_active = NULL;
    if (roster->last)
        roster->last->next_active = save;
    else
        roster->first = save;
    roster->last = save;
    save->is_active = true;
    save->state = SAVE_SUBMITTED;
    roster_wake(roster);
}
