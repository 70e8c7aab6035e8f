/* api/rig.h - what the end-to-end tests stand on: a directory of their own, a state with known bytes, and reading it back
 * through the public reader.
 *
 * The writer is the real one (TEST_WRITER_PATH), or its machine on a thread of the test. Moments are held still with
 * SIGSTOP, never with sleeps.
 */
#ifndef API_RIG_H
#define API_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <tspool/tspool.h>

#define MINUTE_NS (60 * (uint64_t)1000000000)
#define MILLISECOND_NS ((uint64_t)1000000)

/* A fresh directory; removed with all that is in it. */
struct rig { char root[64]; struct tspool_options options; };
void rig_init(struct rig *rig, enum tspool_isolation isolation);
void rig_deinit(struct rig *rig);
struct tspool *rig_open(const struct rig *rig); /* fails the test when it cannot */

/* `count` F32 tensors "t0".. of `elements` each (plus a scalar and an empty one), filled from `seed`. */
struct state { size_t count, elements; float **data; float scalar; };
void state_init(struct state *state, size_t count, size_t elements, unsigned seed);
void state_deinit(struct state *state);
void state_add(const struct state *state, struct tspool_save *save, bool with_data);

struct tspool_save *begin(struct tspool *spool, const char *name, enum tspool_staging staging);
/* begin, add, submit "now". */
struct tspool_save *submit(struct tspool *spool, const char *name, const struct state *state);

/* The checkpoint is published, whole by its digests, and holds exactly this state. */
void assert_holds(const struct rig *rig, const char *name, const struct state *state);
bool exists(const struct rig *rig, const char *name);
void published_remove(const struct rig *rig, const char *name);
/* Entries of the root but for `published` names: nothing stray is left. */
void assert_nothing_but(const struct rig *rig, const char *const *published, size_t count);

/* Fills every span of a caller-staged save. */
void fill_spans(struct tspool_save *save, const struct state *state);

void writer_stop(struct tspool *spool);  /* SIGSTOP, and waits until it is stopped */
void writer_continue(int pid);
/* Ends a forked child: nothing of the test framework runs in it any more, and what it ran counts for the coverage. */
void child_end(int status) __attribute__((noreturn));
/* Waits until the process is gone (or a zombie). */
void process_await_end(int pid);

#endif
