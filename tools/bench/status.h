/* bench/status.h - the line on a terminal that tells how far it is, how fast, and when it will be done. */
#ifndef BENCH_STATUS_H
#define BENCH_STATUS_H

#include "crew.h"

struct status { bool wanted, shown; const char *name; uint64_t started_ns, next_ns, last_ns, last_bytes; };

void status_begin(struct status *status, bool wanted, const char *name);
void status_show(struct status *status, const struct crew *crews, size_t count);
void status_end(struct status *status);

#endif
