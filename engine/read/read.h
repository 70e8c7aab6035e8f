/* read/read.h - what the read room gives to the floors above: opening and looking over an io of the caller's choice.
 *
 * The public functions of tspool/checkpoint.h make an io of their own (io_uring, else threads) and come here. A test
 * hands in the simulated disk. An io given here stays the caller's, must outlive the checkpoint, and everything the
 * checkpoint does then happens on the thread that uses it.
 */
#ifndef READ_READ_H
#define READ_READ_H

#include <claim/orphans.h>
#include <io/io.h>
#include <tspool/checkpoint.h>

int checkpoint_open_on(struct io *io, const char *path, const struct tspool_checkpoint_options *options,
                       struct tspool_checkpoint **checkpoint, struct tspool_failure *failure);
int latest_on(struct io *io, const char *root, char **path, struct tspool_failure *failure);
/* As tspool_latest_wait; *orphans is filled also when it fails. */
int latest_wait_on(struct io *io, const char *root, uint64_t timeout_ns, char **path, struct orphan_report *orphans,
                   struct tspool_failure *failure);

/* The order of latest, for those that keep the newest: one published checkpoint and what it is ordered by. */
struct ranked {
    char *name;          /* directory below the root */
    bool has_step;
    int64_t step;        /* user metadata "step", when it is a whole number */
    uint64_t sequence;
    uint8_t save_id[16];
};
struct ranking { struct ranked *items; size_t count; };
/* All published checkpoints below root, newest first. Damaged ones (no manifest that can be read) are left out; a newer
 * format is -EPROTO. An empty ranking is a success. */
int ranking_on(struct io *io, const char *root, struct ranking *ranking, struct tspool_failure *failure);
/* The same in a root that was opened; `root_path` is for records. */
int ranking_below(struct io *io, int root, const char *root_path, struct ranking *ranking, struct tspool_failure *failure);
/* A handle of the root directory, which the user's path may lead to over a link; or -errno. */
int root_open(struct io *io, const char *root, struct tspool_failure *failure);
void ranking_deinit(struct ranking *ranking);

/* Makes an io of the kind that was asked for: io_uring, else threads when `kind` is auto. */
int reader_io_create(enum tspool_io kind, const struct io_settings *settings, struct io **io, struct tspool_failure *failure);

#endif
