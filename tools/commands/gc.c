/* commands/gc.c - retention: keeps the newest checkpoints, removes the others and what dead attempts left.
 *
 * The public API has nothing for this: the order comes from the read room's ranking, the life of attempts from its look
 * at part records, names from the base room.
 *
 * A checkpoint is unpublished first (renamed to a hidden name, the root synced) and its manifest is the first file to go,
 * so that at no instant a half checkpoint stands under a name, or a whole one in a hidden place. Only files that tspool
 * wrote are removed; a checkpoint with others in it is left as it is.
 */
#include "command.h"
#include "remover.h"

#include <base/names.h>
#include <claim/claim.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BARE_NS 60000000000 /* an attempt without a part record is taken for dead when nothing touched it for so long */
#define QUIET_WAIT_NS 10000000000u
#define QUIET_LOOK_NS 50000000u

struct collection {
    const char *root;
    int root_fd;
    struct io *io;
    uint64_t keep;
    bool dry_run, as_json, quiet;
    int status;
    struct tspool_failure failure;
};

static void tell(const struct collection *collection, const char *event, const char *name, uint64_t bytes, const char *reason)
{
    if (collection->as_json) {
        struct json json = json_begin(stdout);

        json_string(&json, "event", event);
        json_string(&json, "name", name);
        json_number(&json, "bytes", bytes);
        json_bool(&json, "dry_run", collection->dry_run);
        if (reason)
            json_string(&json, "reason", reason);
        json_end(&json);
    } else if (!collection->quiet) {
        printf("%s%s %s/%s (%s)\n", collection->dry_run ? "would have " : "", event, collection->root, name,
               human_bytes(bytes).bytes);
    }
}

static void trouble(struct collection *collection, const char *name, const char *what, int error)
{
    complain("gc", "%s/%s: %s: %s", collection->root, name, what, strerror(error));
    collection->status = EXIT_FAILED;
}

/* What stays although it was to go: said, and no failure. */
static void left(const struct collection *collection, const char *name, const char *foreign)
{
    char reason[512];

    snprintf(reason, sizeof reason, "left as it is: it holds '%.200s', which tspool did not write", foreign);
    if (collection->as_json)
        tell(collection, "left", name, 0, reason);
    else
        complain("gc", "%s/%s: %s", collection->root, name, reason);
}

/* Live attempts ------------------------------------------------------------------------------------------------------ */

static bool any_is_alive(const struct collection *collection)
{
    struct op list_op = { .kind = OP_LIST, .handle = collection->root_fd };
    struct io_list list = { 0 };
    char name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];
    bool alive = false;

    list_op.list = &list;
    if (io_call(collection->io, &list_op) < 0)
        return false;
    for (size_t i = 0; i < list.count && !alive; i++)
        alive = hidden_name_parse(list.names[i], name, save_id) && attempt_is_alive(collection->io, collection->root_fd,
                                                                                    list.names[i], 0);
    io_list_free(&list);
    return alive;
}

/* Unlinking large files slows a save that runs beside it several times: a pause in the saving is waited for, a while. */
static void quiet_wait(const struct collection *collection)
{
    uint64_t deadline = now_ns() + QUIET_WAIT_NS;
    struct timespec pause = { .tv_nsec = QUIET_LOOK_NS };

    while (!interrupted() && now_ns() < deadline && any_is_alive(collection))
        nanosleep(&pause, NULL);
}

/* Removing ----------------------------------------------------------------------------------------------------------- */

static void directory_empty(struct collection *collection, const char *shown, const char *hidden, const char *event)
{
    struct removal removal;
    int error = removal_begin(&removal, collection->root_fd, hidden);

    if (error == 0 && removal.foreign)
        left(collection, hidden, removal.foreign);
    else if (error == 0 && !collection->dry_run)
        error = removal_run(&removal);
    if (error < 0)
        trouble(collection, shown, "cannot be removed", -error);
    else if (!removal.foreign)
        tell(collection, event, shown, removal.bytes, NULL);
    removal_end(&removal);
}

/* Takes the checkpoint's name away. 0 with the hidden name, or -errno. */
static int unpublish(const struct collection *collection, const struct ranked *ranked, char *hidden)
{
    uint8_t id[16];

    memcpy(id, ranked->save_id, sizeof id);
    hidden_name_make(ranked->name, id, hidden);
    while (renameat2(collection->root_fd, ranked->name, collection->root_fd, hidden, RENAME_NOREPLACE) < 0) {
        if (errno == EINVAL || errno == ENOSYS)
            return renameat(collection->root_fd, ranked->name, collection->root_fd, hidden) < 0 ? -errno : 0;
        if (errno != EEXIST)
            return -errno;
        io_random(collection->io, id, sizeof id);
        hidden_name_make(ranked->name, id, hidden);
    }
    return fsync(collection->root_fd) < 0 ? -errno : 0;
}

static void checkpoint_remove(struct collection *collection, const struct ranked *ranked)
{
    char hidden[HIDDEN_NAME_MAX + 1];
    struct removal look;
    int error = removal_begin(&look, collection->root_fd, ranked->name);

    if (error < 0)
        trouble(collection, ranked->name, "cannot be read", -error);
    else if (look.foreign)
        left(collection, ranked->name, look.foreign);
    else if (collection->dry_run)
        tell(collection, "removed", ranked->name, look.bytes, NULL);
    if (error < 0 || look.foreign || collection->dry_run) {
        removal_end(&look);
        return;
    }
    removal_end(&look);
    quiet_wait(collection); /* before: a whole checkpoint in a hidden place could be taken for an interrupted replacement */
    error = unpublish(collection, ranked, hidden);
    if (error < 0) {
        trouble(collection, ranked->name, "cannot be unpublished", -error);
        return;
    }
    directory_empty(collection, ranked->name, hidden, "removed");
}

static void dead_sweep(struct collection *collection)
{
    struct io_list list = { 0 };
    struct op list_op = { .kind = OP_LIST, .handle = collection->root_fd, .list = &list };
    char name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];

    if (io_call(collection->io, &list_op) < 0)
        return;
    for (size_t i = 0; i < list.count && !interrupted(); i++)
        if (hidden_name_parse(list.names[i], name, save_id) &&
            !attempt_is_alive(collection->io, collection->root_fd, list.names[i], BARE_NS))
            directory_empty(collection, list.names[i], list.names[i], "swept");
    io_list_free(&list);
}

static int collect(struct collection *collection)
{
    struct ranking ranking = { 0 };
    int error = ranking_on(collection->io, collection->root, &ranking, &collection->failure);

    if (error < 0)
        return fail_with("gc", &collection->failure);
    for (size_t i = 0; i < ranking.count && i < collection->keep; i++)
        if (collection->as_json)
            tell(collection, "kept", ranking.items[i].name, 0, NULL);
    dead_sweep(collection); /* before the unpublishing, whose hidden names look like dead attempts when it is cut */
    for (size_t i = ranking.count; i-- > collection->keep && !interrupted();) /* the oldest first */
        checkpoint_remove(collection, &ranking.items[i]);
    ranking_deinit(&ranking);
    return interrupted() ? EXIT_INTERRUPTED : collection->status;
}

static int collection_run(struct collection *collection)
{
    struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                    .thread_name = "tspool-g" };
    int status;

    collection->root_fd = open(collection->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (collection->root_fd < 0) {
        complain("gc", "%s: %s", collection->root, strerror(errno));
        return EXIT_FAILED;
    }
    if (io_create_threads(&settings, &collection->io, &collection->failure) < 0) {
        close(collection->root_fd);
        return fail_with("gc", &collection->failure);
    }
    status = collect(collection);
    io_destroy(collection->io);
    close(collection->root_fd);
    return status;
}

static bool keep_parse(const char *text, uint64_t *keep)
{
    char *end;

    errno = 0;
    *keep = strtoull(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *text != '-';
}

static int option_take(struct collection *collection, int option, bool *has_keep)
{
    switch (option) {
    case 'k': return (*has_keep = keep_parse(optarg, &collection->keep)) ? 0 : usage_error("gc", "--keep: '%s' is no number",
                                                                                           optarg);
    case 'n': collection->dry_run = true; return 0;
    case 'j': collection->as_json = true; return 0;
    case 'q': collection->quiet = true; return 0;
    default:  return usage_error("gc", NULL);
    }
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        { "keep", required_argument, NULL, 'k' }, { "dry-run", no_argument, NULL, 'n' }, { "json", no_argument, NULL, 'j' },
        { "quiet", no_argument, NULL, 'q' }, { 0 },
    };
    struct collection collection = { .failure = TSPOOL_FAILURE_INIT };
    bool has_keep = false;
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "k:nq", options, NULL)) != -1)
        status = option_take(&collection, option, &has_keep);
    if (status)
        return status;
    if (argc - optind != 1 || !has_keep)
        return usage_error("gc", "give one root directory and --keep N");
    if (collection.keep == 0)
        return usage_error("gc", "--keep 0 would remove every checkpoint; remove the directory if that is meant");
    collection.root = argv[optind];
    interrupts_catch();
    return collection_run(&collection);
}

const struct command command_gc = {
    .name = "gc",
    .summary = "keep the newest checkpoints, sweep what dead saves left",
    .arguments = "ROOT --keep N [--dry-run] [--json] [--quiet]",
    .description = "Keeps the N newest published checkpoints below ROOT, in the order of 'tspool latest', and\n"
                   "removes the others: each is unpublished first, then its files are deleted. Hidden directories of\n"
                   "saves whose writer is dead are swept; a save that is being written is not touched. A checkpoint\n"
                   "that holds files which tspool did not write is left as it is, and said.\n\n"
                   "  -k, --keep N   how many to keep, at least 1\n"
                   "  -n, --dry-run  say what would be removed, remove nothing\n"
                   "  --json         one JSON object per checkpoint and attempt\n"
                   "  -q, --quiet    print failures only\n"
                   "  -h, --help     this text\n",
    .run = run,
};
