/* support/sim_judge.c - what must hold, whatever strikes. Each rule has a name, by which a broken one is reported.
 *
 * What stood under each public name, one after the other, is its history: it is written down whenever a rename took effect.
 * The judge knows whose directory each is from the save id in its hidden name, and its bytes by a digest.
 */
#include "sim_disk_inside.h"
#include "sim_pair_inside.h"

#include <base/checked.h>
#include <errno.h>
#include <read/read.h>
#include <stdlib.h>
#include <string.h>

/* "Loadable" is never less than what its caller was told: after DURABLE a power cut at any moment, which may lose whatever was
 * not synced, leaves this save or a later one under the name. */
static const char ACKNOWLEDGED[] = "the loadable checkpoint is at least the one acknowledged";
/* What the real reader loads and verifies is what was staged: tensors, ties, object, metadata. */
static const char SAME_BYTES[] = "loaded bytes equal staged bytes";
/* One that was not acknowledged is wholly there or not at all; what it replaces stands until then. */
static const char OLD_OR_NEW[] = "what is not acknowledged is wholly old or wholly new";
/* PUBLISHED is said of what stands under its name, FAILED of what does not. */
static const char SAID_IS_SO[] = "what was told is so";
/* STAGED, then the trainer dies: the save commits; without it nothing is left of it. */
static const char ORPHAN[] = "after STAGED and the trainer's death it commits or leaves nothing";
/* A save's outcome is told once and for all, levels only rise, and while the trainer lives every save gets one. */
static const char ONCE[] = "each save resolves exactly once";
/* Two saves of one name, and the one that was staged later is acknowledged: the other one never replaces it. */
static const char ORDER[] = "of two saves of one name the one that was staged later stays";
static const char IMMUTABLE[] = "no byte of a published file ever changes";
/* The slot is overwritten at once; a write in flight that still counts would be spoilt. */
static const char ARENA[] = "no arena chunk is reused while a write that will count is in flight";
/* Writers die, hang, get SIGTERM, and nothing else strikes: a state that fits the arena is published by a later attempt. */
static const char REPLAYED[] = "what is still in the arena survives its writers";
static const char ALL_WELL[] = "with faults off everything commits and nothing stray is left";
static const char OTHERS[] = "what is not ours is neither touched nor lost";
static const char NO_LEAK[] = "no handle leaks";

#define ABSENT (-1)
static const uint8_t garbage = 0xdd;

/* History ------------------------------------------------------------------------------------------------------------ */

/* What is ours of a checkpoint: files that others put into it may come later. */
static struct digest tree_of(const struct sim_disk *disk, uint32_t directory)
{
    const struct sim_entries *names = &disk->inodes[directory].names_now;
    struct hash_stream *stream = hash_stream_create();
    struct digest digest;

    if (!stream)
        abort();
    hash_stream_reset(stream);
    for (size_t i = 0; i < names->count; i++) {
        if (strcmp(names->items[i].name, STORY_FOREIGN) == 0)
            continue;
        digest = sim_disk_fingerprint(disk, names->items[i].inode);
        hash_stream_update(stream, names->items[i].name, strlen(names->items[i].name) + 1);
        hash_stream_update(stream, &digest, sizeof(digest));
    }
    digest = hash_stream_digest(stream);
    hash_stream_destroy(stream);
    return digest;
}

static struct digest tree_at(const struct sim_disk *disk, unsigned name, uint32_t *inode)
{
    struct digest none = { { 0 } };
    uint32_t root;

    *inode = 0;
    if (sim_disk_find(disk, SIM_ROOT, &PAIR_ROOT[1], &root) || sim_disk_find(disk, root, story_names[name], inode)) {
        *inode = 0;
        return none;
    }
    return tree_of(disk, *inode);
}

static int save_of(const struct sim_pair *pair, const char *path)
{
    const char *hidden = strrchr(path, '/');
    char name[CHECKPOINT_NAME_MAX + 1];
    uint8_t save_id[16];

    if (!hidden || !hidden_name_parse(hidden + 1, name, save_id))
        return ABSENT;
    for (unsigned i = 0; i < pair->story.save_count; i++)
        if (memcmp(save_id, pair->saves[i].save_id, sizeof(save_id)) == 0)
            return (int)i;
    return ABSENT;
}

/* One that is put back is whose it was. */
static int owner_of(const struct sim_pair *pair, const struct pair_name *name, uint32_t inode, const char *from)
{
    for (unsigned i = 0; i < name->count; i++)
        if (inode && name->history[i].inode == inode)
            return name->history[i].save;
    return inode ? save_of(pair, from) : ABSENT;
}

static struct pair_standing *standing(struct pair_name *name) { return &name->history[name->count - 1]; }

static void standing_check(struct sim_pair *pair, unsigned number)
{
    const struct pair_standing *last = standing(&pair->names[number]);
    struct digest tree;

    if (!last->inode)
        return;
    tree = tree_of(sim_world_disk(pair->world), last->inode);
    if (!digest_equal(tree, last->tree))
        pair_broken(pair, IMMUTABLE, "%s changed while it stood there", story_names[number]);
}

/* One that is put back was there before; one whose
 * trainer did not live to see it STAGED was so after those that it did. */
static void order_check(struct sim_pair *pair, const struct pair_name *name)
{
    const struct pair_standing *now = &name->history[name->count];

    for (unsigned i = 0; i < name->count && now->save != ABSENT && pair->saves[now->save].turn; i++) {
        const struct pair_standing *before = &name->history[i];

        if (before->inode == now->inode)
            return;
        if (before->save != ABSENT && pair->saves[before->save].acknowledged
            && pair->saves[now->save].turn < pair->saves[before->save].turn)
            pair_broken(pair, ORDER, "save %d replaces save %d", now->save, before->save);
    }
}

static void history_note(struct sim_pair *pair, unsigned number, const char *from)
{
    struct pair_name *name = &pair->names[number];
    uint32_t inode;
    struct digest tree = tree_at(sim_world_disk(pair->world), number, &inode);

    if (standing(name)->inode == inode)
        return;
    if (name->count == PAIR_HISTORY_MAX)
        abort();
    name->history[name->count] = (struct pair_standing){ inode, owner_of(pair, name, inode, from), tree };
    order_check(pair, name);
    name->count++;
}

void judge_begin(struct sim_pair *pair)
{
    for (unsigned i = 0; i < STORY_NAMES; i++) {
        struct pair_standing *first = &pair->names[i].history[0];

        first->tree = tree_at(sim_world_disk(pair->world), i, &first->inode);
        first->save = ABSENT;
        pair->names[i].count = 1;
    }
}

void judge_look(struct sim_pair *pair, const struct sim_seen *seen)
{
    pair->writer_ops_seen += seen->io != pair->trainer;
    if (seen->kind != OP_RENAME)
        return;
    for (unsigned i = 0; i < STORY_NAMES; i++)
        history_note(pair, i, seen->path);
}

/* Slots -------------------------------------------------------------------------------------------------------------- */

void judge_released(struct sim_pair *pair, uint32_t slot)
{
    const uint8_t *bytes = arena_slot(pair->arena, slot);
    const struct sim_world *world = pair->world;

    for (const struct sim_event *event = world->events; event && !pair->trainer_dead; event = event->next) {
        const uint8_t *from = event->op && !event->io->doomed && event->request.kind == OP_WRITE ? verb_memory(event) : NULL;

        if (from && from >= bytes && from < bytes + ARENA_SLOT_BYTES)
            pair_broken(pair, ARENA, "slot %u is given back while %s #%llu writes from it", slot, event->io->name,
                        (unsigned long long)event->number);
    }
    memset(arena_slot(pair->arena, slot), garbage, 64 << 10); /* more than any chunk here */
}

/* What callers are told ----------------------------------------------------------------------------------------------- */

static bool has_stood(const struct sim_pair *pair, unsigned number, unsigned *place)
{
    const struct pair_name *name = &pair->names[pair->saves[number].story->name];

    for (unsigned i = 0; i < name->count; i++)
        if (name->history[i].save == (int)number) {
            *place = i;
            return true;
        }
    return false;
}

/* The worst power cut, and one by chance: under the name is what was acknowledged, or what came later. */
static void cut_check(struct sim_pair *pair, unsigned number, bool by_chance)
{
    const struct sim_disk *disk = sim_world_disk(pair->world);
    const struct pair_name *name = &pair->names[number];
    size_t count = sim_disk_pending(disk);
    bool *kept = calloc(count + 1, sizeof(bool)), found = false;
    struct sim_disk *left;
    struct digest tree;
    uint32_t inode;

    if (!kept)
        abort();
    for (size_t i = 0; i < count && by_chance; i++)
        kept[i] = sim_random_below(&pair->random, 2);
    sim_disk_complete(disk, kept);
    left = sim_disk_power_cut(disk, kept);
    tree = tree_at(left, number, &inode);
    for (unsigned i = name->floor; i < name->count; i++)
        found |= inode ? digest_equal(tree, name->history[i].tree) : !name->history[i].inode;
    if (!found)
        pair_broken(pair, ACKNOWLEDGED, "a power cut now leaves %s under %s", inode ? "something else" : "nothing",
                    story_names[number]);
    sim_disk_destroy(left);
    free(kept);
}

static void acknowledged(struct sim_pair *pair, unsigned number)
{
    struct pair_name *name = &pair->names[pair->saves[number].story->name];
    unsigned place = 0;

    pair->saves[number].acknowledged = true;
    pair->report.acknowledged++;
    if (!has_stood(pair, number, &place)) {
        pair_broken(pair, SAID_IS_SO, "save %u was called durable and never stood under its name", number);
        return;
    }
    name->floor = max_u64(name->floor, place);
    cut_check(pair, pair->saves[number].story->name, false);
    cut_check(pair, pair->saves[number].story->name, true);
}

static void resolved(struct sim_pair *pair, unsigned number, const struct tspool_save_result *result)
{
    struct pair_save *save = &pair->saves[number];
    unsigned place;

    if (save->resolved) {
        if (save->outcome != result->outcome)
            pair_broken(pair, ONCE, "save %u ended as %d and then as %d", number, save->outcome, result->outcome);
        return;
    }
    save->resolved = true;
    save->outcome = result->outcome;
    save->attempts = result->attempts;
    if (result->outcome == TSPOOL_OUTCOME_FAILED) {
        save->error = result->failure.error;
        snprintf(save->message, sizeof(save->message), "%.199s", result->failure.message);
        if (has_stood(pair, number, &place) && place == pair->names[save->story->name].count - 1)
            pair_broken(pair, SAID_IS_SO, "save %u was called failed, and stands under its name (%s)", number, save->message);
        if (!save->error)
            pair_broken(pair, SAID_IS_SO, "save %u failed without a reason", number);
    }
}

static void save_look_at(struct sim_pair *pair, unsigned number)
{
    struct pair_save *save = &pair->saves[number];
    const struct tspool_save_result *result = &save->handle->result;

    if (result->level < save->level)
        pair_broken(pair, ONCE, "save %u fell from level %u to %u", number, save->level, result->level);
    save->level = result->level;
    save->replayable = save->handle->replayable;
    if (!save->turn && result->level >= TSPOOL_STAGED)
        save->turn = ++pair->turns;
    if (!save->acknowledged && (result->level >= TSPOOL_DURABLE || result->outcome == TSPOOL_OUTCOME_PUBLISHED))
        acknowledged(pair, number);
    if (result->outcome != TSPOOL_OUTCOME_PENDING)
        resolved(pair, number, result);
}

void judge_saves(struct sim_pair *pair)
{
    for (unsigned i = 0; i < pair->story.save_count && !pair->trainer_dead; i++)
        if (pair->saves[i].handle)
            save_look_at(pair, i);
}

void judge_describe(const struct sim_pair *pair, FILE *out)
{
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        const struct tspool_save *save = pair->saves[i].handle;

        if (!save || !pair->saves[i].submitted || !pair->spool) {
            fprintf(out, " | save %u: %s", i, save ? "not submitted" : "no handle");
            continue;
        }
        fprintf(out, " | save %u: state %d, level %u, %s, %u copying, %u taken, %u staged, %u sent, slots", i, save->state,
                save->result.level, save->in_line ? "in line" : "not in line", save->copying, save->taken, save->staged_count,
                save->staged_sent);
        for (uint32_t chunk = 0; chunk < save_plan(save)->chunk_count; chunk++)
            fprintf(out, " %d", (int)save->slots[chunk]);
    }
}

void judge_death(struct sim_pair *pair)
{
    for (unsigned i = 0; i < pair->story.save_count; i++)
        pair->saves[i].staged_at_death = pair->saves[i].handle && !pair->saves[i].resolved
                                         && pair->saves[i].level >= TSPOOL_STAGED
                                         && !(pair->closing && pair->story.close_aborts);
}

/* Closing ------------------------------------------------------------------------------------------------------------ */

/* All have ended and no span is out: every slot is free again. */
void judge_slots(struct sim_pair *pair)
{
    uint32_t slots[STORY_SLOTS_MAX], count = 0, all = arena_slot_count(pair->arena);

    for (unsigned i = 0; i < pair->story.save_count; i++)
        if (pair->trainer_dead || (pair->saves[i].submitted && !pair->saves[i].resolved))
            return;
    while (count < all && arena_acquire(pair->arena, 0, NULL, &slots[count], NULL) == 0)
        count++;
    if (count < all)
        pair_broken(pair, NO_LEAK, "%u slots of the arena were never given back", all - count);
    for (uint32_t i = 0; i < count; i++)
        arena_release(pair->arena, slots[i]);
}

/* The roster is gone: what it counted is in the report, and the handles still tell their outcomes. */
void judge_close(struct sim_pair *pair, const struct tspool_close_report *report, int result)
{
    unsigned open = 0;

    judge_saves(pair);
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        struct pair_save *save = &pair->saves[i];

        open += save->submitted && !save->resolved;
        save->cut_short = save->submitted && (!save->resolved || save->error == ECANCELED);
    }
    if (!pair->trainer_dead && result == 0 && open)
        pair_broken(pair, ONCE, "close says that all ended, and %u did not", open);
}

void judge_exit(struct sim_pair *pair)
{
    if (sim_handles(pair->trainer) != pair->trainer_handles)
        pair_broken(pair, NO_LEAK, "the trainer ends with %u handles, it began with %u", sim_handles(pair->trainer),
                    pair->trainer_handles);
}

/* The end ------------------------------------------------------------------------------------------------------------ */

/* What the real reader says about what is there. */
static int load(struct sim_pair *pair, struct io *reader, unsigned number, int save, char *why, size_t why_size)
{
    char path[64];

    pair->report.loads++;
    snprintf(path, sizeof(path), PAIR_ROOT "/%s", story_names[number]);
    return sim_state_check(save == ABSENT ? pair->old : pair->saves[save].state, reader, path, why, why_size);
}

/* The latest of what may stand there that the reader finds. Where exchange is refused a crash may leave nothing under the name;
 * the reader puts back what belongs there. */
static void name_check(struct sim_pair *pair, struct io *reader, const struct sim_disk *disk, unsigned number, bool cut)
{
    const struct pair_name *name = &pair->names[number];
    unsigned first = cut || !name->history[name->count - 1].inode ? name->floor : name->count - 1;
    unsigned place;
    uint32_t inode;
    struct digest tree = tree_at(disk, number, &inode);
    char why[512] = "";

    for (unsigned i = name->count; i-- > first;) {
        const struct pair_standing *there = &name->history[i];

        if (there->inode && inode && digest_equal(tree, there->tree)) {
            if (load(pair, reader, number, there->save, why, sizeof(why)))
                pair_broken(pair, SAME_BYTES, "%s: %s", story_names[number], why);
            return;
        }
        if (!there->inode && !inode && !pair->story.world.disk.exchange_refused)
            return;
    }
    for (unsigned i = name->count; i-- > first;)
        if (name->history[i].inode && load(pair, reader, number, name->history[i].save, why, sizeof(why)) == 0)
            return;
    for (unsigned i = 0; i < pair->story.save_count && (cut || !inode); i++) /* its rename was in flight, or the reader's */
        if (pair->saves[i].story->name == number && !has_stood(pair, i, &place)
            && load(pair, reader, number, (int)i, why, sizeof(why)) == 0)
            return;
    if (!inode && !name->floor && !name->history[0].inode)
        return;
    pair_broken(pair, name->floor ? ACKNOWLEDGED : OLD_OR_NEW, "%s: %s (%s)", story_names[number],
                inode ? "what is there is none of what may be" : "nothing is there", why);
}

static struct sim_disk *disk_after_cut(struct sim_pair *pair)
{
    static const unsigned per_16[] = { 0, 16, 8, 1, 15 };
    struct sim_disk *disk = sim_world_disk_in_flight(pair->world), *left;
    unsigned density = per_16[sim_random_below(&pair->random, 5)];
    size_t count = sim_disk_pending(disk);
    bool *kept = calloc(count + 1, sizeof(bool));

    if (!kept)
        abort();
    for (size_t i = 0; i < count; i++)
        kept[i] = sim_random_below(&pair->random, 16) < density;
    sim_disk_complete(disk, kept);
    left = sim_disk_power_cut(disk, kept);
    sim_disk_destroy(disk);
    free(kept);
    return left;
}

/* Ops in flight when the power was cut may have begun: a rename among them may be what is found. */
static void disk_check(struct sim_pair *pair)
{
    struct sim_settings settings = pair->story.world;
    struct sim_disk *disk = pair->report.power_cut ? disk_after_cut(pair) : sim_disk_clone(sim_world_disk(pair->world));
    struct sim_world *world;
    struct io *reader;

    settings.short_reads_per_mille = pair->story.seed % 4 == 0 ? 300 : 0;
    settings.trace = false;
    world = sim_world_create(&settings, disk);
    reader = sim_io_create(world, "reader", 8);
    for (unsigned i = 0; i < STORY_NAMES && !pair_is_broken(pair); i++)
        name_check(pair, reader, disk, i, pair->report.power_cut);
    if (sim_handles(reader))
        pair_broken(pair, NO_LEAK, "the reader leaves %u handles open", sim_handles(reader));
    if (sim_world_violation(world))
        pair_broken(pair, "the reader keeps the world's rules", "%s", sim_world_violation(world));
    io_destroy(reader);
    sim_world_destroy(world);
}

static void stray_check(struct sim_pair *pair, const char *rule)
{
    const struct sim_disk *disk = sim_world_disk(pair->world);
    struct io_list list = { NULL, 0 };
    uint32_t root;

    if (sim_disk_find(disk, SIM_ROOT, &PAIR_ROOT[1], &root) || sim_disk_list(disk, root, &list))
        abort();
    for (size_t i = 0; i < list.count; i++)
        if (list.names[i][0] == '.')
            pair_broken(pair, rule, "%s is left in the root", list.names[i]);
    io_list_free(&list);
}

#define KIND(kind) (1u << (kind))
#define HARMLESS KIND(STORY_SHORT)
#define DEATHS (KIND(STORY_WRITER_KILLED) | KIND(STORY_WRITER_HANGS) | KIND(STORY_WRITER_TERMED))
#define DEATHS_MAX 4u /* after five in a row saves fail */

static void foreign_check(struct sim_pair *pair)
{
    uint32_t inode;

    if (sim_disk_walk(sim_world_disk(pair->world), SIM_ROOT, PAIR_ROOT "/step-1/" STORY_FOREIGN, &inode))
        pair_broken(pair, OTHERS, STORY_FOREIGN " was lost when its checkpoint was replaced");
}

/* Nothing struck, nobody aborted: a save that did not commit is wrong. */
static void all_well_check(struct sim_pair *pair)
{
    if (pair->report.power_cut || story_has_other_than(&pair->story, HARMLESS))
        return;
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        const struct pair_save *save = &pair->saves[i];
        unsigned place;

        if (!save->aborted && !save->story->refused && !save->cut_short && !has_stood(pair, i, &place))
            pair_broken(pair, ALL_WELL, "save %u did not commit: %s", i, save->message);
    }
    stray_check(pair, ALL_WELL);
    foreign_check(pair);
}

/* One that waits for another attempt yields to a later one of its name, which would replace it at once. */
static bool has_yielded(const struct sim_pair *pair, const struct pair_save *save)
{
    for (unsigned i = 0; i < pair->story.save_count; i++)
        if (&pair->saves[i] != save && pair->saves[i].submitted && pair->saves[i].story->name == save->story->name)
            return save->outcome == TSPOOL_OUTCOME_FAILED && strstr(save->message, "a later save of the same name");
    return false;
}

/* Four deaths in a row are survived; a hang takes a heartbeat, which a deadline may not leave. */
static bool must_survive(const struct sim_pair *pair, const struct pair_save *save)
{
    if (!save->submitted || !save->replayable || save->aborted || save->story->refused || save->cut_short)
        return false;
    return !save->story->deadline_ns || !story_has(&pair->story, STORY_WRITER_HANGS);
}

static void replays_check(struct sim_pair *pair)
{
    unsigned deaths = 0; /* as many as were planted: one that the machines bring about themselves counts against them */

    for (unsigned i = 0; i < pair->story.fault_count; i++)
        deaths += (KIND(pair->story.faults[i].kind) & DEATHS) && story_strikes(&pair->story, i);
    if (pair->report.power_cut || pair->report.trainer_died || deaths > DEATHS_MAX
        || story_has_other_than(&pair->story, HARMLESS | DEATHS))
        return;
    for (unsigned i = 0; i < pair->story.save_count; i++)
        if (must_survive(pair, &pair->saves[i]) && !has_yielded(pair, &pair->saves[i])
            && pair->saves[i].outcome != TSPOOL_OUTCOME_PUBLISHED)
            pair_broken(pair, REPLAYED, "save %u ended as %d: %s", i, pair->saves[i].outcome, pair->saves[i].message);
    foreign_check(pair);
}

/* The trainer died of nothing but SIGKILL. */
static void orphans_check(struct sim_pair *pair)
{
    if (!pair->report.trainer_died || pair->report.power_cut
        || story_has_other_than(&pair->story, HARMLESS | KIND(STORY_TRAINER_KILLED)))
        return;
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        unsigned place;

        if (pair->saves[i].staged_at_death && !pair->saves[i].story->refused && !pair->saves[i].aborted
            && !has_stood(pair, i, &place))
            pair_broken(pair, ORPHAN, "save %u was staged and did not commit", i);
    }
    stray_check(pair, ORPHAN);
}

/* Whatever struck: a file of others is in some checkpoint still, or in what was one. */
static void foreign_search(struct sim_pair *pair)
{
    const struct sim_disk *disk = sim_world_disk(pair->world);
    const struct sim_entries *names;
    uint32_t root, file;

    if (sim_disk_find(disk, SIM_ROOT, &PAIR_ROOT[1], &root))
        abort();
    names = &disk->inodes[root].names_now;
    for (size_t i = 0; i < names->count; i++)
        if (sim_disk_find(disk, names->items[i].inode, STORY_FOREIGN, &file) == 0)
            return;
    pair_broken(pair, OTHERS, STORY_FOREIGN " is gone");
}

static void resolutions_check(struct sim_pair *pair)
{
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        const struct pair_save *save = &pair->saves[i];

        pair->report.saves++;
        pair->report.published += save->outcome == TSPOOL_OUTCOME_PUBLISHED;
        pair->report.failed += save->outcome == TSPOOL_OUTCOME_FAILED;
        pair->report.unknown += save->outcome == TSPOOL_OUTCOME_UNKNOWN;
        pair->report.unsubmitted += !save->submitted;
        pair->report.replayed += save->outcome == TSPOOL_OUTCOME_PUBLISHED && save->attempts > 1;
        if (pair->trainer_over && save->submitted && !save->resolved && !save->cut_short)
            pair_broken(pair, ONCE, "save %u never ended", i);
    }
}

void judge_end(struct sim_pair *pair)
{
    for (unsigned i = 0; i < STORY_NAMES; i++)
        standing_check(pair, i);
    if (pair->names[STORY_OTHER].count > 1)
        pair_broken(pair, OTHERS, "%s was moved", story_names[STORY_OTHER]);
    disk_check(pair);
    resolutions_check(pair);
    if (!pair->report.power_cut)
        foreign_search(pair);
    all_well_check(pair);
    replays_check(pair);
    orphans_check(pair);
}
