/* commands/latest.c - the checkpoint to resume from. */
#include "command.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>

#define DEFAULT_WAIT_NS UINT64_C(10000000000)

static void print_json(const char *path, const struct tspool_latest_report *report)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    struct json json = json_begin(stdout);

    json_string(&json, "path", path);
    if (tspool_checkpoint_open(path, NULL, &checkpoint, NULL) == 0) {
        tspool_checkpoint_info(checkpoint, &info);
        json_string(&json, "step", tspool_checkpoint_metadata(checkpoint, "step"));
        json_number(&json, "sequence", info.sequence);
        json_string(&json, "save_id", hex_text(info.save_id, sizeof info.save_id).bytes);
    }
    json_seconds(&json, "waited_s", report->waited_ns);
    json_number(&json, "orphans_seen", report->orphans_seen);
    json_number(&json, "orphans_finished", report->orphans_finished);
    json_number(&json, "orphans_left", report->orphans_left);
    json_end(&json);
    tspool_checkpoint_close(checkpoint);
}

/* Looks once, and says for whom it waits before it does. */
static int latest_find(const char *root, uint64_t wait_ns, char **path, struct tspool_latest_report *report,
                       struct tspool_failure *failure)
{
    int error = tspool_latest_wait(root, 0, path, report, failure);

    if (report->waited_ns == 0 || wait_ns == 0)
        return error;
    if (report->orphans_left)
        complain("latest", "%s: waiting up to %.9g s for the writer of '%s', whose trainer is dead", root,
                 (double)wait_ns / 1e9, report->orphan_left);
    if (error == 0)
        free(*path);
    *path = NULL;
    error = tspool_latest_wait(root, wait_ns, path, report, failure);
    if (report->orphans_left)
        complain("latest", "%s: '%s' is still being written; this is the newest that is published", root, report->orphan_left);
    return error;
}

/* Seconds, with decimals. */
static bool wait_parse(const char *text, uint64_t *wait_ns)
{
    char *end;
    double seconds = strtod(text, &end);

    if (end == text || *end || !(seconds >= 0) || *text == '-')
        return false;
    *wait_ns = seconds >= (double)(UINT64_MAX / 1000000000) ? UINT64_MAX : (uint64_t)(seconds * 1e9);
    return true;
}

static int option_take(int option, uint64_t *wait_ns, bool *as_json)
{
    switch (option) {
    case 'w': return wait_parse(optarg, wait_ns) ? 0 : usage_error("latest", "--wait: '%s' is no number of seconds", optarg);
    case 'j': *as_json = true; return 0;
    default:  return usage_error("latest", NULL);
    }
}

static int run(int argc, char **argv)
{
    static const struct option options[] = { { "wait", required_argument, NULL, 'w' }, { "json", no_argument, NULL, 'j' }, { 0 } };
    struct tspool_latest_report report = TSPOOL_LATEST_REPORT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint64_t wait_ns = DEFAULT_WAIT_NS;
    bool as_json = false;
    char *path = NULL;
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "w:", options, NULL)) != -1)
        status = option_take(option, &wait_ns, &as_json);
    if (status)
        return status;
    if (argc - optind != 1)
        return usage_error("latest", "give one root directory");
    if (latest_find(argv[optind], wait_ns, &path, &report, &failure) < 0)
        return fail_with("latest", &failure);
    if (as_json)
        print_json(path, &report);
    else
        puts(path);
    free(path);
    return EXIT_DONE;
}

const struct command command_latest = {
    .name = "latest",
    .summary = "print the path to resume from",
    .arguments = "[--wait SECONDS] [--json] ROOT",
    .description = "Prints the path of the newest published checkpoint below ROOT: by the metadata entry \"step\"\n"
                   "where all have one, else by the order in which they were committed. A writer that is still\n"
                   "finishing what its dead trainer staged is waited for, and said; a save of a trainer that\n"
                   "lives is not.\n\n"
                   "  -w, --wait SECONDS  how long at most; 10 unless given, 0 looks once, inf waits for ever\n"
                   "  --json              the path with step, sequence and save id, and what was waited for\n"
                   "  -h, --help          this text\n",
    .run = run,
};
