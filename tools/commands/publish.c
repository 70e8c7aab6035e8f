/* commands/publish.c - making a checkpoint of what several ranks saved, when no rank is there any more to do it.
 *
 * The public API publishes; what may be meant when no save id is given comes from the publish room's look at the root.
 */
#include "command.h"

#include <base/hash.h>
#include <errno.h>
#include <getopt.h>
#include <publish/publish.h>
#include <stdlib.h>
#include <string.h>

struct publishing {
    char *root;
    const char *name;
    struct digest id;
    bool has_id, as_json;
    uint32_t world_size;
};

/* "runs/step-1/" -> "runs" and "step-1". */
static bool path_split(char *path, struct publishing *publishing)
{
    size_t end = strlen(path);
    char *slash;

    while (end > 1 && path[end - 1] == '/')
        path[--end] = '\0';
    slash = strrchr(path, '/');
    publishing->name = slash ? slash + 1 : path;
    publishing->root = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    return publishing->root && *publishing->name;
}

static bool is_meant(const struct publishing *publishing, const struct unpublished *save)
{
    if (publishing->has_id)
        return memcmp(save->save_id, publishing->id.bytes, sizeof save->save_id) == 0;
    return save->parts == save->world_size;
}

/* All saves of the name that could be meant, one line. */
static void choices_tell(const struct publishing *publishing, const struct unpublished_list *list)
{
    char text[1024] = "";
    size_t used = 0;

    for (size_t i = 0; i < list->count && used < sizeof text - 80; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s (%u of %u parts)", i ? ", " : "",
                                 hex_text(list->items[i].save_id, sizeof list->items[i].save_id).bytes, list->items[i].parts,
                                 list->items[i].world_size);
    if (list->count == 0)
        complain("publish", "%s/%s: nothing unpublished of this name stands here", publishing->root, publishing->name);
    else
        complain("publish", "%s/%s: choose one with --save-id: %s", publishing->root, publishing->name, text);
}

/* Fills in what was not given. False when it cannot be told: then it was said. */
static bool save_choose(struct publishing *publishing, const struct unpublished_list *list)
{
    const struct unpublished *chosen = NULL;
    size_t count = 0;

    for (size_t i = 0; i < list->count; i++)
        if (is_meant(publishing, &list->items[i])) {
            chosen = &list->items[i];
            count++;
        }
    if (!publishing->has_id && count != 1) {
        choices_tell(publishing, list);
        return false;
    }
    if (chosen) {
        memcpy(publishing->id.bytes, chosen->save_id, sizeof chosen->save_id);
        publishing->world_size = publishing->world_size ? publishing->world_size : chosen->world_size;
    }
    return true;
}

/* A save that stands under its name already says itself how many ranks it is of. */
static void published_ask(struct publishing *publishing)
{
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct tspool_checkpoint *checkpoint = NULL;
    char *path = NULL;

    if (asprintf(&path, "%s/%s", publishing->root, publishing->name) >= 0 &&
        tspool_checkpoint_open(path, NULL, &checkpoint, NULL) == 0 && tspool_checkpoint_info(checkpoint, &info) == 0 &&
        memcmp(info.save_id, publishing->id.bytes, sizeof info.save_id) == 0)
        publishing->world_size = info.world_size;
    tspool_checkpoint_close(checkpoint);
    free(path);
}

static int save_find(struct publishing *publishing, struct tspool_failure *failure)
{
    struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                    .thread_name = "tspool-p" };
    struct unpublished_list list = { NULL, 0 };
    struct io *io = NULL;
    bool found;

    if (io_create_threads(&settings, &io, failure) < 0 ||
        unpublished_on(io, publishing->root, publishing->name, &list, failure) < 0) {
        io_destroy(io);
        return fail_with("publish", failure);
    }
    io_destroy(io);
    found = save_choose(publishing, &list);
    free(list.items);
    if (found && publishing->world_size == 0)
        published_ask(publishing);
    if (found && publishing->world_size == 0) {
        complain("publish", "%s/%s: no part of save %s stands here, and none is published", publishing->root, publishing->name,
                 hex_text(publishing->id.bytes, sizeof publishing->id.bytes).bytes);
        found = false;
    }
    return found ? EXIT_DONE : EXIT_FAILED;
}

static void tell(const struct publishing *publishing, const struct tspool_failure *failure)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", failure ? "failed" : "published");
    json_string(&json, "name", publishing->name);
    json_string(&json, "save_id", hex_text(publishing->id.bytes, sizeof publishing->id.bytes).bytes);
    json_number(&json, "world_size", publishing->world_size);
    if (failure)
        json_failure(&json, failure);
    json_end(&json);
}

static int publishing_run(struct publishing *publishing)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int status = publishing->has_id && publishing->world_size ? EXIT_DONE : save_find(publishing, &failure), error;

    if (status)
        return status;
    error = tspool_publish(publishing->root, publishing->name, publishing->id.bytes, publishing->world_size, &failure);
    if (publishing->as_json)
        tell(publishing, error < 0 ? &failure : NULL);
    return error < 0 ? fail_with("publish", &failure) : EXIT_DONE;
}

static bool world_parse(const char *text, uint32_t *world_size)
{
    char *end;
    unsigned long long number;

    errno = 0;
    number = strtoull(text, &end, 10);
    *world_size = (uint32_t)number;
    return errno == 0 && end != text && *end == '\0' && *text != '-' && number >= 1 && number <= UINT32_MAX;
}

static int option_take(struct publishing *publishing, int option)
{
    switch (option) {
    case 's':
        publishing->has_id = digest_from_hex(optarg, &publishing->id) == 0;
        return publishing->has_id ? 0 : usage_error("publish", "--save-id: '%s' is not 32 hex digits", optarg);
    case 'w':
        return world_parse(optarg, &publishing->world_size) ? 0 : usage_error("publish", "--world-size: '%s' is no number of ranks",
                                                                              optarg);
    case 'j':
        publishing->as_json = true;
        return 0;
    default:
        return usage_error("publish", NULL);
    }
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        { "save-id", required_argument, NULL, 's' }, { "world-size", required_argument, NULL, 'w' },
        { "json", no_argument, NULL, 'j' }, { 0 },
    };
    struct publishing publishing = { 0 };
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1)
        status = option_take(&publishing, option);
    if (status)
        return status;
    if (argc - optind != 1 || !path_split(argv[optind], &publishing))
        return usage_error("publish", "give one checkpoint: ROOT/NAME");
    status = publishing_run(&publishing);
    free(publishing.root);
    return status;
}

const struct command command_publish = {
    .name = "publish",
    .summary = "make a checkpoint of what several ranks saved",
    .arguments = "[--save-id HEX] [--world-size N] [--json] ROOT/NAME",
    .description = "Publishes the save of several ranks as ROOT/NAME when the parts of all of them are durable. The trainer\n"
                   "does that itself; this is for a save whose trainer died before it could. It may be run at any time,\n"
                   "by several at once, and again after it was killed; what is published already stays so.\n\n"
                   "Without --save-id the only complete unpublished save of that name is meant.\n\n"
                   "  --save-id HEX   the save, by its 32 hex digits\n"
                   "  --world-size N  how many ranks it must be of; else what its parts say\n"
                   "  --json          one JSON object: published or failed\n"
                   "  -h, --help      this text\n",
    .run = run,
};
