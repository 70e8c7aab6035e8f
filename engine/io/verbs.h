/* io/verbs.h - the blocking verbs: OPEN to LIST, COMPUTE, and READ and WRITE as pread and pwrite. */
#ifndef IO_VERBS_H
#define IO_VERBS_H

#include <io/io.h>

/* One operation of the kernel moves at most this much (MAX_RW_COUNT with 4 KiB pages); a partial result is ordinary. */
#define TRANSFER_BYTES_MAX ((size_t)2147479552)

/* Where a READ, WRITE, SEND or RECV moves its bytes: resolved from buffer and offset when the op was taken. */
static inline void *op_place(const struct op *op) { return op->private_data; }

/* Does what the op says, on the calling thread, for as long as it takes. The op's result; -EINTR never. */
int64_t verb_run(const struct op *op);
/* Frees what a completed op brought (an open handle, received descriptors, a list) because nobody will take it. */
void verb_discard(struct op *op);

#endif
