/* sim/orphans.c - who asks for the latest checkpoint while a save is under way: after the trainer's death he is given what its
 * writer still publishes, however slow that is; beside a living trainer he is not kept waiting.
 */
#include "crash_watch.h"
#include "sim_party.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <format/part.h>
#include <inttypes.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LONG_NS 12000000000u

struct fixture { struct scene_settings settings; struct sim_state old, new; struct sim_disk *disk; };

static void fixture_init(struct fixture *fixture)
{
    memset(fixture, 0, sizeof(*fixture));
    fixture->settings.world = (struct sim_settings){ .memory_align = 512, .offset_align = 512 };
    sim_state_init(&fixture->old, 1, 0);
    sim_state_init(&fixture->new, 2, 0);
    fixture->disk = scene_commit(&fixture->settings, NULL, &fixture->old, "old", false);
    cr_assert_not_null(fixture->disk);
}

static void fixture_deinit(struct fixture *fixture)
{
    sim_disk_destroy(fixture->disk);
    sim_state_deinit(&fixture->old);
    sim_state_deinit(&fixture->new);
}

struct question { uint64_t timeout_ns; char *path; struct orphan_report orphans; };

static int ask(struct io *io, void *argument)
{
    struct question *question = argument;

    return latest_wait_on(io, SCENE_ROOT, question->timeout_ns, &question->path, &question->orphans, NULL);
}

/* One save, and somebody who asks when `when` says so. */
struct meeting {
    struct scene scene;
    struct sim_party party;
    struct question question;
    unsigned staged;
    bool written, marked, dropped, asked; /* the part record: has its text, was grown, was unlinked */
    uint64_t answered_ns, asked_ns;
};

static void meeting_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    const struct message *message = seen->bytes; /* of a SEND */
    struct meeting *meeting = context;
    bool of_part = strstr(seen->path, "/tspool.part-00001") != NULL;

    meeting->staged += seen->kind == OP_SEND && seen->result > 0 && message->kind == MESSAGE_STAGED;
    meeting->written |= of_part && seen->kind == OP_WRITE && seen->result == PART_TEXT_BYTES;
    meeting->marked |= of_part && seen->kind == OP_TRUNCATE && seen->result == 0;
    meeting->dropped |= of_part && seen->kind == OP_UNLINK && seen->result == 0;
}

static void meeting_begin(struct meeting *meeting, const struct fixture *fixture, uint64_t seed, const struct sim_fault *fault)
{
    struct scene_settings settings = fixture->settings;
    struct timespec now;
    uint8_t save_id[16];

    memset(meeting, 0, sizeof(*meeting));
    clock_gettime(CLOCK_REALTIME, &now);
    settings.world.seed = seed;
    settings.world.mtime_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    settings.faults = fault;
    settings.fault_count = 1;
    settings.look = meeting_look;
    settings.look_context = meeting;
    scene_save_id(2, save_id);
    scene_init(&meeting->scene, &settings, sim_disk_clone(fixture->disk));
    cr_assert(scene_run_until_ready(&meeting->scene));
    sim_trainer_begin(&meeting->scene.trainer, &fixture->new, "new", false, save_id, 0);
}

static bool meeting_step(struct meeting *meeting, bool is_time)
{
    if (is_time && !meeting->asked) {
        meeting->asked = true;
        meeting->asked_ns = sim_world_now(meeting->scene.world);
        sim_party_start(&meeting->party, meeting->scene.world, "reader", ask, &meeting->question);
    }
    if (!sim_party_scene_step(&meeting->party, &meeting->scene))
        return false;
    if (meeting->asked && meeting->party.done && !meeting->answered_ns)
        meeting->answered_ns = sim_world_now(meeting->scene.world);
    return true;
}

static void meeting_end(struct meeting *meeting)
{
    cr_expect_null(scene_violation(&meeting->scene), "%s", scene_violation(&meeting->scene));
    if (meeting->asked)
        sim_party_end(&meeting->party);
    free(meeting->question.path);
    scene_deinit(&meeting->scene);
}

static bool answer_is(const struct meeting *meeting, const char *path)
{
    return meeting->asked && meeting->party.done && meeting->party.result == 0 && strcmp(meeting->question.path, path) == 0;
}

/* The trainer dies once all is staged; somebody asks once the writer has said so in the record, or has dropped it. */
static void orphan_is_waited_for(const struct fixture *fixture, const struct sim_fault *slow, uint64_t seed, unsigned *seen)
{
    struct meeting meeting;

    meeting_begin(&meeting, fixture, seed, slow);
    meeting.question.timeout_ns = UINT64_MAX;
    while (meeting.staged < fixture->new.plan->chunk_count || !meeting.written)
        cr_assert(meeting_step(&meeting, false));
    sim_io_kill(meeting.scene.trainer_io);
    while (meeting_step(&meeting, meeting.marked || meeting.dropped))
        ;
    cr_expect(answer_is(&meeting, SCENE_ROOT "/new"), "seed %" PRIu64 ": %s", seed, meeting.question.path);
    cr_expect_eq(meeting.question.orphans.left, 0);
    *seen += meeting.question.orphans.seen;
    meeting_end(&meeting);
}

static void orphans_are_waited_for(struct sim_fault slow, unsigned least_seen)
{
    struct fixture fixture;
    unsigned seen = 0;

    fixture_init(&fixture);
    for (uint64_t seed = 0; seed < 30; seed++)
        orphan_is_waited_for(&fixture, &slow, seed, &seen);
    cr_expect_geq(seen, least_seen, "only %u of 30 were known as orphans", seen);
    fixture_deinit(&fixture);
}

#define SLOW(operation, what) { .on = { "writer", operation, what }, .action = SIM_DELAY, .delay_ns = LONG_NS }

Test(orphans, slow_file_sync_of_an_orphan_is_waited_for)
{
    orphans_are_waited_for((struct sim_fault)SLOW(OP_FSYNC, "*/.new.*/model-00001-*"), 27);
}

Test(orphans, slow_publish_of_an_orphan_is_waited_for)
{
    orphans_are_waited_for((struct sim_fault)SLOW(OP_FSYNC, SCENE_ROOT "/.new.????????????????????????????????"), 0);
}

/* However long the write takes: the record says that nobody is dead. */
Test(orphans, living_trainers_save_keeps_nobody_waiting)
{
    const struct sim_fault slow = SLOW(OP_WRITE, "*/.new.*/model-00001-*");
    struct fixture fixture;

    fixture_init(&fixture);
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct meeting meeting;
        uint64_t steps = 0;

        meeting_begin(&meeting, &fixture, seed, &slow);
        meeting.question.timeout_ns = UINT64_MAX;
        while (!meeting.answered_ns && meeting_step(&meeting, steps++ >= seed % 45))
            ;
        cr_expect(answer_is(&meeting, SCENE_ROOT "/old"), "seed %" PRIu64, seed);
        cr_expect_eq(meeting.question.orphans.seen, 0);
        cr_expect_lt(meeting.answered_ns - meeting.asked_ns, 2000000000u, "seed %" PRIu64 ": %" PRIu64 " ns", seed,
                     meeting.answered_ns - meeting.asked_ns);
        while (meeting_step(&meeting, true))
            ;
        meeting_end(&meeting);
    }
    fixture_deinit(&fixture);
}

/* A trainer that lives never finds its records marked; one that died finds each that outlived its first ops. */
Test(orphans, record_is_marked_after_the_trainers_death_only)
{
    const struct sim_fault none = { .on = { "nobody", OP_NONE, NULL }, .action = SIM_FAIL, .error = EIO };
    struct fixture fixture;
    unsigned marked = 0;

    fixture_init(&fixture);
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct meeting meeting;
        bool dies = seed % 2;

        meeting_begin(&meeting, &fixture, seed, &none);
        while (!meeting.written)
            cr_assert(meeting_step(&meeting, false));
        if (dies)
            sim_io_kill(meeting.scene.trainer_io);
        while (meeting_step(&meeting, false))
            ;
        cr_expect(dies || !meeting.marked, "seed %" PRIu64, seed);
        marked += meeting.marked;
        meeting_end(&meeting);
    }
    cr_expect_gt(marked, 50, "%u of 100", marked);
    fixture_deinit(&fixture);
}
