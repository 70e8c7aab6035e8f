/* read/reader.h - many ranges of many tensors, read in file order with many reads in flight, checked beside.
 *
 *   requests --sort--> parts (a leaf, or what is wanted of one) --gather--> jobs (up to 4 MiB of a file, adjacent parts)
 *   job: READING (512 KiB reads, `depth` in flight over all jobs) -> CHECKING (hash, copy out, on a compute thread) -> done
 *
 * A part that is wanted whole and lies suitably in file and memory is read straight into the caller's memory; any other
 * goes through the job's own 4 MiB. Jobs are taken from up to four files in turn. Memory: JOB_COUNT times 4 MiB.
 */
#ifndef READ_READER_H
#define READ_READER_H

#include <read/checkpoint.h>
#include <read/slice.h>

struct run_damage {
    size_t request;
    uint64_t begin, end;     /* bytes of the tensor */
    int error;               /* -EBADMSG: they do not match; else why they could not be read */
};

struct run {
    struct tspool_checkpoint *checkpoint;
    const struct tspool_read_request *requests; /* `stride` bytes apart: the caller's struct may be a later, larger one */
    size_t count, stride;
    bool verified;           /* parts that have a digest are leaves and are checked */
    bool discard;            /* checked and dropped: requests have no data */
    void *context;
    tspool_on_piece on_piece;                                             /* NULL: none */
    int (*on_damage)(void *context, const struct run_damage *damage);     /* NULL: the first damage fails the run */
    void (*on_bytes)(void *context, uint64_t bytes);                      /* NULL: none; bytes of parts done with */
};

static inline const struct tspool_read_request *run_request(const struct run *run, size_t number)
{
    return (const struct tspool_read_request *)((const char *)run->requests + number * run->stride);
}

/* Some bytes of one tensor that are read and checked together. */
struct part {
    uint32_t request;
    bool checked;            /* a whole leaf, with a digest to check it against */
    bool placed;             /* read straight to `place` */
    bool damaged;            /* out of the check */
    uint64_t begin, end;     /* bytes of the tensor */
    uint64_t file_begin;     /* where `begin` stands in the file */
    uint8_t *place;
};

/* parts.c: the requests of one file in file order, as parts. */
struct sorted_request { uint64_t file_offset; uint32_t file, request; };
struct part_stream {
    const struct run *run;
    const struct sorted_request *next, *end;
    const struct checkpoint_file *file;
    struct slice slice;      /* of the request at `next`, when is_open */
    uint64_t at;             /* bytes of its tensor before this are dealt with */
    bool is_open;
};
int requests_sort(const struct run *run, struct sorted_request **sorted, struct tspool_failure *failure);
/* 1 and a part; 0 and *ended: a request that has no further part; -ENOENT at the end of the file's requests. */
int part_next(struct part_stream *stream, struct part *part, uint32_t *ended);
/* The geometry of a request: 0, or -EINVAL with the record. */
int request_slice(const struct run *run, size_t number, struct slice *slice, struct tspool_failure *failure);

/* Checks and copies out the parts of a job: `memory` holds the file from `file_begin` on. For compute threads: touches
 * only the parts and the requests' destinations. */
void parts_check(const struct run *run, struct part *parts, size_t count, const uint8_t *memory, uint64_t file_begin);

/* 0; the first failure; or what on_damage returned when it stopped the run. Called with the lane entered. */
int reader_run(const struct run *run, struct tspool_failure *failure);

#endif
