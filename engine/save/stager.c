/* save/stager.c - see stager.h. */
#include <save/stager.h>

#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <proc/proc.h>
#include <save/save.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

_Static_assert(ARENA_SLOT_BYTES == CHUNK_BYTES, "a slot holds a chunk");

struct work { struct tspool_save *save; uint32_t chunk, slot; };

static uint64_t thread_cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Copying ---------------------------------------------------------------------------------------------------------- */

void chunk_pad(const struct tspool_save *save, uint32_t chunk, uint8_t *slot)
{
    uint64_t size = plan_chunk_at(save_plan(save), chunk).size;
    uint64_t padded = min_u64(align_up(size, max_u64(SAFETENSORS_DATA_ALIGN, save->layout->rules.offset_align)), CHUNK_BYTES);

    memset(slot + size, 0, padded - size);
}

void chunk_fill(const struct tspool_save *save, uint32_t chunk, uint8_t *slot)
{
    const struct plan *plan = save_plan(save);
    const struct plan_file *file = &plan->files[plan_chunk_at(plan, chunk).file];
    struct plan_cursor cursor;
    struct plan_piece piece;
    struct tspool_tensor tensor;

    plan_cursor_init(&cursor, plan, chunk);
    while (plan_cursor_next(&cursor, plan, &piece)) {
        if (piece.kind == PIECE_HEADER) {
            memcpy(slot + piece.chunk_offset, (const uint8_t *)file->header + piece.source_offset, piece.size);
            continue;
        }
        save_tensor(save, plan->entries[piece.entry].source, &tensor);
        tensor_copy(&tensor, piece.source_offset, piece.size, slot + piece.chunk_offset);
    }
    chunk_pad(save, chunk, slot);
}

/* The line --------------------------------------------------------------------------------------------------------- */

void stager_enter(struct stager *stager, struct tspool_save *save)
{
    save->in_line = true;
    save->next_in_line = NULL;
    if (stager->last)
        stager->last->next_in_line = save;
    else
        stager->first = save;
    stager->last = save;
    pthread_cond_broadcast(&stager->work);
}

void stager_remove(struct stager *stager, struct tspool_save *save)
{
    struct tspool_save **link = &stager->first, *before = NULL;

    if (!save->in_line)
        return;
    while (*link != save) {
        before = *link;
        link = &(*link)->next_in_line;
    }
    *link = save->next_in_line;
    if (stager->last == save)
        stager->last = before;
    save->in_line = false;
    pthread_cond_broadcast(&stager->work); /* a caller in stager_help may have waited for this save's chunks */
}

static bool has_work(const struct stager *stager) { return stager->first && !stager->acquiring; }

/* Gets the chunk a slot, without the lock: this waits when the arena is full. */
static int slot_acquire(struct stager *stager, struct work *work)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint32_t slot = ARENA_NO_SLOT;
    int error;

    stager->acquiring = true;
    pthread_mutex_unlock(&stager->roster->lock);
    error = arena_acquire(stager->arena, UINT64_MAX, &work->save->cancelled, &slot, &failure);
    pthread_mutex_lock(&stager->roster->lock);
    stager->acquiring = false;
    pthread_cond_broadcast(&stager->work);
    work->save->slots[work->chunk] = slot;
    if (error < 0)
        save_give_up(work->save, &failure);
    return error;
}

/* The front's next chunk. 0: it is the taker's, `copying` counts it; else it was given back already. */
static int take(struct stager *stager, struct work *work)
{
    struct tspool_save *save = stager->first;
    uint32_t chunk = save_plan(save)->chunk_order[save->taken++];
    int error = 0;

    *work = (struct work){ .save = save, .chunk = chunk };
    save->copying++;
    if (save->taken == save_plan(save)->chunk_count)
        stager_remove(stager, save);
    if (save->slots[chunk] == ARENA_NO_SLOT)
        error = slot_acquire(stager, work);
    work->slot = save->slots[chunk];
    return error;
}

static void give_back(struct stager *stager, struct work *work)
{
    work->save->copying--;
    if (work->save->copying == 0 && (save_is_ending(work->save) || work->save->restage_wanted))
        roster_wake(stager->roster);
}

/* One chunk, whole. With the lock held, which it gives away while it copies. */
static void work_once(struct stager *stager)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct work work;
    uint64_t began;
    bool is_whole;

    if (take(stager, &work) < 0 || work.save->cancelled || work.save->restage_wanted) {
        give_back(stager, &work);
        return;
    }
    if (work.save->staging == TSPOOL_STAGING_CALLER) { /* only the slot was wanted */
        give_back(stager, &work);
        roster_changed(stager->roster);
        return;
    }
    pthread_mutex_unlock(&stager->roster->lock);
    began = thread_cpu_ns();
    chunk_fill(work.save, work.chunk, arena_slot(stager->arena, work.slot));
    is_whole = torn_check(work.save, work.chunk, arena_slot(stager->arena, work.slot), &failure);
    began = thread_cpu_ns() - began;
    pthread_mutex_lock(&stager->roster->lock);
    work.save->stage_cpu_ns += began;
    if (is_whole)
        save_chunk_staged(work.save, work.chunk);
    else
        save_give_up(work.save, &failure);
    give_back(stager, &work);
}

bool stager_work(struct stager *stager)
{
    while (stager->first && !has_work(stager))
        pthread_cond_wait(&stager->work, &stager->roster->lock);
    if (!stager->first)
        return false;
    work_once(stager);
    return true;
}

void stager_help(struct stager *stager, struct tspool_save *save)
{
    stager->working++;
    while (save->in_line)
        if (has_work(stager))
            work_once(stager);
        else
            pthread_cond_wait(&stager->work, &stager->roster->lock);
    stager->working--;
    pthread_cond_broadcast(&stager->work);
}

/* Threads ---------------------------------------------------------------------------------------------------------- */

static void *stager_main(void *argument)
{
    struct stager *stager = argument;

    pthread_mutex_lock(&stager->roster->lock);
    while (!stager->stopping) {
        if (!has_work(stager) || stager->working >= stager->limit) {
            pthread_cond_wait(&stager->work, &stager->roster->lock);
            continue;
        }
        stager->working++;
        work_once(stager);
        stager->working--;
    }
    pthread_mutex_unlock(&stager->roster->lock);
    return NULL;
}

int stager_init(struct stager *stager, struct roster *roster, struct arena *arena, uint32_t threads, const char *excluded_cpus,
                struct tspool_failure *failure)
{
    char name[24];
    int error;

    *stager = (struct stager){ .roster = roster, .arena = arena, .limit = threads };
    pthread_cond_init(&stager->work, NULL);
    for (; stager->thread_count < threads; stager->thread_count++) {
        snprintf(name, sizeof(name), "tspool-stage-%u", stager->thread_count);
        error = thread_start(&stager->threads[stager->thread_count], name, excluded_cpus, stager_main, stager);
        if (error < 0) {
            stager_deinit(stager);
            return failure_set(failure, TSPOOL_STAGE_OPEN, -error, FAILURE_AT(.operation = "thread"), THREAD_CAUSE);
        }
    }
    return 0;
}

void stager_deinit(struct stager *stager)
{
    if (!stager->roster)
        return;
    pthread_mutex_lock(&stager->roster->lock);
    stager->stopping = true;
    pthread_cond_broadcast(&stager->work);
    pthread_mutex_unlock(&stager->roster->lock);
    for (uint32_t i = 0; i < stager->thread_count; i++)
        pthread_join(stager->threads[i], NULL);
    pthread_cond_destroy(&stager->work);
    stager->roster = NULL;
}
