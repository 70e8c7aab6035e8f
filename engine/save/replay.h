/* save/replay.h - what becomes of a save whose attempt ended without a verdict: the table "who survives what" of the design.
 *
 *   the writer died, hangs in the kernel, met EIO, or got SIGTERM before the save was staged: attempt_end
 *     -> recovery looks (recovery.h):  published      -> PUBLISHED
 *                                      cannot look    -> UNKNOWN
 *                                      a hung writer  -> FAILED, or UNKNOWN where it may yet publish
 *                                      absent, swept  -> the next attempt; where that is impossible FAILED, with the reason
 *   the next attempt is the same save, SUBMITTED again under the next number:
 *     REPLAY_FROM_ARENA  every chunk that was staged is told again, and staging goes on all the while as if nothing had been
 *     REPLAY_RESTAGED    the state is larger than the arena and the caller still waits for STAGED: copied again from the start
 *
 * All with roster->lock held, by the supervisor.
 */
#ifndef SAVE_REPLAY_H
#define SAVE_REPLAY_H

#include <stdbool.h>
#include <tspool/failure.h>

struct supervisor;
struct tspool_save;

enum replay_way {
    REPLAY_NOT = 0,    /* given up, or nothing is left to write it from */
    REPLAY_FROM_ARENA,
    REPLAY_RESTAGED
};

enum attempt_end {
    ATTEMPT_ANSWERED,  /* its writer lives, said why, and has swept */
    ATTEMPT_DIED,      /* with its writer */
    ATTEMPT_HELD       /* its writer was killed and hangs in the kernel: it may be alive, and may yet write, or publish */
};

/* SAVE_BEGUN -> SAVE_RECOVERING. `why` is kept for the record, or for retry_cause. */
void attempt_end(struct supervisor *supervisor, struct tspool_save *save, const struct tspool_failure *why, enum attempt_end end);
/* Its recovery is through, or could not be begun: a verdict, or SAVE_SUBMITTED again. May free the save. */
void attempt_recovered(struct supervisor *supervisor, struct tspool_save *save);
/* The staging of a save with restage_wanted begins anew once the last thread that copies for it is out. */
void save_restage(struct tspool_save *save);

/* One name, several saves: what is published last must be what was submitted last. True while the save may not begin: an earlier
 * one of its name has yet to, or a later one is on its way and decides whether a replay still makes sense. */
bool begin_waits(const struct tspool_save *save);
/* The save was published: earlier ones of its name that wait for another attempt would only undo it, and are given up. */
void replay_supersede(struct tspool_save *save);

/* EIO of its files, or the writer's own end: is it worth another attempt? Counts. */
bool answer_is_retried(struct supervisor *supervisor, struct tspool_save *save, const struct tspool_failure *said);
#endif
