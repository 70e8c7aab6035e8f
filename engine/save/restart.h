/* save/restart.h - writers come and go: starting one, burying it, and how soon the next one follows.
 *
 * A death with saves in flight is followed by another writer: the first time at once, then after 50 ms, doubling to 2 s, until
 * a save succeeds. After DEATHS_MAX in a row every save in flight fails with a record that says so; a save that is submitted
 * later gets one start, and fails with the next death. What a writer itself refuses in READY is an answer, not a death:
 * whoever waits fails with it. All with roster->lock held, by the supervisor.
 */
#ifndef SAVE_RESTART_H
#define SAVE_RESTART_H

#include <stdint.h>
#include <tspool/failure.h>

#define DEATHS_MAX 5u
#define SAVE_DEATHS_MAX 20u /* that one save sees, in a row or not: where others succeed in between, it may be what kills */

struct supervisor;

/* Starts a writer when one is wanted, none is there, and its time has come. */
void restart_due(struct supervisor *supervisor, uint64_t now_ns);
/* When restart_due is to be called again; UINT64_MAX: nobody waits for a writer. */
uint64_t restart_deadline(const struct supervisor *supervisor);
/* A writer that is dead, or abandoned, and drained: its saves' attempts end. */
void writer_bury(struct supervisor *supervisor);
/* What a save fails with when too many writers died. `last`: how the last one did. */
void deaths_describe(uint64_t deaths, const struct tspool_failure *last, struct tspool_failure *failure);

#endif
