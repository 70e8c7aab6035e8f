/* save/scripted.c - see scripted.h. */
#include "scripted.h"

#include <arena/arena.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <proc/proc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static char tensor_bytes[1];

static int start(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure)
{
    struct scripted *scripted = (struct scripted *)launcher;
    int ends[2];

    cr_assert_eq(channel_create(ends, failure), 0);
    *handle = (struct writer_handle){ .channel = ends[0], .death = eventfd(0, EFD_NONBLOCK), .pid = 4711 };
    scripted->peer = ends[1];
    scripted->death = dup(handle->death);
    scripted->starts++;
    return 0;
}

void scripted_die(struct scripted *scripted)
{
    uint64_t one = 1;

    cr_assert_eq(write(scripted->death, &one, sizeof(one)), (ssize_t)sizeof(one));
}

static void kill_writer(struct writer_launcher *launcher, struct writer_handle *handle)
{
    struct scripted *scripted = (struct scripted *)launcher;

    (void)handle;
    scripted->kills++;
    scripted_die(scripted);
}

static void release(struct writer_launcher *launcher, struct writer_handle *handle, char *how, size_t how_size)
{
    struct scripted *scripted = (struct scripted *)launcher;

    close(handle->channel);
    close(handle->death);
    close(scripted->peer);
    close(scripted->death);
    snprintf(how, how_size, "was scripted to die");
}

/* A save of one tensor of 33 MB, never copied: three chunks in slots 0 to 2. */
static struct tspool_save *save_make(struct scripted *scripted)
{
    const uint64_t shape[] = { 33 << 20 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_save *save = calloc(1, sizeof(*save));
    uint32_t first = 0;

    *save = (struct tspool_save){ .roster = &scripted->roster, .arena = scripted->arena, .layout = layout_create(),
                                  .world_size = 1, .attempt = { { 7 }, 1 }, .appendix_fd = -1, .fd = -1, .replayable = true,
                                  .has_handle = true, .intended = TSPOOL_FAILURE_INIT };
    save->result.failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    strcpy(save->name, "scripted");
    tensor.name = "t", tensor.dtype = TSPOOL_U8, tensor.rank = 1, tensor.shape = shape, tensor.data = tensor_bytes;
    cr_assert_eq(layout_add(save->layout, &tensor, true, NULL), 0);
    cr_assert_eq(layout_plan(save->layout, &(struct plan_rules){ .offset_align = 4096, .world_size = 1 }, NULL), 0);
    cr_assert_eq(save_plan(save)->chunk_count, 3);
    cr_assert_eq(arena_acquire_run(scripted->arena, 3, &first, NULL), 0);
    save->slots = calloc(3, sizeof(*save->slots));
    save->chunks = calloc(3, 1);
    save->staged = calloc(3, sizeof(*save->staged));
    for (uint32_t i = 0; i < 3; i++)
        save->slots[i] = first + i;
    save->result.file_bytes = save_plan(save)->file_bytes;
    return save;
}

void scripted_init(struct scripted *scripted)
{
    const struct io_settings io_settings = { .verb_threads = 1, .transfer_threads = 1, .compute_threads = 1 };
    const struct arena_settings arena_settings = { .bytes = 64 << 20 };
    struct supervisor_settings settings = { .start_timeout_ns = 20000000000, .heartbeat_ns = 200000000, .root_fd = -1,
                                            .trainer_pidfd = -1 };

    memset(scripted, 0, sizeof(*scripted));
    scripted->launcher = (struct writer_launcher){ .start = start, .kill = kill_writer, .release = release };
    cr_assert_eq(roster_init(&scripted->roster, NULL), 0);
    cr_assert_eq(arena_create(&arena_settings, &scripted->arena, NULL), 0);
    cr_assert_eq(io_create_threads(&io_settings, &scripted->io, NULL), 0);
    settings.arena_fd = arena_fd(scripted->arena);
    settings.root_fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    settings.hello = (struct message_hello){ .version = "test", .arena_bytes = 64 << 20, .chunk_bytes = CHUNK_BYTES,
                                             .item_bytes = 4096, .depth = 1, .hash_threads = 1, .world_size = 1 };
    supervisor_init(&scripted->supervisor, scripted->io, &scripted->roster, &scripted->launcher, &settings);
    scripted->save = save_make(scripted);
    roster_add(&scripted->roster, scripted->save);
    supervisor_step(&scripted->supervisor, NULL);
    scripted_turn(scripted);
}

void scripted_deinit(struct scripted *scripted)
{
    struct tspool_save *save = scripted->save;

    io_destroy(scripted->io);
    supervisor_deinit(&scripted->supervisor);
    save_look(save);
    save->has_handle = save->is_active = false;
    save_release(save);
    close(scripted->supervisor.settings.root_fd);
    arena_destroy(scripted->arena);
    roster_deinit(&scripted->roster);
}

void scripted_turn(struct scripted *scripted)
{
    struct completion completion;
    bool was_busy = true;

    /* Messages and deaths are ready when they were sent; recovery's verbs run on a thread, and are waited for. */
    while (was_busy) {
        uint64_t until = scripted->save->recovery.in_flight ? IO_FOREVER : 0;

        was_busy = io_wait(scripted->io, &completion, 1, until) == 1;
        if (was_busy)
            supervisor_step(&scripted->supervisor, &completion);
    }
}

void scripted_stage(struct scripted *scripted, uint32_t chunk)
{
    pthread_mutex_lock(&scripted->roster.lock);
    save_chunk_staged(scripted->save, chunk);
    pthread_mutex_unlock(&scripted->roster.lock);
    scripted_turn(scripted);
}

struct message scripted_told(struct scripted *scripted, enum message_kind kind)
{
    char bytes[sizeof(struct message)];
    struct message message;
    ssize_t size = recv(scripted->peer, bytes, sizeof(bytes), MSG_DONTWAIT);

    cr_assert_gt(size, 0, "nothing was said, %s was expected", message_kind_name(kind));
    cr_assert_eq(message_decode(bytes, (size_t)size, &message), 0);
    cr_assert_eq(message.kind, kind, "%s instead of %s", message_kind_name(message.kind), message_kind_name(kind));
    scripted_turn(scripted); /* one is in flight at a time: the next one now */
    return message;
}

bool scripted_told_nothing(struct scripted *scripted)
{
    char bytes[sizeof(struct message)];

    return recv(scripted->peer, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_PEEK) < 0;
}

void scripted_say(struct scripted *scripted, struct message *message)
{
    size_t size = message_size(message->kind);

    cr_assert_eq(send(scripted->peer, message, size, MSG_DONTWAIT | MSG_NOSIGNAL), (ssize_t)size);
}

void scripted_say_kind(struct scripted *scripted, enum message_kind kind)
{
    const struct attempt attempt = { { 7 }, 1 };
    struct message message;

    message_init(&message, kind, kind == MESSAGE_READY || kind == MESSAGE_PONG ? NULL : &attempt);
    if (kind == MESSAGE_READY) {
        strcpy(message.ready.version, "test");
        strcpy(message.ready.backend, "threads");
    } else if (kind == MESSAGE_FAILED || kind == MESSAGE_UNKNOWN) {
        message.failure.error = ENOSPC;
        message.failure.stage = TSPOOL_STAGE_WRITE;
        message.failure.file = 0;
        message.failure.file_offset = 1 << 20;
        strcpy(message.failure.operation, "write");
        strcpy(message.failure.path, "model.safetensors");
    } else if (kind == MESSAGE_PREPARED || kind == MESSAGE_WRITTEN || kind == MESSAGE_DURABLE || kind == MESSAGE_PUBLISHED) {
        message.progress.item_bytes = 4096;
        message.progress.depth = 1;
    }
    scripted_say(scripted, &message);
}

void scripted_released(struct scripted *scripted, uint32_t chunk, uint32_t slot)
{
    const struct attempt attempt = { { 7 }, 1 };
    struct message message;

    message_init(&message, MESSAGE_RELEASED, &attempt);
    message.released.chunk = chunk;
    message.released.slot = slot;
    scripted_say(scripted, &message);
    scripted_turn(scripted);
}

void scripted_stage_all(struct scripted *scripted)
{
    scripted_told(scripted, MESSAGE_HELLO);
    scripted_say_kind(scripted, MESSAGE_READY);
    scripted_turn(scripted);
    scripted_told(scripted, MESSAGE_BEGIN);
    for (uint32_t chunk = 0; chunk < 3; chunk++) {
        scripted_stage(scripted, chunk);
        scripted_told(scripted, MESSAGE_STAGED);
    }
}
