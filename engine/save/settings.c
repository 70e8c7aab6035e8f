/* save/settings.c - tspool_options_load: the file that `tspool tune` writes, and people too. Hostile input like any other.
 *
 *     {"tspool": 1, "item_bytes": 524288, "depth": 32, "submit_batch": 1, "io": "uring", "staging_threads": 2}
 *
 * Nothing but what is in the file is set, and nothing when anything is wrong with it. Members that are not known are passed
 * over: a later tune may have found more.
 */
#include <base/failure.h>
#include <errno.h>
#include <fcntl.h>
#include <format/pool.h>
#include <format/scan.h>
#include <string.h>
#include <sys/stat.h>
#include <tspool/spool.h>
#include <unistd.h>

#define SETTINGS_BYTES_MAX 65536u

struct settings { uint32_t version, item_bytes, depth, submit_batch, staging_threads; const char *io; };

static int refuse(struct tspool_failure *failure, int error, const char *path, const char *operation, const char *cause)
{
    return failure_set(failure, TSPOOL_STAGE_OPEN, error, FAILURE_AT(.operation = operation, .path = path),
                       cause ? "%s" : NULL, cause);
}

/* The file's size, or -errno. */
static int text_read(const char *path, char *text)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), error = 0;
    struct stat stat;
    ssize_t size = 0;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &stat) < 0 || !S_ISREG(stat.st_mode) || stat.st_size > SETTINGS_BYTES_MAX)
        error = !S_ISREG(stat.st_mode) ? -EINVAL : -EFBIG;
    else if ((size = read(fd, text, SETTINGS_BYTES_MAX)) < 0)
        error = -errno;
    close(fd);
    return error ? error : (int)size;
}

static int settings_scan(struct pool *pool, const char *text, size_t size, struct settings *settings, struct scan *scan)
{
    static const struct scan_member members[] = {
        { "tspool", scan_take_u32, true, offsetof(struct settings, version) },
        { "item_bytes", scan_take_u32, false, offsetof(struct settings, item_bytes) },
        { "depth", scan_take_u32, false, offsetof(struct settings, depth) },
        { "submit_batch", scan_take_u32, false, offsetof(struct settings, submit_batch) },
        { "staging_threads", scan_take_u32, false, offsetof(struct settings, staging_threads) },
        { "io", scan_take_text, false, offsetof(struct settings, io) },
    };
    int error = scan_init(scan, text, size, pool);

    if (error == 0)
        error = scan_object(scan, members, sizeof members / sizeof *members, settings);
    return error == 0 ? scan_finish(scan) : error;
}

static bool io_parse(const char *text, enum tspool_io *io)
{
    static const char *const names[] = { "auto", "uring", "threads" };

    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) {
            *io = (enum tspool_io)i;
            return true;
        }
    return false;
}

static int settings_apply(const struct settings *settings, struct tspool_options *options, const char *path,
                          struct tspool_failure *failure)
{
    enum tspool_io io = options->io;

    if (settings->version != 1)
        return refuse(failure, EPROTO, path, "settings", "\"tspool\" is not 1: the file is of another version");
    if (settings->io && !io_parse(settings->io, &io))
        return refuse(failure, EINVAL, path, "settings", "\"io\" is none of auto, uring, threads");
    options->io = io;
    if (settings->item_bytes)
        options->item_bytes = settings->item_bytes;
    if (settings->depth)
        options->depth = settings->depth;
    if (settings->submit_batch)
        options->submit_batch = settings->submit_batch;
    if (settings->staging_threads)
        options->staging_threads = settings->staging_threads;
    return 0;
}

int tspool_options_load(const char *path, struct tspool_options *options, struct tspool_failure *failure)
{
    struct settings settings = { 0 };
    char text[SETTINGS_BYTES_MAX];
    struct pool pool = { 0 };
    struct scan scan;
    int size, error;

    if (!path || !options || options->size < sizeof *options)
        return refuse(failure, EINVAL, path, "settings", "give a path, and options made with TSPOOL_OPTIONS_INIT");
    size = text_read(path, text);
    if (size < 0)
        return refuse(failure, -size, path, "settings", NULL);
    error = settings_scan(&pool, text, (size_t)size, &settings, &scan);
    if (error == -EBADMSG)
        error = failure_set(failure, TSPOOL_STAGE_OPEN, EBADMSG,
                            FAILURE_AT_BYTE(scan_position(&scan), .operation = "settings", .path = path), "%s", scan.reason);
    else if (error < 0)
        error = refuse(failure, -error, path, "settings", NULL);
    else
        error = settings_apply(&settings, options, path, failure);
    pool_deinit(&pool);
    return error;
}
