/* bench/tune.c - tspool tune: a short sweep that finds the settings for a directory, and says when there is nothing to find.
 *
 * One setting after the other: its candidates and what is best so far save in interleaved rounds, and a candidate takes over only
 * by the rule of stats.h. Of many candidates one wins by luck sooner or later; so in the end the winner meets the defaults in
 * rounds that took no part in choosing it, and the gain that is told is that of those alone. Lost there, the defaults stand.
 */
#include "contest.h"
#include "measure.h"
#include "tree.h"
#include "units.h"
#include "workspace.h"

#include "../commands/command.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <io/io.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SETTINGS_FILE "tspool-settings.json"
#define TENSOR_BYTES ((uint64_t)4 << 20)
#define STATE_BYTES ((uint64_t)256 << 20)

struct dimension {
    const char *option, *title;
    const char *candidates[8];   /* ends with NULL */
    const char *standard;        /* the library's default */
    bool by_stall;               /* judged by the caller's wait, else by the time until durable */
};

static const struct dimension dimensions[] = {
    { "ioengine", "io", { "uring", "threads", NULL }, "uring", false },
    { "bs", "item_bytes", { "256k", "512k", "1m", "2m", NULL }, "512k", false },
    { "iodepth", "depth", { "8", "16", "32", "64", NULL }, "32", false },
    { "iodepth_batch", "submit_batch", { "1", "2", "4", "8", NULL }, "1", false },
    { "staging_threads", "staging_threads", { "1", "2", "4", NULL }, "2", true },
};
#define DIMENSION_COUNT (sizeof dimensions / sizeof *dimensions)

struct tune {
    const char *directory, *output, *writer;
    uint64_t bytes, rounds;
    bool as_json, quiet;
    const char *best[DIMENSION_COUNT], *standard[DIMENSION_COUNT];
    struct complaint complaint;
    double gain, gain_least, gain_most; /* of throughput over the defaults, confirmed rounds */
    double stall_gain;
    bool is_better, has_less_stall;
    struct contest worst;        /* of all contests, what others did meanwhile */
};

/* The sweep ------------------------------------------------------------------------------------------------------------ */

static int job_base(const struct tune *tune, struct job *job, struct complaint *complaint)
{
    char shape[64];

    if (job_defaults(job, "tune") < 0)
        return complaint_set(complaint, "out of memory");
    snprintf(shape, sizeof shape, "%" PRIu64 " x %" PRIu64, (tune->bytes + TENSOR_BYTES - 1) / TENSOR_BYTES, TENSOR_BYTES);
    if (job_set(job, "rw", "save", complaint) < 0 || job_set(job, "shape", shape, complaint) < 0 ||
        job_set(job, "directory", tune->directory, complaint) < 0 ||
        (tune->writer && job_set(job, "writer", tune->writer, complaint) < 0))
        return -1;
    return 0;
}

static int settings_put(struct job *job, const char *const values[DIMENSION_COUNT], struct complaint *complaint)
{
    for (size_t d = 0; d < DIMENSION_COUNT; d++)
        if (job_set(job, dimensions[d].option, values[d], complaint) < 0)
            return -1;
    return 0;
}

static int candidate_add(struct tune *tune, struct contest *contest, const char *const values[DIMENSION_COUNT], const char *name)
{
    struct job base = { 0 };
    struct contestant *added;
    int status = job_base(tune, &base, &tune->complaint);

    added = status == 0 ? contest_add(contest, &base, name) : NULL;
    job_drop(&base);
    if (!added)
        return status < 0 ? -1 : complaint_set(&tune->complaint, "out of memory");
    return settings_put(&added->job, values, &tune->complaint);
}

/* Number 0 is what is best so far; the fastest of the others takes over if it is faster beyond noise. */
static unsigned winner_of(const struct contest *contest, bool by_stall)
{
    const double *best = by_stall ? contest->contestants[0].stall : contest->contestants[0].pace;
    double fastest = median(best, contest->rounds_done);
    unsigned winner = 0;

    for (unsigned i = 1; i < contest->count; i++) {
        const double *other = by_stall ? contest->contestants[i].stall : contest->contestants[i].pace;

        if (median(other, contest->rounds_done) < fastest && compare_series(best, other,
                                                                            contest->rounds_done) == SECOND_IS_LESS) {
            fastest = median(other, contest->rounds_done);
            winner = i;
        }
    }
    return winner;
}

/* Each contest's doubts would say the same five times: the worst stands for all. */
static void doubts_note(struct tune *tune, const struct contest *contest)
{
    tune->worst.device = contest->device;
    if (contest->foreign_cpu > tune->worst.foreign_cpu)
        tune->worst.foreign_cpu = contest->foreign_cpu;
    tune->worst.own_bytes += contest->own_bytes;
    tune->worst.foreign_bytes += contest->foreign_bytes;
}

static void dimension_tell(const struct tune *tune, const struct dimension *dimension, const struct contest *contest,
                           unsigned winner)
{
    if (tune->quiet || tune->as_json)
        return;
    printf("%-16s", dimension->title);
    for (unsigned i = 0; i < contest->count; i++) {
        const struct contestant *c = &contest->contestants[i];

        if (dimension->by_stall)
            printf("  %s: %.1f ms stall", c->name, 1e3 * median(c->stall, contest->rounds_done));
        else
            printf("  %s: %s/s", c->name, human_bytes((uint64_t)((1 << 30) / median(c->pace, contest->rounds_done))).bytes);
    }
    printf("%s%s\n", winner ? "  -> " : "  (no difference beyond noise)", winner ? contest->contestants[winner].name : "");
    fflush(stdout);
}

static bool shows_progress(const struct tune *tune) { return !tune->quiet && isatty(STDERR_FILENO); }

static int dimension_sweep(struct tune *tune, size_t d)
{
    const struct dimension *dimension = &dimensions[d];
    const char *values[DIMENSION_COUNT];
    struct contest contest;
    unsigned winner;
    int status;

    if (contest_init(&contest, tune->rounds, dimension->title, shows_progress(tune)) < 0)
        return complaint_set(&tune->complaint, "out of memory");
    memcpy(values, tune->best, sizeof values);
    status = candidate_add(tune, &contest, values, tune->best[d]);
    for (unsigned i = 0; status == 0 && dimension->candidates[i]; i++)
        if (strcmp(dimension->candidates[i], tune->best[d]) != 0) {
            values[d] = dimension->candidates[i];
            status = candidate_add(tune, &contest, values, values[d]);
        }
    if (status == 0)
        status = contest_run(&contest, &tune->complaint);
    if (status == 0) {
        doubts_note(tune, &contest);
        winner = winner_of(&contest, dimension->by_stall);
        dimension_tell(tune, dimension, &contest, winner);
        for (unsigned i = 0; winner && dimension->candidates[i]; i++)
            if (strcmp(contest.contestants[winner].name, dimension->candidates[i]) == 0)
                tune->best[d] = dimension->candidates[i];
    }
    contest_deinit(&contest);
    return status;
}

/* Confirming ----------------------------------------------------------------------------------------------------------- */

static void gains_take(struct tune *tune, const struct contest *contest)
{
    const struct contestant *standard = &contest->contestants[0], *best = &contest->contestants[1];
    double ratios[STATS_ROUNDS_MAX];
    size_t count = contest->rounds_done;

    for (size_t i = 0; i < count; i++)
        ratios[i] = standard->pace[i] / best->pace[i];
    tune->gain = median(standard->pace, count) / median(best->pace, count);
    tune->gain_least = least(ratios, count);
    tune->gain_most = greatest(ratios, count);
    tune->stall_gain = median(standard->stall, count) / median(best->stall, count);
    tune->is_better = compare_series(standard->pace, best->pace, count) == SECOND_IS_LESS;
    tune->has_less_stall = compare_series(standard->stall, best->stall, count) == SECOND_IS_LESS &&
                           compare_series(standard->pace, best->pace, count) != FIRST_IS_LESS;
}

static int confirm(struct tune *tune)
{
    struct contest contest;
    int status;

    if (memcmp(tune->best, tune->standard, sizeof tune->best) == 0) {
        tune->gain = tune->gain_least = tune->gain_most = tune->stall_gain = 1;
        return 0;
    }
    if (contest_init(&contest, tune->rounds, "against the defaults", shows_progress(tune)) < 0)
        return complaint_set(&tune->complaint, "out of memory");
    status = candidate_add(tune, &contest, tune->standard, "defaults");
    if (status == 0)
        status = candidate_add(tune, &contest, tune->best, "best");
    if (status == 0)
        status = contest_run(&contest, &tune->complaint);
    if (status == 0) {
        doubts_note(tune, &contest);
        gains_take(tune, &contest);
    }
    if (status == 0 && !tune->is_better && !tune->has_less_stall)
        memcpy(tune->best, tune->standard, sizeof tune->best);
    contest_deinit(&contest);
    return status;
}

/* Telling -------------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const char *text)
{
    uint64_t bytes = 0;

    units_bytes(text, &bytes);
    return bytes;
}

static void settings_members(struct tree *tree, const struct tune *tune)
{
    tree_number(tree, "tspool", 1);
    tree_number(tree, "item_bytes", bytes_of(tune->best[1]));
    tree_number(tree, "depth", bytes_of(tune->best[2]));
    tree_number(tree, "submit_batch", bytes_of(tune->best[3]));
    tree_text(tree, "io", tune->best[0]);
    tree_number(tree, "staging_threads", bytes_of(tune->best[4]));
}

/* Whole or not at all: a trainer may be reading the one before. */
static int settings_write(struct tune *tune)
{
    char partial[4200];
    struct tree tree;
    FILE *file;

    snprintf(partial, sizeof partial, "%s.partial", tune->output);
    file = fopen(partial, "we");
    if (!file)
        return complaint_set(&tune->complaint, "%.300s: %s", partial, strerror(errno));
    tree_begin(&tree, file);
    settings_members(&tree, tune);
    tree_end(&tree);
    if (fflush(file) != 0 || fsync(fileno(file)) < 0 || fclose(file) != 0 || rename(partial, tune->output) < 0) {
        unlink(partial);
        return complaint_set(&tune->complaint, "%.300s: %s", tune->output, strerror(errno));
    }
    return 0;
}

static void command_line_put(const struct tune *tune)
{
    printf("  tspool bench --rw=save --directory=%s --shape='%" PRIu64 " x 4m'", tune->directory,
           (tune->bytes + TENSOR_BYTES - 1) / TENSOR_BYTES);
    for (size_t d = 0; d < DIMENSION_COUNT; d++)
        printf(" --%s=%s", dimensions[d].option, tune->best[d]);
    printf("\n");
}

static void result_say(const struct tune *tune)
{
    if (tune->is_better)
        printf("\nbest: %.2f times the defaults' throughput (%.2f-%.2f over %" PRIu64 " fresh rounds)\n", tune->gain,
               tune->gain_least,
               tune->gain_most, tune->rounds);
    else if (tune->has_less_stall)
        printf("\nbest: the defaults' stall is %.2f times as long; throughput is the same within noise\n", tune->stall_gain);
    else
        printf("\nNothing beats the defaults beyond noise: keep them.%s\n",
               tune->rounds < 6 ? " (Fewer than 6 rounds can show nothing else.)" : "");
    printf("A difference counts when it is seen in so many paired rounds that chance does it less than once in 20, and is above "
           "2 %%.\n");
    contest_doubts_put(stdout, &tune->worst);
    command_line_put(tune);
    printf("settings: %s (C: tspool_options_load; Python: tspool.Spool(root, settings=\"%s\"))\n", tune->output, tune->output);
}

static void result_json(const struct tune *tune)
{
    struct json json = json_begin(stdout);

    json_string(&json, "event", "tuned");
    json_string(&json, "directory", tune->directory);
    json_string(&json, "settings", tune->output);
    json_bool(&json, "better", tune->is_better);
    json_bool(&json, "less_stall", tune->has_less_stall);
    json_number(&json, "gain_percent", tune->gain > 1 ? (uint64_t)(100 * (tune->gain - 1) + 0.5) : 0);
    json_string(&json, "io", tune->best[0]);
    json_number(&json, "item_bytes", bytes_of(tune->best[1]));
    json_number(&json, "depth", bytes_of(tune->best[2]));
    json_number(&json, "submit_batch", bytes_of(tune->best[3]));
    json_number(&json, "staging_threads", bytes_of(tune->best[4]));
    json_number(&json, "rounds", tune->rounds);
    json_end(&json);
}

static bool uring_is_there(void)
{
    const struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1 };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct io *io = NULL;
    bool there = io_create_uring(&settings, &io, &failure) == 0;

    io_destroy(io);
    return there;
}

static int tune_run(struct tune *tune)
{
    int status = 0;

    for (size_t d = 0; d < DIMENSION_COUNT; d++)
        tune->best[d] = tune->standard[d] = dimensions[d].standard;
    if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
        tune->best[4] = tune->standard[4] = "1"; /* as in the library */
    if (!uring_is_there())
        tune->best[0] = tune->standard[0] = "threads";
    for (size_t d = strcmp(tune->standard[0], "threads") == 0; d < DIMENSION_COUNT && status == 0; d++)
        status = dimension_sweep(tune, d);
    if (status == 0)
        status = confirm(tune);
    if (status == 0)
        status = settings_write(tune);
    return status;
}

static int option_take(struct tune *tune, int option)
{
    switch (option) {
    case 's': return units_bytes(optarg, &tune->bytes) && tune->bytes >= TENSOR_BYTES ? 0
                     : usage_error("tune", "--size: '%s' is no size of 4m or more", optarg);
    case 'r': return units_number(optarg, &tune->rounds) && tune->rounds >= 1 && tune->rounds <= STATS_ROUNDS_MAX ? 0
                     : usage_error("tune", "--rounds: '%s' is no number of rounds", optarg);
    case 'o': tune->output = optarg; return 0;
    case 'w': tune->writer = optarg; return 0;
    case 'j': tune->as_json = true; return 0;
    case 'q': tune->quiet = true; return 0;
    default:  return usage_error("tune", NULL);
    }
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        { "size", required_argument, NULL, 's' }, { "rounds", required_argument, NULL, 'r' },
                { "output", required_argument, NULL, 'o' },
        { "writer", required_argument, NULL, 'w' }, { "json", no_argument, NULL, 'j' }, { "quiet", no_argument, NULL, 'q' },
                { 0 },
    };
    uint64_t available = meminfo_bytes("MemAvailable");
    struct tune tune = { .output = SETTINGS_FILE, .rounds = 7,
                         .bytes = available && available / 16 < STATE_BYTES ? available / 16 : STATE_BYTES };
    int option, status = 0;

    while (status == 0 && (option = getopt_long(argc, argv, "o:q", options, NULL)) != -1)
        status = option_take(&tune, option);
    if (status)
        return status;
    if (argc - optind != 1)
        return usage_error("tune", "give one directory");
    tune.directory = argv[optind];
    interrupts_catch();
    status = tune_run(&tune);
    workspace_clean(false);
    if (status == -EINTR) {
        complain("tune", "interrupted; what was written is removed");
        return EXIT_INTERRUPTED;
    }
    if (status < 0) {
        complain("tune", "%s", tune.complaint.text);
        return EXIT_FAILED;
    }
    if (tune.as_json)
        result_json(&tune);
    else if (!tune.quiet)
        result_say(&tune);
    return EXIT_DONE;
}

const struct command command_tune = {
    .name = "tune",
    .summary = "find the settings for a directory, and write them to a file",
    .arguments = "DIR [--size SIZE] [--rounds N] [--output FILE] [--json] [--quiet]",
    .description = "Saves into DIR with one setting after the other changed (I/O mode, item size, depth, submit batch,\n"
                   "staging threads), in interleaved rounds, and keeps a change only when it is faster beyond noise. The\n"
                   "best then meets the defaults in fresh rounds; lost there, the defaults stand. The settings go to a\n"
                   "file that tspool_options_load, tspool.Spool(settings=) and 'tspool bench --settings' read. DIR is\n"
                   "left as it was.\n\n"
                   "  --size SIZE        bytes of one save (256m, less where memory is short)\n"
                   "  --rounds N         rounds of each comparison (7; fewer than 6 can show no difference)\n"
                   "  -o, --output FILE  where the settings go (" SETTINGS_FILE ")\n"
                   "  --writer PATH      the tspool-writer to run\n"
                   "  --json             one JSON object with the settings and the gain\n"
                   "  -q, --quiet        print nothing but failures\n"
                   "  -h, --help         this text\n",
    .run = run,
};
