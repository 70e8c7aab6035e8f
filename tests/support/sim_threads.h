/* support/sim_threads.h - threads of a simulated process: coroutines in virtual time, one at a time, in an order that the seed
 * chooses.
 *
 * The library's own code runs in them unchanged, blocking calls included. That needs the linker's help: executables that use
 * this wrap the few functions by which the engine waits, starts threads and reads clocks (see sim_wraps in sim/meson.build).
 * Between sim_threads_enter and sim_threads_leave those go to the simulation; otherwise to the real ones.
 *
 * A thread gives way only where it waits, sleeps, or copies a tensor (a copy takes virtual time, with no lock held).
 */
#ifndef SUPPORT_SIM_THREADS_H
#define SUPPORT_SIM_THREADS_H

#include "sim_io.h"

#define SIM_NEVER UINT64_MAX

struct sim_threads;
struct sim_thread;

struct sim_threads *sim_threads_create(struct sim_world *world, uint64_t seed);
/* All threads are over. */
void sim_threads_destroy(struct sim_threads *threads);
void sim_threads_enter(struct sim_threads *threads);
void sim_threads_leave(void);

struct sim_thread *sim_thread_start(struct sim_threads *threads, void *(*run)(void *argument), void *argument);
bool sim_thread_is_over(const struct sim_thread *thread);
bool sim_threads_can_run(const struct sim_threads *threads);
/* Runs one that can run until it gives way; false when none can. */
bool sim_threads_run(struct sim_threads *threads);
/* When a sleeping one, or a wait with a deadline, can go on: SIM_NEVER when none will by itself. */
uint64_t sim_threads_deadline(const struct sim_threads *threads);
/* The process died: what its threads do reaches nobody any more. Every wait ends at once, so that they come to their ends and
 * free what they hold. */
void sim_threads_hasten(struct sim_threads *threads);

/* In a thread. */
void sim_thread_sleep(uint64_t ns);
uint64_t sim_thread_draw(uint64_t bound);   /* [0, bound) of the thread's own randomness */
void sim_thread_join(struct sim_thread *thread);
/* Until `condition` (an address that names it) is raised by anybody. */
void sim_thread_await(const void *condition);
void sim_threads_raise(struct sim_threads *threads, const void *condition);

#endif
