/* support/sim_pair_inside.h - what the parts of a pair share.
 *
 *   sim_pair.c     the run: world, steps, ends              sim_writers.c  processes of the writer, as the launcher starts them
 *   sim_program.c  what the trainer's own threads do        sim_judge.c    what must hold
 *   sim_stage.c    what is made once: states, disks, arenas
 */
#ifndef SUPPORT_SIM_PAIR_INSIDE_H
#define SUPPORT_SIM_PAIR_INSIDE_H

#include "sim_pair.h"
#include "sim_state.h"
#include "sim_threads.h"
#include "sim_world.h"

#include <save/save.h>
#include <save/spool.h>
#include <write/writer.h>

#define PAIR_ROOT "/root"
#define PAIR_HISTORY_MAX 16u

/* A writer process. It begins as one receive, for HELLO. */
struct pair_writer {
    struct pair_writer *next;
    struct sim_pair *pair;
    struct io *io;
    struct writer *machine;      /* NULL: before HELLO, or gone */
    struct writer_memory memory;
    int number, channel, term;
    struct op greet;
    uint8_t greeting[sizeof(struct message) + 1];
    unsigned handles;            /* that it was given */
    bool frozen;                 /* it lives and does nothing: hung, or SIGKILLed and in a system call */
    bool gone;
    uint64_t dies_at;            /* 0: nobody killed it */
};

/* A save as its caller sees it, and as the judge remembers it. */
struct pair_save {
    const struct story_save *story;
    const struct sim_state *state;
    uint8_t save_id[16];
    struct tspool_save *handle;  /* NULL: not begun, or freed */
    bool submitted, replayable, acknowledged, resolved, staged_at_death, aborted;
    bool cut_short;              /* given up by tspool_close */
    uint32_t level;
    unsigned turn;               /* the how-manieth that was STAGED; 0: not yet */
    enum tspool_outcome outcome;
    uint32_t attempts;
    int error;                   /* of begin or submit, positive; or the failure's */
    char message[200];
};

/* What stood under a name, one after the other. */
struct pair_standing {
    uint32_t inode;              /* 0: nothing */
    int save;                    /* whose it is; -1: it was there before, or nothing is */
    struct digest tree;
};
struct pair_name {
    struct pair_standing history[PAIR_HISTORY_MAX];
    unsigned count;
    unsigned floor;              /* the latest of them that was acknowledged; 0: what was there before */
};

struct pair_launcher { struct writer_launcher launcher; struct sim_pair *pair; };

struct sim_pair {
    struct story story;
    const struct sim_pair_options *options;
    struct sim_pair_report report;
    struct sim_world *world;
    struct sim_threads *threads;
    struct sim_random random;
    struct io *trainer;
    unsigned trainer_handles;
    int arena_handle, root_handle, self_handle;
    struct arena *arena;
    struct tspool *spool;        /* NULL: closed */
    struct sim_thread *program, *supervisor_thread;
    bool trainer_dead, trainer_over, supervisor_over, closing;
    struct pair_launcher launcher;
    struct pair_writer *writers;
    struct pair_save saves[STORY_SAVES_MAX];
    struct pair_name names[STORY_NAMES];
    const struct sim_state *old;
    unsigned turns;
    uint64_t writer_ops_seen;    /* of all writers together, that took effect */
};

/* sim_pair.c */
void pair_broken(struct sim_pair *pair, const char *rule, const char *what, ...) __attribute__((format(printf, 3, 4)));
bool pair_is_broken(const struct sim_pair *pair);
void pair_supervise(struct sim_pair *pair, const struct completion *completion);

/* sim_writers.c */
void writers_init(struct sim_pair *pair);
bool writers_take(struct sim_pair *pair, struct io *io, const struct completion *completion);
uint64_t writers_deadline(const struct sim_pair *pair);
void writers_due(struct sim_pair *pair);      /* whatever its time has come for */
void writers_bury(struct sim_pair *pair);     /* those that ended or were killed */
bool writers_are_gone(const struct sim_pair *pair); /* or will never end, as they hang and nobody is there to kill them */
void writers_end(struct sim_pair *pair);

/* sim_program.c */
void *program_main(void *pair);

/* sim_judge.c */
void judge_begin(struct sim_pair *pair);
void judge_look(struct sim_pair *pair, const struct sim_seen *seen);
void judge_saves(struct sim_pair *pair);      /* after anything that may have told a caller something */
void judge_released(struct sim_pair *pair, uint32_t slot);
void judge_describe(const struct sim_pair *pair, FILE *out); /* where each save is */
void judge_death(struct sim_pair *pair);      /* the trainer's */
void judge_slots(struct sim_pair *pair);      /* before it closes */
void judge_close(struct sim_pair *pair, const struct tspool_close_report *report, int result);
void judge_exit(struct sim_pair *pair);       /* the trainer ended by itself, all is freed */
void judge_end(struct sim_pair *pair);        /* nothing happens any more */

/* sim_stage.c */
struct arena *stage_arena(unsigned slots);   /* with every slot free */
const struct sim_state *stage_state(unsigned number);       /* 0: of what stands in the root from the beginning */
struct sim_disk *stage_disk(const struct sim_disk_settings *settings); /* the caller's */

#endif
