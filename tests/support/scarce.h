/* support/scarce.h - memory that runs out where a test says. The program is linked with scarce_link_args (tests/meson.build):
 * what it and the engine in it allocate passes here; other libraries' allocations do not.
 */
#ifndef SUPPORT_SCARCE_H
#define SUPPORT_SCARCE_H

#include <stdbool.h>

/* The number-th allocation of this thread from now on fails, once; 0: none. */
void scarce_begin(unsigned number);
/* Whether it was reached. Memory is plenty again. */
bool scarce_end(void);
/* What is allocated in between is not counted and does not fail: the test's own. They do not nest. */
void scarce_pause(void);
void scarce_resume(void);

#endif
