/* commands/verify.c - reads everything against its digest and says what is damaged, missing or does not belong. */
#include "command.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct verifying {
    const char *path;
    bool as_json, quiet;
    struct progress progress;
};

static const char *kind_name(enum tspool_damage_kind kind)
{
    static const char *const names[] = { "", "tensor", "file", "missing", "foreign" };

    return names[kind];
}

static void damage_json(const struct verifying *verifying, const struct tspool_damage *damage)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", "finding");
    json_string(&json, "checkpoint", verifying->path);
    json_string(&json, "kind", kind_name(damage->kind));
    json_string(&json, "tensor", damage->tensor);
    json_string(&json, "file", damage->file);
    json_number(&json, "file_offset", damage->file_offset);
    json_number(&json, "bytes", damage->bytes);
    json_string(&json, "reason", damage->reason);
    json_end(&json);
}

static void damage_print(const struct verifying *verifying, const struct tspool_damage *damage)
{
    if (damage->kind == TSPOOL_DAMAGE_MISSING)
        complain("verify", "%s/%s: missing", verifying->path, damage->file);
    else if (damage->kind == TSPOOL_DAMAGE_FOREIGN)
        printf("%s/%s: not part of the checkpoint\n", verifying->path, damage->file);
    else
        complain("verify", "%s/%s: %s%s%sbytes %" PRIu64 " to %" PRIu64 " are damaged: %s", verifying->path, damage->file,
                 damage->tensor ? "tensor " : "", damage->tensor ? damage->tensor : "", damage->tensor ? ": " : "",
                 damage->file_offset, damage->file_offset + damage->bytes, damage->reason);
}

static int found(void *context, const struct tspool_damage *damage)
{
    struct verifying *verifying = context;

    progress_clear(&verifying->progress);
    if (verifying->as_json)
        damage_json(verifying, damage);
    else if (!verifying->quiet || damage->kind != TSPOOL_DAMAGE_FOREIGN)
        damage_print(verifying, damage);
    return interrupted() ? -EINTR : 0;
}

static void advanced(void *context, uint64_t done, uint64_t total)
{
    struct verifying *verifying = context;

    progress_show(&verifying->progress, verifying->path, done, total);
    if (interrupted())
        exit(EXIT_INTERRUPTED); /* nothing was changed: there is nothing to put in order */
}

static const char *verdict_name(int error)
{
    return error == 0 ? "whole" : error == -EBADMSG ? "damaged" : error == -ENODATA ? "unverifiable" : "failed";
}

static void verdict_json(const struct verifying *verifying, int error, const struct tspool_verify_report *report,
                         const struct tspool_failure *failure, uint64_t took_ns)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", "verified");
    json_string(&json, "checkpoint", verifying->path);
    json_string(&json, "verdict", verdict_name(error));
    json_number(&json, "tensors", report->tensors);
    json_number(&json, "leaves", report->leaves);
    json_number(&json, "bytes", report->bytes);
    json_number(&json, "damaged", report->damaged);
    json_number(&json, "missing", report->missing);
    json_number(&json, "foreign", report->foreign);
    json_seconds(&json, "seconds", took_ns);
    if (error)
        json_failure(&json, failure);
    json_end(&json);
}

/* Where the findings were already named one by one, the last line only sums up. */
static void verdict_print(const struct verifying *verifying, int error, const struct tspool_verify_report *report,
                          const struct tspool_failure *failure, uint64_t took_ns)
{
    if (error == 0 && !verifying->quiet)
        printf("%s: whole: %" PRIu64 " tensors, %s in %s\n", verifying->path, report->tensors, human_bytes(report->bytes).bytes,
               human_seconds(took_ns).bytes);
    else if (error == -EBADMSG && report->damaged + report->missing > 0)
        complain("verify", "%s: damaged: %" PRIu64 " range%s, %" PRIu64 " missing file%s", verifying->path, report->damaged,
                 report->damaged == 1 ? "" : "s", report->missing, report->missing == 1 ? "" : "s");
    else if (error)
        complain("verify", "%s", failure->message);
}

static int verify_path(struct verifying *verifying)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_verify_report report = TSPOOL_VERIFY_REPORT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    uint64_t started = now_ns();
    int error;

    options.tolerant = 1;
    progress_init(&verifying->progress, !verifying->as_json && !verifying->quiet);
    error = tspool_checkpoint_open(verifying->path, &options, &checkpoint, &failure);
    if (error == 0)
        error = tspool_checkpoint_verify(checkpoint, found, advanced, verifying, &report, &failure);
    tspool_checkpoint_close(checkpoint);
    progress_clear(&verifying->progress);
    if (verifying->as_json)
        verdict_json(verifying, error, &report, &failure, now_ns() - started);
    else
        verdict_print(verifying, error, &report, &failure, now_ns() - started);
    return error == 0 ? EXIT_DONE : EXIT_FAILED;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { "quiet", no_argument, NULL, 'q' }, { 0 } };
    struct verifying verifying = { 0 };
    int option, status = EXIT_DONE;

    while ((option = getopt_long(argc, argv, "q", options, NULL)) != -1) {
        if (option != 'j' && option != 'q')
            return usage_error("verify", NULL);
        verifying.as_json |= option == 'j';
        verifying.quiet |= option == 'q';
    }
    if (optind == argc)
        return usage_error("verify", "give at least one checkpoint");
    interrupts_catch();
    for (int i = optind; i < argc; i++) {
        verifying.path = argv[i];
        if (verify_path(&verifying) != EXIT_DONE)
            status = EXIT_FAILED;
    }
    return status;
}

const struct command command_verify = {
    .name = "verify",
    .summary = "read everything against its digest",
    .arguments = "[--json] [--quiet] CHECKPOINT...",
    .description = "Reads every byte of each CHECKPOINT against the digests that were recorded when it was written,\n"
                   "and names each damaged tensor with its file and the range of bytes (at most 4 MiB wide), and\n"
                   "each missing file. Files that the manifest does not list are mentioned; they are no damage. A\n"
                   "plain safetensors file or a Hugging Face folder has no digests: its headers and sizes are\n"
                   "checked, and the exit status is 1, because nothing was verified.\n\n"
                   "  --json       one JSON object per finding, and one per checkpoint at its end\n"
                   "  -q, --quiet  print findings only\n"
                   "  -h, --help   this text\n",
    .run = run,
};
