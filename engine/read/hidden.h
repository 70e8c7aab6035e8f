/* read/hidden.h - a replacement that was interrupted, as the hidden directories ".<name>.<save id>" below a root show it.
 *
 * Where two directories cannot be exchanged, a replacing commit moves the old checkpoint aside and then the new one in.
 * Cut between the two, the name is missing while two hidden directories of that name each hold a whole manifest:
 * nothing else looks like that, and either is right. The newer one is then put under the name.
 */
#ifndef READ_HIDDEN_H
#define READ_HIDDEN_H

#include <io/io.h>

/* Puts a name back whose replacement was interrupted. 0 when it stands again; -ENOENT when there is nothing to repair;
 * -errno when the directory refuses. Waits a moment first: the replacement may be going on. */
int path_repair(struct io *io, const char *path);
int name_repair(struct io *io, int root, const char *name);

#endif
