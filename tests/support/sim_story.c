/* support/sim_story.c - see sim_story.h. */
#include "sim_story.h"

#include "sim_world.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define MS ((uint64_t)1000000)
#define S (1000 * MS)

const char *const story_names[STORY_NAMES] = { "step-1", "step-0", "step-2", "step-3" };

static const struct struck { enum op_kind kind; unsigned per_save; int errors[4]; } struck[] = {
    { OP_WRITE, 14, { EIO, ENOSPC, EDQUOT, EIO } },  { OP_FSYNC, 9, { EIO, ENOSPC, EDQUOT, EIO } },
    { OP_RENAME, 8, { EIO, ENOSPC, EDQUOT, EROFS } }, { OP_OPEN, 10, { EIO, EMFILE, ENOSPC, EDQUOT } },
    { OP_ALLOCATE, 3, { ENOSPC, EDQUOT, EIO, EFBIG } }, { OP_TRUNCATE, 3, { EIO, EIO, EROFS, EPERM } },
    { OP_MKDIR, 1, { ENOSPC, EDQUOT, EIO, EROFS } },  { OP_UNLINK, 8, { EIO, EROFS, EBUSY, EACCES } },
    { OP_LINK, 1, { EIO, EMLINK, ENOSPC, EXDEV } },   { OP_LIST, 2, { EIO, ENOMEM, EIO, EACCES } },
    { OP_STAT, 3, { EIO, EIO, ENOMEM, EACCES } },     { OP_READ, 1, { EIO, EIO, ENOMEM, EIO } },
    { OP_LOCK, 1, { EWOULDBLOCK, ENOLCK, EIO, EWOULDBLOCK } }, { OP_CLOSE, 9, { EIO, ENOSPC, EDQUOT, EIO } },
};
#define STRUCK (sizeof(struck) / sizeof(struck[0]))
#define SAVE_OPS 110u      /* of a writer, for one save; roughly */
#define TRAINER_OPS 45u

static uint64_t draw(struct sim_random *random, uint64_t bound) { return sim_random_below(random, bound); }
static bool one_in(struct sim_random *random, uint64_t bound) { return draw(random, bound) == 0; }

/* What the trainer does ----------------------------------------------------------------------------------------------- */

/* By what stands there, or by another save, before or after it. */
static bool name_is_taken(const struct story *story, unsigned number)
{
    for (unsigned i = 0; i < story->save_count; i++)
        if (i != number && story->saves[i].name == story->saves[number].name)
            return true;
    return story->saves[number].name == STORY_OLD;
}

static void save_draw(struct story *story, struct sim_random *random)
{
    static const unsigned names[] = { STORY_OLD, STORY_OLD, 2, 3 };
    struct story_save *save = &story->saves[story->save_count];

    *save = (struct story_save){ .thread = (unsigned)draw(random, story->thread_count), .name = names[draw(random, 4)] };
    save->replace = one_in(random, 3);
    save->refused = save->name == STORY_OLD && one_in(random, 40);
    save->staging = (enum tspool_staging)draw(random, 3);
    save->pause_ns = draw(random, one_in(random, 3) ? 20 * MS : 2 * MS);
    save->deadline_ns = one_in(random, 3) ? 5 * S : 0;
    save->waits_for = (enum tspool_level)draw(random, TSPOOL_PUBLISHED + 1);
    save->wait_ns = one_in(random, 3) ? draw(random, 10 * MS) : 60 * S;
    save->aborts = one_in(random, 16);
    save->abort_ns = draw(random, 30 * MS);
    story->save_count++;
}

static void trainer_draw(struct story *story, struct sim_random *random)
{
    unsigned saves = 1 + (unsigned)draw(random, STORY_SAVES_MAX);

    story->slots = one_in(random, 2) ? 2 : 4;
    story->shard_bytes = one_in(random, 2) ? 6144 : 4000;
    story->depth = 1 + (uint32_t)draw(random, 6);
    story->staging_threads = 1 + (uint32_t)draw(random, 2);
    story->hash_threads = 1 + (uint32_t)draw(random, 3);
    story->buffered = one_in(random, 8);
    story->cpus_are_few = one_in(random, 4);
    story->thread_count = 1 + (unsigned)draw(random, 2);
    while (story->save_count < saves)
        save_draw(story, random);
    for (unsigned i = 0; i < saves; i++)
        story->saves[i].replace = !story->saves[i].refused && (story->saves[i].replace || name_is_taken(story, i));
    story->close_ns = one_in(random, 4) ? draw(random, 40 * MS) : 120 * S;
    story->close_aborts = one_in(random, 6);
}

static void world_draw(struct story *story, struct sim_random *random)
{
    struct sim_settings *world = &story->world;

    *world = (struct sim_settings){ .seed = story->seed, .memory_align = 512 };
    world->offset_align = one_in(random, 8) ? 0 : one_in(random, 3) ? 4096 : 512;
    world->allocate_unsupported = one_in(random, 10);
    world->duration_ns = one_in(random, 4) ? 50000 : MS;
    world->channel_messages = one_in(random, 6) ? 1 + (unsigned)draw(random, 4) : 0;
    world->disk.ordering = one_in(random, 2) ? SIM_STRICT : SIM_JOURNAL;
    world->disk.exchange_refused = one_in(random, 6);
}

/* What strikes ------------------------------------------------------------------------------------------------------- */

static void op_fault_draw(struct story_fault *fault, unsigned saves, struct sim_random *random)
{
    const struct struck *what = &struck[one_in(random, 2) ? draw(random, 3) : draw(random, STRUCK)];
    struct sim_fault *op = &fault->fault;

    fault->process = one_in(random, 8) ? "trainer" : "writer";
    *op = (struct sim_fault){ .on = { .process = fault->process, .kind = what->kind }, .action = SIM_FAIL };
    op->ordinal = 1 + draw(random, what->per_save * (strcmp(fault->process, "writer") == 0 ? saves : 1));
    op->error = what->errors[draw(random, 4)];
    if (one_in(random, 6)) {
        op->action = SIM_DELAY;
        op->delay_ns = draw(random, 500 * MS);
    } else if (what->kind == OP_WRITE && one_in(random, 3)) {
        op->action = SIM_SHORT;
        op->bytes = 512 * draw(random, 4);
    } else if (one_in(random, 3)) {
        op->action = SIM_FAIL_AFTER;
        op->error = what->kind == OP_RENAME ? EIO : op->error; /* no kernel refuses with a reason what it has done */
    }
}

static void delay_draw(struct story_fault *fault, unsigned saves, struct sim_random *random)
{
    fault->process = one_in(random, 2) ? "trainer" : "writer";
    fault->fault = (struct sim_fault){ .on = { .process = fault->process, .kind = one_in(random, 2) ? OP_SEND : OP_RECV },
                                       .ordinal = 1 + draw(random, 12 * saves), .action = SIM_DELAY,
                                       .delay_ns = draw(random, 200 * MS) };
}

static void fault_draw(struct story *story, struct sim_random *random)
{
    static const enum story_fault_kind kinds[] = {
        STORY_OP, STORY_OP, STORY_OP, STORY_OP, STORY_OP, STORY_WRITER_KILLED, STORY_WRITER_KILLED, STORY_WRITER_KILLED,
        STORY_WRITER_HANGS, STORY_WRITER_TERMED, STORY_WRITER_STUCK, STORY_START_REFUSED, STORY_TRAINER_KILLED,
        STORY_TRAINER_KILLED, STORY_POWER_CUT, STORY_POWER_CUT, STORY_POWER_CUT, STORY_SHORT, STORY_DISK_FULL,
    };
    struct story_fault *fault = &story->faults[story->fault_count++];
    unsigned saves = story->save_count;

    *fault = (struct story_fault){ .kind = kinds[draw(random, sizeof(kinds) / sizeof(kinds[0]))], .process = "writer" };
    fault->ordinal = 1 + draw(random, SAVE_OPS * saves);
    fault->bytes = draw(random, 64 << 10);
    if (fault->kind == STORY_OP && one_in(random, 8))
        delay_draw(fault, saves, random);
    else if (fault->kind == STORY_OP)
        op_fault_draw(fault, saves, random);
    if (fault->kind == STORY_START_REFUSED)
        fault->ordinal = 1 + draw(random, 3);
    if (fault->kind == STORY_TRAINER_KILLED || (fault->kind == STORY_POWER_CUT && one_in(random, 4))) {
        fault->process = "trainer";
        fault->ordinal = 1 + draw(random, TRAINER_OPS * saves);
    }
}

void story_make(struct story *story, uint64_t seed)
{
    struct sim_random random = { sim_mix(seed ^ 0x73746f7279u) };
    static const unsigned counts[] = { 0, 1, 1, 1, 2, 2, 3, STORY_FAULTS_MAX };
    unsigned faults;

    memset(story, 0, sizeof(*story));
    story->seed = seed;
    trainer_draw(story, &random);
    world_draw(story, &random);
    faults = counts[draw(&random, 8)];
    while (story->fault_count < faults)
        fault_draw(story, &random);
}

bool story_strikes(const struct story *story, unsigned fault) { return !(story->left_out >> fault & 1); }

bool story_has(const struct story *story, enum story_fault_kind kind)
{
    for (unsigned i = 0; i < story->fault_count; i++)
        if (story->faults[i].kind == kind && story_strikes(story, i))
            return true;
    return false;
}

bool story_has_other_than(const struct story *story, uint32_t kinds)
{
    for (unsigned i = 0; i < story->fault_count; i++)
        if (!(kinds >> story->faults[i].kind & 1) && story_strikes(story, i))
            return true;
    return false;
}

/* Telling ------------------------------------------------------------------------------------------------------------ */

static void op_fault_print(const struct sim_fault *op, FILE *out)
{
    fprintf(out, "%s #%" PRIu64 " of the %s ", op_kind_name(op->on.kind), op->ordinal, op->on.process);
    if (op->action == SIM_DELAY)
        fprintf(out, "takes %" PRIu64 " ms longer", op->delay_ns / MS);
    else if (op->action == SIM_SHORT)
        fprintf(out, "moves only %zu bytes", op->bytes);
    else
        fprintf(out, "%s %s", op->action == SIM_FAIL ? "fails with" : "is done, and reports", strerrorname_np(op->error));
}

static void fault_print(const struct story_fault *fault, FILE *out)
{
    static const char *const what[] = {
        [STORY_WRITER_KILLED] = "SIGKILL", [STORY_WRITER_HANGS] = "it hangs", [STORY_WRITER_TERMED] = "SIGTERM",
        [STORY_WRITER_STUCK] = "the next one is stuck", [STORY_TRAINER_KILLED] = "SIGKILL",
        [STORY_POWER_CUT] = "the power is cut",
    };

    if (fault->kind == STORY_OP)
        op_fault_print(&fault->fault, out);
    else if (fault->kind == STORY_SHORT)
        fprintf(out, "short writes and reads");
    else if (fault->kind == STORY_DISK_FULL)
        fprintf(out, "only %" PRIu64 " bytes are free", fault->bytes);
    else if (fault->kind == STORY_START_REFUSED)
        fprintf(out, "start #%" PRIu64 " of a writer is refused", fault->ordinal);
    else
        fprintf(out, "after op #%" PRIu64 " of the %s: %s", fault->ordinal, fault->process, what[fault->kind]);
}

static void save_print(const struct story_save *save, unsigned number, FILE *out)
{
    static const char *const stagings[] = { "now", "background", "caller" };

    fprintf(out, "  save %u: thread %u, %s%s, staged by %s, after %" PRIu64 " us", number, save->thread, story_names[save->name],
            save->replace ? " (replace)" : "", stagings[save->staging], save->pause_ns / 1000);
    if (save->aborts)
        fprintf(out, ", aborted after %" PRIu64 " us", save->abort_ns / 1000);
    fprintf(out, ", waits for level %d\n", save->waits_for);
}

void story_print(const struct story *story, FILE *out)
{
    fprintf(out, "seed %" PRIu64 ": arena of %u slots, depth %u, %s, %s%s\n", story->seed, story->slots, story->depth,
            story->world.disk.ordering == SIM_STRICT ? "any effect may be lost" : "directories have a journal",
            story->buffered || !story->world.offset_align ? "buffered" : "direct",
            story->world.disk.exchange_refused ? ", no exchange" : "");
    for (unsigned i = 0; i < story->save_count; i++)
        save_print(&story->saves[i], i, out);
    fprintf(out, "  close after %" PRIu64 " ms%s\n", story->close_ns / MS, story->close_aborts ? ", then abort" : "");
    for (unsigned i = 0; i < story->fault_count; i++) {
        if (!story_strikes(story, i))
            continue;
        fprintf(out, "  fault %u: ", i);
        fault_print(&story->faults[i], out);
        fprintf(out, "\n");
    }
}
