/* save/scripted.c - see scripted.h. */
#include "scripted.h"

#include <arena/arena.h>
#include <base/failure.h>
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

char scripted_tensor[33 << 20];

static int start(struct writer_launcher *launcher, struct writer_handle *handle, struct tspool_failure *failure)
{
    struct scripted *scripted = (struct scripted *)launcher;
    int ends[2];

    if (scripted->refusals > 0) {
        scripted->refusals--;
        return failure_set(failure, TSPOOL_STAGE_WRITER, EAGAIN, FAILURE_AT(.operation = "spawn"), "scripted to be refused");
    }
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
    if (!scripted->unkillable)
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

/* A save of one tensor of 33 MB: three chunks, in slots 0 to 2 where it fits. */
static struct tspool_save *save_make(struct scripted *scripted, uint8_t id, enum tspool_staging staging)
{
    bool fits = arena_slot_count(scripted->arena) >= 3;
    const uint64_t shape[] = { 33 << 20 };
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
    struct tspool_save *save = calloc(1, sizeof(*save));
    uint32_t first = 0;

    *save = (struct tspool_save){ .roster = &scripted->roster, .arena = scripted->arena, .stager = &scripted->stager,
                                  .layout = layout_create(), .world_size = 1, .attempt = { { id }, 1 }, .appendix_fd = -1,
                                  .fd = -1, .replayable = fits, .staging = staging, .has_handle = true,
                                  .intended = TSPOOL_FAILURE_INIT };
    save->result.failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    snprintf(save->name, sizeof(save->name), "scripted-%u", id);
    tensor.name = "t", tensor.dtype = TSPOOL_U8, tensor.rank = 1, tensor.shape = shape, tensor.data = scripted_tensor;
    tensor.version = &scripted->version;
    cr_assert_eq(layout_add(save->layout, &tensor, true, NULL), 0);
    cr_assert_eq(layout_plan(save->layout, &(struct plan_rules){ .offset_align = 4096, .world_size = 1 }, NULL), 0);
    cr_assert_eq(save_plan(save)->chunk_count, 3);
    if (fits)
        cr_assert_eq(arena_acquire_run(scripted->arena, 3, &first, NULL), 0);
    save->slots = calloc(3, sizeof(*save->slots));
    save->chunks = calloc(3, 1);
    save->staged = calloc(3, sizeof(*save->staged));
    save->versions = calloc(1, sizeof(*save->versions));
    for (uint32_t i = 0; i < 3; i++)
        save->slots[i] = fits ? first + i : ARENA_NO_SLOT;
    save->result.file_bytes = save_plan(save)->file_bytes;
    return save;
}

static void submit(struct scripted *scripted, struct tspool_save *save)
{
    pthread_mutex_lock(&scripted->roster.lock);
    roster_add(&scripted->roster, save);
    if (!save->replayable && save->staging != TSPOOL_STAGING_CALLER)
        stager_enter(&scripted->stager, save);
    pthread_mutex_unlock(&scripted->roster.lock);
}

static void init(struct scripted *scripted, uint64_t arena_bytes, enum tspool_staging staging)
{
    const struct io_settings io_settings = { .verb_threads = 1, .transfer_threads = 1, .compute_threads = 1 };
    const struct arena_settings arena_settings = { .bytes = arena_bytes };
    struct supervisor_settings settings = { .start_timeout_ns = 20000000000, .heartbeat_ns = 20000000000, .root_fd = -1,
                                            .trainer_pidfd = -1 };

    memset(scripted, 0, sizeof(*scripted));
    scripted->launcher = (struct writer_launcher){ .start = start, .kill = kill_writer, .release = release };
    cr_assert_eq(roster_init(&scripted->roster, NULL), 0);
    cr_assert_eq(arena_create(&arena_settings, &scripted->arena, NULL), 0);
    cr_assert_eq(io_create_threads(&io_settings, &scripted->io, NULL), 0);
    cr_assert_eq(stager_init(&scripted->stager, &scripted->roster, scripted->arena, 0, NULL, NULL), 0);
    strcpy(scripted->root, "/tmp/tspool-scripted-XXXXXX");
    cr_assert_not_null(mkdtemp(scripted->root));
    settings.arena_fd = arena_fd(scripted->arena);
    settings.root_fd = open(scripted->root, O_RDONLY | O_DIRECTORY);
    settings.hello = (struct message_hello){ .version = "test", .arena_bytes = arena_bytes, .chunk_bytes = CHUNK_BYTES,
                                             .item_bytes = 4096, .depth = 1, .hash_threads = 1, .world_size = 1 };
    supervisor_init(&scripted->supervisor, scripted->io, &scripted->roster, &scripted->launcher, &settings);
    scripted->save = save_make(scripted, 7, staging);
    submit(scripted, scripted->save);
    supervisor_step(&scripted->supervisor, NULL);
    scripted_turn(scripted);
}

void scripted_init(struct scripted *scripted) { init(scripted, 128 << 20, TSPOOL_STAGING_NOW); }

void scripted_init_larger(struct scripted *scripted, enum tspool_staging staging) { init(scripted, 32 << 20, staging); }

void scripted_submit_another(struct scripted *scripted, const char *name)
{
    scripted->another = save_make(scripted, 9, scripted->save->staging);
    snprintf(scripted->another->name, sizeof(scripted->another->name), "%s", name);
    submit(scripted, scripted->another);
    scripted_turn(scripted);
}

static void save_drop(struct tspool_save *save)
{
    if (!save)
        return;
    save_look(save);
    save->recovery.in_flight = save->has_handle = save->is_active = false;
    recovery_deinit(&save->recovery);
    save_release(save);
}

void scripted_deinit(struct scripted *scripted)
{
    char command[96];

    io_destroy(scripted->io);
    supervisor_deinit(&scripted->supervisor);
    stager_deinit(&scripted->stager);
    save_drop(scripted->save);
    save_drop(scripted->another);
    close(scripted->supervisor.settings.root_fd);
    snprintf(command, sizeof(command), "rm -r %s", scripted->root);
    cr_assert_eq(system(command), 0);
    arena_destroy(scripted->arena);
    roster_deinit(&scripted->roster);
}

static bool recovers(const struct tspool_save *save)
{
    return save && save->recovery.in_flight && save->recovery.op.kind != OP_TIMER;
}

void scripted_turn_until_starts(struct scripted *scripted, unsigned starts)
{
    struct completion completion;

    while (scripted->starts < starts) {
        cr_assert_eq(io_wait(scripted->io, &completion, 1, IO_FOREVER), 1);
        supervisor_step(&scripted->supervisor, &completion);
    }
    scripted_turn(scripted);
}

void scripted_poke(struct scripted *scripted)
{
    roster_wake(&scripted->roster);
    scripted_turn(scripted);
}

void scripted_turn(struct scripted *scripted)
{
    struct completion completion;
    bool was_busy = true;

    /* Messages and deaths are ready when they were sent; recovery's verbs run on a thread, and are waited for. */
    while (was_busy) {
        uint64_t until = recovers(scripted->save) || recovers(scripted->another) ? IO_FOREVER : 0;

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

static void say_kind(struct scripted *scripted, enum message_kind kind, const struct attempt *attempt)
{
    struct message message;

    message_init(&message, kind, kind == MESSAGE_READY || kind == MESSAGE_PONG ? NULL : attempt);
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

void scripted_say_kind(struct scripted *scripted, enum message_kind kind)
{
    say_kind(scripted, kind, &scripted->save->attempt);
}

void scripted_another_says(struct scripted *scripted, enum message_kind kind)
{
    say_kind(scripted, kind, &scripted->another->attempt);
    scripted_turn(scripted);
}

void scripted_say_failed(struct scripted *scripted, int error, enum tspool_stage stage)
{
    struct message message;

    message_init(&message, MESSAGE_FAILED, &scripted->save->attempt);
    message.failure.error = error;
    message.failure.stage = stage;
    message.failure.file = UINT32_MAX;
    message.failure.file_offset = TSPOOL_NO_OFFSET;
    strcpy(message.failure.operation, "fsync");
    strcpy(message.failure.cause, "scripted to fail");
    scripted_say(scripted, &message);
    scripted_turn(scripted);
}

void scripted_released(struct scripted *scripted, uint32_t chunk, uint32_t slot)
{
    struct message message;

    message_init(&message, MESSAGE_RELEASED, &scripted->save->attempt);
    message.released.chunk = chunk;
    message.released.slot = slot;
    scripted_say(scripted, &message);
    scripted_turn(scripted);
}

struct message scripted_begin(struct scripted *scripted)
{
    scripted_told(scripted, MESSAGE_HELLO);
    scripted_say_kind(scripted, MESSAGE_READY);
    scripted_turn(scripted);
    return scripted_told(scripted, MESSAGE_BEGIN);
}

void scripted_publish(struct scripted *scripted)
{
    scripted_say_kind(scripted, MESSAGE_WRITTEN);
    scripted_say_kind(scripted, MESSAGE_DURABLE);
    scripted_say_kind(scripted, MESSAGE_PUBLISHED);
    scripted_turn(scripted);
}

void scripted_stage_all(struct scripted *scripted)
{
    scripted_begin(scripted);
    for (uint32_t chunk = 0; chunk < 3; chunk++) {
        scripted_stage(scripted, chunk);
        scripted_told(scripted, MESSAGE_STAGED);
    }
}
