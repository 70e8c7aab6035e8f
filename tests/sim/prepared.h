/* sim/prepared.h - what a save meets in these tests, and the trees that it may leave. */
#ifndef SIM_PREPARED_H
#define SIM_PREPARED_H

#include "crash_watch.h"

#define NAME "step-2"
#define PATH SCENE_ROOT "/" NAME
#define OTHER_NAME "step-1"
#define OTHER SCENE_ROOT "/" OTHER_NAME
#define FOREIGN "tokenizer.json"

enum before {
    NEW,                       /* nothing stands under its name */
    REPLACED,                  /* a checkpoint that it replaces, with a file of somebody else in it */
    REPLACED_WITHOUT_EXCHANGE  /* the same, where two directories cannot be exchanged */
};

struct prepared {
    enum before before;
    struct scene_settings settings;    /* a plain run */
    struct sim_state old, new;
    struct sim_disk *disk;             /* before the save, all durable; OTHER stands beside */
    struct digest old_tree, new_tree;  /* of PATH, before and after */
};

/* Asserts what it does. */
void prepare(struct prepared *prepared, enum before before, enum sim_ordering ordering);
void prepared_end(struct prepared *prepared);

/* One save on a clone of the prepared disk, from READY to CLOSE. */
struct outcome {
    bool ready, answered, closed;
    struct message_ready refusal;      /* unless ready */
    struct sim_save save;
    struct sim_disk *disk;             /* afterwards, as programs see it */
    char violation[512];
    char *trace;
};
struct outcome save_once(const struct prepared *prepared, const struct scene_settings *settings);
void outcome_end(struct outcome *outcome);
/* Published, by all rules, the very bytes, and nothing stray is left. */
bool committed(const struct prepared *prepared, const struct outcome *outcome);

#endif
