/* commands/copy.c - commits files or a checkpoint as a checkpoint, through the whole engine.
 *
 * Spans of the arena are filled by verified reads: bytes that do not match the source's digests never reach the copy.
 * Memory is the arena and the reader's, however large the source. Ctrl-C aborts the save and waits until it is gone.
 */
#include "copy.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ARENA_BYTES ((uint64_t)256 << 20)
#define ARENA_MIN_BYTES ((uint64_t)64 << 20)

/* Events ------------------------------------------------------------------------------------------------------------- */

struct tspool_save_result copy_result(struct copy *copy)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    tspool_save_result(copy->save, &result);
    return result;
}

static struct json event_begin(const struct copy *copy, const char *event)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", event);
    json_string(&json, "name", copy->name);
    json_seconds(&json, "seconds", now_ns() - copy->started_ns);
    return json;
}

static void planned_tell(struct copy *copy)
{
    struct tspool_save_result result = copy_result(copy);
    struct json json;

    if (!copy->as_json)
        return;
    json = event_begin(copy, "planned");
    json_string(&json, "save_id", hex_text(result.save_id, sizeof result.save_id).bytes);
    json_signed(&json, "writer_pid", tspool_writer_pid(copy->spool));
    json_number(&json, "tensors", copy->sources.origins.count);
    json_number(&json, "tensor_bytes", result.tensor_bytes);
    json_number(&json, "file_bytes", result.file_bytes);
    json_number(&json, "files", result.files);
    json_bool(&json, "replayable", result.replayable);
    json_end(&json);
}

static void level_json(struct copy *copy, enum tspool_level level, const struct tspool_save_result *result)
{
    static const char *const names[] = { "", "staged", "written", "durable", "published" };
    struct json json = event_begin(copy, names[level]);

    if (level == TSPOOL_PUBLISHED) {
        char path[4096];

        snprintf(path, sizeof path, "%s/%s", copy->root, copy->name);
        json_string(&json, "path", path);
        json_string(&json, "save_id", hex_text(result->save_id, sizeof result->save_id).bytes);
        json_number(&json, "file_bytes", result->file_bytes);
        json_string(&json, "backend", result->backend);
        json_bool(&json, "direct", result->direct);
        json_string(&json, "io_note", result->io_note);
    }
    json_end(&json);
}

void copy_tell_levels(struct copy *copy)
{
    struct tspool_save_result result = copy_result(copy);

    progress_show(&copy->progress, copy->name, result.written_bytes, result.file_bytes);
    while (copy->told < result.level) {
        copy->told++;
        if (copy->as_json)
            level_json(copy, copy->told, &result);
    }
}

/* Options ------------------------------------------------------------------------------------------------------------ */

static int io_parse(const char *text, enum tspool_io *io)
{
    static const char *const names[] = { "auto", "uring", "threads" };

    for (unsigned i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *io = (enum tspool_io)i;
            return 0;
        }
    return usage_error("copy", "--io is auto, uring or threads, not '%s'", text);
}

static int option_take(struct copy *copy, int option)
{
    switch (option) {
    case 'r': copy->replace = true; return 0;
    case 'i': return io_parse(optarg, &copy->io);
    case 'b': copy->buffered = true; return 0;
    case 'j': copy->as_json = true; return 0;
    case 'q': copy->quiet = true; return 0;
    case 'w': copy->writer = optarg; return 0;
    case 'a': return size_parse(optarg, &copy->arena_bytes) ? 0 : usage_error("copy", "--arena: '%s' is no size (512M, 4G)",
                                                                              optarg);
    case 'l': return size_parse(optarg, &copy->bytes_per_second) ? 0 : usage_error("copy", "--rate: '%s' is no size (100M, 2G)",
                                                                                   optarg);
    default:  return usage_error("copy", NULL);
    }
}

static int options_take(struct copy *copy, int argc, char **argv)
{
    static const struct option options[] = {
        { "replace", no_argument, NULL, 'r' }, { "io", required_argument, NULL, 'i' }, { "buffered", no_argument, NULL, 'b' },
        { "json", no_argument, NULL, 'j' }, { "quiet", no_argument, NULL, 'q' }, { "writer", required_argument, NULL, 'w' },
        { "arena", required_argument, NULL, 'a' }, { "rate", required_argument, NULL, 'l' }, { 0 },
    };
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "q", options, NULL)) != -1)
        status = option_take(copy, option);
    if (status == 0 && argc - optind < 2)
        status = usage_error("copy", "give at least one source, and the destination");
    return status;
}

/* "runs/step-1/" -> "runs" and "step-1". */
static int destination_split(struct copy *copy, const char *destination)
{
    size_t end = strlen(destination), start;

    while (end > 1 && destination[end - 1] == '/')
        end--;
    for (start = end; start > 0 && destination[start - 1] != '/'; start--)
        ;
    copy->name = strndup(destination + start, end - start);
    copy->root = start > 1 ? strndup(destination, start - 1) : strdup(start ? "/" : ".");
    if (!copy->name || !copy->root || !*copy->name)
        return usage_error("copy", "'%s' names no checkpoint: give ROOT/NAME", destination);
    return 0;
}

/* Steps -------------------------------------------------------------------------------------------------------------- */

static int sources_open(struct copy *copy, char **paths, int count)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;

    options.io = copy->io;
    options.buffered = copy->buffered;
    return source_set_open(&copy->sources, paths, count, &options, &copy->failure);
}

static int spool_open(struct copy *copy)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    uint64_t wanted = source_set_bytes(&copy->sources) + ARENA_MIN_BYTES;

    options.root = copy->root;
    options.io = copy->io;
    options.buffered = copy->buffered;
    options.bytes_per_second = copy->bytes_per_second;
    options.writer_path = copy->writer ? copy->writer : writer_beside();
    options.arena_bytes = copy->arena_bytes ? copy->arena_bytes : wanted < ARENA_BYTES ? wanted : ARENA_BYTES;
    return tspool_open(&options, &copy->spool, &copy->failure);
}

static int save_submit(struct copy *copy)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    int error;

    options.staging = TSPOOL_STAGING_CALLER;
    options.replace = copy->replace;
    error = tspool_save_begin(copy->spool, copy->name, &options, &copy->save, &copy->failure);
    if (error == 0)
        error = source_set_declare(&copy->sources, copy->save, &copy->failure);
    if (error == 0)
        error = tspool_save_submit(copy->save, &copy->failure);
    return error;
}

static int published_wait(struct copy *copy)
{
    int error;

    do {
        error = tspool_save_wait(copy->save, copy->told + 1, LOOK_NS); /* level by level: each is told as it happens */
        copy_tell_levels(copy);
        if (error == -ETIMEDOUT && interrupted())
            return -EINTR;
    } while (error == -ETIMEDOUT || (error == 0 && copy->told < TSPOOL_PUBLISHED));
    return error;
}

/* The end ------------------------------------------------------------------------------------------------------------ */

static bool is_resolved(const struct tspool_save_result *result) { return result->outcome != TSPOOL_OUTCOME_PENDING; }

/* Gives the save up and waits until nothing of it is left, or it turns out to have been published meanwhile. */
static void save_give_up(struct copy *copy)
{
    struct tspool_save_result result = copy_result(copy);

    if (!is_resolved(&result) && tspool_save_abort(copy->save) == 0)
        tspool_save_wait(copy->save, TSPOOL_PUBLISHED, UINT64_MAX);
}

/* The record that explains the failure: a read's or ours if there is one, else the save's. */
static void failure_find(struct copy *copy, int error)
{
    struct tspool_save_result result = { 0 };

    if (copy->failure.error || !copy->save)
        return;
    result = copy_result(copy);
    if (result.failure.error)
        copy->failure = result.failure;
    if (!copy->failure.error) {
        copy->failure.error = -error;
        snprintf(copy->failure.message, sizeof copy->failure.message, "%s/%s: %s", copy->root, copy->name, strerror(-error));
    }
}

static int failed(struct copy *copy, int error, bool unknown)
{
    progress_clear(&copy->progress);
    failure_find(copy, error);
    if (copy->as_json) {
        struct json json = event_begin(copy, "failed");

        json_string(&json, "outcome", unknown ? "unknown" : "failed");
        json_failure(&json, &copy->failure);
        json_end(&json);
    }
    fail_with("copy", &copy->failure);
    if (unknown)
        complain("copy", "%s/%s: it may or may not be published; nothing was removed. 'tspool ls' tells.", copy->root,
                 copy->name);
    return EXIT_FAILED;
}

static int interrupted_end(struct copy *copy)
{
    progress_clear(&copy->progress);
    complain("copy", "%s/%s: interrupted; nothing is left of it", copy->root, copy->name);
    if (copy->as_json) {
        struct json json = event_begin(copy, "failed");

        json_string(&json, "outcome", "interrupted");
        json_end(&json);
    }
    return EXIT_INTERRUPTED;
}

static int published(struct copy *copy)
{
    struct tspool_save_result result = copy_result(copy);

    progress_clear(&copy->progress);
    copy_tell_levels(copy);
    if (!copy->as_json && !copy->quiet)
        printf("%s/%s: %zu tensors, %s in %u file%s, durable after %s (%s, %s)\n", copy->root, copy->name,
               copy->sources.origins.count,
               human_bytes(result.file_bytes).bytes, result.files, result.files == 1 ? "" : "s",
               human_seconds(now_ns() - copy->started_ns).bytes, result.backend, result.direct ? "direct" : "buffered");
    return EXIT_DONE;
}

static int outcome(struct copy *copy, int error)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    if (copy->save) {
        if (error < 0)
            save_give_up(copy);
        result = copy_result(copy);
    }
    if (result.outcome == TSPOOL_OUTCOME_PUBLISHED)
        return published(copy);
    if (error == -EINTR && result.outcome != TSPOOL_OUTCOME_UNKNOWN)
        return interrupted_end(copy);
    return failed(copy, error, result.outcome == TSPOOL_OUTCOME_UNKNOWN);
}

static int copy_run(struct copy *copy, char **sources, int count)
{
    int error = sources_open(copy, sources, count);

    if (error == 0)
        error = spool_open(copy);
    if (error == 0)
        error = save_submit(copy);
    if (error == 0) {
        planned_tell(copy);
        error = copy_fill_spans(copy);
    }
    if (error == 0)
        error = published_wait(copy);
    return outcome(copy, error);
}

static int run(int argc, char **argv)
{
    struct copy copy = { .failure = TSPOOL_FAILURE_INIT, .started_ns = now_ns() };
    struct tspool_close_report report = TSPOOL_CLOSE_REPORT_INIT;
    int status = options_take(&copy, argc, argv);

    if (status == 0)
        status = destination_split(&copy, argv[argc - 1]);
    if (status == 0) {
        interrupts_catch();
        progress_init(&copy.progress, !copy.as_json && !copy.quiet);
        status = copy_run(&copy, argv + optind, argc - 1 - optind);
        tspool_save_free(copy.save);
        report.mode = TSPOOL_CLOSE_ABORT;
        tspool_close(copy.spool, UINT64_MAX, &report);
        source_set_close(&copy.sources);
    }
    free(copy.root);
    free(copy.name);
    return status;
}

const struct command command_copy = {
    .name = "copy",
    .summary = "commit files or a checkpoint as a checkpoint",
    .arguments = "[OPTION]... SRC... ROOT/NAME",
    .description = "Commits SRC as the checkpoint NAME in the directory ROOT: one checkpoint directory (ours or a\n"
                   "Hugging Face folder), or .safetensors files, taken together. Tensors, ties, shards, objects and\n"
                   "metadata are carried over; digests of the source are checked on the way. What stands at\n"
                   "ROOT/NAME afterwards is whole and durable, or is not there. Interrupting the command leaves\n"
                   "nothing behind.\n\n"
                   "  --replace     exchange a checkpoint of that name, atomically; otherwise it is refused\n"
                   "  --io KIND     auto (io_uring, else threads), uring or threads\n"
                   "  --buffered    never O_DIRECT\n"
                   "  --arena SIZE  memory between reading and writing (256M)\n"
                   "  --rate SIZE   write at most SIZE bytes a second\n"
                   "  --writer PATH the tspool-writer to run\n"
                   "  --json        one JSON object per event: planned, staged, written, durable, published, failed\n"
                   "  -q, --quiet   print nothing but failures\n"
                   "  -h, --help    this text\n",
    .run = run,
};
