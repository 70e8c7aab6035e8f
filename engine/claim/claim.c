/* claim/claim.c - see claim.h. */
#include <base/names.h>
#include <claim/claim.h>
#include <errno.h>
#include <format/part.h>
#include <io/calls.h>
#include <proc/identity.h>
#include <string.h>
#include <time.h>

#define PART_YOUNG_NS 2000000000

static bool is_young(int64_t mtime_ns, int64_t young_ns)
{
    struct timespec now;
    int64_t age;

    clock_gettime(CLOCK_REALTIME, &now);
    age = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - mtime_ns;
    return age >= 0 && age < young_ns;
}

enum lock { LOCK_FREE, LOCK_HELD, LOCK_UNKNOWN };

/* Taking the lock tells that nobody holds it, but a writer that wants it just then would be refused: only where that cannot
 * be. It falls again when the handle is closed. */
static enum lock lock_look(struct io *io, int handle)
{
    int error = file_lock(io, handle, 0);

    return error == 0 ? LOCK_FREE : error == -EWOULDBLOCK ? LOCK_HELD : LOCK_UNKNOWN;
}

static bool is_closed_to_us(int error) { return error == -EACCES || error == -EPERM; }

/* Part records ------------------------------------------------------------------------------------------------------- */

static bool trainer_is_gone(struct io *io, int handle)
{
    char text[PART_TEXT_BYTES];
    struct op read = { .kind = OP_READ, .handle = handle, .memory = text, .size = sizeof text };
    struct process_identity trainer = { 0 };
    struct part_record record;
    int64_t size = io_call(io, &read);

    if (size < 0 || !part_parse(text, (size_t)size, &record))
        return false;
    trainer.pid = record.trainer_pid;
    trainer.start = record.trainer_start;
    trainer.pid_namespace = record.pid_namespace;
    memcpy(trainer.boot_id, record.boot_id, sizeof trainer.boot_id);
    return process_look(&trainer) == PROCESS_GONE;
}

/* An empty record that is young may be about to be locked; in one with a text the lock was taken before. */
static enum claim handle_look(struct io *io, int handle)
{
    struct io_stat stat = { 0 };
    enum lock lock;

    if (file_stat(io, handle, NULL, &stat) < 0)
        return CLAIM_UNCLEAR;
    if (!stat.is_regular)
        return CLAIM_NONE;
    if (stat.size == 0 && is_young(stat.mtime_ns, PART_YOUNG_NS))
        return CLAIM_UNCLEAR;
    lock = lock_look(io, handle);
    if (lock != LOCK_HELD) /* who cannot ask must not take it for dead */
        return lock == LOCK_FREE ? CLAIM_NONE : CLAIM_LIVING;
    return stat.size >= PART_ORPHAN_BYTES || trainer_is_gone(io, handle) ? CLAIM_ORPHAN : CLAIM_LIVING;
}

/* For writing where that is allowed: network file systems lock exclusively through such handles only. */
static int part_open(struct io *io, int directory, const char *name)
{
    int handle = file_open(io, directory, name, OPEN_READ | OPEN_WRITE);

    return is_closed_to_us(handle) || handle == -EROFS ? file_open(io, directory, name, OPEN_READ) : handle;
}

static enum claim part_look(struct io *io, int directory, const char *name)
{
    int handle = part_open(io, directory, name);
    enum claim claim;

    if (handle == -ELOOP || handle == -EISDIR)
        return CLAIM_NONE;
    if (handle < 0) /* gone since it was listed: dropped for the publish. Another user's: he lives as far as we can see */
        return is_closed_to_us(handle) ? CLAIM_LIVING : CLAIM_UNCLEAR;
    claim = handle_look(io, handle);
    file_close(io, handle);
    return claim;
}

/* Directories -------------------------------------------------------------------------------------------------------- */

static bool is_manifest(const char *name)
{
    return strcmp(name, MANIFEST_NAME) == 0 || strcmp(name, MANIFEST_NAME PARTIAL_SUFFIX) == 0;
}

/* Without a part record: empty before it was made, with a manifest once it was dropped for the publish. Anything else is a
 * failed attempt that is being swept. */
static enum claim bare_look(struct io *io, int directory, const struct io_list *list, int64_t bare_ns)
{
    struct io_stat stat = { 0 };
    bool publishing = false;

    for (size_t i = 0; i < list->count; i++)
        publishing |= is_manifest(list->names[i]);
    if (file_stat(io, directory, NULL, &stat) < 0)
        return CLAIM_UNCLEAR;
    if (list->count == 0 && is_young(stat.mtime_ns, bare_ns)) /* may be about to be locked */
        return CLAIM_UNCLEAR;
    if (lock_look(io, directory) == LOCK_HELD) /* not every file system locks directories */
        return publishing ? CLAIM_UNCLEAR : CLAIM_LIVING;
    return publishing && is_young(stat.mtime_ns, bare_ns) ? CLAIM_UNCLEAR : CLAIM_NONE;
}

/* Of several records the one that is waited for longest speaks for all. */
static enum claim directory_look(struct io *io, int directory, int64_t bare_ns)
{
    static const unsigned weight[] = { [CLAIM_NONE] = 0, [CLAIM_LIVING] = 1, [CLAIM_UNCLEAR] = 2, [CLAIM_ORPHAN] = 3 };
    enum claim claim = CLAIM_NONE;
    struct io_list list = { 0 };
    bool bare = true;

    if (directory_list(io, directory, &list) < 0)
        return CLAIM_UNCLEAR;
    for (size_t i = 0; i < list.count; i++)
        if (part_name_is(list.names[i])) {
            enum claim part = part_look(io, directory, list.names[i]);

            bare = false;
            claim = weight[part] > weight[claim] ? part : claim;
        }
    if (bare)
        claim = bare_look(io, directory, &list, bare_ns);
    io_list_free(&list);
    return claim;
}

enum claim claim_look(struct io *io, int root, const char *hidden, int64_t bare_ns)
{
    int directory = file_open(io, root, hidden, OPEN_READ | OPEN_DIRECTORY);
    enum claim claim;

    if (directory == -ENOENT || directory == -ENOTDIR || directory == -ELOOP)
        return CLAIM_NONE;
    if (directory < 0)
        return is_closed_to_us(directory) ? CLAIM_LIVING : CLAIM_UNCLEAR;
    claim = directory_look(io, directory, bare_ns);
    file_close(io, directory);
    return claim;
}

bool attempt_is_alive(struct io *io, int root, const char *hidden, int64_t bare_ns)
{
    return claim_look(io, root, hidden, bare_ns) != CLAIM_NONE;
}

bool any_attempt_is_alive(struct io *io, int root, int64_t bare_ns)
{
    char name[CHECKPOINT_NAME_MAX + 1];
    struct io_list list = { 0 };
    uint8_t save_id[16];
    bool alive = false;

    if (directory_list(io, root, &list) < 0)
        return false;
    for (size_t i = 0; i < list.count && !alive; i++)
        alive = hidden_name_parse(list.names[i], name, save_id) && attempt_is_alive(io, root, list.names[i], bare_ns);
    io_list_free(&list);
    return alive;
}
