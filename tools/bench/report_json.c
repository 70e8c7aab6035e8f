/* bench/report_json.c - fio's JSON, name for name, and a "tspool" object beside with what a checkpoint adds. See report.h.
 *
 * A save counts as "write", a load as "read": io_bytes, bw and iops are of the bytes and requests of all of them over the time
 * that they took; slat is the stall (the caller's wait), clat the rest until the end, lat both.
 */
#include "report.h"
#include "tree.h"

#include "../commands/command.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static void moments_member(struct tree *tree, const char *key, const struct moments *moments)
{
    tree_open(tree, key);
    tree_number(tree, "min", moments->min);
    tree_number(tree, "max", moments->max);
    tree_real(tree, "mean", moments->mean);
    tree_real(tree, "stddev", moments_deviation(moments));
    tree_number(tree, "N", moments->count);
}

static void bins_member(struct tree *tree, const struct histogram *histogram)
{
    char label[24];

    tree_open(tree, "bins");
    for (unsigned i = 0; i < HISTOGRAM_BINS; i++)
        if (histogram->bins[i]) {
            snprintf(label, sizeof label, "%llu", (unsigned long long)histogram_bin_value(i));
            tree_number(tree, label, histogram->bins[i]);
        }
    tree_close(tree);
}

static void histogram_member(struct tree *tree, const char *key, const struct histogram *histogram, bool with_bins)
{
    char label[24];

    moments_member(tree, key, &histogram->moments);
    if (histogram->moments.count) {
        tree_open(tree, "percentile");
        for (unsigned i = 0; i < PERCENTILES; i++) {
            snprintf(label, sizeof label, "%f", percentiles[i]);
            tree_number(tree, label, histogram_percentile(histogram, percentiles[i]));
        }
        tree_close(tree);
    }
    if (histogram->moments.count && with_bins)
        bins_member(tree, histogram);
    tree_close(tree);
}

static void empty_latency(struct tree *tree, const char *key)
{
    moments_member(tree, key, &(struct moments){ 0 });
    tree_close(tree);
}

/* One of fio's three directions; `outcome` NULL: nothing went that way. */
static void direction_member(struct tree *tree, const char *key, const struct outcome *outcome, bool with_bins)
{
    static const struct outcome nothing;
    const struct outcome *o = outcome ? outcome : &nothing;
    double seconds = (double)o->runtime_ns / 1e9;
    double bandwidth = o->runtime_ns ? (double)o->bytes / seconds : 0;
    const struct moments *kib = &o->bandwidth.kib, *ios = &o->bandwidth.ios;

    tree_open(tree, key);
    tree_number(tree, "io_bytes", o->bytes);
    tree_number(tree, "io_kbytes", o->bytes / 1024);
    tree_number(tree, "bw_bytes", (uint64_t)bandwidth);
    tree_number(tree, "bw", (uint64_t)(bandwidth / 1024));
    tree_real(tree, "iops", o->runtime_ns ? (double)o->ios / seconds : 0);
    tree_number(tree, "runtime", (o->runtime_ns + 999999) / 1000000);
    tree_number(tree, "total_ios", o->ios);
    tree_number(tree, "short_ios", o->short_ios + o->short_writes);
    tree_number(tree, "drop_ios", 0);
    moments_member(tree, "slat_ns", &o->slat.moments);
    tree_close(tree);
    if (outcome)
        histogram_member(tree, "clat_ns", &o->clat, with_bins);
    else
        empty_latency(tree, "clat_ns");
    moments_member(tree, "lat_ns", &o->lat.moments);
    tree_close(tree);
    tree_number(tree, "bw_min", kib->min);
    tree_number(tree, "bw_max", kib->max);
    tree_real(tree, "bw_agg", kib->count ? 100 : 0);
    tree_real(tree, "bw_mean", kib->mean);
    tree_real(tree, "bw_dev", moments_deviation(kib));
    tree_number(tree, "bw_samples", kib->count);
    tree_number(tree, "iops_min", ios->min);
    tree_number(tree, "iops_max", ios->max);
    tree_real(tree, "iops_mean", ios->mean);
    tree_real(tree, "iops_stddev", moments_deviation(ios));
    tree_number(tree, "iops_samples", ios->count);
    tree_close(tree);
}

static void levels_member(struct tree *tree, const char *key, const uint64_t levels[DEPTH_LEVELS], const char *const *labels)
{
    tree_open(tree, key);
    for (unsigned i = 0; i < DEPTH_LEVELS; i++)
        tree_real(tree, labels[i], percent_of(levels, i));
    tree_close(tree);
}

static void latencies_member(struct tree *tree, const struct histogram *histogram)
{
    static const char *const keys[3] = { "latency_ns", "latency_us", "latency_ms" };
    struct latency_classes classes[3];

    latency_classes_of(histogram, classes);
    for (unsigned u = 0; u < 3; u++) {
        tree_open(tree, keys[u]);
        for (unsigned i = 0; i < classes[u].count; i++)
            tree_real(tree, classes[u].labels[i], classes[u].percent[i]);
        tree_close(tree);
    }
}

/* The tspool object ----------------------------------------------------------------------------------------------------- */

static void seconds_member(struct tree *tree, const char *key, uint64_t ns) { tree_real(tree, key, (double)ns / 1e9); }

static void rounds_member(struct tree *tree, const struct outcome *outcome, bool is_save)
{
    tree_list_open(tree, is_save ? "saves" : "loads");
    for (uint32_t i = 0; i < atomic_load(&outcome->rounds_done) && i < ROUNDS_KEPT; i++) {
        const struct round *round = &outcome->rounds[i];

        tree_open(tree, NULL);
        tree_number(tree, "bytes", round->bytes);
        seconds_member(tree, "seconds", round->wall_ns);
        if (is_save) {
            seconds_member(tree, "stall", round->stall_ns);
            seconds_member(tree, "planned", round->planned_ns);
            seconds_member(tree, "staged", round->staged_ns);
            seconds_member(tree, "written", round->written_ns);
            seconds_member(tree, "synced", round->synced_ns);
            seconds_member(tree, "durable", round->durable_ns);
            seconds_member(tree, "published", round->published_ns);
            tree_number(tree, "attempts", round->attempts);
            tree_bool(tree, "plan_reused", round->plan_reused);
            tree_bool(tree, "replayable", round->replayable);
        }
        tree_real(tree, "cpu_s_per_gib", round->bytes ? (double)round->cpu_ns / 1e9 / ((double)round->bytes / (1 << 30)) : 0);
        tree_number(tree, "page_cache_bytes", round->page_cache_bytes);
        tree_close(tree);
    }
    tree_list_close(tree);
}

static void kinds_member(struct tree *tree, const struct ran *ran, unsigned first, unsigned count)
{
    struct tensor_kinds kinds;

    tensor_kinds_of(ran->job, first, count, &kinds);
    tree_open(tree, "classes");
    for (unsigned k = 0; k < kinds.count; k++) {
        tree_open(tree, kinds.names[k]);
        tree_number(tree, "tensors", kinds.tensors[k]);
        tree_number(tree, "bytes", kinds.bytes[k]);
        tree_close(tree);
    }
    tree_close(tree);
}

static void training_member(struct tree *tree, const struct training *training)
{
    tree_open(tree, "training");
    tree_number(tree, "steps", training->steps);
    tree_number(tree, "steps_during_saves", training->steps_during);
    tree_real(tree, "step_ms", training->step_ns / 1e6);
    tree_real(tree, "step_during_ms", training->step_during_ns / 1e6);
    tree_real(tree, "worst_step_ms", training->worst_step_ns / 1e6);
    tree_real(tree, "slowdown", training->step_ns > 0 ? training->step_during_ns / training->step_ns : 0);
    tree_real(tree, "lost_steps_per_save", training->lost_steps);
    tree_real(tree, "goodput", training->goodput);
    tree_close(tree);
}

static void engine_member(struct tree *tree, const struct outcome *outcome)
{
    tree_open(tree, "engine");
    tree_text(tree, "backend", outcome->backend);
    tree_bool(tree, "direct", outcome->is_direct);
    tree_bool(tree, "registered", outcome->is_registered);
    tree_text(tree, "io_note", outcome->io_note);
    tree_number(tree, "item_bytes", outcome->item_bytes);
    tree_number(tree, "depth", outcome->depth);
    tree_number(tree, "submit_batch", outcome->submit_batch);
    tree_number(tree, "page_bytes", outcome->page_bytes);
    tree_number(tree, "staging_threads", outcome->staging_threads);
    tree_number(tree, "arena_bytes", outcome->arena_bytes);
    tree_number(tree, "files", outcome->files);
    tree_close(tree);
}

static void device_member(struct tree *tree, const struct device *device)
{
    tree_open(tree, "device");
    tree_text(tree, "filesystem", device->filesystem);
    tree_text(tree, "mount_point", device->mount_point);
    tree_text(tree, "mount_options", device->mount_options);
    tree_number(tree, "free_bytes", device->free_bytes);
    tree_text(tree, "name", *device->name ? device->name : NULL);
    tree_text(tree, "disk", *device->disk ? device->disk : NULL);
    tree_text(tree, "model", *device->model ? device->model : NULL);
    tree_text(tree, "firmware", *device->firmware ? device->firmware : NULL);
    tree_text(tree, "scheduler", *device->scheduler ? device->scheduler : NULL);
    tree_text(tree, "write_cache", *device->write_cache ? device->write_cache : NULL);
    tree_number(tree, "disk_bytes", device->disk_bytes);
    tree_number(tree, "logical_block", device->logical_block);
    tree_number(tree, "direct_offset_align", device->direct_offset_align);
    tree_number(tree, "direct_memory_align", device->direct_memory_align);
    tree_bool(tree, "rotational", device->is_rotational);
    tree_bool(tree, "discard", device->has_discard);
    tree_close(tree);
}

static void doubts_member(struct tree *tree, const struct doubts *doubts)
{
    tree_list_open(tree, "doubts");
    for (unsigned i = 0; i < doubts->count; i++) {
        tree_open(tree, NULL);
        tree_text(tree, "kind", doubts->items[i].kind);
        tree_text(tree, "text", doubts->items[i].text);
        tree_close(tree);
    }
    tree_list_close(tree);
}

static void extras_member(struct tree *tree, const struct ran *ran, const struct outcome *outcome, unsigned first, unsigned count)
{
    bool is_save = ran->job->rw == WORKLOAD_SAVE;

    tree_open(tree, "tspool");
    tree_text(tree, "workload", workload_name(ran->job->rw));
    tree_number(tree, "ranks", count);
    if (outcome->error)
        tree_text(tree, "failure", outcome->message);
    if (!job_is_plain(ran->job)) {
        tree_number(tree, "tensors", outcome->tensors);
        tree_number(tree, "state_bytes", outcome->state_bytes);
        kinds_member(tree, ran, first, count);
        rounds_member(tree, outcome, is_save);
        seconds_member(tree, "hash_cpu", outcome->hash_ns);
        seconds_member(tree, "stage_cpu", outcome->stage_ns);
    }
    tree_number(tree, "peak_bytes", outcome->peak_bytes);
    tree_number(tree, "writer_peak_bytes", outcome->writer_peak_bytes);
    tree_number(tree, "extra_bytes", outcome->extra_bytes);
    engine_member(tree, outcome);
    if (outcome->training.steps)
        training_member(tree, &outcome->training);
    device_member(tree, &ran->device);
    doubts_member(tree, &ran->doubts);
    tree_close(tree);
}

/* Jobs ----------------------------------------------------------------------------------------------------------------- */

static void options_member(struct tree *tree, const char *key, const char *name, const struct job_option *options, size_t from,
                           size_t to)
{
    tree_open(tree, key);
    if (name)
        tree_text(tree, "name", name);
    for (size_t i = from; i < to; i++) {
        bool is_repeated = false;

        for (size_t j = i + 1; j < to; j++)
            is_repeated |= strcmp(options[i].name, options[j].name) == 0;
        if (!is_repeated)
            tree_text(tree, options[i].name, options[i].value);
    }
    tree_close(tree);
}

static void job_member(struct tree *tree, const struct ran *ran, unsigned first, unsigned count, bool with_bins)
{
    struct outcome *outcome = run_merged(ran, first, count);
    bool reads = job_is_reading(ran->job);
    double elapsed;

    if (!outcome)
        return;
    elapsed = outcome->elapsed_ns ? (double)outcome->elapsed_ns * count : 1;
    tree_open(tree, NULL);
    tree_text(tree, "jobname", ran->job->name);
    tree_number(tree, "groupid", ran->job->group);
    tree_number(tree, "error", (uint64_t)outcome->error);
    tree_number(tree, "eta", 0);
    tree_number(tree, "elapsed", (outcome->elapsed_ns + 999999999) / 1000000000);
    options_member(tree, "job options", ran->job->name, ran->job->given, ran->job->global_count, ran->job->given_count);
    direction_member(tree, "read", reads ? outcome : NULL, with_bins);
    direction_member(tree, "write", reads ? NULL : outcome, with_bins);
    direction_member(tree, "trim", NULL, false);
    tree_open(tree, "sync");
    tree_number(tree, "total_ios", outcome->sync.moments.count);
    histogram_member(tree, "lat_ns", &outcome->sync, with_bins);
    tree_close(tree);
    tree_number(tree, "job_runtime", outcome->elapsed_ns / 1000000);
    tree_real(tree, "usr_cpu", 100 * (double)outcome->user_ns / elapsed);
    tree_real(tree, "sys_cpu", 100 * (double)(outcome->system_ns + outcome->writer_ns) / elapsed);
    tree_number(tree, "ctx", outcome->switches);
    tree_number(tree, "majf", outcome->major_faults);
    tree_number(tree, "minf", outcome->minor_faults);
    levels_member(tree, "iodepth_level", outcome->depth_levels, depth_labels);
    levels_member(tree, "iodepth_submit", outcome->submits, batch_labels);
    levels_member(tree, "iodepth_complete", outcome->completes, batch_labels);
    latencies_member(tree, &outcome->clat);
    tree_number(tree, "latency_depth", ran->job->iodepth ? ran->job->iodepth : outcome->depth);
    tree_number(tree, "latency_target", 0);
    tree_real(tree, "latency_percentile", 100);
    tree_number(tree, "latency_window", 0);
    extras_member(tree, ran, outcome, first, count);
    tree_close(tree);
    free(outcome);
}

static void disk_member(struct tree *tree, const struct ran *ran)
{
    const struct disk_load *load = &ran->disk;
    double busy = ran->wall_ns ? (double)load->busy_ms * 1e8 / (double)ran->wall_ns : 0;

    tree_open(tree, NULL);
    tree_text(tree, "name", ran->device.disk);
    tree_number(tree, "read_ios", load->reads);
    tree_number(tree, "write_ios", load->writes);
    tree_number(tree, "read_merges", load->read_merges);
    tree_number(tree, "write_merges", load->write_merges);
    tree_number(tree, "read_ticks", load->read_ms);
    tree_number(tree, "write_ticks", load->write_ms);
    tree_number(tree, "in_queue", load->queue_ms);
    tree_real(tree, "util", busy < 100 ? busy : 100);
    tree_close(tree);
}

/* One entry a disk, of the first job that used it. */
static void disks_member(struct tree *tree, const struct run *run)
{
    tree_list_open(tree, "disk_util");
    for (size_t i = 0; i < run->jobs->count; i++) {
        bool is_known = !*run->ran[i].device.disk;

        for (size_t j = 0; j < i; j++)
            is_known |= strcmp(run->ran[i].device.disk, run->ran[j].device.disk) == 0;
        if (!is_known)
            disk_member(tree, &run->ran[i]);
    }
    tree_list_close(tree);
}

void report_json(FILE *out, const struct run *run, bool with_bins)
{
    time_t seconds = (time_t)(run->started_wall_ms / 1000);
    char text[64];
    struct tree tree;
    struct tm local;

    strftime(text, sizeof text, "%a %b %e %H:%M:%S %Y", localtime_r(&seconds, &local));
    tree_begin(&tree, out);
    tree_text(&tree, "fio version", "tspool-" TSPOOL_VERSION);
    tree_number(&tree, "timestamp", (uint64_t)seconds);
    tree_number(&tree, "timestamp_ms", (uint64_t)run->started_wall_ms);
    tree_text(&tree, "time", text);
    if (run->jobs->has_global)
        options_member(&tree, "global options", NULL, run->jobs->global.given, 0, run->jobs->global.given_count);
    tree_list_open(&tree, "jobs");
    for (size_t i = 0; i < run->jobs->count; i++)
        for (unsigned r = 0, step = report_step(run->ran[i].job); run->ran[i].outcomes && r < run->ran[i].job->numjobs; r += step)
            job_member(&tree, &run->ran[i], r, step, with_bins);
    tree_list_close(&tree);
    disks_member(&tree, run);
    tree_end(&tree);
}
