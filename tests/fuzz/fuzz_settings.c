/* Any bytes as a settings file: loading never crashes, changes nothing unless it succeeds, and then only what such a file
 * holds. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <tspool/spool.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int load(const uint8_t *data, size_t size, struct tspool_options *options)
{
    int fd = memfd_create("settings", MFD_CLOEXEC), result;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char path[64];

    assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    result = tspool_options_load(path, options, &failure);
    assert((result == 0) == (failure.error == 0));
    close(fd);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tspool_options before = TSPOOL_OPTIONS_INIT, after = before;

    if (load(data, size, &after) == 0) {
        assert(after.io <= TSPOOL_IO_THREADS);
        before.item_bytes = after.item_bytes;
        before.depth = after.depth;
        before.submit_batch = after.submit_batch;
        before.staging_threads = after.staging_threads;
        before.io = after.io;
    }
    assert(memcmp(&before, &after, sizeof after) == 0);
    return 0;
}
