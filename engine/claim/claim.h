/* claim/claim.h - whose a hidden directory ".<name>.<save id>" is: a living trainer's, an orphan's, or nobody's any more.
 *
 * A writer holds a lock on its part record while it works, and one on the directory itself, which outlives the record up to
 * the rename: that tells the living from the dead. What stands in the record (format/part.h) tells for whom the writer works.
 * Saving, reading and collecting all ask this, so it stands below them; it trusts nothing that it finds, and changes nothing.
 */
#ifndef CLAIM_CLAIM_H
#define CLAIM_CLAIM_H

#include <io/io.h>
#include <stdbool.h>

enum claim {
    CLAIM_NONE,    /* nobody works there, or it is gone */
    CLAIM_UNCLEAR, /* just begun, or just being published: soon it will be something else */
    CLAIM_LIVING,  /* a writer works there, and its trainer is not known to be dead */
    CLAIM_ORPHAN   /* a writer works there, and its trainer is dead: it finishes what was staged, publishes and ends */
};

/* `bare_ns`: a directory without a part record that was touched so lately is taken for one that a writer begins or publishes,
 * where no lock tells. */
enum claim claim_look(struct io *io, int root, const char *hidden, int64_t bare_ns);
/* Anything but CLAIM_NONE. */
bool attempt_is_alive(struct io *io, int root, const char *hidden, int64_t bare_ns);
/* Whether any hidden directory of the root is. */
bool any_attempt_is_alive(struct io *io, int root, int64_t bare_ns);

#endif
