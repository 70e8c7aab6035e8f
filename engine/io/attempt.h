/* io/attempt.h - SEND, RECV and WATCH, one attempt that never blocks. */
#ifndef IO_ATTEMPT_H
#define IO_ATTEMPT_H

#include <io/io.h>

/* The op's result, or -EAGAIN: try again when attempt_events() are there. */
int64_t attempt_run(struct op *op);
short attempt_events(enum op_kind kind); /* POLLIN or POLLOUT */

#endif
