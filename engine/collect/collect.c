/* collect/collect.c - what goes and what stays. See collect.h. */
#include <base/mutant.h>
#include <base/names.h>
#include <claim/claim.h>
#include <collect/collect.h>
#include <collect/contents.h>
#include <collect/removal.h>
#include <errno.h>
#include <io/calls.h>
#include <read/read.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLICE_BYTES ((uint64_t)256 << 20)
#define BARE_NS 60000000000 /* an attempt without a part record is taken for dead when nothing touched it for so long */

struct collection {
    struct io *io;
    int root;
    const struct collect_settings *settings;
    struct removal removal;
};

/* Telling -------------------------------------------------------------------------------------------------------------- */

static void tell(const struct collection *collection, enum collect_event event, const char *name, uint64_t bytes)
{
    collection->settings->tell(collection->settings->context,
                               &(struct collect_note){ .event = event, .name = name, .bytes = bytes });
}

static void left(const struct collection *collection, const char *name, const char *reason)
{
    collection->settings->tell(collection->settings->context,
                               &(struct collect_note){ .event = COLLECT_LEFT, .name = name, .reason = reason });
}

static void left_foreign(const struct collection *collection, const char *name, const char *foreign)
{
    char reason[400];

    snprintf(reason, sizeof reason, "left as it is: it holds '%.255s', which tspool did not write", foreign);
    left(collection, name, reason);
}

static void failed(const struct collection *collection, const char *name, const char *reason, int error)
{
    collection->settings->tell(collection->settings->context, &(struct collect_note){
        .event = COLLECT_FAILED, .name = name, .reason = reason, .error = -error });
}

static bool is_stopped(const struct collection *collection)
{
    return collection->settings->is_stopped && collection->settings->is_stopped(collection->settings->context);
}

/* Deleting what has no name any more --------------------------------------------------------------------------------- */

static void gone_delete(struct collection *collection, const char *gone, const char *shown, enum collect_event event)
{
    uint64_t bytes = 0;
    char *foreign = NULL;
    int result = removal_delete(&collection->removal, gone, &bytes, &foreign);

    if (result < 0)
        failed(collection, shown, "cannot be removed", result);
    else if (result == REMOVAL_DONE)
        tell(collection, event, shown, bytes);
    else if (result == REMOVAL_FOREIGN)
        left_foreign(collection, gone, foreign);
    free(foreign);
}

/* What a collection that was cut left. */
static void gone_finish(struct collection *collection, const struct io_list *list)
{
    char hidden[HIDDEN_NAME_MAX + 1];

    for (size_t i = 0; i < list->count && !is_stopped(collection); i++)
        if (gone_name_parse(list->names[i], hidden)) {
            if (collection->settings->dry_run)
                tell(collection, COLLECT_SWEPT, list->names[i], 0);
            else
                gone_delete(collection, list->names[i], list->names[i], COLLECT_SWEPT);
        }
}

/* Dead attempts -------------------------------------------------------------------------------------------------------- */

/* Looked at again under its new name: an attempt of the same save may have begun anew in between. */
static void attempt_remove(struct collection *collection, const char *hidden, int directory)
{
    char gone[GONE_NAME_MAX + 1];
    int error = removal_take_down(&collection->removal, hidden, directory, hidden, gone);

    if (error == 0 && !MUTANT(LIVING_ATTEMPT_COLLECTED) && attempt_is_alive(collection->io, collection->root, gone, 0)) {
        error = removal_put_back(&collection->removal, gone, hidden);
        if (error == 0)
            return;
    }
    if (error == -ENOENT)
        return;
    if (error < 0)
        failed(collection, hidden, "cannot be removed", error);
    else
        gone_delete(collection, gone, hidden, COLLECT_SWEPT);
}

static void attempt_decide(struct collection *collection, const char *hidden, int directory)
{
    struct contents contents = { 0 };
    int error = contents_look(collection->io, directory, true, &contents);

    if (error < 0)
        failed(collection, hidden, "cannot be read", error);
    else if (contents.awaits_publish)
        left(collection, hidden, "left as it is: the parts of all ranks are durable in it, and it can still be published");
    else if (contents.foreign)
        left_foreign(collection, hidden, contents.foreign);
    else if (collection->settings->dry_run)
        tell(collection, COLLECT_SWEPT, hidden, contents.bytes);
    else
        attempt_remove(collection, hidden, directory);
    contents_deinit(&contents);
}

/* Opened before it is looked at: what is taken down then is what was found dead, or is put back. */
static void attempt_sweep(struct collection *collection, const char *hidden)
{
    int directory = file_open(collection->io, collection->root, hidden, OPEN_READ | OPEN_DIRECTORY);

    if (directory < 0)
        return;
    if (!attempt_is_alive(collection->io, collection->root, hidden, BARE_NS))
        attempt_decide(collection, hidden, directory);
    file_close(collection->io, directory);
}

static bool is_old(int64_t mtime_ns)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - mtime_ns >= BARE_NS;
}

/* A writer that died at its start left a file: true when it is one. A young one may be a living writer's. */
static bool probe_sweep(struct collection *collection, const char *hidden, const char *name)
{
    struct io_stat stat = { 0 };
    int error = 0;

    if (strcmp(name, PROBE_NAME) != 0 || file_stat(collection->io, collection->root, hidden, &stat) < 0 || stat.is_directory)
        return false;
    if (!stat.is_regular || !is_old(stat.mtime_ns))
        return true;
    if (!collection->settings->dry_run)
        error = file_unlink(collection->io, collection->root, hidden, 0);
    if (error < 0 && error != -ENOENT)
        failed(collection, hidden, "cannot be removed", error);
    else
        tell(collection, COLLECT_SWEPT, hidden, stat.size);
    return true;
}

static void dead_sweep(struct collection *collection, const struct io_list *list)
{
    char name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];

    for (size_t i = 0; i < list->count && !is_stopped(collection); i++)
        if (hidden_name_parse(list->names[i], name, save_id) && !probe_sweep(collection, list->names[i], name))
            attempt_sweep(collection, list->names[i]);
}

/* Published ones ------------------------------------------------------------------------------------------------------- */

/* A save that replaces it would find nothing to exchange with. */
static bool is_being_replaced(const struct collection *collection, const char *name)
{
    char base[CHECKPOINT_NAME_MAX + 1];
    struct io_list list = { 0 };
    uint8_t save_id[16];
    bool found = false;

    if (directory_list(collection->io, collection->root, &list) < 0)
        return true;
    for (size_t i = 0; i < list.count && !found; i++)
        found = hidden_name_parse(list.names[i], base, save_id) && strcmp(base, name) == 0 &&
                attempt_is_alive(collection->io, collection->root, list.names[i], 0);
    io_list_free(&list);
    return found;
}

static void checkpoint_remove(struct collection *collection, const char *name, int directory, const struct contents *contents)
{
    char hidden[HIDDEN_NAME_MAX + 1], gone[GONE_NAME_MAX + 1];
    int error;

    if (MUTANT(DELETED_UNDER_ITS_NAME))
        file_unlink(collection->io, directory, contents->files[0].name, 0);
    hidden_name_make(name, contents->save_id, hidden);
    error = removal_take_down(&collection->removal, name, directory, hidden, gone);
    if (error == -ENOENT)
        return;
    if (error < 0)
        failed(collection, name, "cannot be unpublished", error);
    else
        gone_delete(collection, gone, name, COLLECT_REMOVED);
}

static void checkpoint_decide(struct collection *collection, const struct ranked *ranked, int directory)
{
    struct contents contents = { 0 };
    int error = contents_look(collection->io, directory, false, &contents);

    if (error < 0)
        failed(collection, ranked->name, "cannot be read", error);
    else if (!contents.has_manifest || memcmp(contents.save_id, ranked->save_id, sizeof contents.save_id) != 0)
        left(collection, ranked->name, "left as it is: it was replaced meanwhile");
    else if (contents.foreign)
        left_foreign(collection, ranked->name, contents.foreign);
    else if (is_being_replaced(collection, ranked->name))
        left(collection, ranked->name, "left as it is: a save of that name is under way");
    else if (collection->settings->dry_run)
        tell(collection, COLLECT_REMOVED, ranked->name, contents.bytes);
    else
        checkpoint_remove(collection, ranked->name, directory, &contents);
    contents_deinit(&contents);
}

static void checkpoint_retire(struct collection *collection, const struct ranked *ranked)
{
    int directory = file_open(collection->io, collection->root, ranked->name, OPEN_READ | OPEN_DIRECTORY);

    if (directory == -ENOENT)
        return; /* another collector's */
    if (directory < 0)
        failed(collection, ranked->name, "cannot be read", directory);
    else
        checkpoint_decide(collection, ranked, directory);
    file_close(collection->io, directory);
}

/* Only a whole one counts among those that are kept. */
static bool counts(struct collection *collection, const char *name)
{
    int directory = file_open(collection->io, collection->root, name, OPEN_READ | OPEN_DIRECTORY);
    struct contents contents = { 0 };
    bool whole;

    if (directory < 0)
        return false;
    whole = contents_look(collection->io, directory, false, &contents) == 0 && contents.is_whole;
    contents_deinit(&contents);
    file_close(collection->io, directory);
    return whole;
}

/* How many of the ranking, from the newest on, stay: with them `keep` whole ones, or all. */
static size_t kept_find(struct collection *collection, const struct ranking *ranking)
{
    uint64_t whole = 0, keep = collection->settings->keep - MUTANT(KEPT_ONE_COLLECTED);
    size_t at = 0;

    for (; at < ranking->count && whole < keep; at++) {
        const char *name = ranking->items[at].name;

        if (counts(collection, name)) {
            whole++;
            tell(collection, COLLECT_KEPT, name, 0);
        } else {
            left(collection, name, "left as it is and not counted: a file that its manifest lists is missing or was cut");
        }
    }
    return at;
}

/* Saved last, or its owner's: a run that went back to an earlier step saves what is old in the order of latest. */
static bool is_spared(const struct collection *collection, const struct ranking *ranking, const struct ranked *ranked)
{
    const struct collect_settings *settings = collection->settings;
    uint64_t later = 0;

    if (!settings->between || MUTANT(SAVED_LAST_COLLECTED))
        return false;
    for (size_t i = 0; i < ranking->count; i++)
        later += ranking->items[i].sequence > ranked->sequence;
    return later < settings->keep || settings->between->is_spared(settings->context, ranked->save_id);
}

/* The oldest first. */
static void rest_retire(struct collection *collection, const struct ranking *ranking, size_t kept)
{
    for (size_t i = ranking->count; i-- > kept && !is_stopped(collection);) {
        if (is_spared(collection, ranking, &ranking->items[i])) {
            tell(collection, COLLECT_KEPT, ranking->items[i].name, 0);
            continue;
        }
        removal_await_turn(&collection->removal);
        if (!is_stopped(collection))
            checkpoint_retire(collection, &ranking->items[i]);
    }
}

static int list_run(struct collection *collection, void (*each)(struct collection *, const struct io_list *))
{
    struct io_list list = { 0 };
    int error = directory_list(collection->io, collection->root, &list);

    if (error == 0)
        each(collection, &list);
    io_list_free(&list);
    return error;
}

static int collection_run(struct collection *collection, const char *root, struct tspool_failure *failure)
{
    struct ranking ranking = { 0 };
    int error = ranking_below(collection->io, collection->root, root, &ranking, failure);
    size_t kept;

    if (error < 0)
        return error;
    kept = kept_find(collection, &ranking);
    list_run(collection, gone_finish);
    if (!collection->settings->between) /* where locks do not reach other machines, a part of theirs would look dead */
        list_run(collection, dead_sweep);
    rest_retire(collection, &ranking, kept);
    ranking_deinit(&ranking);
    return 0;
}

int collect_below(struct io *io, int root, const char *path, const struct collect_settings *settings,
                  struct tspool_failure *failure)
{
    struct collection collection = { .io = io, .root = root, .settings = settings };
    struct removal *removal = &collection.removal;

    *removal = (struct removal){ .io = io, .root = root, .context = settings->context, .is_stopped = settings->is_stopped };
    removal->pace = settings->between ? settings->between->pace : NULL;
    removal->slice_bytes = settings->slice_bytes ? settings->slice_bytes : SLICE_BYTES;
    removal->freed_bytes = removal->slice_bytes - removal->slice_bytes / 16; /* little files are worth no wait */
    return collection_run(&collection, path, failure);
}

int collect_run(struct io *io, const char *root, const struct collect_settings *settings, struct tspool_failure *failure)
{
    int handle = root_open(io, root, failure), error;

    if (handle < 0)
        return handle;
    error = collect_below(io, handle, root, settings, failure);
    file_close(io, handle);
    return error;
}
