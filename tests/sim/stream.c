/* sim/stream.c - a streamed file on the simulated disk: written short, refused, killed, and the power cut in every way at each of
 * its operations. Under the name stands the old file or the new one, whole, and nothing else of it is left.
 *
 * What is tried here is the sink and the place under it; the thread and the ring of blocks around them are tried in api/stream.c.
 */
#include "crash_watch.h"
#include "sim_party.h"
#include "sim_world.h"

#include <base/checked.h>
#include <base/hash.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <stream/sink.h>
#include <string.h>

#define NAME "model.pt"
#define PATH SCENE_ROOT "/" NAME
#define ALIGN 512u
#define BLOCK_BYTES (8 * ALIGN)
#define BLOCKS 9u
#define BYTES (BLOCKS * BLOCK_BYTES - 700) /* the last block is padded */
#define STEP_BYTES (2 * BLOCK_BYTES) /* space is taken several times: nobody knew better */
#define OLD "what stood there before"

/* A writer --------------------------------------------------------------------------------------------------------- */

struct work {
    bool keep, buffered, aborts;
    uint64_t expected_bytes;
    struct sink sink;              /* left for a look */
    struct place place;
    struct tspool_failure failure;
    unsigned blocks_back;          /* that the sink gave back */
    bool published;                /* place_publish said 0 */
};

static uint8_t byte_at(uint64_t offset) { return (uint8_t)(offset * 7 + offset / 511); }

static void block_back(void *context, struct sink_block *block) { ((struct work *)context)->blocks_back++; }

static void blocks_push(struct work *work, struct sink_block *blocks, uint8_t *memory)
{
    for (uint64_t i = 0; i < BLOCKS * BLOCK_BYTES; i++)
        memory[i] = i < BYTES ? byte_at(i) : 0;
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i].op = (struct op){ .memory = memory + i * BLOCK_BYTES, .file_offset = i * BLOCK_BYTES, .size = BLOCK_BYTES };
        if (i + 1 == BLOCKS)
            blocks[i].op.size = align_up(BYTES - i * BLOCK_BYTES, work->place.align);
        sink_push(&work->sink, &blocks[i]);
    }
}

static int blocks_write(struct io *io, struct work *work)
{
    struct sink_block *blocks = calloc(BLOCKS, sizeof(*blocks));
    uint8_t *memory = aligned_alloc(4096, align_up(BLOCKS * BLOCK_BYTES, 4096));
    int count = 0;

    sink_init(&work->sink, &work->place, work->expected_bytes);
    work->sink.written = block_back;
    work->sink.context = work;
    blocks_push(work, blocks, memory);
    for (sink_pump(&work->sink); !sink_is_idle(&work->sink) && count >= 0; sink_pump(&work->sink)) {
        struct completion completions[4];

        count = io_wait(io, completions, 4, IO_FOREVER); /* an error: it was killed */
        for (int i = 0; i < count; i++)
            sink_complete(&work->sink, completions[i].op, completions[i].result);
    }
    cr_expect(count < 0 || work->blocks_back == BLOCKS, "%u blocks of %u came back", work->blocks_back, BLOCKS);
    free(memory);
    free(blocks);
    if (work->sink.error)
        work->failure = work->sink.failure;
    return work->sink.error ? work->sink.error : count < 0 ? count : 0;
}

/* As the stream's thread does it. */
static int writer(struct io *io, void *argument)
{
    struct work *work = argument;
    const struct place_request request = { PATH, work->keep, work->buffered };
    int error;

    work->failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    error = place_open(io, &request, &work->place, &work->failure);
    if (error == 0)
        error = blocks_write(io, work);
    if (error == 0 && !work->aborts) {
        error = place_publish(&work->place, BYTES, &work->failure);
        work->published = error == 0;
    }
    place_abandon(&work->place);
    return error;
}

/* One run ---------------------------------------------------------------------------------------------------------- */

struct run {
    struct sim_settings settings;
    struct work work;
    const struct sim_fault *fault;
    sim_look *look;
    void *context;
    uint64_t ops;      /* out */
    int result;        /* -EINTR: it was killed */
};
#define RUN(...) { .settings = { .memory_align = ALIGN, .offset_align = ALIGN }, .work.expected_bytes = STEP_BYTES, __VA_ARGS__ }

static bool is_told(const struct run *run)
{
    const struct tspool_failure *failure = &run->work.failure;

    return run->result == 0 ||
           (failure->error == -run->result && failure->message[0] && failure->operation[0] && failure->path[0]);
}

/* On `disk`, which is taken over; the disk afterwards, as programs see it. */
static struct sim_disk *stream_once(struct sim_disk *disk, struct run *run)
{
    struct sim_world *world = sim_world_create(&run->settings, disk);
    struct sim_party party;

    if (run->fault)
        sim_world_fault(world, run->fault);
    sim_world_observe(world, run->look, run->context);
    sim_party_start(&party, world, "writer", writer, &run->work);
    sim_parties_run(world, &party, 1);
    run->ops = sim_io_ops(party.inner);
    run->result = party.done ? party.result : -EINTR;
    cr_expect(!party.done || is_told(run), "%d without a record", run->result);
    cr_expect(!party.done || sim_handles(party.inner) == 0 || run->fault, "handles are left open");
    disk = sim_disk_clone(sim_world_disk(world));
    cr_expect_null(sim_world_violation(world), "%s", sim_world_violation(world));
    sim_party_end(&party);
    sim_world_destroy(world);
    return disk;
}

/* Disks ------------------------------------------------------------------------------------------------------------ */

static struct sim_disk *disk_make(enum sim_ordering ordering, bool with_old)
{
    struct sim_disk *disk = sim_disk_create(&(struct sim_disk_settings){ .ordering = ordering });
    uint32_t root, file;

    cr_assert_eq(sim_disk_make(disk, SIM_ROOT, SCENE_ROOT_NAME, true, &root), 0);
    if (with_old) {
        cr_assert_eq(sim_disk_make(disk, root, NAME, false, &file), 0);
        cr_assert_eq(sim_disk_write(disk, file, 0, OLD, sizeof(OLD)), sizeof(OLD));
    }
    sim_disk_sync_all(disk);
    return disk;
}

static bool is_new(const struct sim_disk *disk)
{
    static uint8_t found[BYTES + 1];
    uint32_t file;

    if (sim_disk_walk(disk, SIM_ROOT, PATH, &file) || sim_disk_read(disk, file, 0, found, sizeof(found)) != BYTES)
        return false;
    for (uint64_t i = 0; i < BYTES; i++)
        if (found[i] != byte_at(i))
            return false;
    return true;
}

static bool is_old(const struct sim_disk *disk, bool with_old)
{
    char found[sizeof(OLD) + 1];
    uint32_t file;

    if (sim_disk_walk(disk, SIM_ROOT, PATH, &file))
        return !with_old;
    return with_old && sim_disk_read(disk, file, 0, found, sizeof(found)) == sizeof(OLD) && memcmp(found, OLD, sizeof(OLD)) == 0;
}

/* Going well ------------------------------------------------------------------------------------------------------- */

static void is_written(struct run *run, const char *what)
{
    struct sim_disk *after = stream_once(disk_make(SIM_STRICT, true), run);

    cr_assert_eq(run->result, 0, "%s, seed %" PRIu64 ": %s", what, run->settings.seed, run->work.failure.message);
    cr_assert(is_new(after), "%s, seed %" PRIu64 ": other bytes", what, run->settings.seed);
    cr_assert_eq(names_in_root(after), 1, "%s: something is left", what);
    sim_disk_destroy(after);
}

Test(stream, file_is_whole_whatever_the_order_of_completions)
{
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct run run = RUN(.settings.seed = seed);

        is_written(&run, "direct");
        cr_assert(run.work.sink.writes == BLOCKS);
    }
}

/* O_DIRECT goes on at a block's beginning: what lies beyond the last whole block is written twice. */
Test(stream, short_writes_are_written_to_their_end)
{
    uint64_t short_writes = 0;

    for (uint64_t seed = 0; seed < 200; seed++) {
        struct run run = RUN(.settings.seed = seed, .settings.short_writes_per_mille = 400, .work.buffered = seed % 2);

        is_written(&run, "short writes");
        short_writes += run.work.sink.short_writes;
    }
    cr_assert_gt(short_writes, 200);
    for (uint64_t write = 1; write <= BLOCKS; write++)
        for (size_t bytes = 1; bytes < BLOCK_BYTES; bytes += 511) {
            struct sim_fault fault = { .on = { NULL, OP_WRITE, "*.partial" }, .ordinal = write, .action = SIM_SHORT,
                                       .bytes = bytes };
            struct run run = RUN(.fault = &fault);

            is_written(&run, "short write");
            cr_assert(run.work.sink.short_writes == 1 || write == BLOCKS);
        }
}

Test(stream, kernel_that_writes_less_than_a_block_again_and_again_is_an_error)
{
    struct sim_fault fault = { .on = { NULL, OP_WRITE, "*.partial" }, .action = SIM_SHORT, .bytes = 100 };
    struct run run = RUN(.fault = &fault);
    struct sim_disk *after = stream_once(disk_make(SIM_STRICT, true), &run);

    cr_assert_eq(run.result, -EIO);
    cr_assert(is_old(after, true) && names_in_root(after) == 1);
    sim_disk_destroy(after);
}

Test(stream, file_system_that_refuses_direct_or_to_allocate_is_written_all_the_same)
{
    struct run refused = RUN(), unsupported = RUN(.settings.allocate_unsupported = true);

    refused.settings.offset_align = 0;
    is_written(&refused, "refused");
    cr_assert_not(refused.work.place.direct);
    is_written(&unsupported, "not allocated");
}

/* The steps in which space is taken are larger than the file by far. */
Test(stream, disk_with_room_for_the_file_and_no_step_takes_it)
{
    struct sim_disk *disk = disk_make(SIM_STRICT, false), *after;
    struct run run = RUN();

    run.work.expected_bytes = 0;
    sim_disk_leave_free(disk, BLOCKS * BLOCK_BYTES);
    after = stream_once(disk, &run);
    cr_assert_eq(run.result, 0, "%s", run.work.failure.message);
    cr_assert(is_new(after));
    sim_disk_destroy(after);
}

/* Room for all that was written, and not for what somebody said it would be. */
Test(stream, estimate_that_the_disk_has_no_room_for_does_not_matter)
{
    struct sim_disk *disk = disk_make(SIM_STRICT, false), *after;
    struct run run = RUN();

    run.work.expected_bytes = 100 * BLOCKS * BLOCK_BYTES;
    sim_disk_leave_free(disk, BLOCKS * BLOCK_BYTES);
    after = stream_once(disk, &run);
    cr_assert_eq(run.result, 0, "%s", run.work.failure.message);
    cr_assert(is_new(after));
    sim_disk_destroy(after);
}

static void allocate_count(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    *(unsigned *)context += seen->kind == OP_ALLOCATE;
}

Test(stream, space_of_a_file_whose_length_is_known_is_taken_once)
{
    unsigned count = 0;
    struct run run = RUN(.look = allocate_count, .context = &count);

    run.work.expected_bytes = BYTES;
    is_written(&run, "expected");
    cr_assert_eq(count, 1);
}

Test(stream, full_disk_is_told_with_path_and_place_and_leaves_nothing)
{
    for (uint64_t room = 0; room < BLOCKS * BLOCK_BYTES; room += 3 * ALIGN) {
        struct sim_disk *disk = disk_make(SIM_STRICT, true), *after;
        struct run run = RUN(.settings.seed = room);

        sim_disk_leave_free(disk, room);
        after = stream_once(disk, &run);
        cr_assert_eq(run.result, -ENOSPC);
        cr_assert_str_eq(run.work.failure.path, PATH);
        cr_assert_leq(run.work.failure.file_offset, room);
        cr_assert(is_old(after, true) && names_in_root(after) == 1);
        sim_disk_destroy(after);
    }
}

Test(stream, abort_leaves_nothing)
{
    struct run run = RUN(.work.aborts = true);
    struct sim_disk *after = stream_once(disk_make(SIM_STRICT, true), &run);

    cr_assert(is_old(after, true) && names_in_root(after) == 1);
    sim_disk_destroy(after);
}

/* Power cuts ------------------------------------------------------------------------------------------------------- */

struct cuts { bool with_old; const struct work *work; uint64_t visits, seed; char wrong[300]; };

static bool cut_judge(const struct sim_disk *disk, const bool *kept, void *context)
{
    struct cuts *cuts = context;
    struct sim_disk *found = sim_disk_power_cut(disk, kept);
    bool good = is_new(found) || (!cuts->work->published && is_old(found, cuts->with_old));

    cuts->visits++;
    sim_disk_destroy(found);
    if (!good)
        snprintf(cuts->wrong, sizeof(cuts->wrong), "%s", cuts->work->published ? "it was durable and is not there" : "a mix");
    return good;
}

/* Ops in flight count as begun: their effects may be on the disk or not. */
static void cut_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct cuts *cuts = context;
    struct power_cuts each = { .name = NAME, .exhaustive = 10, .samples = 60, .seed = ++cuts->seed };
    struct sim_disk *disk;

    if (cuts->wrong[0] || seen->kind == OP_STAT || seen->kind == OP_LIST)
        return;
    disk = sim_world_disk_in_flight(world);
    cr_assert_eq(sim_disk_find(disk, SIM_ROOT, SCENE_ROOT_NAME, &each.directory), 0);
    power_cuts_each(disk, &each, cut_judge, cuts);
    sim_disk_destroy(disk);
}

static void each_power_cut(enum sim_ordering ordering, bool with_old)
{
    uint64_t visits = 0;

    for (uint64_t seed = 0; seed < 12; seed++) {
        struct run run = RUN(.settings.seed = seed, .look = cut_look);
        struct cuts cuts = { .with_old = with_old, .work = &run.work, .seed = seed << 20 };

        run.context = &cuts;
        sim_disk_destroy(stream_once(disk_make(ordering, with_old), &run));
        cr_assert_eq(run.result, 0);
        cr_assert_str_empty(cuts.wrong, "seed %" PRIu64 ": %s", seed, cuts.wrong);
        visits += cuts.visits;
    }
    cr_assert_gt(visits, 200, "%" PRIu64 " states", visits);
}

Test(stream, power_cut_leaves_the_old_one_or_the_new_one) { each_power_cut(SIM_STRICT, true); }
Test(stream, power_cut_leaves_nothing_or_the_new_one) { each_power_cut(SIM_STRICT, false); }
Test(stream, power_cut_on_a_journal_leaves_the_old_one_or_the_new_one) { each_power_cut(SIM_JOURNAL, true); }

/* Others under the same name --------------------------------------------------------------------------------------- */

/* Their hidden files are not taken for a dead one's, at whatever moment the other looks. */
Test(stream, two_at_once_do_not_disturb_each_other)
{
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct sim_settings settings = { .memory_align = ALIGN, .offset_align = ALIGN, .seed = seed };
        struct sim_world *world = sim_world_create(&settings, disk_make(SIM_STRICT, true));
        struct work works[2] = { { .expected_bytes = STEP_BYTES }, { .expected_bytes = STEP_BYTES } };
        struct sim_party parties[2];

        for (int i = 0; i < 2; i++)
            sim_party_start(&parties[i], world, "writer", writer, &works[i]);
        sim_parties_run(world, parties, 2);
        for (int i = 0; i < 2; i++)
            cr_assert(parties[i].done && parties[i].result == 0, "seed %" PRIu64 ": %s", seed, works[i].failure.message);
        cr_assert(is_new(sim_world_disk(world)) && names_in_root(sim_world_disk(world)) == 1);
        cr_assert_null(sim_world_violation(world), "%s", sim_world_violation(world));
        for (int i = 0; i < 2; i++)
            sim_party_end(&parties[i]);
        sim_world_destroy(world);
    }
}

/* Between making the hidden file and locking it another stream took it for a dead one's and has it locked: it will go. */
Test(stream, hidden_file_that_somebody_else_locked_is_given_up_for_another)
{
    struct sim_fault fault = { .on = { NULL, OP_LOCK, "*.partial" }, .ordinal = 1, .action = SIM_FAIL, .error = EWOULDBLOCK };
    struct run run = RUN(.fault = &fault);

    is_written(&run, "locked");
}

Test(stream, keep_refuses_a_name_that_is_taken)
{
    struct run run = RUN(.work.keep = true);
    struct sim_disk *after = stream_once(disk_make(SIM_STRICT, true), &run);

    cr_assert_eq(run.result, -EEXIST);
    cr_assert_eq(run.work.failure.stage, TSPOOL_STAGE_OPEN);
    cr_assert(is_old(after, true) && names_in_root(after) == 1);
    sim_disk_destroy(after);
}

static void intruder_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    uint32_t root, file;

    if (seen->kind != OP_ALLOCATE)
        return;
    cr_assert_eq(sim_disk_walk(sim_world_disk(world), SIM_ROOT, SCENE_ROOT, &root), 0);
    if (sim_disk_make(sim_world_disk(world), root, NAME, false, &file) == 0)
        cr_assert_eq(sim_disk_write(sim_world_disk(world), file, 0, OLD, sizeof(OLD)), sizeof(OLD));
}

/* With the kernel's own refusal to replace, and where it has none (NFS). */
Test(stream, keep_refuses_a_name_that_was_taken_meanwhile)
{
    struct sim_fault refused = { .on = { NULL, OP_RENAME, "*.partial" }, .action = SIM_FAIL, .error = EINVAL };

    for (int without = 0; without < 2; without++) {
        struct run run = RUN(.work.keep = true, .look = intruder_look, .fault = without ? &refused : NULL);
        struct sim_disk *after = stream_once(disk_make(SIM_STRICT, false), &run);

        cr_assert_eq(run.result, -EEXIST, "%s", run.work.failure.message);
        cr_assert_eq(run.work.failure.stage, TSPOOL_STAGE_PUBLISH);
        cr_assert(is_old(after, true) && names_in_root(after) == 1);
        sim_disk_destroy(after);
    }
}

Test(stream, keep_is_written_where_nothing_has_the_name)
{
    struct sim_fault refused = { .on = { NULL, OP_RENAME, "*.partial" }, .action = SIM_FAIL, .error = EINVAL };

    for (int without = 0; without < 2; without++) {
        struct run run = RUN(.work.keep = true, .fault = without ? &refused : NULL);
        struct sim_disk *after = stream_once(disk_make(SIM_STRICT, false), &run);

        cr_assert_eq(run.result, 0, "%s", run.work.failure.message);
        cr_assert(is_new(after) && names_in_root(after) == 1);
        sim_disk_destroy(after);
    }
}

/* Each operation fails or is the last ------------------------------------------------------------------------------ */

static uint64_t ops_of_a_run(void)
{
    struct run run = RUN();

    sim_disk_destroy(stream_once(disk_make(SIM_STRICT, true), &run));
    cr_assert_geq(run.ops, 20);
    return run.ops;
}

/* A next stream of that name gets it done, and clears what was left. */
static void next_one_mends(struct sim_disk *disk, const char *when, uint64_t ordinal)
{
    struct run run = RUN(.settings.seed = ordinal);
    struct sim_disk *after = stream_once(disk, &run);

    cr_expect_eq(run.result, 0, "%s at op %" PRIu64 ": %s", when, ordinal, run.work.failure.message);
    cr_expect(is_new(after), "%s at op %" PRIu64 ": the next one's bytes are others", when, ordinal);
    cr_expect_eq(names_in_root(after), 1, "%s at op %" PRIu64 ": the next one leaves %zu names", when, ordinal,
                 names_in_root(after));
    sim_disk_destroy(after);
}

static void each_op(enum sim_action action, int error, bool with_old, const char *when)
{
    uint64_t ops = ops_of_a_run();

    for (uint64_t ordinal = 1; ordinal <= ops; ordinal++) {
        struct sim_fault fault = { .on = { .process = "writer" }, .ordinal = ordinal, .action = action, .error = error };
        struct run run = RUN(.fault = &fault);
        struct sim_disk *after = stream_once(disk_make(SIM_STRICT, with_old), &run);

        cr_expect(is_new(after) || (!run.work.published && is_old(after, with_old)), "%s at op %" PRIu64 ": a mix", when,
                  ordinal);
        next_one_mends(after, when, ordinal);
    }
}

Test(stream, killed_at_each_operation_leaves_the_old_one_or_the_new_one) { each_op(SIM_KILL, 0, true, "killed"); }
Test(stream, killed_at_each_operation_leaves_nothing_or_the_new_one) { each_op(SIM_KILL, 0, false, "killed"); }
Test(stream, error_of_each_operation_leaves_the_old_one_or_the_new_one) { each_op(SIM_FAIL, EIO, true, "EIO"); }
Test(stream, late_error_of_each_operation_leaves_the_old_one_or_the_new_one) { each_op(SIM_FAIL_AFTER, EIO, true, "late EIO"); }

/* What must not be taken for success. */
Test(stream, failed_write_cut_or_sync_is_an_error)
{
    const struct { enum op_kind kind; const char *path; enum tspool_stage stage; } each[] = {
        { OP_WRITE, "*.partial", TSPOOL_STAGE_WRITE }, { OP_ALLOCATE, "*.partial", TSPOOL_STAGE_WRITE },
        { OP_TRUNCATE, "*.partial", TSPOOL_STAGE_SEAL }, { OP_FSYNC, "*.partial", TSPOOL_STAGE_SYNC },
        { OP_RENAME, "*.partial", TSPOOL_STAGE_PUBLISH }, { OP_FSYNC, SCENE_ROOT, TSPOOL_STAGE_PUBLISH },
    };

    for (size_t i = 0; i < sizeof(each) / sizeof(*each); i++) {
        struct sim_fault fault = { .on = { "writer", each[i].kind, each[i].path }, .ordinal = 1, .action = SIM_FAIL,
                                   .error = EIO };
        struct run run = RUN(.fault = &fault);
        struct sim_disk *after = stream_once(disk_make(SIM_STRICT, true), &run);

        cr_assert_eq(run.result, -EIO, "%s of %s", op_kind_name(each[i].kind), each[i].path);
        cr_assert_eq(run.work.failure.stage, each[i].stage);
        cr_assert_eq(names_in_root(after), 1);
        cr_assert_neq(is_old(after, true), is_new(after));
        sim_disk_destroy(after);
    }
}
