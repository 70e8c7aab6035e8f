/* save/texts.h - the appendix of a save: the files that are not shards, as the writer gets them. */
#ifndef SAVE_TEXTS_H
#define SAVE_TEXTS_H

#include <save/save.h>

/* Composes objects file, index (several whole shard files) and manifest into a sealed memfd: sets appendix_fd,
 * appendix_bytes and manifest_front of the save. `sequence` is the commit sequence. Takes no lock: what it reads does not
 * change after submit. */
int texts_compose(struct tspool_save *save, uint64_t sequence, uint64_t time_seconds, struct tspool_failure *failure);

/* Is every file that the save makes among these names? */
struct io_list;
bool texts_are_all_there(const struct tspool_save *save, const struct io_list *names);

#endif
