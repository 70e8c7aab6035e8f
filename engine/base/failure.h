/* base/failure.h - filling failure records.
 *
 * The engine returns -errno and records once, where the error was met; callers pass both on unchanged.
 */
#ifndef BASE_FAILURE_H
#define BASE_FAILURE_H

#include <stdarg.h>
#include <tspool/failure.h>

/* What a record says beside stage and errno. NULL and TSPOOL_NO_OFFSET mean "not concerned". */
struct failure_at {
    const char *operation, *tensor, *path;
    uint64_t file_offset;
};
#define FAILURE_NOWHERE ((struct failure_at){ .file_offset = TSPOOL_NO_OFFSET })
#define FAILURE_AT(...) ((struct failure_at){ .file_offset = TSPOOL_NO_OFFSET, __VA_ARGS__ })
#define FAILURE_AT_BYTE(offset, ...) ((struct failure_at){ .file_offset = (offset), __VA_ARGS__ })

/* Records into *failure (may be NULL) and returns -error. `error` is a positive errno. The cause is printf-like and may
 * be NULL: then failure_likely_cause(error) is used. Names are cut, never overrun; control bytes become '?'. */
int failure_set(struct tspool_failure *failure, enum tspool_stage stage, int error, struct failure_at at,
                const char *cause, ...) __attribute__((format(printf, 5, 6)));
/* Composes failure->message again after a field was changed (a path prefixed, a tensor resolved). */
void failure_compose(struct tspool_failure *failure);
/* The usual reason of an errno in this work, and the remedy: ENOSPC, EDQUOT, EIO, EROFS, EMFILE, ENOMEM, ... Static. */
const char *failure_likely_cause(int error);

#endif
