/* bench/cli.c - see cli.h. "--bs=4k" and "--bs 4k" are the same; what has no dashes is a job file. */
#include "cli.h"
#include "nearest.h"
#include "units.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct parsing { struct cli *cli; struct job *job; struct complaint *complaint; bool has_named; };

static int name_take(struct parsing *parsing, const char *value)
{
    parsing->job = jobs_add(&parsing->cli->jobs, value);
    parsing->has_named = true;
    return parsing->job ? 0 : complaint_set(parsing->complaint, "out of memory");
}

static int eta_take(struct parsing *parsing, const char *value)
{
    static const char *const names[] = { "auto", "always", "never" };

    for (unsigned i = 0; i < 3; i++)
        if (strcmp(value, names[i]) == 0) {
            parsing->cli->eta = (enum when)i;
            return 0;
        }
    return complaint_set(parsing->complaint, "eta: '%s' is none of auto, always, never", value);
}

static int format_take(struct parsing *parsing, const char *value)
{
    return report_format_parse(value, &parsing->cli->format) ? 0
           : complaint_set(parsing->complaint, "output-format: '%s' is none of normal, json, json+, terse", value);
}

/* Options of the run, not of a job. */
static const char *const run_options[] = { "output", "output-format", "eta", "name", "compare", "rounds", "json", "parse-only" };
#define RUN_OPTION_COUNT (sizeof run_options / sizeof *run_options)

static bool is_run_option(const char *name)
{
    for (size_t i = 0; i < RUN_OPTION_COUNT; i++)
        if (strcmp(name, run_options[i]) == 0)
            return true;
    return false;
}

static bool takes_no_value(const char *name)
{
    bool is_flag;

    return strcmp(name, "json") == 0 || strcmp(name, "parse-only") == 0 || (job_knows(name, &is_flag) && is_flag);
}

static int run_option_take(struct parsing *parsing, const char *name, const char *value)
{
    struct cli *cli = parsing->cli;

    if (!value && !takes_no_value(name))
        return complaint_set(parsing->complaint, "--%s: give a value: --%s=...", name, name);
    if (strcmp(name, "json") == 0)
        cli->format = REPORT_JSON;
    else if (strcmp(name, "parse-only") == 0)
        cli->only_parse = true;
    else if (strcmp(name, "output") == 0)
        cli->output = value;
    else if (strcmp(name, "output-format") == 0)
        return format_take(parsing, value);
    else if (strcmp(name, "eta") == 0)
        return eta_take(parsing, value);
    else if (strcmp(name, "name") == 0)
        return name_take(parsing, value);
    else if (strcmp(name, "compare") == 0)
        cli->compare = value;
    else if (!units_number(value, &cli->rounds) || cli->rounds < 1)
        return complaint_set(parsing->complaint, "--rounds: '%s' is no number of rounds", value);
    return 0;
}

/* The job's own complaint, unless an option of the run is near and none of the job's. */
static int unknown(struct parsing *parsing, const char *name)
{
    const char *near = nearest_word(name, run_options, RUN_OPTION_COUNT);
    struct job none = { 0 };

    job_set(&none, name, NULL, parsing->complaint);
    if (near && !strstr(parsing->complaint->text, "did you mean"))
        complaint_set(parsing->complaint, "there is no option '%s'; did you mean '%s'?", name, near);
    return -1;
}

/* fio takes --end-fsync for --end_fsync. */
static void underscores_put(char *name)
{
    for (char *at = name; *at && !is_run_option(name); at++)
        if (*at == '-')
            *at = '_';
}

static int option_take(struct parsing *parsing, char *text, char *next, bool *used_next)
{
    char *equals = strchr(text, '=');
    const char *value = equals ? equals + 1 : NULL;
    bool is_flag;

    if (equals)
        *equals = '\0';
    underscores_put(text);
    if (!is_run_option(text) && !job_knows(text, &is_flag))
        return unknown(parsing, text);
    if (!value && next && !takes_no_value(text)) {
        value = next;
        *used_next = true;
    }
    if (is_run_option(text))
        return run_option_take(parsing, text, value);
    parsing->cli->jobs.has_global |= !parsing->job;
    return job_set(parsing->job ? parsing->job : &parsing->cli->jobs.global, text, value, parsing->complaint);
}

int cli_parse(struct cli *cli, int argc, char **argv, struct complaint *complaint)
{
    struct parsing parsing = { .cli = cli, .complaint = complaint };
    bool used_next;

    *cli = (struct cli){ .rounds = 7 };
    if (jobs_init(&cli->jobs) < 0)
        return complaint_set(complaint, "out of memory");
    for (int i = 1; i < argc; i++) {
        used_next = false;
        if (strncmp(argv[i], "--", 2) == 0 && argv[i][2]) {
            if (option_take(&parsing, argv[i] + 2, argv[i + 1], &used_next) < 0)
                return -1;
        } else if (jobfile_read(&cli->jobs, argv[i], complaint) < 0) {
            return -1;
        }
        i += used_next;
    }
    if (cli->jobs.count == 0 && cli->jobs.global.given_count > 0 && !jobs_add(&cli->jobs, "bench"))
        return complaint_set(complaint, "out of memory");
    return jobs_finish(&cli->jobs, complaint);
}

bool cli_shows_status(const struct cli *cli)
{
    return cli->eta == WHEN_ALWAYS || (cli->eta == WHEN_AUTO && isatty(STDERR_FILENO));
}

void cli_deinit(struct cli *cli) { jobs_deinit(&cli->jobs); }
