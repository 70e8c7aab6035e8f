/* commands/latest.c - the checkpoint to resume from. */
#include "command.h"

#include <getopt.h>
#include <stdlib.h>

static void print_json(const char *path)
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
    json_end(&json);
    tspool_checkpoint_close(checkpoint);
}

static int run(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' }, { 0 } };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    bool as_json = false;
    char *path = NULL;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'j')
            return usage_error("latest", NULL);
        as_json = true;
    }
    if (argc - optind != 1)
        return usage_error("latest", "give one root directory");
    if (tspool_latest(argv[optind], &path, &failure) < 0)
        return fail_with("latest", &failure);
    if (as_json)
        print_json(path);
    else
        puts(path);
    free(path);
    return EXIT_DONE;
}

const struct command command_latest = {
    .name = "latest",
    .summary = "print the path to resume from",
    .arguments = "[--json] ROOT",
    .description = "Prints the path of the newest published checkpoint below ROOT: by the metadata entry \"step\"\n"
                   "where all have one, else by the order in which they were committed. A writer that is still\n"
                   "finishing what its dead trainer staged is waited for, up to 10 seconds.\n\n"
                   "  --json     the path with step, sequence and save id\n"
                   "  -h, --help this text\n",
    .run = run,
};
