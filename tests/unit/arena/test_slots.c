/* Slots: a lost wake-up hangs a trainer, a slot handed out twice corrupts a checkpoint. */
#include <arena/arena.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB (1ull << 20)

static struct arena *arena_of(uint64_t bytes)
{
    struct arena_settings settings = { .bytes = bytes };
    struct arena *arena = NULL;

    cr_assert_eq(arena_create(&settings, &arena, NULL), 0);
    return arena;
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint32_t take(struct arena *arena)
{
    uint32_t slot = ARENA_NO_SLOT;

    cr_assert_eq(arena_acquire(arena, 0, NULL, &slot, NULL), 0);
    return slot;
}

Test(arena, hands_out_the_lowest_free_slot)
{
    struct arena *arena = arena_of(64 * MIB);

    for (uint32_t slot = 0; slot < 4; slot++)
        cr_expect_eq(take(arena), slot);
    arena_release(arena, 2);
    arena_release(arena, 1);
    cr_expect_eq(take(arena), 1);
    cr_expect_eq(take(arena), 2);
    arena_destroy(arena);
}

Test(arena, slots_do_not_overlap_and_lie_in_order)
{
    struct arena *arena = arena_of(64 * MIB);

    cr_assert_eq(arena_populate(arena, 64 * MIB, NULL), 0);
    cr_expect_eq(arena_slot_count(arena), 4);
    for (uint32_t slot = 0; slot < 4; slot++)
        memset(arena_slot(arena, slot), (int)slot + 1, ARENA_SLOT_BYTES);
    for (uint32_t slot = 0; slot < 4; slot++) {
        const uint8_t *bytes = arena_slot(arena, slot);

        cr_expect_eq(bytes[0], slot + 1);
        cr_expect_eq(bytes[ARENA_SLOT_BYTES - 1], slot + 1);
        cr_expect_eq((uintptr_t)bytes % (2 * MIB), 0);
    }
    arena_destroy(arena);
}

Test(arena, full_arena_times_out_with_the_reason)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct arena *arena = arena_of(32 * MIB);
    uint32_t slot = 77;
    uint64_t deadline = monotonic_ns() + 20 * 1000000;

    take(arena);
    take(arena);
    cr_expect_eq(arena_acquire(arena, deadline, NULL, &slot, &failure), -ETIMEDOUT);
    cr_expect_geq(monotonic_ns(), deadline);
    cr_expect_eq(slot, 77, "an output changes on success only");
    cr_expect_eq(failure.error, ETIMEDOUT);
    cr_expect(strstr(failure.message, "32 MiB"), "%s", failure.message);
    arena_destroy(arena);
}

struct waiter { struct arena *arena; bool cancelled; uint32_t slot; int result; pid_t tid; pthread_t thread; };

static void *wait_for_slot(void *argument)
{
    struct waiter *waiter = argument;

    __atomic_store_n(&waiter->tid, gettid(), __ATOMIC_RELEASE);
    waiter->result = arena_acquire(waiter->arena, UINT64_MAX, &waiter->cancelled, &waiter->slot, NULL);
    return NULL;
}

static char thread_state(pid_t tid)
{
    char path[64], state = '?';
    FILE *stat;

    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    stat = fopen(path, "r");
    if (stat && fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
        state = '?';
    if (stat)
        fclose(stat);
    return state;
}

/* Returns when the thread sleeps in arena_acquire: a wake-up before that would prove nothing. */
static void waiter_start(struct waiter *waiter)
{
    pid_t tid;

    take(waiter->arena);
    take(waiter->arena);
    cr_assert_eq(pthread_create(&waiter->thread, NULL, wait_for_slot, waiter), 0);
    do {
        sched_yield();
        tid = __atomic_load_n(&waiter->tid, __ATOMIC_ACQUIRE);
    } while (tid == 0 || thread_state(tid) != 'S');
}

Test(arena, release_wakes_a_waiting_thread)
{
    struct waiter waiter = { .arena = arena_of(32 * MIB), .slot = ARENA_NO_SLOT };

    waiter_start(&waiter);
    arena_release(waiter.arena, 1);
    pthread_join(waiter.thread, NULL);
    cr_expect_eq(waiter.result, 0);
    cr_expect_eq(waiter.slot, 1);
    arena_destroy(waiter.arena);
}

Test(arena, wake_lets_a_cancelled_waiter_go)
{
    struct waiter waiter = { .arena = arena_of(32 * MIB), .slot = ARENA_NO_SLOT };

    waiter_start(&waiter);
    arena_wake(waiter.arena); /* without a reason: it goes on waiting */
    __atomic_store_n(&waiter.cancelled, true, __ATOMIC_RELEASE);
    arena_wake(waiter.arena);
    pthread_join(waiter.thread, NULL);
    cr_expect_eq(waiter.result, -ECANCELED);
    cr_expect_eq(waiter.slot, ARENA_NO_SLOT);
    arena_destroy(waiter.arena);
}

/* Each thread owns the byte of the slot it holds: two owners at once would be seen. */
struct contender { struct arena *arena; int number, collisions, failures; };

static void *contend(void *argument)
{
    struct contender *contender = argument;

    for (int round = 0; round < 300; round++) {
        uint32_t slot;
        uint8_t *owner;

        if (arena_acquire(contender->arena, UINT64_MAX, NULL, &slot, NULL) < 0) {
            contender->failures++;
            continue;
        }
        owner = arena_slot(contender->arena, slot);
        contender->collisions += *owner != 0;
        *owner = (uint8_t)contender->number;
        sched_yield();
        contender->collisions += *owner != contender->number;
        *owner = 0;
        arena_release(contender->arena, slot);
    }
    return NULL;
}

Test(arena, no_slot_has_two_owners)
{
    struct arena *arena = arena_of(48 * MIB);
    struct contender contenders[6];
    pthread_t threads[6];

    for (int i = 0; i < 6; i++) {
        contenders[i] = (struct contender){ .arena = arena, .number = i + 1 };
        cr_assert_eq(pthread_create(&threads[i], NULL, contend, &contenders[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        cr_expect_eq(contenders[i].collisions, 0);
        cr_expect_eq(contenders[i].failures, 0);
    }
    arena_destroy(arena);
}

Test(arena, run_takes_the_first_gap_that_is_long_enough)
{
    struct arena *arena = arena_of(128 * MIB);
    uint32_t first = 77;

    cr_assert_eq(arena_acquire_run(arena, 8, &first, NULL), 0);
    cr_expect_eq(first, 0);
    arena_release(arena, 1); /* free: 1, 3, 4, 6, 7 */
    arena_release(arena, 3);
    arena_release(arena, 4);
    arena_release(arena, 6);
    arena_release(arena, 7);
    cr_expect_eq(arena_acquire_run(arena, 2, &first, NULL), 0);
    cr_expect_eq(first, 3);
    cr_expect_eq(arena_acquire_run(arena, 3, &first, NULL), -EAGAIN);
    cr_expect_eq(first, 3, "an output changes on success only");
    cr_expect_eq(take(arena), 1);
    cr_expect_eq(arena_acquire_run(arena, 2, &first, NULL), 0);
    cr_expect_eq(first, 6);
    arena_destroy(arena);
}

Test(arena, run_continues_free_slots_at_the_end_with_new_memory)
{
    struct arena *arena = arena_of(128 * MIB);
    struct stat status;
    uint32_t first;

    cr_assert_eq(arena_populate(arena, 48 * MIB, NULL), 0);
    take(arena);
    cr_assert_eq(arena_acquire_run(arena, 4, &first, NULL), 0);
    cr_expect_eq(first, 1, "slots 1 and 2 were there, 3 and 4 were added");
    cr_assert_eq(fstat(arena_fd(arena), &status), 0);
    cr_expect_eq((uint64_t)status.st_blocks * 512, 80 * MIB, "and no more than these");
    cr_expect_eq(arena_acquire_run(arena, 4, &first, NULL), -EAGAIN, "only 5, 6, 7 are left under the cap");
    arena_destroy(arena);
}
