/* write/job.h - one attempt of one save, from BEGIN until its last answer was sent.
 *
 * A job is always in one state. Entering a state submits its ops; when all of them are through, job_advance moves on.
 * The first error is recorded, nothing new is begun, what is in flight comes back, and then the job leaves the straight
 * way: it is swept, or, when the rename may have happened, left as it is (UNKNOWN).
 */
#ifndef WRITE_JOB_H
#define WRITE_JOB_H

#include <base/hash.h>
#include <base/names.h>
#include <format/part.h>
#include <wire/message.h>
#include <wire/sheet.h>
#include <write/hashing.h>
#include <write/task.h>
#include <write/transfer.h>

/* The straight way is from top to bottom. "Its ops" means that the last completion of the state's ops moves on. */
enum job_state {
    JOB_READ,           /* sheet and appendix are mapped and checked on a compute thread; its ops */
    JOB_ADMIT,          /* free space and the checkpoint's name are looked at; its ops */
    JOB_LOOK_OPEN,      /* a directory of that name is opened, where it must be empty; its ops */
    JOB_LOOK_LIST,      /* and listed; its ops */
    JOB_MAKE,           /* the hidden directory is made; its ops */
    JOB_ENTER,          /* and opened; its ops */
    JOB_CLAIM,          /* the part record is made; its ops */
    JOB_ADOPT,          /* or, with several ranks, one that an attempt of this rank left behind is opened; its ops */
    JOB_LOCK,           /* and locked: from here on others see that we live; its ops */
    JOB_EXCLUDE,        /* publishers are kept out while an earlier attempt's part is taken away; its ops */
    JOB_INHERIT,        /* with several ranks: is it still the shared directory, and what stands in it?; its ops */
    JOB_CLEAR,          /* this rank's files of a dead attempt are removed; its ops */
    JOB_LEAVE,          /* or, when the directory is another's now, its handles are closed; its ops, then JOB_ADMIT again */
    JOB_OPEN,           /* all files are made; its ops */
    JOB_ALLOCATE,       /* and get their blocks; its ops, then PREPARED is sent */
    JOB_WRITE,          /* chunks are written and hashed; STAGED messages and the last chunk's last op */
    JOB_SEAL,           /* digests file and manifest are composed on a compute thread; its ops */
    JOB_TEXTS,          /* objects, index, digests, manifest are written; its ops, then WRITTEN is sent */
    JOB_CUT,            /* padded tails are cut; its ops */
    JOB_SYNC,           /* every file is synced; its ops, and the end of saves of that name that were staged before */
    JOB_KEEP_OPEN,      /* with replace: the old checkpoint is opened; its ops */
    JOB_KEEP_LIST,      /* and listed; its ops */
    JOB_KEEP_LINK,      /* files of others in it get a link here; its ops */
    JOB_UNCOVER,        /* ".partial" is dropped, the part record unlinked; its ops */
    JOB_SYNC_DIRECTORY, /* the hidden directory is synced; its ops */
    JOB_UNCOVER_PART,   /* with several ranks: this one's part record gets its name, last of all; its ops */
    JOB_SYNC_PART,      /* and the directory is synced once more; its ops, then JOB_SYNC_ROOT */
    JOB_RENAME,         /* onto the name: plain, or in exchange with the old one; its ops */
    JOB_SYNC_HIDDEN,    /* where exchange is refused: the new one's hidden name is made durable; its ops */
    JOB_ASIDE,          /* then the old one goes aside; its ops */
    JOB_RENAME_IN,      /* and the new one in; its ops */
    JOB_RENAME_BACK,    /* or the old one back, when that failed; its ops */
    JOB_SYNC_ROOT,      /* the rename is made durable; its ops, then DURABLE and PUBLISHED (several ranks: DURABLE) are sent */
    JOB_RETIRE_LIST,    /* the replaced one is listed again; its ops */
    JOB_RETIRE_MOVE,    /* what others put there since, and their directories, move to the new one; its ops */
    JOB_RETIRE_UNLINK,  /* the rest is removed; its ops */
    JOB_RETIRE_REMOVE,  /* and the directory; its ops */
    JOB_HOLD,           /* several ranks: the part record's lock outlives the job; no ops */
    JOB_SWEEP_CLOSE,    /* a failed attempt's files are closed; its ops */
    JOB_SWEEP_UNLINK,   /* removed by the names that this job made; its ops */
    JOB_SWEEP_REMOVE,   /* and the hidden directory; its ops */
    JOB_CLOSE,          /* every handle left is closed; its ops, then a failure is answered */
    JOB_END             /* nobody: the writer frees it */
};

#define NO_CHUNK UINT32_MAX
#define PARTIAL_NAME_MAX (SHARD_FILE_NAME_MAX + sizeof(PARTIAL_SUFFIX) - 1)

struct job_file {
    const char *name;                     /* in the sheet or the appendix */
    char partial[PARTIAL_NAME_MAX + 1];
    uint64_t size, allocated;             /* exact; padded while O_DIRECT writes to it */
    const uint8_t *text;                  /* of the files past shard_count; shards' bytes come in chunks */
    int handle;                           /* -1: not open */
    bool made, uncovered;                 /* its .partial name, its final name may exist */
};

enum chunk_wait { CHUNK_WRITING = 1, CHUNK_INTERIOR = 2, CHUNK_LEADING = 4 };

struct chunk {
    uint64_t tensor;                      /* first tensor that ends beyond the chunk's first byte, empty ones aside */
    struct hash_stream *straddle;         /* of the leaf that goes on in the next chunk */
    uint64_t straddle_leaf;
    uint32_t file, slot, next;            /* next: in the job's write queue */
    uint32_t items_left;
    uint8_t waits;                        /* enum chunk_wait: what its slot is still needed for */
    bool staged, leading, interior_done;  /* leading: it begins inside a leaf */
};

/* What the trainer handed over, mapped and checked. */
struct job_input {
    int sheet_handle, appendix_handle;
    uint64_t sheet_bytes, appendix_bytes;
    const void *sheet_base, *appendix_base;
    struct sheet sheet;
    struct appendix appendix;
    struct message_staged *early;         /* STAGED before the sheet was read */
    size_t early_count, early_capacity;
    struct tspool_failure failure;        /* the compute task's; the loop looks at it afterwards */
};

struct job_seal { uint8_t *digests; char *manifest; }; /* private copies that are written as texts */

/* The published checkpoint that stands in the way, or is replaced. */
struct job_replaced {
    int handle;                           /* -1: there is none */
    struct io_list names, names_again;    /* before it is replaced, and afterwards */
    bool *linked;                         /* per name of `names`: the new directory has it too */
    char aside[HIDDEN_NAME_MAX + 1];      /* where it is now, when exchange was refused */
    bool exchanged, is_aside;
};

/* Several ranks share one hidden directory, which whoever publishes renames and whoever fails last removes. */
struct job_shared {
    struct io_stat directory, hidden, part; /* as opened, by its name, and the part record */
    struct io_list names;                 /* what stands in it */
    bool part_found, gone;                /* an earlier attempt's part record stood there; the directory is another's now */
    int exclusion;                        /* -1: handle of the locked PUBLISH_NAME */
    unsigned returns;                     /* how often it was begun again */
};

struct job_counts { uint64_t writes, short_writes, bytes, hash_cpu_ns, synced_ns; };

struct job {
    struct writer *writer;
    struct job *next;
    struct attempt attempt;
    char name[CHECKPOINT_NAME_MAX + 1], hidden[HIDDEN_NAME_MAX + 1], part[SHARD_FILE_NAME_MAX + 1];
    bool replace, hash_late;
    uint64_t allowed_ns, expires_ns;      /* from the last STAGED to DURABLE; 0 and IO_FOREVER: no limit */

    enum job_state state;
    uint32_t pending;                     /* ops in flight for the state, items included */
    uint32_t hashing;                     /* hash tasks in flight: they run beside the early states too */
    bool failed;                          /* `failure` says why */
    bool publishing;                      /* the rename was begun and may have taken effect */
    bool answered;                        /* PUBLISHED, FAILED, UNKNOWN or ABANDONED was sent */
    enum message_kind answer;             /* for a failed job: MESSAGE_FAILED or MESSAGE_ABANDONED */
    uint32_t failure_file;
    struct tspool_failure failure;

    struct job_input input;
    struct job_file *files;               /* shards as in the sheet, then texts as in the appendix, digests before the manifest */
    uint32_t file_count, shard_count;
    struct chunk *chunks;
    uint32_t chunk_count, staged_count, done_count;
    uint64_t turn;                        /* among saves of its name: the how-manieth of all that was staged; 0: not yet */
    uint64_t *first_leaf;                 /* per tensor */
    struct digest *leaves;
    struct write_queue writes;
    struct hash_queue hashes;
    struct job_seal seal;
    struct io_stat root_stat, name_stat;
    char record[PART_TEXT_BYTES];         /* what is written to the part record */
    struct task record_task;
    bool record_waits;                    /* for a place among the writes of part records */
    bool name_exists, directory_made, part_made, is_orphan;
    uint64_t room_denied_ns;              /* when retention said that it frees nothing more; 0: it has not */
    int directory, part_handle;           /* -1 */
    struct job_replaced replaced;
    struct job_shared shared;
    struct job_counts counts;
    struct task spare;                    /* for an op that no memory is left for; its job is NULL while it is free */
};

/* Takes the two handles, also when it fails. 0 or -ENOMEM. */
int job_create(struct writer *writer, const struct message *begin, const int *fds, struct job **job);
void job_destroy(struct job *job);
void job_start(struct job *job);
void job_staged(struct job *job, const struct message_staged *staged);
bool job_is_staged(const struct job *job);
/* Ends it unless it is being published. answer: MESSAGE_ABANDONED, or MESSAGE_FAILED with the cause. */
void job_give_up(struct job *job, enum message_kind answer, int error, const char *cause);
/* The time at which job_expire has something to do. */
uint64_t job_deadline(const struct job *job);
void job_expire(struct job *job);

/* For the files that do a state's work -------------------------------------------------------------------------------- */

/* Submits an op of the job; `done` ends with job_task_end. Without memory the job fails. */
void job_submit(struct job *job, uint32_t file, void (*done)(struct task *task, int64_t result), const struct op *op);
void job_checked(struct task *task, int64_t result);  /* done: a negative result fails the job */
void job_ignored(struct task *task, int64_t result);  /* done: the result matters to nobody */
void job_task_end(struct task *task);                 /* frees the task, then advances the job */
void job_op_end(struct job *job);                     /* the same for tasks from a pool */
void job_advance(struct job *job);

/* Takes a chunk without advancing the job. */
void job_take_staged(struct job *job, const struct message_staged *staged);

/* Records the first failure. */
void job_fail_task(struct job *job, const struct task *task, int error);   /* error > 0 */
void job_fail(struct job *job, int error, const char *operation, const char *path, const char *cause, ...)
    __attribute__((format(printf, 5, 6)));
/* What an op works on, relative to the root: ".step-1.<id>/model.safetensors.partial". */
#define JOB_PATH_BYTES (HIDDEN_NAME_MAX + 1 + PARTIAL_NAME_MAX + 1)
void job_task_path(const struct task *task, char path[JOB_PATH_BYTES]);
void job_progress(struct job *job, enum message_kind kind);
void job_report_published(struct job *job); /* DURABLE and PUBLISHED: its last answer */
/* Is it one of several ranks that write into one directory? */
bool job_is_part(const struct job *job);

uint64_t chunk_file_offset(const struct job *job, uint32_t chunk);
uint64_t chunk_size(const struct job *job, uint32_t chunk);
const uint8_t *chunk_bytes(const struct job *job, uint32_t chunk);
/* The chunk's slot is not needed for this any more; with the last reason RELEASED goes out. */
void chunk_settle(struct job *job, uint32_t chunk, enum chunk_wait reason);

/* The work of states. Each submits ops, or none. */
void prepare_read(struct job *job);
void prepare_admit(struct job *job);
void prepare_look_open(struct job *job);
void prepare_look_list(struct job *job);
void prepare_make(struct job *job);
void prepare_enter(struct job *job);
void prepare_claim(struct job *job);
void prepare_lock(struct job *job);
void part_write(struct job *job);
/* The trainer is dead: says so in the part record, if there is one. */
void part_mark(struct job *job);
void shared_adopt(struct job *job);
void shared_exclude(struct job *job);
void shared_inherit(struct job *job);
void shared_clear(struct job *job);
void shared_include(struct job *job); /* publishers may come again */
void shared_leave(struct job *job);
void shared_uncover(struct job *job);
void shared_hold(struct job *job);
void prepare_open(struct job *job);
void prepare_allocate(struct job *job);
void seal_compose(struct job *job);
void commit_cut(struct job *job);
void commit_sync(struct job *job);
void commit_uncover(struct job *job);
void commit_uncover_file(struct job *job, uint32_t number, void (*done)(struct task *task, int64_t result));
bool rename_changed_nothing(int error);
void commit_sync_directory(struct job *job);
void commit_rename(struct job *job);
void commit_aside(struct job *job);
void commit_rename_in(struct job *job);
void commit_rename_back(struct job *job);
void commit_sync_root(struct job *job);
void replace_open(struct job *job);
void replace_list(struct job *job);
void replace_link(struct job *job);
void replace_list_again(struct job *job);
void replace_move(struct job *job);
void replace_unlink(struct job *job);
void replace_remove(struct job *job);
void sweep_close(struct job *job);
void sweep_unlink(struct job *job);
void sweep_remove(struct job *job);
void sweep_close_rest(struct job *job);

#endif
