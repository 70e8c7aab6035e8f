/* write/probe.c - what the root can do, found out before READY.
 *
 * Alignment, the file system's name and whether it can be written to show only on a file: one is made in the root, looked
 * at and removed. Its name has the form of an unpublished attempt, so that gc removes one that a crash left.
 */
#include <write/machine.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <tspool/version.h>
#include <wire/sheet.h>

static void probe_open(struct writer *writer);

static void probe_submit(struct writer *writer, void (*done)(struct task *, int64_t), const struct op *op)
{
    struct task *task = &writer->probe.task;

    memset(task, 0, sizeof(*task));
    task->op = *op;
    task->done = done;
    task->writer = writer;
    task->file = NO_FILE;
    tasks_submit(&writer->tasks, task);
}

static void ready_send(struct writer *writer)
{
    const struct root_mode *mode = &writer->mode;
    struct message message;
    struct message_ready *ready = &message.ready;

    message_init(&message, MESSAGE_READY, NULL);
    snprintf(ready->version, sizeof(ready->version), "%s", TSPOOL_VERSION);
    snprintf(ready->backend, sizeof(ready->backend), "%s", writer->io->backend);
    snprintf(ready->filesystem, sizeof(ready->filesystem), "%s", mode->filesystem);
    snprintf(ready->note, sizeof(ready->note), "%s", mode->note);
    ready->pid = writer->settings.pid;
    ready->memory_align = mode->direct ? mode->memory_align : 0;
    ready->offset_align = mode->direct ? mode->offset_align : 0;
    ready->direct = mode->direct;
    ready->registered = writer->arena_buffer != IO_NO_BUFFER && writer->io->registered;
    ready->error = writer->probe.error;
    connection_send(writer, &message);
}

/* Adds a reason why this is not the preferred mode. */
void writer_note(struct writer *writer, const char *text)
{
    char *note = writer->mode.note;
    size_t used = strlen(note);

    snprintf(note + used, sizeof(writer->mode.note) - used, "%s%s", used ? "; " : "", text);
}

void probe_refuse(struct writer *writer, int error, const char *operation)
{
    if (writer->probe.error)
        return;
    writer->probe.error = error;
    writer->probe.operation = operation;
    snprintf(writer->mode.note, sizeof(writer->mode.note), "%s in the root directory: %s: %s", operation, strerror(error),
             failure_likely_cause(error));
}

static void probe_end(struct writer *writer)
{
    if (writer->trainer_dead || writer->state != WRITER_PROBING) {
        writer->state = WRITER_ENDING;
        return;
    }
    ready_send(writer);
    if (writer->probe.error || writer->connection.starved) {
        writer->state = WRITER_ENDING;
        return;
    }
    writer->state = WRITER_SERVING;
    connection_receive(writer);
}

static void probe_removed(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;

    writer->probe.made = false;
    if (!writer->probe.error && writer->probe.handle < 0)
        probe_open(writer); /* once more, without O_DIRECT */
    else
        probe_end(writer);
}

static void probe_remove(struct writer *writer)
{
    if (writer->probe.made)
        probe_submit(writer, probe_removed,
                     &(struct op){ .kind = OP_UNLINK, .handle = writer->settings.root, .name = writer->probe.name });
    else
        probe_end(writer);
}

static void probe_closed(struct task *task, int64_t result) { probe_remove(task->writer); }

/* An alignment that nobody reports cannot be relied on: O_DIRECT opens succeed on btrfs and tmpfs without being direct. */
static void mode_settle(struct writer *writer)
{
    const struct io_stat *stat = &writer->probe.stat;
    struct root_mode *mode = &writer->mode;
    uint32_t memory = stat->direct_memory_align, offset = stat->direct_offset_align;

    memcpy(mode->filesystem, stat->filesystem, sizeof(mode->filesystem));
    mode->filesystem[sizeof(mode->filesystem) - 1] = '\0';
    mode->direct = writer->probe.direct && is_power_of_two(memory) && is_power_of_two(offset) && memory <= 4096 &&
                   offset <= CHUNK_BYTES && is_aligned(writer->settings.hello.item_bytes, offset);
    mode->memory_align = mode->direct ? memory : 1;
    mode->offset_align = mode->direct ? offset : 1;
    if (!mode->direct && !writer->settings.hello.buffered)
        writer_note(writer, writer->probe.direct ? "buffered: no usable O_DIRECT alignment is reported here"
                                              : "buffered: O_DIRECT is refused here");
}

static void probe_looked(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;

    if (result < 0)
        probe_refuse(writer, (int)-result, "stat");
    else
        mode_settle(writer);
    probe_submit(writer, probe_closed, &(struct op){ .kind = OP_CLOSE, .handle = writer->probe.handle });
}

static void probe_opened(struct task *task, int64_t result)
{
    struct writer *writer = task->writer;
    struct probe *probe = &writer->probe;

    probe->made = result != -EEXIST;
    if (result >= 0) {
        probe->handle = (int)result;
        probe_submit(writer, probe_looked, &(struct op){ .kind = OP_STAT, .handle = probe->handle, .stat = &probe->stat });
        return;
    }
    if (result == -EINVAL && probe->direct)
        probe->direct = false; /* the refused open may have made the file: it is removed before the next try */
    else
        probe_refuse(writer, (int)-result, "create a file");
    probe_remove(writer);
}

static void probe_open(struct writer *writer)
{
    struct probe *probe = &writer->probe;
    uint32_t flags = OPEN_WRITE | OPEN_CREATE | (probe->direct ? OPEN_DIRECT : 0);

    probe_submit(writer, probe_opened,
                 &(struct op){ .kind = OP_OPEN, .handle = writer->settings.root, .name = probe->name, .flags = flags });
}

void probe_start(struct writer *writer)
{
    uint8_t id[16];

    io_random(writer->io, id, sizeof(id));
    hidden_name_make(PROBE_NAME, id, writer->probe.name);
    writer->probe.handle = -1;
    writer->probe.direct = !writer->settings.hello.buffered;
    probe_open(writer);
}
