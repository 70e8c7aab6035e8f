/* support/tap_io.h - an io between a machine and a real one: it counts and records what is asked, and refuses, shortens or
 * holds back what a test says. One rule at a time.
 */
#ifndef SUPPORT_TAP_IO_H
#define SUPPORT_TAP_IO_H

#include <io/io.h>
#include <pthread.h>

#define TAP_OPS_MAX 4096u

struct tap_rule {
    enum op_kind kind;           /* OP_NONE: no rule */
    const char *name;            /* the op's name contains this; NULL: any */
    uint32_t flags;              /* the op's flags contain these */
    unsigned skip;               /* that many matching ops pass first */
    int error;                   /* > 0: the op ends with -error and is not carried out */
    size_t short_size;           /* > 0: only so many bytes are asked for */
    unsigned times;              /* how many ops it strikes; 0: one */
};
struct tap {
    struct tap_rule rule;        /* set before the writer starts */
    /* What was carried out, in the order of completion: "fsync", "rename model.safetensors.partial", ... */
    char *trace[TAP_OPS_MAX];
    unsigned trace_count;
    unsigned counts[32];         /* by kind, submitted */
    unsigned writes_in_flight, writes_in_flight_most;
    unsigned waits_with_deadline;
    /* A writer in front of a closed gate does not wait for completions: what happens meanwhile it sees all at once. */
    bool has_gate;
    pthread_mutex_t gate;        /* locked: closed */
    bool stream_ended;           /* the end of the stream was seen, and acted upon; under `gate` */
};
void tap_gate_init(struct tap *tap);
/* Returns when the writer has acted upon the end of the stream. */
void tap_await_end_of_stream(struct tap *tap);
/* For struct writer_host: io_context is the tap. It must outlive the writer. */
int tap_io_create(void *context, bool uring, const struct io_settings *settings, struct io **io, struct tspool_failure *failure);
void tap_deinit(struct tap *tap);
/* Position of the first traced op that begins with `text`, from `from` on; -1: none. */
int tap_find(const struct tap *tap, const char *text, unsigned from);

#endif
