/* bench/cli.h - the command line of bench: fio's. Options before the first --name hold for all jobs, those after it for its
 * job. */
#ifndef BENCH_CLI_H
#define BENCH_CLI_H

#include "job.h"
#include "report.h"

enum when { WHEN_AUTO, WHEN_ALWAYS, WHEN_NEVER };

struct cli {
    struct jobs jobs;
    const char *output;      /* NULL: stdout */
    enum report_format format;
    enum when eta;
    const char *compare;     /* NULL: no comparison */
    uint64_t rounds;         /* of it */
    bool only_parse;
};

/* 0, or -1 with the complaint. */
int cli_parse(struct cli *cli, int argc, char **argv, struct complaint *complaint);
/* Whether a status line is wanted: on a terminal, unless told otherwise. */
bool cli_shows_status(const struct cli *cli);
void cli_deinit(struct cli *cli);

#endif
