/* bench/bench.c - tspool bench: how long a checkpoint takes on this storage, what limits it, and which settings to use.
 *
 * The command parses, runs, reports and cleans up; what each does stands in the file of its name.
 */
#include "cli.h"
#include "compare.h"
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
    int status = run_jobs(&run, &cli->jobs, cli->eta != WHEN_NEVER, &complaint);

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
    .description = "Measures whole saves (rw=save) and verified loads (rw=load) through the engine that trainers use, and\n"
                   "plain writes and reads through its loop, with fio's option names, job files and reports. In job files options\n"
                   "stand without the dashes, in [global] and sections. Writes only into files that it made, and removes them.\n"
                   "What keeps a result from being trusted is said at its end.\n"
                   "\n"
                   "Of the run:\n"
                   "\n"
                   "  --name NAME               begins a job; options before the first hold for all jobs\n"
                   "  --output FILE             where the report goes (stdout)\n"
                   "  --output-format FORMAT    normal, json, json+ (with bins) or terse\n"
                   "  --json                    the same as --output-format=json\n"
                   "  --eta WHEN                the status line: auto (on a terminal), always or never\n"
                   "  --compare LIST            contestants in interleaved rounds: names of jobs, fio, fio-default, or\n"
                   "                            options over the last job (iodepth=16+bs=1m)\n"
                   "  --rounds N                rounds of --compare (7; fewer than 6 can show no difference)\n"
                   "  --parse-only              check the jobs, run nothing\n"
                   "  -h, --help                this text\n"
                   "\n"
                   "Of a job:\n"
                   "\n"
                   "  --rw KIND                 save (the default), load, write or read\n"
                   "  --shape SHAPE             what is saved or loaded: gpt2-124m, gpt2-xl, llama3-8b, llama3-70b,\n"
                   "                            llama3-405b, mlperf-1t, a .safetensors file or checkpoint, or '16 x 64m'\n"
                   "  --ranks N                 ranks of the whole training; tp times pp times dp\n"
                   "  --rank N                  the first rank that is simulated (0)\n"
                   "  --tp N                    tensor parallel ranks\n"
                   "  --pp N                    pipeline stages\n"
                   "  --dp N                    data parallel ranks\n"
                   "  --scale X                 share of the layers or tensors that is kept: 0.1, 1/16\n"
                   "  --numjobs N               ranks on this machine, each a process; one publish\n"
                   "  --interval N              training steps between saves, or a time (30s)\n"
                   "  --train_ms MS             a training step: computes so long (50 with interval=)\n"
                   "  --staging KIND            now or background\n"
                   "  --directory DIR           where a directory for the job is made (the current one)\n"
                   "  --filename PATH           write: a new file; read: a file; load: a checkpoint\n"
                   "  --size SIZE               bytes of a write or read\n"
                   "  --bs SIZE                 one write or read (512k)\n"
                   "  --iodepth N               writes or reads in flight (32)\n"
                   "  --iodepth_batch N         handed to io_uring with one call (1)\n"
                   "  --ioengine KIND           auto, uring, threads, or buffered (no O_DIRECT)\n"
                   "  --direct 0|1              O_DIRECT (1)\n"
                   "  --fsync N                 sync after every N writes\n"
                   "  --end_fsync 0|1           sync at the end, in the clock; a save always does\n"
                   "  --rate SIZE               at most so many bytes a second\n"
                   "  --thinktime US            microseconds between blocks\n"
                   "  --loops N                 saves, loads or passes (1)\n"
                   "  --runtime TIME            end after so long\n"
                   "  --time_based 0|1          repeat until runtime= is over\n"
                   "  --ramp_time TIME          run so long before measuring a write or read\n"
                   "  --stonewall 0|1           wait for the jobs before; else all run at once\n"
                   "  --new_group 0|1           the same, in the report\n"
                   "  --group_reporting 0|1     all ranks of a job as one entry\n"
                   "  --invalidate 0|1          drop cached pages before reading (1)\n"
                   "  --arena SIZE              memory between training and disk\n"
                   "  --staging_threads N       threads that copy tensors\n"
                   "  --hash_threads N          threads that compute digests\n"
                   "  --settings FILE           settings that tspool tune wrote\n"
                   "  --prime SIZE              memory to touch before each measure\n"
                   "  --seed N                  of the random contents (1)\n"
                   "  --keep 0|1                leave what was written\n"
                   "  --writer PATH             the tspool-writer to run\n"
                   "  --destroy_data_on DEVICE  consent to write to this block device; mounted:DEVICE if it is in use\n",
    .run = run,
};
