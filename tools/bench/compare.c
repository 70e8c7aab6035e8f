/* bench/compare.c - see compare.h. The first contestant is what the others are held against. */
#include "compare.h"
#include "contest.h"
#include "tree.h"

#include "../commands/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct job *job_named(const struct jobs *jobs, const char *name)
{
    for (size_t i = 0; i < jobs->count; i++)
        if (strcmp(jobs->jobs[i].name, name) == 0)
            return &jobs->jobs[i];
    return NULL;
}

/* "bs=1m+iodepth=8" over a job. */
static int overrides_take(struct contestant *contestant, char *text, struct complaint *complaint)
{
    char *rest = text, *one;

    while ((one = strsep(&rest, "+"))) {
        char *equals = strchr(one, '=');

        if (!equals)
            return complaint_set(complaint, "--compare: '%s' is neither a job, nor fio, nor an option=value", one);
        *equals = '\0';
        if (job_set(&contestant->job, one, equals + 1, complaint) < 0)
            return -1;
    }
    return 0;
}

static int contestant_take(struct contest *contest, const struct jobs *jobs, char *text, struct complaint *complaint)
{
    const struct job *base = &jobs->jobs[jobs->count - 1], *named = job_named(jobs, text);
    bool is_fio = strcmp(text, "fio") == 0 || strcmp(text, "fio-default") == 0;
    struct contestant *added = contest_add(contest, named ? named : base, text);

    if (!added)
        return complaint_set(complaint, "--compare: more than %u contestants, or out of memory", CONTESTANTS_MAX);
    if (named)
        return 0;
    added->is_fio = is_fio;
    added->fio_kind = strcmp(text, "fio") == 0 ? FIO_TUNED : FIO_DEFAULT;
    return is_fio ? 0 : overrides_take(added, text, complaint);
}

static int contestants_take(struct contest *contest, const struct cli *cli, struct complaint *complaint)
{
    char *list = strdup(cli->compare), *rest = list, *one;
    int status = list ? 0 : complaint_set(complaint, "out of memory");

    while (status == 0 && (one = strsep(&rest, ",")))
        if (*one)
            status = contestant_take(contest, &cli->jobs, one, complaint);
    free(list);
    if (status == 0 && contest->count < 2)
        return complaint_set(complaint, "--compare: give two contestants at least, such as fio,%s", cli->jobs.jobs[0].name);
    for (unsigned i = 1; status == 0 && i < contest->count; i++)
        if (contest->contestants[i].job.rw != contest->contestants[0].job.rw)
            status = complaint_set(complaint, "--compare: '%s' and '%s' do different things (rw=)", contest->contestants[0].name,
                                   contest->contestants[i].name);
    return status;
}

/* Report --------------------------------------------------------------------------------------------------------------- */

/* How many times as fast as the first: medians, and the least and greatest of the paired rounds. */
struct standing { double seconds, rate, ratio, ratio_least, ratio_most; enum verdict_of_two verdict; };

static struct standing standing_of(const struct contest *contest, unsigned who)
{
    const struct contestant *first = &contest->contestants[0], *this = &contest->contestants[who];
    double ratios[STATS_ROUNDS_MAX], pace = median(this->pace, contest->rounds_done);
    size_t count = contest->rounds_done;

    for (size_t i = 0; i < count; i++)
        ratios[i] = this->pace[i] > 0 ? first->pace[i] / this->pace[i] : 0;
    return (struct standing){
        .seconds = median(this->seconds, count), .rate = pace > 0 ? (1 << 30) / pace : 0,
        .ratio = pace > 0 ? median(first->pace, count) / pace : 0, .ratio_least = least(ratios, count),
        .ratio_most = greatest(ratios, count), .verdict = compare_series(first->pace, this->pace, count),
    };
}

static const char *verdict_text(const struct standing *standing, unsigned who)
{
    static const char *const texts[] = { "no difference beyond noise", "slower", "faster" };

    return who == 0 ? "-" : texts[standing->verdict];
}

static void table_put(FILE *out, const struct contest *contest)
{
    fprintf(out, "%-28s %10s %22s %12s %8s %16s  %s\n", "contestant", "median s", "(min-max)", "bw", "ratio", "(min-max)",
            "verdict");
    for (unsigned i = 0; i < contest->count; i++) {
        const struct contestant *c = &contest->contestants[i];
        struct standing standing = standing_of(contest, i);

        fprintf(out, "%-28s %10.4f %11.4f-%-10.4f %10s/s %8.3f %8.3f-%-7.3f  %s (%s, %s)\n", c->name, standing.seconds,
                least(c->seconds, contest->rounds_done), greatest(c->seconds, contest->rounds_done),
                human_bytes((uint64_t)standing.rate).bytes, standing.ratio, standing.ratio_least, standing.ratio_most,
                verdict_text(&standing, i), c->backend, c->is_direct ? "direct" : "buffered");
    }
    fprintf(out, "\n%llu interleaved rounds, each %s by its own clock with the fsync in it; ratios are of throughput to %s.\n"
            "A difference is claimed when one was faster in so many paired rounds that chance does it less than once in 20\n"
            "(sign test), and the medians differ by more than 2 %%.%s\n", (unsigned long long)contest->rounds_done,
            job_is_reading(&contest->contestants[0].job) ? "read" : "write", contest->contestants[0].name,
            contest->rounds_done < 6 ? " Fewer than 6 rounds can show none: give --rounds=7 or more." : "");
    contest_doubts_put(out, contest);
}

static void json_put(FILE *out, const struct contest *contest)
{
    struct tree tree;

    tree_begin(&tree, out);
    tree_number(&tree, "rounds", contest->rounds_done);
    tree_real(&tree, "foreign_cpu", contest->foreign_cpu);
    tree_number(&tree, "foreign_bytes", contest->foreign_bytes);
    tree_list_open(&tree, "contestants");
    for (unsigned i = 0; i < contest->count; i++) {
        const struct contestant *c = &contest->contestants[i];
        struct standing standing = standing_of(contest, i);

        tree_open(&tree, NULL);
        tree_text(&tree, "name", c->name);
        tree_text(&tree, "backend", c->backend);
        tree_bool(&tree, "direct", c->is_direct);
        tree_number(&tree, "bytes", c->bytes);
        tree_real(&tree, "median_s", standing.seconds);
        tree_real(&tree, "bw_bytes", standing.rate);
        tree_real(&tree, "ratio", standing.ratio);
        tree_real(&tree, "ratio_min", standing.ratio_least);
        tree_real(&tree, "ratio_max", standing.ratio_most);
        tree_text(&tree, "verdict", verdict_text(&standing, i));
        tree_list_open(&tree, "seconds");
        for (size_t r = 0; r < contest->rounds_done; r++)
            tree_real(&tree, NULL, c->seconds[r]);
        tree_list_close(&tree);
        tree_close(&tree);
    }
    tree_list_close(&tree);
    tree_end(&tree);
}

static int report_put(const struct cli *cli, const struct contest *contest)
{
    FILE *out = cli->output ? fopen(cli->output, "we") : stdout;
    int status = EXIT_DONE;

    if (out)
        (cli->format == REPORT_JSON || cli->format == REPORT_JSON_BINS ? json_put : table_put)(out, contest);
    if (!out || (cli->output && fclose(out) != 0)) {
        complain("bench", "%s: %s", cli->output, strerror(errno));
        status = EXIT_FAILED;
    }
    return status;
}

int compare_run(const struct cli *cli)
{
    struct complaint complaint;
    struct contest contest;
    int status;

    if (contest_init(&contest, cli->rounds, "compare", cli_shows_status(cli)) < 0) {
        complain("bench", "out of memory");
        return EXIT_FAILED;
    }
    if (contestants_take(&contest, cli, &complaint) < 0) {
        contest_deinit(&contest);
        return usage_error("bench", "%s", complaint.text);
    }
    status = contest_run(&contest, &complaint);
    if (status == -EINTR) {
        complain("bench", "interrupted; what was written is removed");
        status = EXIT_INTERRUPTED;
    } else if (status < 0) {
        complain("bench", "%s", complaint.text);
        status = EXIT_FAILED;
    } else {
        status = report_put(cli, &contest);
    }
    contest_deinit(&contest);
    return status;
}
