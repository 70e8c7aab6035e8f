/* commands/gc.c - retention: says what the collect room does, and keeps Ctrl-C from cutting a step in two. */
#include "command.h"

#include <collect/collect.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct gc {
    const char *root;
    struct collect_settings settings;
    bool as_json, quiet;
    int status;
};

static const char *const events[] = { [COLLECT_KEPT] = "kept", [COLLECT_REMOVED] = "removed", [COLLECT_SWEPT] = "swept",
                                      [COLLECT_LEFT] = "left", [COLLECT_FAILED] = "failed" };

static void note_json(const struct gc *gc, const struct collect_note *note)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", events[note->event]);
    json_string(&json, "name", note->name);
    json_number(&json, "bytes", note->bytes);
    json_bool(&json, "dry_run", gc->settings.dry_run);
    if (note->reason)
        json_string(&json, "reason", note->reason);
    json_end(&json);
}

static void note_say(const struct gc *gc, const struct collect_note *note)
{
    switch (note->event) {
    case COLLECT_KEPT:
    case COLLECT_FAILED: /* said in any case */
        return;
    case COLLECT_LEFT:
        complain("gc", "%s/%s: %s", gc->root, note->name, note->reason);
        return;
    case COLLECT_REMOVED:
    case COLLECT_SWEPT:
        if (!gc->quiet)
            printf("%s%s %s/%s (%s)\n", gc->settings.dry_run ? "would have " : "", events[note->event], gc->root, note->name,
                   human_bytes(note->bytes).bytes);
    }
}

static void tell(void *context, const struct collect_note *note)
{
    struct gc *gc = context;

    if (note->event == COLLECT_FAILED) {
        complain("gc", "%s/%s: %s: %s", gc->root, note->name, note->reason, strerror(note->error));
        gc->status = EXIT_FAILED;
    }
    if (gc->as_json)
        note_json(gc, note);
    else
        note_say(gc, note);
}

static bool is_stopped(void *context)
{
    (void)context;
    return interrupted();
}

static int collection_run(struct gc *gc)
{
    const struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                          .thread_name = "tspool-g" };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io *io = NULL;
    int error;

    gc->settings.context = gc;
    gc->settings.tell = tell;
    gc->settings.is_stopped = is_stopped;
    if (io_create_threads(&settings, &io, &failure) < 0)
        return fail_with("gc", &failure);
    error = collect_run(io, gc->root, &gc->settings, &failure);
    io_destroy(io);
    if (error < 0)
        return fail_with("gc", &failure);
    return interrupted() ? EXIT_INTERRUPTED : gc->status;
}

static bool keep_parse(const char *text, uint64_t *keep)
{
    char *end;

    errno = 0;
    *keep = strtoull(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *text != '-';
}

static int option_take(struct gc *gc, int option, bool *has_keep)
{
    switch (option) {
    case 'k': return (*has_keep = keep_parse(optarg, &gc->settings.keep)) ? 0 : usage_error("gc", "--keep: '%s' is no number",
                                                                                           optarg);
    case 'n': gc->settings.dry_run = true; return 0;
    case 'j': gc->as_json = true; return 0;
    case 'q': gc->quiet = true; return 0;
    default:  return usage_error("gc", NULL);
    }
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        { "keep", required_argument, NULL, 'k' }, { "dry-run", no_argument, NULL, 'n' }, { "json", no_argument, NULL, 'j' },
        { "quiet", no_argument, NULL, 'q' }, { 0 },
    };
    struct gc gc = { .status = EXIT_DONE };
    bool has_keep = false;
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "k:nq", options, NULL)) != -1)
        status = option_take(&gc, option, &has_keep);
    if (status)
        return status;
    if (argc - optind != 1 || !has_keep)
        return usage_error("gc", "give one root directory and --keep N");
    if (gc.settings.keep == 0)
        return usage_error("gc", "--keep 0 would remove every checkpoint; remove the directory if that is meant");
    gc.root = argv[optind];
    interrupts_catch();
    signal(SIGIO, SIG_IGN); /* asking whether a file is open elsewhere takes a lease, for a moment */
    return collection_run(&gc);
}

const struct command command_gc = {
    .name = "gc",
    .summary = "keep the newest checkpoints, sweep what dead saves left",
    .arguments = "ROOT --keep N [--dry-run] [--json] [--quiet]",
    .description = "Keeps the N newest published checkpoints below ROOT, in the order of 'tspool latest', and\n"
                   "removes the others: each is unpublished first, then its files are deleted, large ones slice by\n"
                   "slice, while no save runs. Hidden directories of saves whose writer is dead are swept; a save\n"
                   "that is being written is not touched. A checkpoint that holds files which tspool did not write\n"
                   "is left as it is, and said; so is one that lacks files, and it does not count among the N.\n\n"
                   "  -k, --keep N   how many to keep, at least 1\n"
                   "  -n, --dry-run  say what would be removed, remove nothing\n"
                   "  --json         one JSON object per checkpoint and attempt\n"
                   "  -q, --quiet    print failures only\n"
                   "  -h, --help     this text\n",
    .run = run,
};
