/* arena/sealed.c - memfds whose contents can neither change nor vanish under the one who maps them.
 *
 * Whoever maps a stranger's file can be hurt by it: a shrinking file is SIGBUS, a changing one defeats every check made
 * before. Seals end both, and the receiver looks for them instead of trusting the sender.
 */
#include <arena/arena.h>
#include <arena/mapping.h>

#include <base/failure.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS_CONTENT (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static int bytes_write(int fd, const uint8_t *bytes, uint64_t size)
{
    while (size > 0) {
        ssize_t wrote = write(fd, bytes, size < (1u << 30) ? size : 1u << 30);

        if (wrote < 0 && errno != EINTR)
            return -errno;
        bytes += wrote > 0 ? wrote : 0;
        size -= wrote > 0 ? (uint64_t)wrote : 0;
    }
    return 0;
}

int sealed_create(const char *name, const void *bytes, uint64_t size, int *fd, struct tspool_failure *failure)
{
    int error, made = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (made < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, errno, FAILURE_AT(.operation = "memfd_create"), NULL);
    error = file_size_check(size);
    if (error == 0)
        error = bytes_write(made, bytes, size);
    if (error == 0 && fcntl(made, F_ADD_SEALS, SEALS_CONTENT | F_SEAL_SEAL) < 0)
        error = -errno;
    if (error < 0) {
        close(made);
        return failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "seal"), NULL);
    }
    *fd = made;
    return 0;
}

int sealed_map(int fd, uint64_t size, const void **bytes, struct tspool_failure *failure)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    void *base;

    if (seals < 0 || (seals & SEALS_CONTENT) != SEALS_CONTENT)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EPERM, FAILURE_AT(.operation = "map"),
                           "the descriptor is not a memfd sealed against writing and resizing");
    if (fstat(fd, &status) < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, errno, FAILURE_AT(.operation = "stat"), NULL);
    if (size == 0 || (uint64_t)status.st_size != size)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, EINVAL, FAILURE_AT(.operation = "map"),
                           "the sealed memfd has %lld bytes, %llu were announced", (long long)status.st_size,
                           (unsigned long long)size);
    /* Private: before Linux 6.7 a write-sealed memfd could not be mapped shared, not even read-only. */
    base = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, errno, FAILURE_AT(.operation = "map"), NULL);
    *bytes = base;
    return 0;
}

void sealed_unmap(const void *bytes, uint64_t size)
{
    if (bytes)
        munmap((void *)(uintptr_t)bytes, size);
}
