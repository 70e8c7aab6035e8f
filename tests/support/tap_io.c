/* support/tap_io.c - see tap_io.h. */
#include "tap_io.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct refused { struct op *op; int error; };

struct tap_io {
    struct io io;
    struct io *real;
    struct tap *tap;
    struct refused refused[256];
    unsigned refused_count, struck, skipped;
    struct op *shortened;        /* its size is restored when it comes back */
    size_t full_size;
    bool stream_ended;
};

static struct tap_io *tap_of(struct io *io) { return (struct tap_io *)io; }

static bool rule_strikes(struct tap_io *tap, const struct op *op)
{
    const struct tap_rule *rule = &tap->tap->rule;

    if (rule->kind != op->kind || rule->kind == OP_NONE || tap->struck == (rule->times ? rule->times : 1))
        return false;
    if ((rule->name && !(op->name && strstr(op->name, rule->name))) || (op->flags & rule->flags) != rule->flags)
        return false;
    if (tap->skipped < rule->skip) {
        tap->skipped++;
        return false;
    }
    tap->struck++;
    return true;
}

static int tap_submit(struct io *io, struct op *op)
{
    struct tap_io *tap = tap_of(io);
    struct tap *shown = tap->tap;

    shown->counts[op->kind]++;
    if (op->kind == OP_WRITE && ++shown->writes_in_flight > shown->writes_in_flight_most)
        shown->writes_in_flight_most = shown->writes_in_flight;
    if (rule_strikes(tap, op)) {
        if (shown->rule.error) {
            tap->refused[tap->refused_count++] = (struct refused){ op, shown->rule.error };
            return 0;
        }
        tap->shortened = op;
        tap->full_size = op->size;
        op->size = shown->rule.short_size;
    }
    return io_submit(tap->real, op);
}

static void completion_note(struct tap_io *tap, const struct completion *completion)
{
    struct tap *shown = tap->tap;
    struct op *op = completion->op;
    char text[256];

    if (op == tap->shortened) {
        op->size = tap->full_size;
        tap->shortened = NULL;
    }
    if (op->kind == OP_WRITE)
        shown->writes_in_flight--;
    tap->stream_ended |= op->kind == OP_RECV && completion->result == 0;
    snprintf(text, sizeof(text), "%s%s%s", op_kind_name(op->kind), op->name ? " " : "", op->name ? op->name : "");
    if (shown->trace_count < TAP_OPS_MAX)
        shown->trace[shown->trace_count++] = strdup(text);
}

static int tap_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct tap_io *tap = tap_of(io);
    int count;

    if (tap->tap->has_gate) {
        pthread_mutex_lock(&tap->tap->gate);
        tap->tap->stream_ended = tap->stream_ended;
        pthread_mutex_unlock(&tap->tap->gate);
    }
    if (deadline_ns != IO_FOREVER)
        tap->tap->waits_with_deadline++;
    if (tap->refused_count) {
        struct refused *refused = &tap->refused[--tap->refused_count];

        completions[0] = (struct completion){ refused->op, -refused->error };
        count = 1;
    } else {
        count = io_wait(tap->real, completions, capacity, deadline_ns);
    }
    for (int i = 0; i < count; i++)
        completion_note(tap, &completions[i]);
    return count;
}

static int tap_cancel(struct io *io, struct op *op) { return io_cancel(tap_of(io)->real, op); }
static int tap_attach(struct io *io, void *base, size_t size) { return io_attach(tap_of(io)->real, base, size); }
static void tap_detach(struct io *io, uint32_t buffer) { io_detach(tap_of(io)->real, buffer); }
static uint64_t tap_now(struct io *io) { return io_now(tap_of(io)->real); }
static void tap_random(struct io *io, void *bytes, size_t size) { io_random(tap_of(io)->real, bytes, size); }

static void tap_destroy(struct io *io)
{
    io_destroy(tap_of(io)->real);
    free(io);
}

int tap_io_create(void *context, bool uring, const struct io_settings *settings, struct io **io, struct tspool_failure *failure)
{
    static const struct io_ops ops = { .submit = tap_submit, .wait = tap_wait, .cancel = tap_cancel, .attach = tap_attach,
                                       .detach = tap_detach, .now = tap_now, .random = tap_random, .destroy = tap_destroy };
    struct tap_io *made = calloc(1, sizeof(*made));
    int error = uring ? io_create_uring(settings, &made->real, failure) : io_create_threads(settings, &made->real, failure);

    if (error < 0) {
        free(made);
        return error;
    }
    made->tap = context;
    made->io = (struct io){ .ops = &ops, .backend = made->real->backend, .registered = made->real->registered };
    *io = &made->io;
    return 0;
}

void tap_gate_init(struct tap *tap)
{
    tap->has_gate = true;
    pthread_mutex_init(&tap->gate, NULL);
}

void tap_await_end_of_stream(struct tap *tap)
{
    bool seen = false;

    while (!seen) {
        pthread_mutex_lock(&tap->gate);
        seen = tap->stream_ended;
        pthread_mutex_unlock(&tap->gate);
        sched_yield();
    }
}

void tap_deinit(struct tap *tap)
{
    for (unsigned i = 0; i < tap->trace_count; i++)
        free(tap->trace[i]);
}

int tap_find(const struct tap *tap, const char *text, unsigned from)
{
    for (unsigned i = from; i < tap->trace_count; i++)
        if (strncmp(tap->trace[i], text, strlen(text)) == 0)
            return (int)i;
    return -1;
}
