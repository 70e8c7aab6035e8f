/* sim/simulate.c - both machines in one simulated world, one seed after the other; see support/sim_pair.h.
 *
 * usage: simulate [--seeds FROM..TO] [--seconds S] [--seed N] [--leave-out MASK]
 *
 * A seed that breaks a rule is shrunk: faults that it does not need are left out; what remains and the trace are printed.
 * With --seed that is all that is done, and the trace is printed whatever happens. The last line counts seeds, as tests do.
 */
#include "sim_pair.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TOLD_MAX 3u      /* failures that are told in full */
#define FAILURES_MAX 50u /* after so many enough was seen */

struct totals {
    uint64_t seeds, failed;
    uint64_t saves, published, failures, unknown, acknowledged, replayed, writers, loads, ops, deaths, cuts, virtual_ns;
};

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void totals_add(struct totals *totals, const struct sim_pair_report *report)
{
    totals->seeds++;
    totals->saves += report->saves;
    totals->published += report->published;
    totals->failures += report->failed;
    totals->unknown += report->unknown;
    totals->acknowledged += report->acknowledged;
    totals->replayed += report->replayed;
    totals->writers += report->writers;
    totals->loads += report->loads;
    totals->ops += report->writer_ops;
    totals->deaths += report->trainer_died;
    totals->cuts += report->power_cut;
    totals->virtual_ns += report->virtual_ns;
}

/* The story, the trace, and what is wrong: all that is needed to find out why. */
static void seed_tell(uint64_t seed, uint32_t left_out)
{
    struct sim_pair_report report = { 0 };
    struct sim_pair_options options = { .left_out = left_out, .trace = true, .report = &report };
    const char *broken = sim_pair_run(seed, &options);
    struct story story;

    story_make(&story, seed);
    story.left_out = left_out;
    printf("%s", report.trace ? report.trace : "");
    story_print(&story, stdout);
    printf("  %u published, %u failed, %u unknown, %u writers, %" PRIu64 " ms\n", report.published, report.failed, report.unknown,
           report.writers, report.virtual_ns / 1000000);
    printf("seed %" PRIu64 ": %s\n", seed, broken ? broken : "every rule holds");
    free(report.trace);
}

static void seed_fail(uint64_t seed, const char *broken)
{
    char first[1024];
    uint32_t left_out;

    snprintf(first, sizeof(first), "%s", broken);
    left_out = sim_pair_shrink(seed);
    seed_tell(seed, left_out);
    printf("as it was found: %s\n", first);
    printf("again: simulate --seed %" PRIu64 "%s", seed, left_out ? "" : "\n");
    if (left_out)
        printf(" --leave-out %#x\n", left_out);
    fflush(stdout);
}

static void seeds_run(uint64_t from, uint64_t to, double until, struct totals *totals)
{
    for (uint64_t seed = from; seed < to && totals->failed < FAILURES_MAX && (!until || seconds() < until); seed++) {
        struct sim_pair_report report = { 0 };
        const char *broken = sim_pair_run(seed, &(struct sim_pair_options){ .report = &report });

        totals_add(totals, &report);
        if (!broken)
            continue;
        totals->failed++;
        if (totals->failed <= TOLD_MAX)
            seed_fail(seed, broken);
        else
            printf("seed %" PRIu64 ": %s\n", seed, broken);
    }
}

static void totals_print(const struct totals *totals, double took)
{
    printf("%" PRIu64 " saves: %" PRIu64 " published, %" PRIu64 " failed, %" PRIu64 " unknown; %" PRIu64 " acknowledged, %" PRIu64
           " replayed\n", totals->saves, totals->published, totals->failures, totals->unknown,
           totals->acknowledged, totals->replayed);
    printf("%" PRIu64 " writers with %" PRIu64 " operations, %" PRIu64 " deaths of trainers, %" PRIu64 " power cuts, %" PRIu64
           " loads, %.0f s of virtual time in %.1f s\n", totals->writers, totals->ops, totals->deaths, totals->cuts,
           totals->loads,
           (double)totals->virtual_ns / 1e9, took);
    printf("%" PRIu64 " passed, %" PRIu64 " failed, 0 skipped\n", totals->seeds - totals->failed, totals->failed);
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "seed", 1, NULL, 's' }, { "seeds", 1, NULL, 'r' }, { "seconds", 1, NULL, 't' },
                                             { "leave-out", 1, NULL, 'l' }, { NULL, 0, NULL, 0 } };
    uint64_t from = 0, to = 1000, one = UINT64_MAX;
    double limit = 0, began = seconds();
    struct totals totals = { 0 };
    uint32_t left_out = 0;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        char *dots = optarg ? strstr(optarg, "..") : NULL;

        if (option == 's') {
            one = strtoull(optarg, NULL, 0);
        } else if (option == 'r' && dots) {
            from = strtoull(optarg, NULL, 0);
            to = strtoull(dots + 2, NULL, 0);
        } else if (option == 't') {
            limit = strtod(optarg, NULL);
            to = UINT64_MAX;
        } else if (option == 'l') {
            left_out = (uint32_t)strtoul(optarg, NULL, 0);
        } else {
            fprintf(stderr, "usage: simulate [--seeds FROM..TO] [--seconds S] [--seed N [--leave-out MASK]]\n");
            return 2;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was found is told at once */
    if (one != UINT64_MAX) {
        seed_tell(one, left_out);
        return 0;
    }
    seeds_run(from, to, limit ? began + limit : 0, &totals);
    totals_print(&totals, seconds() - began);
    return totals.failed || !totals.seeds;
}
