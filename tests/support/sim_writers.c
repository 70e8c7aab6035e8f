/* support/sim_writers.c - writer processes: the supervisor's launcher starts and kills them, host.c's part (HELLO decides what
 * the machine stands on) is played here, then the real machine runs.
 */
#include "sim_pair_inside.h"

#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/version.h>

#define KILL_NS 2000000u                     /* from SIGKILL to death, at most */
#define STUCK_KILL_NS ((uint64_t)15000000000) /* in a system call that does not return for so long */

/* Memory ------------------------------------------------------------------------------------------------------------- */

static int memory_attach(void *context, int handle, uint64_t bytes, void **base, struct tspool_failure *failure)
{
    uint64_t size;
    void *found = sim_memory_bytes(context, handle, &size);

    if (!found || size < bytes)
        return -EBADF;
    *base = found;
    return 0;
}

static void memory_detach(void *context, void *base, uint64_t bytes) {}

static int memory_map(void *context, int handle, uint64_t bytes, const void **base, struct tspool_failure *failure)
{
    uint64_t size;
    const void *found = sim_memory_bytes(context, handle, &size);

    if (!found || size != bytes)
        return -EINVAL;
    *base = found;
    return 0;
}

static void memory_unmap(void *context, const void *base, uint64_t bytes) {}

/* The launcher ------------------------------------------------------------------------------------------------------- */

static struct pair_writer *writer_numbered(struct sim_pair *pair, int number)
{
    struct pair_writer *writer = pair->writers;

    while (writer && writer->number != number)
        writer = writer->next;
    return writer;
}

static void greet_submit(struct pair_writer *writer)
{
    writer->greet = (struct op){ .kind = OP_RECV, .handle = writer->channel, .memory = writer->greeting,
                                 .size = sizeof(writer->greeting) };
    if (io_submit(writer->io, &writer->greet))
        abort();
}

static bool start_is_refused(const struct sim_pair *pair)
{
    for (unsigned i = 0; i < pair->story.fault_count; i++)
        if (pair->story.faults[i].kind == STORY_START_REFUSED && story_strikes(&pair->story, i)
            && pair->story.faults[i].ordinal == pair->report.writers)
            return true;
    return false;
}

static int writer_start(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure)
{
    struct sim_pair *pair = ((struct pair_launcher *)launcher)->pair;
    struct pair_writer *writer;
    int ends[2];

    pair->report.writers++;
    if (start_is_refused(pair))
        return failure_set(failure, TSPOOL_STAGE_WRITER, EAGAIN, FAILURE_AT(.operation = "clone"), NULL);
    if (!(writer = calloc(1, sizeof(*writer))))
        abort();
    writer->pair = pair;
    writer->number = (int)pair->report.writers;
    writer->io = sim_io_create(pair->world, "writer", pair->story.depth + PART_WRITES);
    writer->next = pair->writers;
    pair->writers = writer;
    sim_channel(pair->trainer, writer->io, ends);
    writer->channel = ends[1];
    writer->term = sim_event(writer->io);
    *handle = (struct writer_handle){ .channel = ends[0], .death = sim_process(pair->trainer, writer->io),
                                       .pid = writer->number };
    greet_submit(writer);
    return 0;
}

/* From now on it runs no code of its own; what it has in the kernel goes on until it is dead. */
static void writer_kill(struct writer_launcher *launcher, struct writer_handle *handle)
{
    struct sim_pair *pair = ((struct pair_launcher *)launcher)->pair;
    struct pair_writer *writer = writer_numbered(pair, handle->pid);
    uint64_t takes = story_has(&pair->story, STORY_WRITER_STUCK) ? STUCK_KILL_NS : KILL_NS;

    if (pair->trainer_dead || !writer || writer->gone || writer->dies_at)
        return;
    writer->frozen = true;
    sim_io_doom(writer->io);
    writer->dies_at = sim_world_now(pair->world) + 1 + sim_random_below(&pair->random, takes);
}

static void writer_release(struct writer_launcher *launcher, struct writer_handle *handle, char *how, size_t how_size)
{
    struct sim_pair *pair = ((struct pair_launcher *)launcher)->pair;
    const struct pair_writer *writer = writer_numbered(pair, handle->pid);

    snprintf(how, how_size, !writer || writer->gone ? "is dead" : "was killed, but hangs in the kernel");
    if (pair->trainer_dead)
        return; /* its handles went with it */
    sim_close(pair->trainer, handle->channel);
    sim_close(pair->trainer, handle->death);
}

void writers_init(struct sim_pair *pair)
{
    pair->launcher = (struct pair_launcher){ { .start = writer_start, .kill = writer_kill, .release = writer_release }, pair };
}

/* Life --------------------------------------------------------------------------------------------------------------- */

static void writer_forget(struct pair_writer *writer)
{
    if (writer->gone)
        return;
    writer->pair->report.writer_ops += sim_io_ops(writer->io);
    sim_io_kill(writer->io);
    io_destroy(writer->io);
    writer_destroy(writer->machine);
    writer->machine = NULL;
    writer->gone = true;
}

static void machine_start(struct pair_writer *writer, const struct message_hello *hello)
{
    struct writer_settings settings = {
        .hello = *hello, .channel = writer->channel, .term = writer->term, .pid = writer->number, .memory = &writer->memory,
        .arena = writer->greet.fds[HELLO_FD_ARENA], .root = writer->greet.fds[HELLO_FD_ROOT],
        .trainer = writer->greet.fds[HELLO_FD_TRAINER],
    };

    writer->memory = (struct writer_memory){ writer->io, memory_attach, memory_detach, memory_map, memory_unmap, NULL };
    writer->handles = sim_handles(writer->io);
    if (writer_create(writer->io, &settings, &writer->machine, NULL))
        abort();
}

static void writer_greeted(struct pair_writer *writer, int64_t result)
{
    struct message message;
    const char *reason;

    if (result <= 0) { /* its trainer is gone */
        writer_forget(writer);
        return;
    }
    if (message_decode(writer->greeting, (size_t)result, &message) || message.kind != MESSAGE_HELLO
        || writer->greet.fd_count != 3 || writer_hello_refusal(&message.hello, &reason))
        pair_broken(writer->pair, "the handshake makes sense", "HELLO of writer %d does not", writer->number);
    else
        machine_start(writer, &message.hello);
}

bool writers_take(struct sim_pair *pair, struct io *io, const struct completion *completion)
{
    struct pair_writer *writer = pair->writers;

    while (writer && writer->io != io)
        writer = writer->next;
    if (!writer)
        return false;
    if (writer->gone || writer->frozen)
        return true;
    if (writer->machine)
        writer_step(writer->machine, completion);
    else
        writer_greeted(writer, completion->result);
    return true;
}

uint64_t writers_deadline(const struct sim_pair *pair)
{
    uint64_t deadline = IO_FOREVER;

    for (const struct pair_writer *writer = pair->writers; writer; writer = writer->next) {
        if (writer->gone)
            continue;
        if (writer->dies_at)
            deadline = min_u64(deadline, writer->dies_at);
        if (writer->machine && !writer->frozen)
            deadline = min_u64(deadline, writer_deadline(writer->machine));
    }
    return deadline;
}

void writers_due(struct sim_pair *pair)
{
    uint64_t now = sim_world_now(pair->world);

    for (struct pair_writer *writer = pair->writers; writer; writer = writer->next) {
        if (writer->gone)
            continue;
        if (writer->dies_at && writer->dies_at <= now)
            writer_forget(writer);
        else if (writer->machine && !writer->frozen && writer_deadline(writer->machine) <= now)
            writer_step(writer->machine, NULL);
    }
}

static void writer_check_end(const struct pair_writer *writer)
{
    if (sim_handles(writer->io) > writer->handles)
        pair_broken(writer->pair, "no handle leaks", "writer %d ended and left %u handles open", writer->number,
                    sim_handles(writer->io) - writer->handles);
}

void writers_bury(struct sim_pair *pair)
{
    for (struct pair_writer *writer = pair->writers; writer; writer = writer->next) {
        bool finished = !writer->gone && writer->machine && !sim_io_is_dead(writer->io) && writer_finished(writer->machine);

        if (finished)
            writer_check_end(writer);
        if (finished || (!writer->gone && sim_io_is_dead(writer->io)))
            writer_forget(writer);
    }
}

bool writers_are_gone(const struct sim_pair *pair)
{
    for (const struct pair_writer *writer = pair->writers; writer; writer = writer->next)
        if (!writer->gone && !(writer->frozen && !writer->dies_at))
            return false;
    return true;
}

void writers_end(struct sim_pair *pair)
{
    for (struct pair_writer *writer = pair->writers, *next; writer; writer = next) {
        next = writer->next;
        writer_forget(writer);
        free(writer);
    }
    pair->writers = NULL;
}
