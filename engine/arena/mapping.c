/* arena/mapping.c - shared memory, sealed, on huge pages where they can be had.
 *
 * Huge pages: shmem_enabled=never is the common setting, and MADV_HUGEPAGE on a memfd then does nothing. MADV_COLLAPSE
 * (Linux 6.1) works all the same. One byte touched per 2 MiB and then a collapse takes 0.07 s/GiB: the rest of each huge
 * page was a hole and is simply zeroed. With fallocate in front, 512 small pages are made first and copied away: 0.6 to
 * 1.7 s/GiB. Two threads instead of one gained a tenth (0.061 against 0.069 s/GiB), so there is one. Without huge pages
 * MADV_POPULATE_WRITE makes pages and page tables at once (0.35 to 0.6 s/GiB), so that staging meets no page fault.
 */
#include <arena/mapping.h>

#include <arena/arena.h>
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define SEALS_ARENA (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)
#define COLLAPSE_BYTES ARENA_SLOT_BYTES /* per call: a failure makes at most this much fall back to small pages */

/* mmap at a multiple of 2 MiB: only there can a huge page be mapped as one. The slack is reserved, then given back. */
static int map_aligned(int fd, uint64_t bytes, int protection, uint8_t **base)
{
    uint64_t reserved = bytes + HUGE_PAGE_BYTES;
    uint8_t *start = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint8_t *aligned;

    if (start == MAP_FAILED)
        return -errno;
    aligned = (uint8_t *)align_up((uintptr_t)start, HUGE_PAGE_BYTES);
    if (mmap(aligned, bytes, protection, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int error = -errno;

        munmap(start, reserved);
        return error;
    }
    if (aligned > start)
        munmap(start, (size_t)(aligned - start));
    munmap(aligned + bytes, (size_t)(start + reserved - (aligned + bytes)));
    /* A child has no business here, and a core dump of a trainer should not hold its whole state twice. */
    madvise(aligned, bytes, MADV_DONTFORK);
    madvise(aligned, bytes, MADV_DONTDUMP);
    *base = aligned;
    return 0;
}

int file_size_check(uint64_t bytes)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur ? -EFBIG : 0;
}

int mapping_create(uint64_t bytes, int *fd, uint8_t **base, struct tspool_failure *failure)
{
    int error, made = memfd_create("tspool-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const char *operation = "memfd_create";
    uint8_t *mapped = NULL;

    if (made < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, errno, FAILURE_AT(.operation = operation), NULL);
    operation = "ftruncate";
    error = file_size_check(bytes);
    if (error == 0 && ftruncate(made, (off_t)bytes) < 0)
        error = -errno;
    if (error == 0) {
        operation = "mmap";
        error = map_aligned(made, bytes, PROT_READ | PROT_WRITE, &mapped);
    }
    if (error == 0) {
        operation = "seal";
        error = fcntl(made, F_ADD_SEALS, SEALS_ARENA | F_SEAL_SEAL) < 0 ? -errno : 0;
    }
    if (error < 0) {
        mapping_destroy(made, mapped, bytes);
        return failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = operation),
                           "cannot make an arena of %llu MiB; is RLIMIT_AS or RLIMIT_FSIZE set, or the kernel older than 5.1?",
                           (unsigned long long)(bytes >> 20));
    }
    *fd = made;
    *base = mapped;
    return 0;
}

void mapping_destroy(int fd, uint8_t *base, uint64_t bytes)
{
    if (base)
        munmap(base, bytes);
    if (fd >= 0)
        close(fd);
}

/* Every page by hand: for kernels before 5.14. Reads and writes back, since a retry may meet a slot's bytes. */
static void touch_pages(uint8_t *base, uint64_t bytes, uint64_t stride)
{
    for (uint64_t offset = 0; offset < bytes; offset += stride)
        *(volatile uint8_t *)(base + offset) = *(volatile uint8_t *)(base + offset);
}

static int back_small(uint8_t *base, uint64_t bytes)
{
    if (madvise(base, bytes, MADV_POPULATE_WRITE) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    touch_pages(base, bytes, 4096);
    return 0;
}

int mapping_back(uint8_t *base, uint64_t bytes, bool *huge)
{
    bool all_huge = true, offered = true;

    for (uint64_t offset = 0; offset < bytes; offset += COLLAPSE_BYTES) {
        uint64_t size = min_u64(COLLAPSE_BYTES, bytes - offset);
        int error;

        if (offered) {
            touch_pages(base + offset, size, HUGE_PAGE_BYTES);
            if (madvise(base + offset, size, MADV_COLLAPSE) == 0)
                continue;
            offered = errno != EINVAL; /* EINVAL: this kernel or setting has none; the rest is passing trouble */
        }
        all_huge = false;
        error = back_small(base + offset, size);
        if (error < 0)
            return error;
    }
    *huge = all_huge;
    return 0;
}

/* The writer's side ----------------------------------------------------------------------------------------------- */
int arena_attach(int fd, uint64_t bytes, void **base, struct tspool_failure *failure)
{
    struct stat status;
    int error, seals = fcntl(fd, F_GET_SEALS);
    uint8_t *mapped;

    if (seals < 0 || (seals & SEALS_ARENA) != SEALS_ARENA)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EPERM, FAILURE_AT(.operation = "map"),
                           "the arena's descriptor is not a memfd sealed against resizing and writable mappings");
    if (fstat(fd, &status) < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, errno, FAILURE_AT(.operation = "stat"), NULL);
    if (bytes == 0 || (uint64_t)status.st_size != bytes)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EINVAL, FAILURE_AT(.operation = "map"),
                           "the arena has %lld bytes, %llu were announced", (long long)status.st_size,
                           (unsigned long long)bytes);
    error = map_aligned(fd, bytes, PROT_READ, &mapped);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "mmap"), NULL);
    *base = mapped;
    return 0;
}

void arena_detach(void *base, uint64_t bytes)
{
    if (base)
        munmap(base, bytes);
}
