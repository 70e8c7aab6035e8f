/* bench/compare.h - tspool bench --compare=A,B,fio: which is faster, and whether that is more than noise. */
#ifndef BENCH_COMPARE_H
#define BENCH_COMPARE_H

#include "cli.h"

/* Contestants: a job's name; "fio" (tuned) or "fio-default"; or options over the last job, "iodepth=16+bs=1m". Exit status. */
int compare_run(const struct cli *cli);

#endif
