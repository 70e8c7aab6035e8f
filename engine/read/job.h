/* read/job.h - up to 4 MiB of one file that are read together: one placed part, or adjacent parts through memory of the
 * job's own.
 *
 * A placed part goes to the caller's memory up to its last whole block; what is left of it comes through `tail`, because a
 * direct read writes whole blocks, and the memory behind the part is not ours.
 */
#ifndef READ_JOB_H
#define READ_JOB_H

#include <read/supply.h>

enum job_state {
    JOB_FREE,     /* job_compose, when there is something to read */
    JOB_READING,  /* its last read's completion: to CHECKING, or to FREE when a read failed */
    JOB_CHECKING  /* the check's completion: to FREE */
};

struct job {
    enum job_state state;
    const struct run *run;
    const struct checkpoint_file *file;
    struct part *parts;
    size_t part_count, part_capacity;
    uint64_t begin, end;      /* of the file, as wanted; begin is aligned */
    uint64_t body_end;        /* aligned: reads up to here go to `memory`, the rest of a placed part through `tail` */
    uint64_t next;            /* reads were given out up to here */
    unsigned reads;           /* in flight */
    uint8_t *memory;          /* where `begin` goes: scratch, or the caller's */
    uint8_t *scratch, *tail;  /* made when first needed, kept */
    uint32_t scratch_align;
    int error;                /* the first failed read */
    uint64_t error_offset;
    struct op check;
};

/* One read of a job. */
struct transfer {
    struct op op;
    struct job *job;
    struct transfer *next;    /* while free */
    uint64_t end;             /* of the file: what is wanted of this read */
    bool tail;
};

/* Fills a free job with what is read next: 1; 0 when there is nothing more; -ENOMEM. */
int job_compose(struct job *job, struct supply *supply);
static inline bool job_is_given_out(const struct job *job) { return job->next >= job->end; }
/* Whether its bytes need a compute thread: to be hashed, or copied out. */
static inline bool job_needs_check(const struct job *job) { return job->parts[0].checked || !job->parts[0].placed; }
/* Aims a read at the job's next bytes; job->next is moved by whoever submits it. */
void transfer_aim(struct transfer *transfer, struct job *job);
/* Moves a read that came short to the last aligned place before `reached`; false when that is where it was. */
bool transfer_advance(struct transfer *transfer, uint64_t reached);
/* The read is complete: bytes behind the last whole block go where they belong. */
void transfer_settle(const struct transfer *transfer);
void job_deinit(struct job *job);

#endif
