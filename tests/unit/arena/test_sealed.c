/* Sealed memfds: what one process checked must be what it then uses. */
#include <arena/arena.h>

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

Test(sealed, bytes_come_back_and_can_no_longer_change)
{
    const void *mapped = NULL;
    int fd = -1;

    cr_assert_eq(sealed_create("sheet", "a plan", 7, &fd, NULL), 0);
    cr_assert_eq(sealed_map(fd, 7, &mapped, NULL), 0);
    cr_expect_str_eq(mapped, "a plan");
    cr_expect_eq(pwrite(fd, "A", 1, 0), -1);
    cr_expect_eq(ftruncate(fd, 0), -1);
    cr_expect_eq(mmap(NULL, 7, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    sealed_unmap(mapped, 7);
    close(fd);
}

Test(sealed, map_refuses_what_is_not_sealed)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const void *mapped = NULL;
    int half = memfd_create("half", MFD_ALLOW_SEALING), zero = open("/dev/zero", O_RDONLY);

    cr_assert_eq(write(half, "text", 4), 4);
    cr_assert_eq(fcntl(half, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    cr_expect_eq(sealed_map(half, 4, &mapped, &failure), -EPERM);
    cr_expect_eq(failure.error, EPERM);
    cr_expect_eq(sealed_map(zero, 4, &mapped, NULL), -EPERM);
    cr_expect_null(mapped);
    close(half);
    close(zero);
}

Test(sealed, map_refuses_another_size)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    const void *mapped = NULL;
    int fd = -1;

    cr_assert_eq(sealed_create("sheet", "1234", 4, &fd, NULL), 0);
    cr_expect_eq(sealed_map(fd, 8192, &mapped, &failure), -EINVAL);
    cr_expect(strstr(failure.message, "8192"), "%s", failure.message);
    cr_expect_eq(sealed_map(fd, 3, &mapped, NULL), -EINVAL);
    cr_expect_eq(sealed_map(fd, 0, &mapped, NULL), -EINVAL);
    cr_expect_null(mapped);
    close(fd);
}
