/* support/crash_watch.c - see crash_watch.h. */
#include "crash_watch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wire/message.h>

struct digest tree_at(const struct sim_disk *disk, const char *path)
{
    struct digest none = { { 0 } };
    uint32_t inode;

    return sim_disk_walk(disk, SIM_ROOT, path, &inode) ? none : sim_disk_fingerprint(disk, inode);
}

int disk_load(const struct sim_disk *disk, const char *path, const struct sim_state *state, char *why, size_t why_size)
{
    struct sim_settings settings = { .memory_align = 512, .offset_align = 512 };
    struct sim_world *world = sim_world_create(&settings, sim_disk_clone(disk));
    struct io *io = sim_io_create(world, "reader", 32);
    int error = sim_state_check(state, io, path, why, why_size);

    if (sim_world_violation(world)) {
        snprintf(why, why_size, "the reader broke a rule: %s", sim_world_violation(world));
        error = -EPROTO;
    }
    io_destroy(io);
    sim_world_destroy(world);
    return error;
}

void crash_watch_init(struct crash_watch *watch, const char *name, const struct sim_state *old, struct digest old_tree,
                      const struct sim_state *new, struct digest new_tree)
{
    *watch = (struct crash_watch){ .name = name, .old = old, .old_tree = old_tree, .new = new, .new_tree = new_tree };
    watch->cuts = (struct power_cuts){ .exhaustive = 12, .samples = 200, .seed = 1 };
    if (!(watch->known = calloc(CRASH_KNOWN_MAX, sizeof(*watch->known))))
        abort();
}

void crash_watch_deinit(struct crash_watch *watch) { free(watch->known); }

/* Judging ----------------------------------------------------------------------------------------------------------- */

static void path_of(const struct crash_watch *watch, char *path, size_t size)
{
    snprintf(path, size, SCENE_ROOT "/%s", watch->name);
}

static bool foreign_is_lost(const struct crash_watch *watch, const struct sim_disk *disk)
{
    char path[600];

    if (!watch->foreign)
        return false;
    snprintf(path, sizeof(path), SCENE_ROOT "/%s/%s", watch->name, watch->foreign);
    return !digest_equal(tree_at(disk, path), watch->foreign_tree);
}

/* The reader's word on a tree that is neither of the known two. */
static void known_judge(struct crash_watch *watch, const struct sim_disk *disk, struct crash_known *known)
{
    char path[300];
    int as_new, as_old = -ENOENT;

    path_of(watch, path, sizeof(path));
    as_new = disk_load(disk, path, watch->new, known->why, sizeof(known->why));
    if (as_new && watch->old)
        as_old = disk_load(disk, path, watch->old, known->why, sizeof(known->why));
    if (!watch->repairs && foreign_is_lost(watch, disk)) {
        snprintf(known->why, sizeof(known->why), "%s, which is not ours, is lost", watch->foreign);
        return;
    }
    known->is_new = as_new == 0;
    known->is_old = as_old == 0;
    known->fooled = as_new && as_old && as_new == -EILSEQ && (!watch->old || as_old == -EILSEQ);
    watch->fooled |= known->fooled;
}

static const struct crash_known *known_find(struct crash_watch *watch, const struct sim_disk *disk, struct digest tree)
{
    struct crash_known *known = watch->known;

    while (known < watch->known + watch->known_count && !digest_equal(known->tree, tree))
        known++;
    if (known < watch->known + watch->known_count)
        return known;
    if (watch->known_count == CRASH_KNOWN_MAX)
        watch->known_count--, known--; /* the last place is used again and again: slower, still right */
    *known = (struct crash_known){ .tree = tree };
    watch->known_count++;
    known_judge(watch, disk, known);
    return known;
}

/* NULL: as it should be. */
static const char *judge(struct crash_watch *watch, const struct sim_disk *found)
{
    char path[300];
    struct digest tree, none = { { 0 } };
    const struct crash_known *known = NULL;
    bool absent, old, new;

    if (watch->other && !digest_equal(tree_at(found, watch->other), watch->other_tree))
        return "another checkpoint was touched";
    path_of(watch, path, sizeof(path));
    tree = tree_at(found, path);
    absent = digest_equal(tree, none);
    if (absent && !watch->repairs)
        return watch->acknowledged ? "DURABLE was said, and nothing is there"
                                   : watch->old ? "the old one is gone and the new one is not there" : NULL;
    old = !absent && watch->old && digest_equal(tree, watch->old_tree);
    new = !absent && digest_equal(tree, watch->new_tree);
    if (!old && !new) {
        known = known_find(watch, found, absent ? tree_at(found, SCENE_ROOT) : tree);
        old = known->is_old;
        new = known->is_new;
    }
    if (new || (old && !watch->acknowledged))
        return NULL;
    if (old)
        return "DURABLE was said, and the old one is there";
    return known->fooled ? "THE READER IS FOOLED: it loads what nobody saved" : known->why;
}

static void wrong_note(struct crash_watch *watch, const struct sim_disk *disk, const bool *kept, const char *why)
{
    size_t used = strlen(watch->first);

    used += (size_t)snprintf(watch->first + used, sizeof(watch->first) - used, "%s\nnot yet on the disk:\n", why);
    for (size_t i = 0; i < sim_disk_pending(disk) && used + 400 < sizeof(watch->first); i++) {
        char effect[300];

        sim_disk_describe(disk, i, effect, sizeof(effect));
        used += (size_t)snprintf(watch->first + used, sizeof(watch->first) - used, "  %s %s\n", kept[i] ? "kept" : "LOST",
                                 effect);
    }
}

static bool cut_judge(const struct sim_disk *disk, const bool *kept, void *context)
{
    struct crash_watch *watch = context;
    struct sim_disk *found = sim_disk_power_cut(disk, kept);
    const char *why = judge(watch, found);

    watch->states++;
    if (why && watch->wrong++ == 0)
        wrong_note(watch, disk, kept, why);
    sim_disk_destroy(found);
    return watch->wrong < 20; /* enough is enough */
}

/* Watching ---------------------------------------------------------------------------------------------------------- */

static bool changes_nothing(enum op_kind kind)
{
    return kind == OP_READ || kind == OP_STAT || kind == OP_LIST || kind == OP_CLOSE || kind == OP_LOCK || kind == OP_RECV
           || kind == OP_WATCH || kind == OP_TIMER || kind == OP_COMPUTE;
}

static bool acknowledges(const struct sim_seen *seen)
{
    const struct message *message = seen->bytes;

    return seen->kind == OP_SEND && (message->kind == MESSAGE_DURABLE || message->kind == MESSAGE_PUBLISHED);
}

/* A repair looks at all that is in the root. */
static void focus_set(struct crash_watch *watch, const struct sim_disk *disk)
{
    watch->cuts.directory = SIM_ROOT;
    watch->cuts.name = SCENE_ROOT_NAME;
    if (watch->repairs || watch->wide)
        return;
    if (sim_disk_find(disk, SIM_ROOT, SCENE_ROOT_NAME, &watch->cuts.directory))
        abort();
    watch->cuts.name = watch->name;
}

void crash_watch_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    struct crash_watch *watch = context;
    struct sim_disk *disk;

    if (acknowledges(seen))
        watch->acknowledged = true;
    else if (changes_nothing(seen->kind) || seen->kind == OP_SEND)
        return;
    if (watch->wrong >= 20)
        return;
    if (!watch->wrong)
        snprintf(watch->first, sizeof(watch->first), "after %s %s (op %" PRIu64 "): ", op_kind_name(seen->kind), seen->path,
                 seen->number);
    disk = sim_world_disk_in_flight(world);
    focus_set(watch, disk);
    watch->cuts.seed++;
    watch->prefixes++;
    power_cuts_each(disk, &watch->cuts, cut_judge, watch);
    sim_disk_destroy(disk);
}
