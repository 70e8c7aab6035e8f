/* bench/report.c - what the formats share: fio's classes of latencies and depths. See report.h. */
#include "report.h"
#include "shape.h"

#include <string.h>

const char *const depth_labels[DEPTH_LEVELS] = { "1", "2", "4", "8", "16", "32", ">=64" };
const char *const batch_labels[DEPTH_LEVELS] = { "0", "4", "8", "16", "32", "64", ">=64" };

bool report_format_parse(const char *text, enum report_format *format)
{
    static const struct { const char *name; enum report_format format; } names[] = {
        { "normal", REPORT_NORMAL }, { "json", REPORT_JSON }, { "json+", REPORT_JSON_BINS }, { "terse", REPORT_TERSE },
        { "minimal", REPORT_TERSE },
    };

    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i].name) == 0) {
            *format = names[i].format;
            return true;
        }
    return false;
}

double percent_of(const uint64_t levels[DEPTH_LEVELS], unsigned level)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < DEPTH_LEVELS; i++)
        total += levels[i];
    return total ? 100 * (double)levels[level] / (double)total : 0;
}

unsigned report_step(const struct job *job) { return job->group_reporting ? (unsigned)job->numjobs : 1; }

static void kind_add(struct tensor_kinds *kinds, const struct shape_tensor *tensor)
{
    unsigned k = 0;

    while (k < kinds->count && strcmp(kinds->names[k], tensor->kind) != 0)
        k++;
    if (k == TENSOR_KINDS)
        return;
    if (k == kinds->count)
        kinds->names[kinds->count++] = tensor->kind;
    kinds->tensors[k]++;
    kinds->bytes[k] += tensor->bytes;
}

void tensor_kinds_of(const struct job *job, unsigned first, unsigned count, struct tensor_kinds *kinds)
{
    struct complaint complaint;
    struct shape shape;

    *kinds = (struct tensor_kinds){ 0 };
    for (unsigned r = first; job->shape && r < first + count && shape_make(job, r, &shape, &complaint) == 0; r++) {
        for (size_t i = 0; i < shape.count; i++)
            kind_add(kinds, &shape.tensors[i]);
        shape_free(&shape);
    }
}

static const struct {
    const char *unit;
    unsigned count;
    const char *labels[LATENCY_CLASSES];
    uint64_t limits[LATENCY_CLASSES];
} units[3] = {
    { "nsec", 10, { "2", "4", "10", "20", "50", "100", "250", "500", "750", "1000" },
      { 2, 4, 10, 20, 50, 100, 250, 500, 750, 1000 } },
    { "usec", 10, { "2", "4", "10", "20", "50", "100", "250", "500", "750", "1000" },
      { 2000, 4000, 10000, 20000, 50000, 100000, 250000, 500000, 750000, 1000000 } },
    { "msec", 12, { "2", "4", "10", "20", "50", "100", "250", "500", "750", "1000", "2000", ">=2000" },
      { 2000000, 4000000, 10000000, 20000000, 50000000, 100000000, 250000000, 500000000, 750000000, 1000000000, 2000000000,
        UINT64_MAX } },
};

static void latency_count(struct latency_classes classes[3], uint64_t value, double percent)
{
    for (unsigned u = 0; u < 3; u++)
        for (unsigned i = 0; i < units[u].count; i++)
            if (value < units[u].limits[i]) {
                classes[u].percent[i] += percent;
                return;
            }
}

void latency_classes_of(const struct histogram *histogram, struct latency_classes classes[3])
{
    for (unsigned u = 0; u < 3; u++) {
        classes[u] = (struct latency_classes){ .unit = units[u].unit, .count = units[u].count };
        memcpy(classes[u].labels, units[u].labels, sizeof units[u].labels);
    }
    for (unsigned i = 0; i < HISTOGRAM_BINS; i++)
        if (histogram->bins[i])
            latency_count(classes, histogram_bin_value(i), 100 * (double)histogram->bins[i] / (double)histogram->moments.count);
}

void report_write(FILE *out, const struct run *run, enum report_format format)
{
    switch (format) {
    case REPORT_NORMAL:    report_normal(out, run); return;
    case REPORT_JSON:      report_json(out, run, false); return;
    case REPORT_JSON_BINS: report_json(out, run, true); return;
    case REPORT_TERSE:     report_terse(out, run); return;
    }
}
