/* read/latest.c - which published checkpoint below a root is the newest.
 *
 * The commit record decides: a directory without a manifest that can be read is not a checkpoint. The user's "step"
 * orders them where all have one (clocks of different machines and restored backups do not), else the commit sequence.
 * A writer that is still finishing what its dead trainer staged is waited for, a bounded while (claim/orphans.h). A save of
 * a living trainer delays nobody.
 */
#include <base/array.h>
#include <base/failure.h>
#include <base/names.h>
#include <claim/orphans.h>
#include <errno.h>
#include <read/checkpoint.h>
#include <read/hidden.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>

static int root_refuse(const char *root, int error, struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, -error, FAILURE_AT(.operation = "open", .path = root), NULL);
}

/* "1000" or "-3", nothing else. */
static bool step_parse(const struct manifest *manifest, int64_t *step)
{
    for (size_t i = 0; i < manifest->metadata_count; i++) {
        const char *text = manifest->metadata[i].value;
        char *end;

        if (strcmp(manifest->metadata[i].key, "step") != 0)
            continue;
        errno = 0;
        *step = strtoll(text, &end, 10);
        return errno == 0 && *end == '\0' && end != text && strchr(" \t\n+", *text) == NULL;
    }
    return false;
}

static int newest_first(const void *left, const void *right, void *by_step)
{
    const struct ranked *a = left, *b = right;

    if (*(bool *)by_step && a->step != b->step)
        return a->step > b->step ? -1 : 1;
    if (a->sequence != b->sequence)
        return a->sequence > b->sequence ? -1 : 1;
    return -strcmp(a->name, b->name);
}

static void ranking_sort(struct ranking *ranking)
{
    bool by_step = true;

    for (size_t i = 0; i < ranking->count; i++)
        by_step &= ranking->items[i].has_step;
    if (ranking->count)
        qsort_r(ranking->items, ranking->count, sizeof *ranking->items, newest_first, &by_step);
}

void ranking_deinit(struct ranking *ranking)
{
    for (size_t i = 0; i < ranking->count; i++)
        free(ranking->items[i].name);
    free(ranking->items);
    *ranking = (struct ranking){ 0 };
}

static int ranked_make(const struct manifest *manifest, const char *name, struct ranked *ranked)
{
    *ranked = (struct ranked){ .name = strdup(name), .sequence = manifest->sequence };
    ranked->has_step = step_parse(manifest, &ranked->step);
    memcpy(ranked->save_id, manifest->save_id, sizeof ranked->save_id);
    return ranked->name ? 0 : -ENOMEM;
}

static int candidate_read(struct io *io, int directory, const char *path, const char *name, struct ranked *ranked,
                          struct tspool_failure *failure)
{
    struct manifest manifest = { 0 };
    int error = manifest_load(io, directory, path, &manifest, failure);

    if (error == 0 && ranked_make(&manifest, name, ranked) < 0)
        error = root_refuse(path, -ENOMEM, failure);
    manifest_deinit(&manifest);
    return error;
}

/* 0 and *ranked; 1 when it is no published checkpoint that can be read; or -errno with the record. */
static int candidate_look(struct io *io, int root, const char *root_path, const char *name, struct ranked *ranked,
                          struct tspool_failure *failure)
{
    struct io_stat stat = { 0 };
    char *path;
    int directory, error = file_stat(io, root, name, &stat);

    if (error < 0 || !stat.is_directory)
        return error < 0 && !error_is_no_checkpoint(error) ? root_refuse(root_path, error, failure) : 1;
    directory = file_open(io, root, name, OPEN_READ | OPEN_DIRECTORY);
    if (directory < 0)
        return error_is_no_checkpoint(directory) ? 1 : root_refuse(root_path, directory, failure);
    path = path_join(root_path, name);
    error = path ? candidate_read(io, directory, path, name, ranked, failure) : root_refuse(root_path, -ENOMEM, failure);
    file_close(io, directory);
    free(path);
    return error_is_no_checkpoint(error) ? 1 : error;
}

static int ranking_fill(struct io *io, int root, const char *root_path, const struct io_list *list, struct ranking *ranking,
                        struct tspool_failure *failure)
{
    size_t capacity = 0;
    const char *reason;

    for (size_t i = 0; i < list->count; i++) {
        struct ranked ranked = { 0 };
        int looked;

        if (checkpoint_name_check(list->names[i], &reason) < 0)
            continue;
        if (array_reserve((void **)&ranking->items, &capacity, ranking->count + 1, sizeof ranked) < 0)
            return root_refuse(root_path, -ENOMEM, failure);
        looked = candidate_look(io, root, root_path, list->names[i], &ranked, failure);
        if (looked < 0)
            return looked;
        if (looked == 0)
            ranking->items[ranking->count++] = ranked;
    }
    ranking_sort(ranking);
    return 0;
}

/* Puts names back whose replacement was interrupted. 0, or why one could not be: it may be the newest. */
static int names_repair(struct io *io, int root, const struct io_list *list)
{
    char name[CHECKPOINT_NAME_MAX + 1], last[CHECKPOINT_NAME_MAX + 1] = "";
    uint8_t save_id[16];
    struct io_stat stat = { 0 };
    int error = 0;

    for (size_t i = 0; i < list->count && error == 0; i++) {
        if (!hidden_name_parse(list->names[i], name, save_id) || strcmp(name, last) == 0)
            continue;
        strcpy(last, name);
        error = file_stat(io, root, name, &stat);
        if (error == -ENOENT)
            error = name_repair(io, root, name);
        if (error_is_no_checkpoint(error))
            error = 0;
    }
    return error;
}

int root_open(struct io *io, const char *root, struct tspool_failure *failure)
{
    int handle = root ? file_open(io, IO_CWD, root, OPEN_READ | OPEN_DIRECTORY) : -EINVAL;
    char *followed;

    if (handle == -ELOOP || handle == -ENOTDIR) { /* the user's path may be a link to the root: "." is not */
        followed = path_join(root, ".");
        handle = followed ? file_open(io, IO_CWD, followed, OPEN_READ | OPEN_DIRECTORY) : -ENOMEM;
        free(followed);
    }
    return handle < 0 ? root_refuse(root ? root : "", handle, failure) : handle;
}

int ranking_below(struct io *io, int root, const char *root_path, struct ranking *ranking, struct tspool_failure *failure)
{
    struct ranking made = { 0 };
    struct io_list list = { 0 };
    int error = directory_list(io, root, &list);

    if (error == 0) {
        error = names_repair(io, root, &list);
        io_list_free(&list);
        list = (struct io_list){ 0 };
        if (error == 0)
            error = directory_list(io, root, &list);
    }
    if (error < 0)
        return root_refuse(root_path, error, failure);
    error = ranking_fill(io, root, root_path, &list, &made, failure);
    io_list_free(&list);
    if (error < 0)
        ranking_deinit(&made);
    else
        *ranking = made;
    return error;
}

int ranking_on(struct io *io, const char *root, struct ranking *ranking, struct tspool_failure *failure)
{
    int handle = root_open(io, root, failure), error;

    if (handle < 0)
        return handle;
    error = ranking_below(io, handle, root, ranking, failure);
    file_close(io, handle);
    return error;
}

static int newest_path(const char *root, const struct ranking *ranking, char **path, struct tspool_failure *failure)
{
    char *found;

    if (ranking->count == 0)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOENT, FAILURE_AT(.operation = "list", .path = root),
                           "No published checkpoint is in this directory.");
    found = path_join(root, ranking->items[0].name);
    if (!found)
        return root_refuse(root, -ENOMEM, failure);
    *path = found;
    return 0;
}

static int latest_below(struct io *io, int handle, const char *root, uint64_t timeout_ns, char **path,
                        struct orphan_report *orphans, struct tspool_failure *failure)
{
    struct ranking ranking = { 0 };
    int error = orphans_wait(io, handle, timeout_ns, orphans);

    if (error < 0)
        return root_refuse(root, error, failure);
    error = ranking_below(io, handle, root, &ranking, failure);
    if (error == 0)
        error = newest_path(root, &ranking, path, failure);
    ranking_deinit(&ranking);
    return error;
}

int latest_wait_on(struct io *io, const char *root, uint64_t timeout_ns, char **path, struct orphan_report *orphans,
                   struct tspool_failure *failure)
{
    int handle = root_open(io, root, failure), error;

    if (handle < 0)
        return handle;
    error = latest_below(io, handle, root, timeout_ns, path, orphans, failure);
    file_close(io, handle);
    return error;
}

int latest_on(struct io *io, const char *root, char **path, struct tspool_failure *failure)
{
    struct orphan_report orphans;

    return latest_wait_on(io, root, ORPHANS_WAIT_NS, path, &orphans, failure);
}

/* As much of it as the caller's struct has room for. */
static int report_give(const struct orphan_report *orphans, struct tspool_latest_report *report)
{
    struct tspool_latest_report made = TSPOOL_LATEST_REPORT_INIT;

    made.waited_ns = orphans->waited_ns;
    made.orphans_seen = orphans->seen;
    made.orphans_finished = orphans->finished;
    made.orphans_left = orphans->left;
    strcpy(made.orphan_left, orphans->left_name);
    return give_sized(report, &made, sizeof made);
}

static int report_refuse(struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, EINVAL, FAILURE_AT(.operation = "latest"),
                       "tspool_latest_report.size is not set; use TSPOOL_LATEST_REPORT_INIT");
}

int tspool_latest_wait(const char *root, uint64_t timeout_ns, char **path, struct tspool_latest_report *report,
                       struct tspool_failure *failure)
{
    struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                    .thread_name = "tspool-r" };
    struct orphan_report orphans = { 0 };
    struct io *io = NULL;
    int error;

    if (report && report_give(&orphans, report) < 0) /* also when it fails: a report of nothing */
        return report_refuse(failure);
    error = reader_io_create(TSPOOL_IO_THREADS, &settings, &io, failure);
    if (error < 0)
        return error;
    error = latest_wait_on(io, root, timeout_ns, path, &orphans, failure);
    io_destroy(io);
    if (report)
        report_give(&orphans, report);
    return error;
}

int tspool_latest(const char *root, char **path, struct tspool_failure *failure)
{
    return tspool_latest_wait(root, ORPHANS_WAIT_NS, path, NULL, failure);
}
