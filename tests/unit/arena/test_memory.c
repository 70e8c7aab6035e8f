/* The arena's memory: who can write it, who can see it, what backs it, and that it is refused rather than killed for. */
#include <arena/arena.h>
#include <arena/sizing.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ull << 20)

static struct arena *arena_of(uint64_t bytes)
{
    struct arena_settings settings = { .bytes = bytes };
    struct arena *arena = NULL;

    cr_assert_eq(arena_create(&settings, &arena, NULL), 0);
    return arena;
}

static uint64_t backed_bytes(const struct arena *arena)
{
    struct stat status;

    fstat(arena_fd(arena), &status);
    return (uint64_t)status.st_blocks * 512;
}

Test(arena, cap_is_whole_slots_and_at_least_two)
{
    struct arena *small = arena_of(1), *odd = arena_of(33 * MIB);

    cr_expect_eq(arena_bytes(small), 32 * MIB);
    cr_expect_eq(arena_bytes(odd), 48 * MIB);
    arena_destroy(small);
    arena_destroy(odd);
    arena_destroy(NULL);
}

Test(arena, cap_beyond_all_measure_is_refused)
{
    struct arena_settings settings = { .bytes = UINT64_MAX };
    struct arena *arena = NULL;

    cr_expect_eq(arena_create(&settings, &arena, NULL), -EFBIG);
    cr_expect_null(arena);
}

Test(arena, takes_no_memory_until_it_is_asked_for)
{
    struct arena *arena = arena_of(64 * MIB);

    cr_expect_eq(backed_bytes(arena), 0);
    cr_expect_eq(arena_page_bytes(arena), 4096);
    cr_assert_eq(arena_populate(arena, 17 * MIB, NULL), 0);
    cr_expect_eq(backed_bytes(arena), 32 * MIB);
    cr_assert_eq(arena_populate(arena, 1, NULL), 0);
    cr_expect_eq(backed_bytes(arena), 32 * MIB);
    arena_destroy(arena);
}

Test(arena, grows_by_doubling_when_slots_run_out)
{
    struct arena *arena = arena_of(128 * MIB);
    static const uint64_t expected_mib[] = { 16, 32, 64, 64, 128, 128, 128, 128 };
    uint32_t slot;

    for (int i = 0; i < 8; i++) {
        cr_assert_eq(arena_acquire(arena, 0, NULL, &slot, NULL), 0);
        cr_expect_eq(backed_bytes(arena), expected_mib[i] * MIB, "after slot %d", i);
    }
    arena_destroy(arena);
}

Test(arena, populate_beyond_the_cap_is_refused)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct arena *arena = arena_of(32 * MIB);

    cr_expect_eq(arena_populate(arena, 33 * MIB, &failure), -EFBIG);
    cr_expect(strstr(failure.message, "32 MiB"), "%s", failure.message);
    cr_expect_eq(backed_bytes(arena), 0);
    arena_destroy(arena);
}

/* The pages that really back the mapping at `base`: smaps says ShmemPmdMapped. */
static uint64_t huge_bytes_mapped(const void *base)
{
    char line[512];
    unsigned long long start, kib = 0;
    int inside = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");

    while (smaps && fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%llx-%*x ", &start) == 1 && strchr(line, '-') && line[0] != ' ' && strstr(line, " rw"))
            inside = start == (uintptr_t)base;
        if (inside && sscanf(line, "ShmemPmdMapped: %llu kB", &kib) == 1)
            break;
    }
    if (smaps)
        fclose(smaps);
    return kib * 1024;
}

Test(arena, page_size_is_what_the_kernel_says)
{
    struct arena *arena = arena_of(32 * MIB);

    cr_assert_eq(arena_populate(arena, 32 * MIB, NULL), 0);
    if (arena_page_bytes(arena) == 2 * MIB)
        cr_expect_eq(huge_bytes_mapped(arena_slot(arena, 0)), 32 * MIB);
    else
        cr_expect_lt(huge_bytes_mapped(arena_slot(arena, 0)), 32 * MIB);
    arena_destroy(arena);
}

Test(arena, seals_refuse_another_writable_mapping_writing_and_resizing)
{
    struct arena *arena = arena_of(32 * MIB);
    int fd = arena_fd(arena);

    cr_expect_eq(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    cr_expect_eq(errno, EPERM);
    cr_expect_eq(pwrite(fd, "x", 1, 0), -1);
    cr_expect_eq(ftruncate(fd, 4096), -1);
    cr_expect_eq(ftruncate(fd, 1 << 30), -1);
    cr_expect_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1, "the seals themselves are sealed");
    arena_destroy(arena);
}

Test(arena, attached_mapping_shows_the_bytes_and_cannot_be_made_writable)
{
    struct arena *arena = arena_of(32 * MIB);
    void *base = NULL;

    cr_assert_eq(arena_populate(arena, 32 * MIB, NULL), 0);
    cr_assert_eq(arena_attach(arena_fd(arena), 32 * MIB, &base, NULL), 0);
    memcpy(arena_slot(arena, 1), "written later", 14);
    cr_expect_str_eq((char *)base + ARENA_SLOT_BYTES, "written later");
    cr_expect_eq((uintptr_t)base % (2 * MIB), 0);
    cr_expect_eq(mprotect(base, 4096, PROT_READ | PROT_WRITE), -1);
    arena_detach(base, 32 * MIB);
    arena_destroy(arena);
}

Test(arena, attach_refuses_what_could_change_its_size)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct arena *arena = arena_of(32 * MIB);
    int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), pipe_ends[2];
    void *base = NULL;

    cr_assert_eq(ftruncate(unsealed, 32 * MIB), 0);
    cr_assert_eq(pipe(pipe_ends), 0);
    cr_expect_eq(arena_attach(unsealed, 32 * MIB, &base, &failure), -EPERM);
    cr_expect_eq(arena_attach(pipe_ends[0], 32 * MIB, &base, &failure), -EPERM);
    cr_expect_eq(arena_attach(-1, 32 * MIB, &base, &failure), -EPERM);
    cr_expect_eq(arena_attach(arena_fd(arena), 64 * MIB, &base, &failure), -EINVAL);
    cr_expect_null(base);
    arena_destroy(arena);
}

/* Exit status 1 if a mapping of the arena is in this process's map. */
static int arena_is_mapped(void)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");

    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "tspool-arena"))
            return 1;
    return 0;
}

Test(arena, forked_child_does_not_see_the_mapping)
{
    struct arena *arena = arena_of(32 * MIB);
    int status;
    pid_t child;

    cr_assert_eq(arena_populate(arena, 16 * MIB, NULL), 0);
    cr_assert_eq(arena_is_mapped(), 1);
    child = fork();
    if (child == 0)
        _exit(arena_is_mapped());
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_expect_eq(status, 0);
    arena_destroy(arena);
}

Test(arena, file_size_limit_is_an_error_and_not_a_signal)
{
    struct arena_settings settings = { .bytes = 32 * MIB };
    struct rlimit limit = { 1 << 20, 1 << 20 };
    struct arena *arena = NULL;

    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_expect_eq(arena_create(&settings, &arena, NULL), -EFBIG);
}

/* Limits: what a fake reader says ---------------------------------------------------------------------------------- */
static void room_fake(void *context, struct memory_room *room)
{
    *room = (struct memory_room){ .bytes = *(uint64_t *)context, .limit = "/fake/memory.max" };
}

Test(arena, refuses_with_figures_when_memory_has_no_room)
{
    struct arena_settings settings = { .bytes = 256 * MIB };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct arena *arena = NULL;
    uint64_t room = 64 * MIB;

    cr_assert_eq(arena_create_sized(&settings, room_fake, &room, &arena, NULL), 0);
    cr_expect_eq(arena_populate(arena, 80 * MIB, &failure), -ENOMEM);
    cr_expect_eq(failure.stage, TSPOOL_STAGE_RESERVE);
    cr_expect(strstr(failure.message, "80 MiB") && strstr(failure.message, "64 MiB") &&
              strstr(failure.message, "/fake/memory.max"), "%s", failure.message);
    cr_expect_eq(backed_bytes(arena), 0, "refused before the first byte");
    cr_expect_eq(arena_populate(arena, 48 * MIB, NULL), 0);
    cr_expect_eq(arena_populate(arena, 96 * MIB, NULL), 0, "only what is new needs room");
    arena_destroy(arena);
}

Test(arena, memory_that_the_arena_has_needs_no_room)
{
    struct arena_settings settings = { .bytes = 64 * MIB };
    struct arena *arena = NULL;
    uint64_t room = 1024 * MIB;
    uint32_t first, slot;

    cr_assert_eq(arena_create_sized(&settings, room_fake, &room, &arena, NULL), 0);
    cr_assert_eq(arena_populate(arena, 32 * MIB, NULL), 0);
    room = 0;
    cr_expect_eq(arena_populate(arena, 32 * MIB, NULL), 0);
    cr_expect_eq(arena_acquire_run(arena, 2, &first, NULL), 0);
    cr_expect_eq(arena_acquire(arena, UINT64_MAX, NULL, &slot, NULL), -ENOMEM, "growing is refused, not waited for");
    arena_destroy(arena);
}

Test(arena, default_cap_is_half_of_the_room_shared_by_the_ranks)
{
    struct arena_settings settings = { .local_ranks = 4 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct arena *arena = NULL;
    uint64_t room = 1000 * MIB; /* 1000 / 2 / 4 = 125: seven slots */

    cr_assert_eq(arena_create_sized(&settings, room_fake, &room, &arena, NULL), 0);
    cr_expect_eq(arena_bytes(arena), 112 * MIB);
    arena_destroy(arena);
    room = 200 * MIB;
    cr_expect_eq(arena_create_sized(&settings, room_fake, &room, &arena, &failure), -ENOMEM);
    cr_expect(strstr(failure.message, "200 MiB"), "%s", failure.message);
}

/* Hooks ------------------------------------------------------------------------------------------------------------ */
struct hook_log { int added, removed, refuse; uint8_t *next, *last_base; size_t last_bytes; uint64_t bytes; };

static int hook_note(void *context, void *base, size_t bytes, int added)
{
    struct hook_log *log = context;

    if (added && log->refuse)
        return -EIO;
    cr_expect(!added || !log->next || base == log->next, "extents are adjacent");
    log->next = (uint8_t *)base + bytes;
    log->last_base = base;
    log->last_bytes = bytes;
    log->added += added;
    log->removed += !added;
    log->bytes += added ? bytes : -bytes;
    *(uint8_t *)base = 1; /* usable at both times */
    return 0;
}

Test(arena, hooks_come_in_pairs)
{
    struct hook_log log = { 0 };
    struct arena_settings settings = { .bytes = 64 * MIB, .hook = hook_note, .hook_context = &log };
    struct arena *arena = NULL;

    cr_assert_eq(arena_create(&settings, &arena, NULL), 0);
    cr_expect_eq(log.added, 0);
    cr_assert_eq(arena_populate(arena, 16 * MIB, NULL), 0);
    cr_assert_eq(arena_populate(arena, 64 * MIB, NULL), 0);
    cr_expect_eq(log.added, 2);
    cr_expect_eq(log.bytes, 64 * MIB);
    arena_destroy(arena);
    cr_expect_eq(log.removed, 2);
    cr_expect_eq(log.bytes, 0);
}

Test(arena, refusing_hook_fails_the_reservation_and_may_be_asked_again)
{
    struct hook_log log = { .refuse = 1 };
    struct arena_settings settings = { .bytes = 64 * MIB, .hook = hook_note, .hook_context = &log };
    struct arena *arena = NULL;
    uint32_t slot;

    cr_assert_eq(arena_create(&settings, &arena, NULL), 0);
    cr_expect_eq(arena_populate(arena, 32 * MIB, NULL), -EIO);
    cr_expect_eq(arena_acquire(arena, 0, NULL, &slot, NULL), -EIO);
    log.refuse = 0;
    cr_expect_eq(arena_populate(arena, 32 * MIB, NULL), 0);
    cr_expect_eq(log.bytes, 32 * MIB);
    arena_destroy(arena);
    cr_expect_eq(log.removed, 1);
}

static void *populate_all(void *arena)
{
    return (void *)(intptr_t)arena_populate(arena, 128 * MIB, NULL);
}

Test(arena, threads_that_populate_at_once_do_it_once)
{
    struct hook_log log = { 0 };
    struct arena_settings settings = { .bytes = 128 * MIB, .hook = hook_note, .hook_context = &log };
    struct arena *arena = NULL;
    pthread_t threads[4];

    cr_assert_eq(arena_create(&settings, &arena, NULL), 0);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, populate_all, arena), 0);
    for (int i = 0; i < 4; i++) {
        void *result;

        pthread_join(threads[i], &result);
        cr_expect_null(result);
    }
    cr_expect_eq(log.bytes, 128 * MIB);
    cr_expect_eq(log.added, 1);
    arena_destroy(arena);
}
