/* What is not to be trusted: a benchmark that stays silent about it is worse than none, one that always warns is not read. */
#include <bench/trust.h>

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define MIB_BYTES ((uint64_t)1 << 20)

static struct outcome *outcome;
static struct job job;
static struct device device;
static struct disk_load disk;
static struct surroundings around;
static struct doubts doubts;

/* A calm run: ten rounds of 100 MiB, direct, through io_uring, nobody else there. */
static void setup(void)
{
    outcome = calloc(1, sizeof *outcome);
    job = (struct job){ .rw = WORKLOAD_SAVE, .numjobs = 1, .ioengine = IOENGINE_URING };
    device = (struct device){ .filesystem = "ext4", .name = "sda1", .disk = "sda" };
    disk = (struct disk_load){ .written_bytes = 1010 * MIB_BYTES };
    around = (struct surroundings){ .device = &device, .disk = &disk, .own_bytes = 1000 * MIB_BYTES };
    outcome->bytes = 1000 * MIB_BYTES;
    outcome->wanted_direct = outcome->is_direct = true;
    strcpy(outcome->backend, "uring");
    atomic_store(&outcome->rounds_done, 10);
    for (unsigned i = 0; i < 10; i++)
        outcome->rounds[i] = (struct round){ .bytes = 100 * MIB_BYTES, .wall_ns = 1000000000 + i % 3 * 20000000, .attempts = 1 };
}

static void end(void) { free(outcome); }

TestSuite(trust, .init = setup, .fini = end);

static void only(const char *kind)
{
    trust_judge(&job, outcome, &around, &doubts);
    cr_assert_eq(doubts.count, kind ? 1 : 0, "%u doubts, first '%s'", doubts.count, doubts.count ? doubts.items[0].text : "");
    if (kind)
        cr_assert_str_eq(doubts.items[0].kind, kind);
}

Test(trust, a_calm_run_is_not_doubted) { only(NULL); }

Test(trust, buffered_where_direct_was_asked_for_is_told)
{
    outcome->is_direct = false;
    only("buffered");
}

Test(trust, threads_where_uring_was_asked_for_are_told)
{
    strcpy(outcome->backend, "threads");
    only("fallback");
}

Test(trust, threads_that_were_asked_for_are_not)
{
    strcpy(outcome->backend, "threads");
    job.ioengine = IOENGINE_THREADS;
    only(NULL);
}

Test(trust, rounds_that_get_slower_are_told)
{
    for (unsigned i = 0; i < 10; i++)
        outcome->rounds[i].wall_ns = 1000000000 + i * 50000000;
    only("drift");
}

Test(trust, one_slow_round_is_no_drift)
{
    outcome->rounds[9].wall_ns = 9000000000;
    only(NULL);
}

Test(trust, others_on_the_device_are_told)
{
    disk.read_bytes = 200 * MIB_BYTES;
    only("device_busy");
}

Test(trust, others_on_the_cpus_are_told)
{
    around.foreign_cpu = 0.3;
    only("cpu_busy");
}

Test(trust, pages_left_by_direct_writes_show_that_it_was_ignored)
{
    outcome->rounds[4].page_cache_bytes = 90 * MIB_BYTES;
    only("direct_ignored");
}

Test(trust, pages_that_were_there_before_a_read_are_told)
{
    job.rw = WORKLOAD_READ;
    job.is_direct = outcome->wanted_direct = outcome->is_direct = false;
    outcome->rounds[0].page_cache_bytes = 100 * MIB_BYTES;
    only("page_cache_hits");
}

Test(trust, no_device_beneath_is_told)
{
    device = (struct device){ .filesystem = "tmpfs" };
    around.disk = NULL;
    only("no_device");
}

Test(trust, a_save_of_several_attempts_is_told)
{
    outcome->rounds[3].attempts = 2;
    only("repeated");
}

Test(trust, a_rule_of_other_work_needs_time_to_tell)
{
    struct cpu_clock before = { .busy = 10, .own = 1, .wall = 100 }, after = { .busy = 10.3, .own = 1, .wall = 100.05 };

    cr_assert_eq(cpu_foreign(&before, &after, 0), 0, "jiffies say nothing about 50 ms");
    after.wall = 101;
    cr_assert_gt(cpu_foreign(&before, &after, 0), 0);
    cr_assert_eq(cpu_foreign(&before, &after, 400000000), 0, "it was our own");
}
