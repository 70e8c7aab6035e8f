/* bench/report.h - what a run was worth, for people and for programs. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include "run.h"

#include <stdio.h>

enum report_format { REPORT_NORMAL, REPORT_JSON, REPORT_JSON_BINS, REPORT_TERSE };
/* false: there is no such format. "json,normal" is fio's way to ask for two; one is enough here. */
bool report_format_parse(const char *text, enum report_format *format);

void report_write(FILE *out, const struct run *run, enum report_format format);
void report_normal(FILE *out, const struct run *run);
void report_json(FILE *out, const struct run *run, bool with_bins);
void report_terse(FILE *out, const struct run *run);

/* Share of a latency's values in fio's classes: (limits[i - 1], limits[i]] of one unit, in percent. */
#define LATENCY_CLASSES 12u
struct latency_classes {
    const char *unit;
    unsigned count;
    const char *labels[LATENCY_CLASSES];
    double percent[LATENCY_CLASSES];
};
void latency_classes_of(const struct histogram *histogram, struct latency_classes classes[3]);
extern const char *const depth_labels[DEPTH_LEVELS], *const batch_labels[DEPTH_LEVELS];
double percent_of(const uint64_t levels[DEPTH_LEVELS], unsigned level);
/* How many bytes each class of tensors has, over the ranks [first, first + count) of a job with a shape. */
#define TENSOR_KINDS 16u
struct tensor_kinds { unsigned count; const char *names[TENSOR_KINDS]; uint64_t tensors[TENSOR_KINDS], bytes[TENSOR_KINDS]; };
void tensor_kinds_of(const struct job *job, unsigned first, unsigned count, struct tensor_kinds *kinds);
/* Ranks that are one entry: all of them, or one. */
unsigned report_step(const struct job *job);

#endif
