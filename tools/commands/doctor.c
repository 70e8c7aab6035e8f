/* commands/doctor.c - what this machine and a directory offer, what tspool will therefore do, and how to mend it.
 *
 * The public API has nothing for this: the io room says why io_uring is refused and what the file system wants, the arena
 * room how much memory may be taken, the proc room where the writer is. Writes one file without a name (O_TMPFILE) into
 * the directory, which is gone when it is closed.
 */
#include "command.h"

#include <arena/sizing.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <io/io.h>
#include <limits.h>
#include <proc/proc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define TRIAL_ARENA_BYTES ((uint64_t)32 << 20)
#define FILES_ENOUGH 4096u
#define SPACE_LOW ((uint64_t)10 << 30)

enum verdict { VERDICT_OK, VERDICT_NOTE, VERDICT_BAD };

struct checkup { bool as_json; int status; };

/* One line: what was found, what tspool does about it, and the command that mends it (NULL: nothing to mend). */
static void say(struct checkup *checkup, enum verdict verdict, const char *subject, const char *found, const char *therefore,
                const char *mend)
{
    static const char *const names[] = { "ok", "note", "bad" };

    if (verdict == VERDICT_BAD)
        checkup->status = EXIT_FAILED;
    if (checkup->as_json) {
        struct json json = json_begin(stdout);

        json_string(&json, "subject", subject);
        json_string(&json, "verdict", names[verdict]);
        json_string(&json, "found", found);
        json_string(&json, "therefore", therefore);
        json_string(&json, "mend", mend);
        json_end(&json);
        return;
    }
    printf("%-4s  %-10s  %s\n", names[verdict], subject, found);
    printf("                  %s\n", therefore);
    if (mend)
        printf("                  mend: %s\n", mend);
}

/* Machine ------------------------------------------------------------------------------------------------------------ */

static const char *uring_mend(int error)
{
    FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "r");
    int disabled = 0;

    if (file) {
        if (fscanf(file, "%d", &disabled) != 1)
            disabled = 0;
        fclose(file);
    }
    if (disabled)
        return "sysctl -w kernel.io_uring_disabled=0";
    if (error == EPERM || error == EACCES)
        return "in a container: docker run --security-opt seccomp=unconfined (or a profile that allows io_uring_setup)";
    if (error == ENOMEM)
        return "ulimit -l unlimited";
    return error == ENOSYS ? "a kernel of 5.11 or newer" : NULL;
}

static void uring_check(struct checkup *checkup)
{
    struct io_settings settings = { .depth = 16, .verb_threads = 1, .compute_threads = 1 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io *io = NULL;
    int error = io_create_uring(&settings, &io, &failure);

    if (error == 0) {
        say(checkup, VERDICT_OK, "io_uring", "the kernel allows it", "reads and writes go through it", NULL);
        io_destroy(io);
        return;
    }
    say(checkup, VERDICT_NOTE, "io_uring", failure.cause, "8 threads read and write instead: a few percent slower, more CPU",
        uring_mend(-error));
}

static void memlock_check(struct checkup *checkup)
{
    struct rlimit limit = { 0 };
    char found[128];

    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_cur == RLIM_INFINITY)
        snprintf(found, sizeof found, "no limit");
    else
        snprintf(found, sizeof found, "%s", human_bytes(limit.rlim_cur).bytes);
    say(checkup, VERDICT_OK, "memlock", found,
        "nothing: buffers are not registered by default, which costs about 1 % on huge pages", NULL);
}

/* A small arena is made as every arena is: what backs it then is the answer. 0 when none could be made. */
static uint32_t arena_pages_try(struct tspool_failure *failure)
{
    struct arena_settings settings = { .bytes = TRIAL_ARENA_BYTES };
    struct arena *arena = NULL;
    uint32_t page_bytes = 0;

    if (arena_create(&settings, &arena, failure) == 0 && arena_populate(arena, TRIAL_ARENA_BYTES, failure) == 0)
        page_bytes = arena_page_bytes(arena);
    arena_destroy(arena);
    return page_bytes;
}

static void huge_check(struct checkup *checkup)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint32_t page_bytes = arena_pages_try(&failure);

    if (page_bytes == 0)
        say(checkup, VERDICT_BAD, "huge pages", failure.message, "no arena can be made", NULL);
    else if (page_bytes > 4096)
        say(checkup, VERDICT_OK, "huge pages", "a small arena was made on 2 MiB pages", "so will the arena be", NULL);
    else
        say(checkup, VERDICT_NOTE, "huge pages", "a small arena stayed on 4 KiB pages",
            "writing reaches about 0.8 of what it does on 2 MiB pages",
            "a kernel of 6.1 or newer, or: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

static void memory_check(struct checkup *checkup)
{
    struct memory_room room = { 0 };
    char found[400], therefore[200];
    uint64_t cap;

    memory_room_read(NULL, &room);
    cap = memory_room_default_cap(&room, 1);
    if (room.bytes == UINT64_MAX)
        snprintf(found, sizeof found, "no limit could be read");
    else
        snprintf(found, sizeof found, "%s may be taken, by %s", human_bytes(room.bytes).bytes, room.limit);
    snprintf(therefore, sizeof therefore,
             "an arena without a size of its own gets at most %s; larger states are staged piece by piece",
             human_bytes(cap).bytes);
    say(checkup, cap < ((uint64_t)256 << 20) ? VERDICT_NOTE : VERDICT_OK, "memory", found, therefore,
        cap < ((uint64_t)256 << 20) ? "raise memory.max of the cgroup, or give arena_bytes" : NULL);
}

static void files_check(struct checkup *checkup)
{
    struct rlimit limit = { 0 };
    char found[128];

    getrlimit(RLIMIT_NOFILE, &limit);
    snprintf(found, sizeof found, "%llu, up to %llu", (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    say(checkup, limit.rlim_max < FILES_ENOUGH ? VERDICT_NOTE : VERDICT_OK, "open files", found,
        "each shard file takes one while it is written or read; the writer raises its own limit", limit.rlim_max < FILES_ENOUGH
            ? "ulimit -Hn 65536" : NULL);
}

static void writer_check(struct checkup *checkup)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char path[PATH_MAX];

    if (writer_path_find(NULL, path, &failure) == 0)
        say(checkup, VERDICT_OK, "writer", path, "saves outlive the trainer's process", NULL);
    else
        say(checkup, VERDICT_NOTE, "writer", failure.message, "give writer_path, or isolation=thread (outlives nothing)",
            "meson install");
}

/* Directory ---------------------------------------------------------------------------------------------------------- */

static void space_check(struct checkup *checkup, const struct io_stat *stat)
{
    char found[128];
    bool low = stat->free_bytes < SPACE_LOW;

    snprintf(found, sizeof found, "%s, %s free", stat->filesystem, human_bytes(stat->free_bytes).bytes);
    say(checkup, low ? VERDICT_NOTE : VERDICT_OK, "space", found, "a save that does not fit is refused before its first byte",
        low ? "tspool gc ROOT --keep N" : NULL);
}

/* O_DIRECT for real: one aligned block written to a file without a name. 0 or the errno. */
static int direct_try(const char *path, size_t alignment)
{
    int fd = open(path, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600), error = 0;
    void *block;

    if (fd < 0)
        return errno;
    block = aligned_alloc(alignment, alignment);
    if (!block)
        error = ENOMEM;
    else if (memset(block, 0, alignment), pwrite(fd, block, alignment, 0) < 0)
        error = errno;
    free(block);
    close(fd);
    return error;
}

/* What the file system says of a file in the directory (of the directory itself it says nothing). */
static void alignment_look(struct io *io, const char *path, struct io_stat *stat)
{
    struct op op = { .kind = OP_STAT, .stat = stat };
    int fd = open(path, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0)
        return;
    op.handle = fd;
    io_call(io, &op);
    close(fd);
}

static void direct_check(struct checkup *checkup, struct io *io, const char *path)
{
    struct io_stat stat = { 0 };
    char found[160];
    int error;

    alignment_look(io, path, &stat);
    error = direct_try(path, stat.direct_offset_align > 4096 ? stat.direct_offset_align : 4096);
    if (error == EOPNOTSUPP || error == EISDIR) {
        say(checkup, VERDICT_NOTE, "O_DIRECT", "cannot be tried: no file without a name (O_TMPFILE) here",
            "it is tried at the first save", NULL);
        return;
    }
    if (error) {
        snprintf(found, sizeof found, "refused: %s", strerror(error));
        say(checkup, VERDICT_NOTE, "O_DIRECT", found,
            "buffered I/O and fsync: about 0.3 of the direct speed, and page cache as large as the state",
            "a directory on ext4, xfs or another local file system");
        return;
    }
    if (!stat.direct_offset_align) {
        say(checkup, VERDICT_NOTE, "O_DIRECT", "opens, but the file system tells no alignment: it may be buffered underneath",
            "written with 4096 alignment, reported as not direct", NULL);
        return;
    }
    snprintf(found, sizeof found, "works; offsets by %u, memory by %u", stat.direct_offset_align, stat.direct_memory_align);
    say(checkup, VERDICT_OK, "O_DIRECT", found, "files are written and read past the page cache", NULL);
}

static void directory_check(struct checkup *checkup, const char *path)
{
    struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io_stat stat = { 0 };
    struct op op = { .kind = OP_STAT, .stat = &stat };
    struct io *io = NULL;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || access(path, W_OK | X_OK) < 0) {
        say(checkup, VERDICT_BAD, "directory", strerror(errno), "no save can be made here", "mkdir -p DIR, or chmod u+wx DIR");
        if (fd >= 0)
            close(fd);
        return;
    }
    op.handle = fd;
    if (io_create_threads(&settings, &io, &failure) == 0 && io_call(io, &op) == 0) {
        space_check(checkup, &stat);
        direct_check(checkup, io, path);
    }
    io_destroy(io);
    close(fd);
}

static int run(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { 0 } };
    struct checkup checkup = { 0 };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'j')
            return usage_error("doctor", NULL);
        checkup.as_json = true;
    }
    if (argc - optind > 1)
        return usage_error("doctor", "give at most one directory");
    uring_check(&checkup);
    memlock_check(&checkup);
    huge_check(&checkup);
    memory_check(&checkup);
    files_check(&checkup);
    writer_check(&checkup);
    directory_check(&checkup, optind < argc ? argv[optind] : ".");
    return checkup.status;
}

const struct command command_doctor = {
    .name = "doctor",
    .summary = "what this machine and directory offer, and how to mend it",
    .arguments = "[--json] [DIR]",
    .description = "Looks at io_uring, O_DIRECT, limits, huge pages, memory and the file system of DIR (the current\n"
                   "directory), says what tspool will therefore do, and the command that mends each shortfall. Exit\n"
                   "status 1: no save can be made.\n\n"
                   "  --json     one JSON object per finding\n"
                   "  -h, --help this text\n",
    .run = run,
};
