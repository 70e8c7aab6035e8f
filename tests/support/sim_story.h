/* support/sim_story.h - what one seed says: the trainer's saves, the file system's ways, and the faults that strike.
 *
 * Each fault is drawn by itself, and leaving one out changes nothing else in the story: a failing story can be shrunk.
 */
#ifndef SUPPORT_SIM_STORY_H
#define SUPPORT_SIM_STORY_H

#include "sim_io.h"

#include <tspool/save.h>

#define STORY_SAVES_MAX 4u
#define STORY_FAULTS_MAX 5u
#define STORY_NAMES 4u
#define STORY_SLOTS_MAX 4u

/* Checkpoints of the root. The first two stand there from the beginning; nobody touches the second. */
extern const char *const story_names[STORY_NAMES];
enum { STORY_OLD = 0, STORY_OTHER = 1 };
#define STORY_FOREIGN "tokenizer.json" /* somebody else's file in the old one */

struct story_save {
    unsigned thread, name;        /* which thread of the trainer makes it; index into story_names */
    bool replace, refused;        /* refused: not `replace`, and the name is taken */
    enum tspool_staging staging;
    uint64_t pause_ns, deadline_ns;
    enum tspool_level waits_for;  /* 0: it goes on at once */
    uint64_t wait_ns;
    bool aborts;
    uint64_t abort_ns;
};

enum story_fault_kind {
    STORY_OP,             /* one operation fails, is short, or takes long: `fault` */
    STORY_WRITER_KILLED,  /* SIGKILL when the writers' op number `ordinal` took effect */
    STORY_WRITER_HANGS,   /* it goes on living and does nothing any more */
    STORY_WRITER_TERMED,  /* SIGTERM */
    STORY_WRITER_STUCK,   /* an op takes a quarter of a minute, and SIGKILL waits for it */
    STORY_START_REFUSED,  /* start number `ordinal` of a writer fails */
    STORY_TRAINER_KILLED, /* SIGKILL when its op number `ordinal` took effect */
    STORY_POWER_CUT,      /* when op number `ordinal` of `process` took effect */
    STORY_SHORT,          /* writes and reads are short now and then */
    STORY_DISK_FULL       /* only so many bytes are free */
};
struct story_fault {
    enum story_fault_kind kind;
    const char *process;
    uint64_t ordinal, bytes;
    struct sim_fault fault;
};

struct story {
    uint64_t seed;
    unsigned slots;               /* of the arena */
    uint64_t shard_bytes;
    uint32_t depth, staging_threads, hash_threads;
    bool buffered, cpus_are_few;
    struct sim_settings world;
    unsigned save_count, thread_count;
    struct story_save saves[STORY_SAVES_MAX];
    uint64_t close_ns;            /* timeout of tspool_close */
    bool close_aborts;
    unsigned fault_count;
    struct story_fault faults[STORY_FAULTS_MAX];
    uint32_t left_out;            /* bit per fault: it does not strike */
};

void story_make(struct story *story, uint64_t seed);
bool story_strikes(const struct story *story, unsigned fault);
/* Does one of that kind strike? */
bool story_has(const struct story *story, enum story_fault_kind kind);
/* Is anything among what strikes that is none of `kinds` (bits 1 << kind)? */
bool story_has_other_than(const struct story *story, uint32_t kinds);
void story_print(const struct story *story, FILE *out);

#endif
