/* support/crash_watch.h - the crash enumerator: after each op that takes effect in a scene, the power is cut in every way, and
 * what is found under the checkpoint's name is judged.
 *
 * The rule: the old checkpoint whole (or nothing, where there was none), or the new one whole; and once the writer began to
 * say DURABLE or PUBLISHED, only the new one. Whole means: the very bytes of the known trees, or, for any other tree, what
 * the real reader loads and verifies. A reader that loads something else without an error is fooled, which is worse.
 *
 * Ops in flight count as begun: their effects may be on the disk or not.
 */
#ifndef SUPPORT_CRASH_WATCH_H
#define SUPPORT_CRASH_WATCH_H

#include "power_cuts.h"
#include "sim_scene.h"

#define CRASH_KNOWN_MAX 4096u

struct crash_known { struct digest tree; bool is_new, is_old, fooled; char why[200]; };

struct crash_watch {
    const char *name;                      /* in SCENE_ROOT */
    const struct sim_state *old, *new;     /* old NULL: there was none */
    struct digest old_tree, new_tree;
    const char *foreign;                   /* a file of somebody else that must stand in whatever is found; NULL: none */
    struct digest foreign_tree;
    const char *other;                     /* path of another checkpoint, which nothing may touch; NULL: none */
    struct digest other_tree;
    bool wide;                             /* every effect in the root is varied, not only what can show under the name */
    struct power_cuts cuts;                /* budget; the focus is set here */
    bool repairs;                          /* a missing name counts as what the reader puts back (no exchange) */
    bool acknowledged;
    uint64_t prefixes, states, wrong;      /* so far */
    struct crash_known *known;             /* verdicts of the reader, by tree */
    size_t known_count;
    bool fooled;                           /* the reader loaded something that nobody saved */
    char first[4096];                      /* the first wrong state: when, what was lost, and why it is wrong */
};

void crash_watch_init(struct crash_watch *watch, const char *name, const struct sim_state *old, struct digest old_tree,
                      const struct sim_state *new, struct digest new_tree);
void crash_watch_deinit(struct crash_watch *watch);
/* For scene_settings.look; context is the watch. */
sim_look crash_watch_look;

/* The digest of what is at `path`; zero when nothing is. */
struct digest tree_at(const struct sim_disk *disk, const char *path);
/* What the real reader says about a clone of the disk: as sim_state_check. */
int disk_load(const struct sim_disk *disk, const char *path, const struct sim_state *state, char *why, size_t why_size);

#endif
