/* Job files and options: what people bring from fio. A size that is read wrongly measures something else, and an option that is
 * passed over in silence measures what nobody asked for. */
#include <bench/cli.h>
#include <bench/fio_peer.h>
#include <bench/help.h>
#include <bench/nearest.h>
#include <bench/units.h>

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static struct complaint complaint;

static void setup(void) { complaint.text[0] = '\0'; }

TestSuite(jobs, .init = setup);

/* The text as a job file; checked and grouped. */
static int parse(struct jobs *jobs, const char *text)
{
    char *copy = strdup(text);
    int status = jobs_init(jobs);

    if (status == 0)
        status = jobfile_parse(jobs, copy, "test.fio", &complaint);
    if (status == 0)
        status = jobs_finish(jobs, &complaint);
    free(copy);
    return status;
}

static void refused(const char *text, const char *saying)
{
    struct jobs jobs;

    cr_assert_eq(parse(&jobs, text), -1, "%s", text);
    cr_assert_not_null(strstr(complaint.text, saying), "'%s' does not say '%s'", complaint.text, saying);
    jobs_deinit(&jobs);
}

Test(jobs, sizes_are_fios)
{
    static const struct { const char *text; uint64_t bytes; } sizes[] = {
        { "4096", 4096 }, { "4k", 4096 }, { "4K", 4096 }, { "4kb", 4096 }, { "4KiB", 4096 }, { "4ki", 4096 }, { "1m", 1 << 20 },
        { "3g", (uint64_t)3 << 30 }, { "2t", (uint64_t)2 << 40 }, { "1p", (uint64_t)1 << 50 }, { "15e", (uint64_t)15 << 60 },
                { "7b", 7 },
    };
    uint64_t bytes;

    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        cr_assert(units_bytes(sizes[i].text, &bytes), "%s", sizes[i].text);
        cr_assert_eq(bytes, sizes[i].bytes, "%s", sizes[i].text);
    }
}

Test(jobs, what_is_no_size_is_none)
{
    static const char *const texts[] = { "", "k", "-1", " 1", "1 k", "1q", "1kk", "1kibs", "0x10", "16e",
                                        "99999999999999999999", "1.5k" };
    uint64_t bytes = 42;

    for (unsigned i = 0; i < sizeof texts / sizeof *texts; i++)
        cr_assert_not(units_bytes(texts[i], &bytes), "%s", texts[i]);
    cr_assert_eq(bytes, 42, "outputs change only on success");
}

Test(jobs, times_have_units)
{
    uint64_t ns;

    cr_assert(units_time("30", 1000000000, &ns) && ns == 30000000000);
    cr_assert(units_time("30", 1000, &ns) && ns == 30000);
    cr_assert(units_time("500ms", 1, &ns) && ns == 500000000);
    cr_assert(units_time("2m", 1, &ns) && ns == 120000000000);
    cr_assert_not(units_time("2x", 1, &ns));
    cr_assert_not(units_time("999999999999999d", 1, &ns));
}

Test(jobs, shares_may_be_quotients)
{
    double value;

    cr_assert(units_real("1/16", &value) && value == 0.0625);
    cr_assert(units_real(".5", &value) && value == 0.5);
    cr_assert_not(units_real("1/0", &value));
    cr_assert_not(units_real("0", &value));
    cr_assert_not(units_real("-1", &value));
    cr_assert_not(units_real("1/", &value));
}

Test(jobs, distance_counts_a_swap_once)
{
    cr_assert_eq(edit_distance("iodepth", "iodepth"), 0);
    cr_assert_eq(edit_distance("iodpeth", "iodepth"), 1);
    cr_assert_eq(edit_distance("iodept", "iodepth"), 1);
    cr_assert_eq(edit_distance("", "abc"), 3);
    cr_assert_eq(edit_distance("size", "bs"), 4);
}

Test(jobs, the_nearest_word_is_found_and_none_when_none_is_near)
{
    static const char *const words[] = { "bs", "iodepth", NULL, "numjobs" };

    cr_assert_str_eq(nearest_word("numjob", words, 4), "numjobs");
    cr_assert_str_eq(nearest_word("io_depth", words, 4), "iodepth");
    cr_assert_null(nearest_word("zzzzzzzz", words, 4));
}

Test(jobs, sections_take_over_what_is_global_before_them)
{
    struct jobs jobs;

    cr_assert_eq(parse(&jobs, "; first\n[global]\nbs=64k\nsize=1m  # of each\nrw=write\n\n[a]\niodepth=4\n[global]\nbs = 128k\n"
                              "[b]\nrw=read\n"), 0,
                 "%s", complaint.text);
    cr_assert_eq(jobs.count, 2);
    cr_assert_str_eq(jobs.jobs[0].name, "a");
    cr_assert_eq(jobs.jobs[0].bs, 64 << 10);
    cr_assert_eq(jobs.jobs[0].iodepth, 4);
    cr_assert_eq(jobs.jobs[0].rw, WORKLOAD_WRITE);
    cr_assert_eq(jobs.jobs[1].bs, 128 << 10);
    cr_assert_eq(jobs.jobs[1].iodepth, 32);
    cr_assert_eq(jobs.jobs[1].rw, WORKLOAD_READ);
    jobs_deinit(&jobs);
}

Test(jobs, jobs_run_at_once_until_one_waits)
{
    struct jobs jobs;

    cr_assert_eq(parse(&jobs, "[global]\nrw=write\nsize=1m\n[a]\n[b]\n[c]\nstonewall\n[d]\n[e]\nwait_for_previous=1\n"), 0,
                 "%s", complaint.text);
    cr_assert_eq(jobs.jobs[0].group, 0);
    cr_assert_eq(jobs.jobs[1].group, 0);
    cr_assert_eq(jobs.jobs[2].group, 1);
    cr_assert_eq(jobs.jobs[3].group, 1);
    cr_assert_eq(jobs.jobs[4].group, 2);
    jobs_deinit(&jobs);
}

Test(jobs, a_wrong_line_is_named_with_its_place_and_what_was_meant)
{
    refused("[a]\nrw=save\n\niodept=3\n", "test.fio:4: there is no option 'iodept'; did you mean 'iodepth'?");
    refused("bs=4k\n[a]\n", "test.fio:1:");
    refused("[a\n", "test.fio:1:");
    refused("[]\n", "the section has no name");
    refused("[a]\nrw=randwrite\n", "'randwrite' is none of save, load, write, read");
    refused("[a]\nend_fsync=2\n", "neither 0 nor 1");
    refused("[a]\niodepth\n", "give a value");
    refused("[a]\niodepth=0\n", "not within 1..1024");
    refused("[a]\nsize=\n", "is no size");
    refused("", "no job");
}

Test(jobs, what_does_not_go_together_is_refused)
{
    refused("[a]\nrw=write\n", "needs size=");
    refused("[a]\nrw=save\n", "needs shape=");
    refused("[a]\nrw=save\nshape=1x4k\nsize=1m\n", "size= goes with");
    refused("[a]\nrw=write\nsize=1m\nshape=1x4k\n", "shape= goes with");
    refused("[a]\nrw=write\nsize=1m\nbs=1000\n", "multiple of 4096");
    refused("[a]\nrw=write\nsize=4k\nbs=8k\n", "smaller than one block");
    refused("[a]\nrw=save\nshape=1x4k\ntime_based\n", "needs runtime=");
    refused("[a]\nrw=load\nshape=1x4k\ntrain_ms=5\n", "rw=save only");
    refused("[a]\nrw=save\nshape=1x4k\nramp_time=5\n", "ramp_time= goes with");
    refused("[a]\nrw=save\nshape=1x4k\nfsync=1\n", "always synced");
}

Test(jobs, interval_is_steps_or_a_time)
{
    struct jobs jobs;

    cr_assert_eq(parse(&jobs, "[a]\nshape=1x4k\ninterval=20\n[b]\nshape=1x4k\ninterval=3s\ntrain_ms=5\n"), 0, "%s",
                 complaint.text);
    cr_assert_eq(jobs.jobs[0].interval_steps, 20);
    cr_assert_eq(jobs.jobs[0].train_ns, 50000000);
    cr_assert_eq(jobs.jobs[1].interval_ns, 3000000000);
    cr_assert_eq(jobs.jobs[1].train_ns, 5000000);
    jobs_deinit(&jobs);
}

static struct cli command_line(int *status, const char *const *words)
{
    static char *argv[32];
    struct cli cli;
    int argc = 1;

    argv[0] = (char[]){ "bench" };
    for (; words[argc - 1]; argc++)
        argv[argc] = strdup(words[argc - 1]);
    argv[argc] = NULL;
    *status = cli_parse(&cli, argc, argv, &complaint);
    return cli;
}

Test(jobs, the_command_line_is_fios)
{
    int status;
    struct cli cli = command_line(&status, (const char *[]){ "--bs=64k", "--size", "1m", "--name=a", "--rw=write",
                                                            "--end-fsync=1", "--name", "b",
                                                       "--rw=read", "--group_reporting", "--output-format=json+", NULL });

    cr_assert_eq(status, 0, "%s", complaint.text);
    cr_assert_eq(cli.jobs.count, 2);
    cr_assert_eq(cli.jobs.jobs[0].size, 1 << 20);
    cr_assert(cli.jobs.jobs[0].end_fsync);
    cr_assert_not(cli.jobs.jobs[0].group_reporting);
    cr_assert_eq(cli.jobs.jobs[1].bs, 64 << 10);
    cr_assert(cli.jobs.jobs[1].group_reporting);
    cr_assert_eq(cli.format, REPORT_JSON_BINS);
    cli_deinit(&cli);
}

Test(jobs, options_without_a_name_are_a_job)
{
    int status;
    struct cli cli = command_line(&status, (const char *[]){ "--shape=4x1m", NULL });

    cr_assert_eq(status, 0, "%s", complaint.text);
    cr_assert_eq(cli.jobs.count, 1);
    cli_deinit(&cli);
}

Test(jobs, an_unknown_option_of_the_run_is_named_too)
{
    int status;
    struct cli cli = command_line(&status, (const char *[]){ "--shape=4x1m", "--output-forma=json", NULL });

    cr_assert_eq(status, -1);
    cr_assert_not_null(strstr(complaint.text, "did you mean 'output-format'"), "%s", complaint.text);
    cli_deinit(&cli);
}

Test(jobs, every_option_stands_in_the_help)
{
    for (size_t i = 0; i < job_option_count(); i++) {
        char line[64];

        snprintf(line, sizeof line, "\n  --%s ", job_option_name(i));
        cr_assert_not_null(strstr(bench_help, line), "%s", line);
    }
}

Test(jobs, fios_report_is_understood_and_nonsense_is_not)
{
    static const char report[] = "fio: a note\n{\"jobs\": [{\"jobname\": \"a\", \"read\": {\"io_bytes\": 1}, \"write\": "
                                 "{\"io_bytes\": 65536, "
                                 "\"bw\": 1.5, \"runtime\": 12}}, {\"write\": {\"io_bytes\": 9, \"runtime\": 9}}], "
                                 "\"disk_util\": []}";
    uint64_t milliseconds, bytes;

    cr_assert_eq(fio_report_parse(report, strlen(report), false, &milliseconds, &bytes), 0);
    cr_assert_eq(milliseconds, 12);
    cr_assert_eq(bytes, 65536);
    for (size_t size = 0; size < strlen(report); size++)
        cr_assert_eq(fio_report_parse(report, size, false, &milliseconds, &bytes), -1, "cut at %zu", size);
}
