/* sim/commit.c - the writer's machine on the simulated disk: it commits under every order of completions, and each of its
 * operations may fail, once, without anything being lost, left behind, or unsaid.
 */
#include "prepared.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void loads(const struct sim_disk *disk, const char *path, const struct sim_state *state, const char *when)
{
    char why[512] = "";

    cr_expect_eq(disk_load(disk, path, state, why, sizeof(why)), 0, "%s: %s does not load: %s", when, path, why);
}

Test(commit, new_checkpoint_loads_byte_for_byte)
{
    struct prepared prepared;
    struct outcome outcome;

    prepare(&prepared, NEW, SIM_STRICT);
    outcome = save_once(&prepared, &prepared.settings);
    cr_expect(committed(&prepared, &outcome), "%s", outcome.violation);
    loads(outcome.disk, PATH, &prepared.new, "new");
    loads(outcome.disk, OTHER, &prepared.old, "new");
    outcome_end(&outcome);
    prepared_end(&prepared);
}

Test(commit, replaced_checkpoint_keeps_files_of_others)
{
    for (int before = REPLACED; before <= REPLACED_WITHOUT_EXCHANGE; before++) {
        struct prepared prepared;
        struct outcome outcome;
        uint32_t inode;

        prepare(&prepared, (enum before)before, SIM_STRICT);
        outcome = save_once(&prepared, &prepared.settings);
        cr_expect(committed(&prepared, &outcome), "%s", outcome.violation);
        loads(outcome.disk, PATH, &prepared.new, "replaced");
        cr_expect_eq(sim_disk_walk(outcome.disk, SIM_ROOT, PATH "/" FOREIGN, &inode), 0, "the tokenizer is lost");
        outcome_end(&outcome);
        prepared_end(&prepared);
    }
}

/* Two saves of one name at once: the later one would look at a checkpoint that is being replaced under it. */
static void two_replacements(const struct prepared *prepared, const struct sim_state *later, uint64_t seed)
{
    struct scene_settings settings = prepared->settings;
    struct sim_save *saves[2];
    struct scene scene;
    uint8_t save_id[16];
    uint32_t inode;

    settings.world.seed = seed;
    scene_init(&scene, &settings, sim_disk_clone(prepared->disk));
    cr_assert(scene_run_until_ready(&scene));
    scene_save_id(prepared->new.seed, save_id);
    saves[0] = sim_trainer_begin(&scene.trainer, &prepared->new, NAME, true, save_id, 0);
    scene_save_id(later->seed, save_id);
    while (saves[0]->staged_count < prepared->new.plan->chunk_count)
        cr_assert(scene_step(&scene));
    saves[1] = sim_trainer_begin(&scene.trainer, later, NAME, true, save_id, 0);
    cr_assert(scene_run_until_answered(&scene, saves[0]) && scene_run_until_answered(&scene, saves[1]) && scene_close(&scene));
    cr_expect(saves[0]->published == 1 && saves[1]->published == 1 && !scene_violation(&scene));
    cr_expect_eq(names_in_root(sim_world_disk(scene.world)), 2, "seed %" PRIu64 ": something stray is left", seed);
    cr_expect_eq(sim_disk_walk(sim_world_disk(scene.world), SIM_ROOT, PATH "/" FOREIGN, &inode), 0, "seed %" PRIu64
                 ": the tokenizer is lost", seed);
    loads(sim_world_disk(scene.world), PATH, later, "the later one");
    scene_deinit(&scene);
}

Test(commit, saves_of_one_name_are_published_in_the_order_of_their_staging)
{
    struct prepared prepared;
    struct sim_state later;

    sim_state_init(&later, 3, 0);
    for (int before = REPLACED; before <= REPLACED_WITHOUT_EXCHANGE; before++) {
        prepare(&prepared, (enum before)before, SIM_STRICT);
        for (uint64_t seed = 0; seed < 50; seed++)
            two_replacements(&prepared, &later, seed);
        prepared_end(&prepared);
    }
    sim_state_deinit(&later);
}

/* Seeds ------------------------------------------------------------------------------------------------------------- */

static uint64_t one_of(uint64_t *random, const uint64_t *values, size_t count)
{
    *random = *random * 6364136223846793005u + 1442695040888963407u;
    return values[(*random >> 33) % count];
}
#define ONE_OF(random, ...) one_of(random, (const uint64_t[]){ __VA_ARGS__ }, sizeof((const uint64_t[]){ __VA_ARGS__ }) / 8)

static struct scene_settings settings_of(uint64_t seed, enum before before)
{
    uint64_t random = seed * 2 + 1;
    struct scene_settings settings = { .world = { .seed = seed } };

    settings.world.offset_align = (uint32_t)ONE_OF(&random, 0, 512, 512, 4096);
    settings.world.memory_align = settings.world.offset_align ? (uint32_t)ONE_OF(&random, 4, 512) : 0;
    settings.world.allocate_unsupported = ONE_OF(&random, 0, 0, 0, 1);
    settings.world.short_writes_per_mille = (unsigned)ONE_OF(&random, 0, 50, 500);
    settings.world.channel_messages = (unsigned)ONE_OF(&random, 1, 2, 0);
    settings.world.duration_ns = ONE_OF(&random, 1000, 1000000);
    settings.world.disk.exchange_refused = before == REPLACED_WITHOUT_EXCHANGE;
    settings.item_bytes = (uint32_t)ONE_OF(&random, 4096, 8192, 16384);
    settings.depth = (uint32_t)ONE_OF(&random, 1, 2, 4, 8);
    settings.slots = (uint32_t)ONE_OF(&random, 1, 2, 4, 8);
    settings.keeps_slots = settings.slots == 8 && ONE_OF(&random, 0, 1);
    settings.buffered = ONE_OF(&random, 0, 0, 1);
    return settings;
}

static void every_seed_commits(enum before before, uint64_t first, uint64_t count)
{
    struct prepared prepared;

    prepare(&prepared, before, SIM_STRICT);
    for (uint64_t seed = first; seed < first + count; seed++) {
        struct scene_settings settings = settings_of(seed, before);
        struct outcome outcome = save_once(&prepared, &settings);

        if (!committed(&prepared, &outcome)) {
            struct outcome again;

            settings.world.trace = true;
            again = save_once(&prepared, &settings);
            cr_assert_fail("seed %" PRIu64 ": published %u, failed %u (%s %s: %s), %s\n%s", seed, outcome.save.published,
                           outcome.save.failed, outcome.save.failure.operation, outcome.save.failure.path,
                           strerror(outcome.save.failure.error), outcome.violation, again.trace);
        }
        outcome_end(&outcome);
    }
    prepared_end(&prepared);
}

Test(commit, every_order_of_completions_and_short_writes_commits_a_new_one) { every_seed_commits(NEW, 0, 3000); }
Test(commit, every_order_of_completions_and_short_writes_commits_a_replacement) { every_seed_commits(REPLACED, 10000, 1500); }
Test(commit, every_order_of_completions_commits_without_exchange) { every_seed_commits(REPLACED_WITHOUT_EXCHANGE, 20000, 1500); }

/* Space ------------------------------------------------------------------------------------------------------------- */

/* Refused before the first byte where it can be known, and clean wherever it ends. */
static bool save_into(struct prepared *prepared, uint64_t free_bytes, bool allocate_unsupported)
{
    struct scene_settings settings = prepared->settings;
    struct outcome outcome;
    bool published;

    settings.world.allocate_unsupported = allocate_unsupported;
    sim_disk_leave_free(prepared->disk, free_bytes);
    outcome = save_once(prepared, &settings);
    published = outcome.save.published;
    cr_expect(outcome.closed && !outcome.violation[0], "%" PRIu64 " free: %s", free_bytes, outcome.violation);
    if (published) {
        cr_expect(committed(prepared, &outcome), "%" PRIu64 " free: published something else", free_bytes);
    } else {
        cr_expect_eq(outcome.save.failed, 1);
        cr_expect_eq(outcome.save.failure.error, ENOSPC, "%" PRIu64 " free: %s", free_bytes, strerror(outcome.save.failure.error));
        cr_expect(digest_equal(tree_at(outcome.disk, SCENE_ROOT), tree_at(prepared->disk, SCENE_ROOT)),
                  "%" PRIu64 " free: something is left", free_bytes);
    }
    outcome_end(&outcome);
    return published;
}

Test(commit, disk_of_any_size_takes_a_save_whole_or_not_at_all)
{
    for (int unsupported = 0; unsupported < 2; unsupported++) {
        struct prepared prepared;
        unsigned published = 0, refused = 0;

        prepare(&prepared, NEW, SIM_STRICT);
        for (uint64_t free_bytes = 0; free_bytes < 80000; free_bytes += 512)
            *(save_into(&prepared, free_bytes, unsupported) ? &published : &refused) += 1;
        cr_expect(published > 10 && refused > 10, "%u published, %u refused", published, refused);
        prepared_end(&prepared);
    }
}

/* Each operation fails once ------------------------------------------------------------------------------------------- */

struct step { enum op_kind kind; uint64_t number; char path[300]; };
struct steps {
    const struct io *writer;
    struct step items[512];
    size_t count;
    size_t first_of_save;  /* before: the probe */
    size_t rename;         /* the first one that moves the new directory, or the old one, in the root */
    size_t durable;        /* first step after the sync of the root: the save is durable, whatever happens */
};

static bool fails_in_life(enum op_kind kind)
{
    return kind != OP_SEND && kind != OP_RECV && kind != OP_WATCH && kind != OP_TIMER && kind != OP_COMPUTE;
}

static bool takes_space(enum op_kind kind)
{
    return kind == OP_WRITE || kind == OP_ALLOCATE || kind == OP_OPEN || kind == OP_MKDIR || kind == OP_LINK || kind == OP_FSYNC;
}

static void step_note(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct steps *steps = context;
    const struct message *message = seen->bytes; /* of a SEND */
    struct step *step = &steps->items[steps->count];

    if (seen->kind == OP_SEND && message->kind == MESSAGE_BEGIN)
        steps->first_of_save = steps->count;
    if (!fails_in_life(seen->kind))
        return;
    cr_assert_lt(steps->count, sizeof(steps->items) / sizeof(steps->items[0]));
    if (seen->kind == OP_RENAME && !steps->rename && strchr(seen->path + strlen(SCENE_ROOT "/"), '/') == NULL)
        steps->rename = steps->count;
    step->kind = seen->kind;
    step->number = seen->number;
    snprintf(step->path, sizeof(step->path), "%s", seen->path);
    steps->count++;
    if (seen->kind == OP_FSYNC && strcmp(seen->path, SCENE_ROOT) == 0)
        steps->durable = steps->count;
}

/* What the record must say: where, relative to the root. */
static const char *relative(const char *path)
{
    size_t root = strlen(SCENE_ROOT);

    return path[root] ? path + root + 1 : ".";
}

/* One step of a save that reports an error. late: it took effect all the same. */
struct injected { const struct step *step; size_t number; int error; bool late; char when[512]; };

static void failed_save_is_clean(const struct prepared *prepared, const struct outcome *outcome, const struct injected *injected)
{
    const struct message_failure *failure = &outcome->save.failure;
    const struct step *step = injected->step;
    const char *when = injected->when;

    cr_expect_eq(outcome->save.failed, 1, "%s: %u FAILED", when, outcome->save.failed);
    cr_expect_eq(failure->error, injected->error, "%s: the record says %s", when, strerror(failure->error));
    cr_expect_str_eq(failure->operation, op_kind_name(step->kind), "%s: the record says %s", when, failure->operation);
    cr_expect_str_eq(failure->path, relative(step->path), "%s: the record says %s", when, failure->path);
    /* A mkdir or link that was done and reported as failed is for gc. */
    if (!injected->late || (step->kind != OP_MKDIR && step->kind != OP_LINK))
        cr_expect(digest_equal(tree_at(outcome->disk, SCENE_ROOT), tree_at(prepared->disk, SCENE_ROOT)),
                  "%s: the root is not as it was", when);
}

static void unknown_save_removed_nothing(const struct prepared *prepared, const struct outcome *outcome,
                                         const struct injected *injected)
{
    const struct message_failure *failure = &outcome->save.failure;
    const char *when = injected->when;
    struct digest tree = tree_at(outcome->disk, PATH);
    bool old = digest_equal(tree, prepared->old_tree), new = digest_equal(tree, prepared->new_tree);
    char why[512] = "";

    /* Without exchange the name may be missing for a moment: whoever opens it next puts the newer one back. */
    if (prepared->before == REPLACED_WITHOUT_EXCHANGE && !old)
        new = disk_load(outcome->disk, PATH, &prepared->new, why, sizeof(why)) == 0;
    cr_expect_eq(outcome->save.unknown, 1, "%s: %u UNKNOWN", when, outcome->save.unknown);
    cr_expect_eq(failure->error, injected->error, "%s: the record says %s", when, strerror(failure->error));
    cr_expect_str_eq(failure->operation, op_kind_name(injected->step->kind), "%s: the record says %s", when, failure->operation);
    cr_expect(old || new, "%s: neither old nor new: %s", when, why);
    cr_expect_geq(names_in_root(outcome->disk), prepared->before == NEW ? 2 : 3, "%s: something was removed", when);
}

static bool may_fail_silently(const struct steps *steps, size_t number)
{
    const struct step *step = &steps->items[number];
    bool of_part = strstr(step->path, "/tspool.part-") != NULL;

    /* What the part record says, and the lock on the directory, help others and are needed by nobody. */
    return number >= steps->durable || step->kind == OP_CLOSE || (step->kind == OP_WRITE && of_part) ||
           (step->kind == OP_LOCK && !of_part);
}

static void injected_is_told(const struct prepared *prepared, const struct steps *steps, const struct outcome *outcome,
                             const struct injected *injected)
{
    bool before_save = injected->number < steps->first_of_save;

    if (!outcome->ready) {
        cr_expect(before_save, "%s: no READY", injected->when);
        cr_expect_eq(outcome->refusal.error, injected->error, "%s: READY says %d", injected->when, outcome->refusal.error);
    } else if (outcome->save.published) {
        cr_expect(before_save || may_fail_silently(steps, injected->number), "%s: published all the same", injected->when);
        cr_expect(digest_equal(tree_at(outcome->disk, PATH), prepared->new_tree), "%s: published something else", injected->when);
    } else if (outcome->save.unknown) {
        cr_expect_geq(injected->number, steps->rename, "%s: UNKNOWN before the rename", injected->when);
        unknown_save_removed_nothing(prepared, outcome, injected);
    } else {
        failed_save_is_clean(prepared, outcome, injected);
    }
}

static void one_failure(const struct prepared *prepared, const struct steps *steps, size_t number, int error, bool late)
{
    struct injected injected = { &steps->items[number], number, error, late, "" };
    struct sim_fault fault = { .on = { .process = "writer" }, .ordinal = injected.step->number, .error = error };
    struct scene_settings settings = prepared->settings;
    struct outcome outcome;

    fault.action = late ? SIM_FAIL_AFTER : SIM_FAIL;
    settings.faults = &fault;
    settings.fault_count = 1;
    snprintf(injected.when, sizeof(injected.when), "%s%s of step %zu, %s %s", late ? "late " : "", strerrorname_np(error), number,
             op_kind_name(injected.step->kind), injected.step->path);
    outcome = save_once(prepared, &settings);
    cr_expect_str_empty(outcome.violation, "%s: %s", injected.when, outcome.violation);
    cr_expect(outcome.closed, "%s: the writer hangs", injected.when);
    loads(outcome.disk, OTHER, &prepared->old, injected.when);
    injected_is_told(prepared, steps, &outcome, &injected);
    outcome_end(&outcome);
}

static void each_step_fails_once(enum before before)
{
    struct scene_settings settings;
    struct steps steps = { .count = 0 };
    struct prepared prepared;
    struct outcome outcome;

    prepare(&prepared, before, SIM_STRICT);
    settings = prepared.settings;
    settings.look = step_note;
    settings.look_context = &steps;
    outcome = save_once(&prepared, &settings);
    cr_assert(committed(&prepared, &outcome));
    outcome_end(&outcome);
    cr_assert(steps.first_of_save && steps.rename && steps.durable);
    for (size_t i = 0; i < steps.count; i++) {
        one_failure(&prepared, &steps, i, EIO, false);
        if (takes_space(steps.items[i].kind))
            one_failure(&prepared, &steps, i, ENOSPC, false);
        one_failure(&prepared, &steps, i, EIO, true);
    }
    prepared_end(&prepared);
}

Test(failures, each_operation_of_a_new_save_fails_once) { each_step_fails_once(NEW); }
Test(failures, each_operation_of_a_replacing_save_fails_once) { each_step_fails_once(REPLACED); }
Test(failures, each_operation_without_exchange_fails_once) { each_step_fails_once(REPLACED_WITHOUT_EXCHANGE); }
