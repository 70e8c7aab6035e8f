/* bench/bench.c - tspool bench: how long a checkpoint takes on this storage, what limits it, and which settings to use.
 *
 * The command parses, runs, reports and cleans up; what each does stands in the file of its name.
 */
#include "cli.h"
#include "compare.h"
#include "help.h"
#include "report.h"
#include "run.h"
#include "workspace.h"

#include "../commands/command.h"

#include <errno.h>
#include <string.h>

static int failures_tell(const struct run *run)
{
    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned r = 0; run->ran[i].outcomes && r < run->ran[i].job->numjobs; r++)
            if (run->ran[i].outcomes[r].error)
                complain("bench", "job '%s': %s", run->ran[i].job->name, run->ran[i].outcomes[r].message);
    return run->failed ? EXIT_FAILED : EXIT_DONE;
}

static int report_put(const struct cli *cli, const struct run *run)
{
    FILE *out = cli->output ? fopen(cli->output, "we") : stdout;
    int status = EXIT_DONE;

    if (out)
        report_write(out, run, cli->format);
    if (!out || (cli->output && fclose(out) != 0)) {
        complain("bench", "%s: %s", cli->output, strerror(errno));
        status = EXIT_FAILED;
    }
    return status;
}

static bool keeps(const struct jobs *jobs)
{
    bool keep = false;

    for (size_t i = 0; i < jobs->count; i++)
        keep |= jobs->jobs[i].keep;
    return keep;
}

static int jobs_bench(const struct cli *cli)
{
    struct complaint complaint;
    struct run run;
    int status = run_jobs(&run, &cli->jobs, cli_shows_status(cli), &complaint);

    if (status < 0) {
        complain("bench", "%s", complaint.text);
        status = EXIT_FAILED;
    } else if (run.was_interrupted) {
        complain("bench", "interrupted; what was written is removed");
        status = EXIT_INTERRUPTED;
    } else {
        status = failures_tell(&run);
        if (report_put(cli, &run) != EXIT_DONE)
            status = EXIT_FAILED;
    }
    run_deinit(&run);
    return status;
}

static int run(int argc, char **argv)
{
    struct complaint complaint;
    struct cli cli;
    int status = EXIT_DONE;

    if (cli_parse(&cli, argc, argv, &complaint) < 0) {
        status = usage_error("bench", "%s", complaint.text);
    } else if (!cli.only_parse) {
        interrupts_catch();
        status = cli.compare ? compare_run(&cli) : jobs_bench(&cli);
        workspace_clean(keeps(&cli.jobs));
    }
    cli_deinit(&cli);
    return status;
}

const struct command command_bench = {
    .name = "bench",
    .summary = "how long a checkpoint takes on this storage, and what limits it",
    .arguments = "[JOBFILE]... [--name NAME] [OPTION]...",
    .description = bench_help,
    .run = run,
};
