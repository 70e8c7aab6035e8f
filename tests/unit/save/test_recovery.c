/* save/test_recovery.c - what a dead writer left: looked at before it is touched. Real directories, the real backend. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <save/recovery.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char ours[] = "{\"tspool_manifest\": 1, \"save_id\": \"0101\"";
static const char other[] = "{\"tspool_manifest\": 1, \"save_id\": \"0202\"";
static const uint8_t id[16] = { 1, 1 };
static char root[] = "/tmp/tspool-recovery-XXXXXX", hidden[HIDDEN_NAME_MAX + 1];
static int root_fd;
static struct io *io;
static unsigned root_syncs, hidden_syncs;

static void setup(void)
{
    const struct io_settings settings = { .verb_threads = 1, .transfer_threads = 1, .compute_threads = 1 };

    cr_assert_not_null(mkdtemp(root));
    root_fd = open(root, O_RDONLY | O_DIRECTORY);
    hidden_name_make("step", id, hidden);
    cr_assert_eq(io_create_threads(&settings, &io, NULL), 0);
}

static void teardown(void)
{
    char command[64];

    io_destroy(io);
    close(root_fd);
    snprintf(command, sizeof(command), "rm -r %s", root);
    cr_assert_eq(system(command), 0);
}

TestSuite(recovery, .init = setup, .fini = teardown, .timeout = 20);

static void put(const char *directory, const char *name, const char *text)
{
    char path[300];
    int fd;

    mkdirat(root_fd, directory, 0777);
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    fd = openat(root_fd, path, O_CREAT | O_WRONLY | O_EXCL, 0666);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static bool stands(const char *name) { return faccessat(root_fd, name, F_OK, 0) == 0; }

static bool two_files(const void *owner, const struct io_list *names) { return names->count == 2; }

static struct recovery recover_as(enum recovery_mode mode)
{
    struct recovery recovery = { .are_all_there = two_files };
    struct completion completion;

    cr_assert_eq(recovery_start(&recovery, io, mode, root_fd, "step", id, 0, 1, ours, sizeof(ours) - 1), 0);
    while (recovery.in_flight) {
        cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
        root_syncs += completion.op->kind == OP_FSYNC && completion.op->handle == root_fd && completion.result == 0;
        recovery_step(&recovery, io, completion.result);
    }
    recovery_deinit(&recovery);
    return recovery;
}

static struct recovery recover(void) { return recover_as(RECOVERY_SWEEPS); }

Test(recovery, finds_nothing_where_nothing_was_made)
{
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
}

Test(recovery, sweeps_what_was_not_published)
{
    put(hidden, "model.safetensors.partial", "half");
    put(hidden, "tspool.part-00001", "");
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
    cr_assert_not(stands(hidden));
}

/* Where exchange is refused the old one is put aside first: a writer that dies just then has left the name to nobody. */
Test(recovery, puts_a_whole_one_under_its_name_when_nothing_has_it)
{
    struct recovery recovery;

    put(hidden, MANIFEST_NAME, ours);
    put(hidden, "model.safetensors", "bytes");
    recovery = recover();
    cr_assert_eq(recovery.outcome, RECOVERY_PUBLISHED);
    cr_assert(stands("step/" MANIFEST_NAME) && stands("step/model.safetensors") && !stands(hidden));
}

Test(recovery, sweeps_one_whose_files_do_not_all_have_their_names)
{
    put(hidden, MANIFEST_NAME, ours);
    put(hidden, "model.safetensors" PARTIAL_SUFFIX, "bytes");
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
    cr_assert(!stands("step") && !stands(hidden));
}

/* What its writer had failed to write was being removed when it died. */
Test(recovery, sweeps_one_of_which_a_file_is_missing)
{
    put(hidden, MANIFEST_NAME, ours);
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
    cr_assert(!stands("step") && !stands(hidden));
}

/* Death between the rename and its report: FAILED would be a lie; so would PUBLISHED before the rename is durable. */
Test(recovery, knows_its_own_checkpoint_and_keeps_it)
{
    put("step", "tspool.manifest.json", ours);
    cr_assert_eq(recover().outcome, RECOVERY_PUBLISHED);
    cr_assert_eq(root_syncs, 1);
    cr_assert(stands("step/tspool.manifest.json"));
}

/* The same after an exchange: the hidden directory now holds the replaced checkpoint, which nobody wants any more. */
Test(recovery, removes_the_replaced_checkpoint_behind_its_own)
{
    put("step", "tspool.manifest.json", ours);
    put(hidden, "tspool.manifest.json", other);
    put(hidden, "model.safetensors", "old");
    cr_assert_eq(recover().outcome, RECOVERY_PUBLISHED);
    cr_assert(stands("step/tspool.manifest.json"));
    cr_assert_not(stands(hidden));
}

Test(recovery, leaves_the_checkpoint_that_it_would_have_replaced)
{
    put("step", "tspool.manifest.json", other);
    put(hidden, "tspool.manifest.json", ours);
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
    cr_assert(stands("step/tspool.manifest.json"));
    cr_assert_not(stands(hidden));
}

/* Put aside for a moment, where the file system cannot exchange, and the writer died in that moment. */
Test(recovery, never_removes_a_checkpoint_of_another_save)
{
    struct recovery recovery;

    put(hidden, "tspool.manifest.json", other);
    recovery = recover();
    cr_assert_eq(recovery.outcome, RECOVERY_ABSENT);
    cr_assert(recovery.left);
    cr_assert(stands(hidden));
}

/* A writer that was killed but hangs in the kernel still holds the lock, and may still write. */
Test(recovery, touches_nothing_while_the_part_record_is_locked)
{
    struct recovery recovery;
    char path[300];
    int fd;

    put(hidden, "tspool.part-00001", "");
    put(hidden, "model.safetensors.partial", "half");
    snprintf(path, sizeof(path), "%s/tspool.part-00001", hidden);
    fd = openat(root_fd, path, O_RDONLY);
    cr_assert_eq(flock(fd, LOCK_EX), 0);
    recovery = recover();
    cr_assert_eq(recovery.outcome, RECOVERY_ABSENT);
    cr_assert(recovery.left);
    snprintf(path, sizeof(path), "%s/model.safetensors.partial", hidden);
    cr_assert(stands(path));
    close(fd);
}

/* A death has every save in flight look at once, and a backend reads only so much at a time. */
Test(recovery, read_that_is_one_too_many_waits_for_its_turn)
{
    const struct io_settings settings = { .depth = 1, .verb_threads = 1, .transfer_threads = 1, .compute_threads = 1 };
    struct recovery both[2] = { { .in_flight = false }, { .in_flight = false } };
    struct completion completion;
    struct io *narrow;

    cr_assert_eq(io_create_threads(&settings, &narrow, NULL), 0);
    put("step", "tspool.manifest.json", ours);
    for (int i = 0; i < 2; i++) { /* each up to the brink of its read, one after the other */
        both[i].op.owner = &both[i];
        cr_assert_eq(recovery_start(&both[i], narrow, RECOVERY_SWEEPS, root_fd, "step", id, 0, 1, ours, sizeof(ours) - 1), 0);
        cr_assert_eq(io_wait(narrow, &completion, 1, IO_FOREVER), 1);
        cr_assert_eq(completion.op, &both[i].op);
        recovery_step(&both[i], narrow, completion.result);
        cr_assert_eq(both[i].step, LOOK_OPEN_MANIFEST);
        cr_assert_eq(io_wait(narrow, &completion, 1, IO_FOREVER), 1);
        both[i].op.result = completion.result;
    }
    for (int i = 0; i < 2; i++)
        recovery_step(&both[i], narrow, both[i].op.result);
    cr_assert_eq(both[0].step, LOOK_READ);
    cr_assert_eq(both[1].step, LOOK_WAIT);
    while (both[0].in_flight || both[1].in_flight) {
        cr_assert_eq(io_wait(narrow, &completion, 1, IO_FOREVER), 1);
        recovery_step(completion.op->owner, narrow, completion.result);
    }
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(both[i].outcome, RECOVERY_PUBLISHED);
        recovery_deinit(&both[i]);
    }
    io_destroy(narrow);
}

/* Taken for another's, a published checkpoint would be called failed. */
Test(recovery, short_read_is_read_on)
{
    struct recovery recovery = { .in_flight = false };
    struct completion completion;

    put("step", "tspool.manifest.json", ours);
    cr_assert_eq(recovery_start(&recovery, io, RECOVERY_SWEEPS, root_fd, "step", id, 0, 1, ours, sizeof(ours) - 1), 0);
    while (recovery.in_flight) {
        cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
        recovery_step(&recovery, io, recovery.step == LOOK_READ && completion.result > 7 ? 7 : completion.result);
    }
    recovery_deinit(&recovery);
    cr_assert_eq(recovery.outcome, RECOVERY_PUBLISHED);
}

static unsigned open_handles(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* The spool is closed while a save is looked after: its directory must not stay open in the application for ever. */
Test(recovery, stopped_halfway_closes_what_it_opened)
{
    struct recovery recovery = { .in_flight = false };
    struct completion completion;
    unsigned before;
    char path[300];
    int fd;

    put(hidden, "tspool.part-00001", "");
    snprintf(path, sizeof(path), "%s/tspool.part-00001", hidden);
    fd = openat(root_fd, path, O_RDONLY);
    cr_assert_eq(flock(fd, LOCK_EX), 0); /* it comes as far as waiting for the lock */
    before = open_handles();
    cr_assert_eq(recovery_start(&recovery, io, RECOVERY_SWEEPS, root_fd, "step", id, 0, 1, ours, sizeof(ours) - 1), 0);
    while (recovery.in_flight) {
        if (recovery.step == SWEEP_PAUSE)
            recovery_stop(&recovery, io);
        cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
        recovery_step(&recovery, io, completion.result);
    }
    recovery_deinit(&recovery);
    cr_assert_eq(recovery.pauses, 1);
    cr_assert_eq(open_handles(), before);
    cr_assert(stands(path));
    close(fd);
}

/* Killed but in the kernel: it may be inside the rename. What stands under the name is told, nothing else is touched. */
Test(recovery, looks_and_touches_nothing_while_the_writer_may_be_alive)
{
    put(hidden, "model.safetensors.partial", "half");
    cr_assert_eq(recover_as(RECOVERY_LOOKS).outcome, RECOVERY_HELD);
    cr_assert(stands(hidden));
    put("step", "tspool.manifest.json", ours);
    cr_assert_eq(recover_as(RECOVERY_LOOKS).outcome, RECOVERY_PUBLISHED);
    cr_assert(stands(hidden));
}

Test(recovery, takes_a_shorter_manifest_for_anothers)
{
    put("step", "tspool.manifest.json", "{");
    cr_assert_eq(recover().outcome, RECOVERY_ABSENT);
    cr_assert(stands("step/tspool.manifest.json"));
}

/* Several ranks: the hidden directory is everybody's -------------------------------------------------------------------- */

static const char our_part[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0101\",\n\"sequence\":7";
static const char merged[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0101\",\n\"sequence\":9, and so on";
static const char other_part[] = "{\"tspool_manifest\":1,\n\"save_id\":\"0101\",\n\"sequence\":5";

static struct recovery recover_part(uint32_t rank)
{
    struct recovery recovery = { .in_flight = false };
    struct completion completion;

    cr_assert_eq(recovery_start(&recovery, io, RECOVERY_SWEEPS, root_fd, "step", id, rank, 3, our_part, sizeof(our_part) - 1), 0);
    while (recovery.in_flight) {
        cr_assert_eq(io_wait(io, &completion, 1, IO_FOREVER), 1);
        hidden_syncs += completion.op->kind == OP_FSYNC && completion.op->handle != root_fd && completion.result == 0;
        recovery_step(&recovery, io, completion.result);
    }
    recovery_deinit(&recovery);
    return recovery;
}

static bool stands_hidden(const char *name)
{
    char path[300];

    snprintf(path, sizeof(path), "%s/%s", hidden, name);
    return stands(path);
}

Test(recovery, sweeps_of_several_ranks_only_its_own)
{
    put(hidden, "shard-00001-model-00001-of-00001.safetensors", "rank 0");
    put(hidden, "tspool.part-00001", "");
    put(hidden, "tspool.part-00001.json", other_part);
    put(hidden, "shard-00002-model-00001-of-00001.safetensors.partial", "half");
    put(hidden, "objects-00002.bin", "");
    put(hidden, "tspool.digests-00002.partial", "");
    put(hidden, "tspool.part-00002", "");
    cr_assert_eq(recover_part(1).outcome, RECOVERY_ABSENT);
    cr_assert(stands_hidden("shard-00001-model-00001-of-00001.safetensors"));
    cr_assert(stands_hidden("tspool.part-00001"));
    cr_assert(stands_hidden("tspool.part-00001.json"));
    cr_assert_not(stands_hidden("shard-00002-model-00001-of-00001.safetensors.partial"));
    cr_assert_not(stands_hidden("objects-00002.bin"));
    cr_assert_not(stands_hidden("tspool.digests-00002.partial"));
    cr_assert_not(stands_hidden("tspool.part-00002"));
    cr_assert_not(recover_part(1).left, "that others are there is no failure");
}

Test(recovery, removes_the_directory_when_no_other_rank_is_there)
{
    put(hidden, "shard-00002-model-00001-of-00001.safetensors.partial", "half");
    put(hidden, "tspool.part-00002", "");
    cr_assert_eq(recover_part(1).outcome, RECOVERY_ABSENT);
    cr_assert_not(stands(hidden));
}

/* Its writer may have died before it synced the directory: DURABLE would be a lie. */
Test(recovery, finds_a_part_that_stands)
{
    put(hidden, "shard-00002-model-00001-of-00001.safetensors", "whole");
    put(hidden, "tspool.part-00002", "");
    put(hidden, "tspool.part-00002.json", our_part);
    cr_assert_eq(recover_part(1).outcome, RECOVERY_DURABLE);
    cr_assert_eq(hidden_syncs, 1);
    cr_assert(stands_hidden("shard-00002-model-00001-of-00001.safetensors"));
    cr_assert(stands_hidden("tspool.part-00002.json"));
}

/* What the ranks' manifests share is the save id: sequence and time are of whoever was last. */
Test(recovery, finds_a_checkpoint_that_was_published_from_the_parts)
{
    put("step", "tspool.manifest.json", merged);
    put(hidden, "tspool.part-00003", "a rank that came too late");
    cr_assert_eq(recover_part(1).outcome, RECOVERY_PUBLISHED);
    cr_assert(stands("step/tspool.manifest.json"));
    cr_assert(stands_hidden("tspool.part-00003"));
}

Test(recovery, leaves_the_part_of_an_earlier_trainer_to_the_next_attempt)
{
    put(hidden, "tspool.part-00002", "");
    put(hidden, "tspool.part-00002.json", other_part);
    cr_assert_eq(recover_part(1).outcome, RECOVERY_ABSENT);
    cr_assert_not(recover_part(1).left);
    cr_assert(stands_hidden("tspool.part-00002.json"));
}
