/* tspool/stream.h - one file written in order, of unknown length, durable under its name or not there at all.
 *
 *     tspool_stream_open("checkpoints/model.pt", NULL, &stream, &failure)
 *     tspool_stream_write(stream, bytes, size, &failure) ...
 *     tspool_stream_commit(stream, &failure)
 *
 * For writers of formats that are not ours: torch.save, pickle, archives. The bytes go past the page cache, from aligned
 * buffers, several writes in flight while the caller fills the next one. Until the commit they stand in a hidden file beside
 * (".model.pt.tspool-<16 hex digits>.partial"); whatever had the name keeps it, and is replaced in one step.
 *
 * A process that dies leaves the hidden file; a stream that is opened for the same path removes it, once the last write of the
 * dead one has ended.
 *
 * Threads: a stream is used by one thread at a time, any; several streams at once are independent. Each has a thread of its own,
 * named "tspool-f", that blocks all signals.
 * Fork: a forked child may not use the parent's stream: every call returns -EPERM and touches nothing; tspool_stream_abort
 * there frees what the child has of it, and the file stays the parent's.
 */
#ifndef TSPOOL_STREAM_H
#define TSPOOL_STREAM_H

#include <tspool/spool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct tspool_stream;

struct tspool_stream_options {
    size_t size;               /* sizeof(struct tspool_stream_options), set by TSPOOL_STREAM_OPTIONS_INIT */
    enum tspool_io io;
    uint32_t block_bytes;      /* one write: a multiple of 4096, 4 KiB..16 MiB; 0: 1 MiB */
    uint32_t depth;            /* blocks, and writes in flight, 2..256; 0: 16. Memory: block_bytes times depth */
    uint64_t expected_bytes;   /* how long the file will be, where that is known: its space is taken at once. 0: not known */
    uint8_t keep;              /* nonzero: what has the name is not replaced: -EEXIST, at the opening or at the commit */
    uint8_t buffered;          /* nonzero: never O_DIRECT */
};
#define TSPOOL_STREAM_OPTIONS_INIT { sizeof(struct tspool_stream_options), TSPOOL_IO_AUTO, 0, 0, 0, 0, 0 }

/* `options` may be NULL. The file gets the mode 0666 less the umask. A symbolic link that has the name is replaced, not followed.
 * -ENOENT (no such directory), -EISDIR, -ENAMETOOLONG (more than 222 bytes), -EEXIST with `keep`, ... */
int tspool_stream_open(const char *path, const struct tspool_stream_options *options, struct tspool_stream **stream,
                       struct tspool_failure *failure);

/* All of it, or -errno: the first error of the stream, which every later call repeats; only abort is left then.
 * The memory may be reused when it returns. It waits for the device when all blocks are in flight. */
int tspool_stream_write(struct tspool_stream *stream, const void *data, size_t bytes, struct tspool_failure *failure);

/* How many bytes a write takes at once without waiting, at least 1; 0 when there was no room for timeout_ns; or -errno, the
 * first error. For callers that must stay interruptible. */
int64_t tspool_stream_room(struct tspool_stream *stream, uint64_t timeout_ns, struct tspool_failure *failure);

/* What was written so far is on the disk, under the hidden name, when it returns 0. The stream goes on. */
int tspool_stream_sync(struct tspool_stream *stream, struct tspool_failure *failure);

/* A descriptor for those who ask for one to sync or look at the file: of the hidden file, for reading only, because a write by
 * anybody else would come into the middle. What was written so far is on the disk, and the file is as long as that.
 * The stream's, and closed with it; a second call gives the same one. */
int tspool_stream_fd(struct tspool_stream *stream, struct tspool_failure *failure);

uint64_t tspool_stream_tell(const struct tspool_stream *stream); /* bytes written so far */

/* Cuts the file to its length, syncs it, gives it the name and syncs the directory: 0 when it is durable under `path`. The stream
 * is gone afterwards, whatever is returned. On failure the file is gone too and `path` is what it was, with one exception, which
 * the record's stage tells: PUBLISH with an error of the disk leaves open which of the two files has the name after a power cut;
 * each of them is whole. */
int tspool_stream_commit(struct tspool_stream *stream, struct tspool_failure *failure);

/* Removes the hidden file and frees the stream; NULL is allowed. */
void tspool_stream_abort(struct tspool_stream *stream);

/* How the bytes go. */
struct tspool_stream_report {
    size_t size;               /* sizeof(struct tspool_stream_report), set by TSPOOL_STREAM_REPORT_INIT */
    uint8_t direct;            /* O_DIRECT is in force; 0: `buffered` was asked for, or the file system refuses it */
    char backend[16];          /* "uring" or "threads" */
    uint64_t writes;           /* that have ended so far */
    uint64_t short_writes;     /* of these, how many the kernel cut; their rest was written again */
};
#define TSPOOL_STREAM_REPORT_INIT { .size = sizeof(struct tspool_stream_report) }
int tspool_stream_report(struct tspool_stream *stream, struct tspool_stream_report *report);

#ifdef __cplusplus
}
#endif
#endif
