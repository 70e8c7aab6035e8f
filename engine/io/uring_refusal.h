/* io/uring_refusal.h - why the kernel said no to io_uring, in words that lead to the remedy. */
#ifndef IO_URING_REFUSAL_H
#define IO_URING_REFUSAL_H

#include <stddef.h>

/* `error` is the positive errno of io_uring_setup. Reads kernel.io_uring_disabled. */
void uring_refusal_describe(int error, char *cause, size_t size);

#endif
