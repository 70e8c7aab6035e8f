/* support/fake_trainer.c - see fake_trainer.h. */
#include "fake_trainer.h"

#include <base/checked.h>
#include <base/hash.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <format/digests.h>
#include <poll.h>
#include <proc/proc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <tspool/version.h>
#include <unistd.h>

#define PATIENCE_MS 20000
#define OBJECTS_NAME "objects-00001.bin"

/* The state ------------------------------------------------------------------------------------------------------------ */

static void bytes_fill(uint8_t *bytes, uint64_t size, uint64_t seed)
{
    uint64_t word = seed * 0x9e3779b97f4a7c15u + 1;

    for (uint64_t i = 0; i < size; i++) {
        if (i % 8 == 0)
            word = word * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(word >> (i % 8 * 8));
    }
}

static void sheet_make(struct fake_state *state)
{
    struct sheet_front *front;
    struct sheet_file *file;
    struct sheet_tensor *tensor;

    state->sheet_size = sheet_bytes(state->file_count, state->tensor_count);
    front = (struct sheet_front *)(state->sheet = calloc(1, state->sheet_size));
    *front = (struct sheet_front){ SHEET_MAGIC, SHEET_VERSION, state->file_count, state->chunk_count, state->tensor_count,
                                   state->leaf_count };
    file = (struct sheet_file *)(front + 1);
    tensor = (struct sheet_tensor *)(file + state->file_count);
    for (uint32_t i = 0, chunks = 0, tensors = 0; i < state->file_count; i++, file++) {
        const struct fake_file *from = &state->files[i];
        uint64_t offset = from->size;

        snprintf(file->name, sizeof(file->name), "%s", from->name);
        file->size = from->size;
        file->tensor_first = tensors;
        file->tensor_count = from->tensor_count;
        file->chunk_first = chunks;
        file->chunk_count = (uint32_t)divide_up(from->size, CHUNK_BYTES);
        for (uint32_t t = 0; t < from->tensor_count; t++)
            offset -= from->tensors[t];
        for (uint32_t t = 0; t < from->tensor_count; offset += from->tensors[t++])
            *tensor++ = (struct sheet_tensor){ offset, from->tensors[t] };
        chunks += file->chunk_count;
        tensors += from->tensor_count;
    }
}

static void appendix_make(struct fake_state *state)
{
    static const char manifest[] = "{ \"digests\": \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\", "
                                   "\"digest\": \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" }\n";
    struct appendix_front *front;
    uint64_t objects = align_up(sizeof(*front), APPENDIX_ALIGN), text = align_up(objects + state->objects_size, APPENDIX_ALIGN);

    state->appendix_size = text + sizeof(manifest) - 1;
    front = (struct appendix_front *)(state->appendix = calloc(1, state->appendix_size));
    *front = (struct appendix_front){
        .magic = APPENDIX_MAGIC, .version = SHEET_VERSION, .text_count = 2, .digests_patch = 14, .self_patch = 60,
        .digests_name = DIGESTS_NAME,
        .digests_size = digests_file_size(state->tensor_count, state->leaf_count),
        .texts = { { TEXT_OBJECTS, OBJECTS_NAME, objects, state->objects_size },
                   { TEXT_MANIFEST, MANIFEST_NAME, text, sizeof(manifest) - 1 } },
    };
    state->patch = front->digests_patch;
    memcpy(state->appendix + objects, state->objects, state->objects_size);
    memcpy(state->appendix + text, manifest, sizeof(manifest) - 1);
}

void fake_state_init(struct fake_state *state, uint64_t seed, const struct fake_file *files, uint32_t file_count)
{
    *state = (struct fake_state){ .file_count = file_count, .objects_size = 1234 };
    memcpy(state->files, files, file_count * sizeof(*files));
    for (uint32_t i = 0; i < file_count; i++) {
        state->images[i] = malloc(files[i].size);
        bytes_fill(state->images[i], files[i].size, seed * 100 + i);
        state->chunk_count += (uint32_t)divide_up(files[i].size, CHUNK_BYTES);
        state->tensor_count += files[i].tensor_count;
        for (uint32_t t = 0; t < files[i].tensor_count; t++)
            state->leaf_count += leaf_count_of(files[i].tensors[t]);
    }
    state->objects = malloc(state->objects_size);
    bytes_fill((uint8_t *)state->objects, state->objects_size, seed + 77);
    sheet_make(state);
    appendix_make(state);
}

void fake_state_deinit(struct fake_state *state)
{
    for (uint32_t i = 0; i < state->file_count; i++)
        free(state->images[i]);
    free(state->objects);
    free(state->sheet);
    free(state->appendix);
}

/* The channel ------------------------------------------------------------------------------------------------------- */

void fake_send(struct fake_trainer *trainer, const struct message *message, const int *fds, unsigned fd_count)
{
    union { struct cmsghdr aligned; char bytes[CMSG_SPACE(OP_FDS_MAX * sizeof(int))]; } control = { .bytes = { 0 } };
    struct iovec place = { (void *)(uintptr_t)message, message_size(message->kind) };
    struct msghdr header = { .msg_iov = &place, .msg_iovlen = 1 };
    struct cmsghdr *rights;

    if (fd_count) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        rights = CMSG_FIRSTHDR(&header);
        *rights = (struct cmsghdr){ .cmsg_len = CMSG_LEN(fd_count * sizeof(int)), .cmsg_level = SOL_SOCKET,
                                    .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
    }
    cr_assert_eq(sendmsg(trainer->channel, &header, MSG_NOSIGNAL), (ssize_t)place.iov_len);
}

void fake_send_raw(struct fake_trainer *trainer, const void *bytes, size_t size)
{
    cr_assert_eq(send(trainer->channel, bytes, size, MSG_NOSIGNAL), (ssize_t)size);
}

bool fake_receive(struct fake_trainer *trainer, struct message *message)
{
    uint8_t bytes[sizeof(struct message) + 1];
    struct pollfd polled = { .fd = trainer->channel, .events = POLLIN };
    ssize_t size;

    cr_assert_eq(poll(&polled, 1, PATIENCE_MS), 1, "the writer is silent");
    size = recv(trainer->channel, bytes, sizeof(bytes), 0);
    if (size <= 0)
        return false;
    cr_assert_eq(message_decode(bytes, (size_t)size, message), 0, "the writer sent something that does not decode");
    return true;
}

static void *writer_main(void *argument)
{
    struct fake_trainer *trainer = argument;

    trainer->outcome = writer_host_run(&trainer->settings.host);
    close(trainer->writer_end);
    return NULL;
}

/* A process whose death the writer can watch: it does nothing until it is killed. */
static void child_start(struct fake_trainer *trainer)
{
    trainer->child = fork();
    if (trainer->child == 0) {
        close(trainer->channel);
        close(trainer->writer_end);
        for (;;)
            pause();
    }
    trainer->pidfd = (int)syscall(SYS_pidfd_open, trainer->child, 0);
    cr_assert_geq(trainer->pidfd, 0);
}

static void hello_send(struct fake_trainer *trainer)
{
    const struct fake_settings *settings = &trainer->settings;
    int fds[3] = { arena_fd(trainer->arena), trainer->root_fd, trainer->pidfd };
    struct message message;

    message_init(&message, MESSAGE_HELLO, NULL);
    snprintf(message.hello.version, sizeof(message.hello.version), "%s", settings->version ? settings->version : TSPOOL_VERSION);
    message.hello.arena_bytes = arena_bytes(trainer->arena);
    message.hello.chunk_bytes = CHUNK_BYTES;
    message.hello.bytes_per_second = settings->bytes_per_second;
    message.hello.item_bytes = settings->item_bytes ? settings->item_bytes : 512u << 10;
    message.hello.depth = settings->depth ? settings->depth : 16;
    message.hello.io = settings->io;
    message.hello.hash_threads = 2;
    message.hello.world_size = 1;
    message.hello.buffered = settings->buffered;
    message.hello.registered = settings->registered;
    fake_send(trainer, &message, fds, trainer->pidfd >= 0 ? 3 : 2);
}

static void root_make(struct fake_trainer *trainer)
{
    if (trainer->settings.root) {
        snprintf(trainer->root, sizeof(trainer->root), "%s", trainer->settings.root);
    } else {
        snprintf(trainer->root, sizeof(trainer->root), "/tmp/tspool-write-XXXXXX");
        cr_assert_not_null(mkdtemp(trainer->root));
        trainer->owns_root = true;
    }
    trainer->root_fd = open(trainer->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(trainer->root_fd, 0);
}

void fake_trainer_start(struct fake_trainer *trainer, const struct fake_settings *settings)
{
    struct arena_settings arena = { .bytes = settings->arena_bytes ? settings->arena_bytes : MIB(64) };
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct message message;
    int ends[2];

    *trainer = (struct fake_trainer){ .settings = *settings, .pidfd = -1 };
    root_make(trainer);
    cr_assert_eq(channel_create(ends, &failure), 0);
    trainer->channel = ends[0];
    trainer->writer_end = ends[1];
    if (settings->mortal)
        child_start(trainer);
    cr_assert_eq(arena_create(&arena, &trainer->arena, &failure), 0, "%s", failure.message);
    cr_assert_eq(arena_populate(trainer->arena, arena.bytes, &failure), 0, "%s", failure.message);
    trainer->settings.host.channel = ends[1];
    if (!trainer->settings.host.term)
        trainer->settings.host.term = -1;
    cr_assert_eq(pthread_create(&trainer->thread, NULL, writer_main, trainer), 0);
    trainer->writer_runs = true;
    hello_send(trainer);
    cr_assert(fake_receive(trainer, &message));
    cr_assert_eq(message.kind, MESSAGE_READY);
    trainer->ready = message.ready;
}

void fake_trainer_join(struct fake_trainer *trainer)
{
    if (trainer->writer_runs)
        pthread_join(trainer->thread, NULL);
    trainer->writer_runs = false;
}

void fake_trainer_close(struct fake_trainer *trainer, bool abandon)
{
    struct message message;

    message_init(&message, MESSAGE_CLOSE, NULL);
    message.close.abandon = abandon;
    fake_send(trainer, &message, NULL, 0);
    fake_trainer_join(trainer);
}

void fake_trainer_hang_up(struct fake_trainer *trainer)
{
    if (trainer->channel >= 0)
        close(trainer->channel);
    trainer->channel = -1;
}

void fake_trainer_kill(struct fake_trainer *trainer)
{
    if (trainer->child > 0) {
        kill(trainer->child, SIGKILL);
        waitpid(trainer->child, NULL, 0);
    }
    trainer->child = 0;
}

static void tree_remove(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct dirent *entry;
    DIR *directory;

    if (fd < 0 || !(directory = fdopendir(fd))) {
        unlinkat(parent, name, 0);
        return;
    }
    while ((entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            tree_remove(fd, entry->d_name);
    closedir(directory);
    unlinkat(parent, name, AT_REMOVEDIR);
}

void fake_trainer_end(struct fake_trainer *trainer)
{
    fake_trainer_hang_up(trainer);
    fake_trainer_kill(trainer);
    fake_trainer_join(trainer);
    arena_destroy(trainer->arena);
    close(trainer->root_fd);
    if (trainer->pidfd >= 0)
        close(trainer->pidfd);
    if (trainer->owns_root)
        tree_remove(AT_FDCWD, trainer->root);
}

/* Saves -------------------------------------------------------------------------------------------------------------- */

void fake_begin(struct fake_trainer *trainer, struct fake_save *save, const struct fake_state *state, const char *name,
                bool replace)
{
    static uint32_t next_id;
    struct message message;
    int fds[2];

    *save = (struct fake_save){ .state = state, .attempt = { .number = 1 } };
    next_id++;
    memcpy(save->attempt.save_id, &next_id, sizeof(next_id));
    snprintf(save->name, sizeof(save->name), "%s", name);
    cr_assert_eq(sealed_create("sheet", state->sheet, state->sheet_size, &fds[0], NULL), 0);
    cr_assert_eq(sealed_create("appendix", state->appendix, state->appendix_size, &fds[1], NULL), 0);
    message_init(&message, MESSAGE_BEGIN, &save->attempt);
    snprintf(message.begin.name, sizeof(message.begin.name), "%s", name);
    message.begin.replace = replace;
    message.begin.hash_late = trainer->settings.hash_late;
    message.begin.deadline_ns = trainer->settings.deadline_ns;
    message.begin.sheet_bytes = state->sheet_size;
    message.begin.appendix_bytes = state->appendix_size;
    fake_send(trainer, &message, fds, 2);
    close(fds[0]);
    close(fds[1]);
}

/* The bytes of a chunk, from its file's image. */
static const uint8_t *chunk_image(const struct fake_state *state, uint32_t chunk, uint64_t *size)
{
    uint32_t file = 0;
    uint64_t count;

    while (chunk >= (count = divide_up(state->files[file].size, CHUNK_BYTES))) {
        chunk -= (uint32_t)count;
        file++;
    }
    *size = min_u64(state->files[file].size - chunk * CHUNK_BYTES, CHUNK_BYTES);
    return state->images[file] + chunk * CHUNK_BYTES;
}

void fake_stage(struct fake_trainer *trainer, struct fake_save *save, uint32_t chunk, uint32_t slot)
{
    uint8_t *to = arena_slot(trainer->arena, slot);
    struct message message;
    uint64_t size;
    const uint8_t *from = chunk_image(save->state, chunk, &size);

    memcpy(to, from, size);
    memset(to + size, 0, align_up(size, 4096) - size);
    save->slots[chunk] = slot;
    save->staged[chunk] = true;
    message_init(&message, MESSAGE_STAGED, &save->attempt);
    message.staged.chunk = chunk;
    message.staged.slot = slot;
    fake_send(trainer, &message, NULL, 0);
}

void fake_stage_all(struct fake_trainer *trainer, struct fake_save *save)
{
    for (uint32_t i = 0; i < save->state->chunk_count; i++)
        fake_stage(trainer, save, i, i);
}

void fake_abandon(struct fake_trainer *trainer, struct fake_save *save)
{
    struct message message;

    message_init(&message, MESSAGE_ABANDON, &save->attempt);
    fake_send(trainer, &message, NULL, 0);
}

/* The slot is ours again, and is spoiled at once: a writer that still needs it will write or hash something else. */
static void released(struct fake_trainer *trainer, struct fake_save *save, const struct message_released *released)
{
    uint32_t chunk = released->chunk;

    cr_assert_lt(chunk, save->state->chunk_count);
    cr_assert(save->staged[chunk] && !save->released[chunk], "chunk %u was released twice or too early", chunk);
    cr_assert_eq(save->slots[chunk], released->slot);
    save->released[chunk] = true;
    save->released_count++;
    memset(arena_slot(trainer->arena, released->slot), 0xee, CHUNK_BYTES);
}

static void note(struct fake_trainer *trainer, struct fake_save *save, const struct message *message)
{
    cr_assert(memcmp(&message->attempt, &save->attempt, sizeof(save->attempt)) == 0, "an answer for another attempt");
    save->counts[message->kind]++;
    if (message->kind == MESSAGE_RELEASED) {
        released(trainer, save, &message->released);
    } else if (message->kind == MESSAGE_FAILED || message->kind == MESSAGE_UNKNOWN) {
        save->failure = message->failure;
    } else if (message->kind != MESSAGE_ABANDONED) {
        save->progress = message->progress;
    }
}

void fake_await(struct fake_trainer *trainer, struct fake_save *save, enum message_kind kind)
{
    unsigned before = save->counts[kind];
    struct message message;

    while (save->counts[kind] == before) {
        cr_assert(fake_receive(trainer, &message), "the writer ended");
        cr_assert(message.kind == kind || (message.kind != MESSAGE_FAILED && message.kind != MESSAGE_UNKNOWN), "%s: %s %s: %s",
                  message_kind_name(message.kind), message.failure.operation, message.failure.path, message.failure.cause);
        note(trainer, save, &message);
    }
}

enum message_kind fake_await_end(struct fake_trainer *trainer, struct fake_save *save)
{
    struct message message;

    do {
        cr_assert(fake_receive(trainer, &message), "the writer ended");
        note(trainer, save, &message);
    } while (message.kind != MESSAGE_PUBLISHED && message.kind != MESSAGE_FAILED && message.kind != MESSAGE_UNKNOWN &&
             message.kind != MESSAGE_ABANDONED);
    return message.kind;
}

/* Expectations --------------------------------------------------------------------------------------------------------- */

static int no_dots(const struct dirent *entry) { return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0; }

static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

void fake_expect_names(const struct fake_trainer *trainer, const char *directory, const char *const *names)
{
    char path[512], found[2048] = "", wanted[2048] = "";
    struct dirent **entries;
    int count;

    snprintf(path, sizeof(path), "%s/%s", trainer->root, directory);
    count = scandir(path, &entries, no_dots, by_bytes);
    cr_assert_geq(count, 0, "%s: %s", path, strerror(errno));
    for (int i = 0; i < count; i++) {
        snprintf(found + strlen(found), sizeof(found) - strlen(found), "%s ", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    for (; *names; names++)
        snprintf(wanted + strlen(wanted), sizeof(wanted) - strlen(wanted), "%s ", *names);
    cr_expect_str_eq(found, wanted, "%s holds %s, expected %s", path, found, wanted);
}

static uint8_t *file_read(const struct fake_trainer *trainer, const char *name, const char *file, uint64_t *size)
{
    char path[600];
    struct stat status;
    uint8_t *bytes;
    int fd;

    snprintf(path, sizeof(path), "%s/%s%s%s", trainer->root, name, *file ? "/" : "", file);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert_geq(fd, 0, "%s: %s", path, strerror(errno));
    cr_assert_eq(fstat(fd, &status), 0);
    *size = (uint64_t)status.st_size;
    bytes = malloc(*size + 1);
    for (uint64_t done = 0; done < *size;) {
        ssize_t got = pread(fd, bytes + done, *size - done, (off_t)done);

        cr_assert_gt(got, 0);
        done += (uint64_t)got;
    }
    bytes[*size] = 0;
    close(fd);
    return bytes;
}

static void expect_bytes(const struct fake_trainer *trainer, const char *name, const char *file, const void *wanted,
                         uint64_t wanted_size)
{
    uint64_t size;
    uint8_t *bytes = file_read(trainer, name, file, &size);

    cr_assert_eq(size, wanted_size, "%s/%s has %llu bytes", name, file, (unsigned long long)size);
    cr_expect(memcmp(bytes, wanted, size) == 0, "%s/%s holds other bytes", name, file);
    free(bytes);
}

/* The digests file, computed here from the images, leaf by leaf. */
static struct digest expect_digests(const struct fake_trainer *trainer, const struct fake_state *state, const char *name)
{
    uint64_t size = digests_file_size(state->tensor_count, state->leaf_count), tensor = 0, leaf = 0;
    uint64_t *sizes = calloc(state->tensor_count + 1, sizeof(*sizes));
    struct digest *leaves = calloc(state->leaf_count + 1, sizeof(*leaves)), digest;
    uint8_t *wanted = calloc(1, size);

    for (uint32_t i = 0; i < state->file_count; i++) {
        const struct fake_file *file = &state->files[i];
        uint64_t offset = file->size;

        for (uint32_t t = 0; t < file->tensor_count; t++)
            offset -= file->tensors[t];
        for (uint32_t t = 0; t < file->tensor_count; offset += file->tensors[t++]) {
            sizes[tensor++] = file->tensors[t];
            for (uint64_t at = 0; at < file->tensors[t]; at += LEAF_BYTES)
                leaves[leaf++] = hash_bytes(state->images[i] + offset + at, min_u64(LEAF_BYTES, file->tensors[t] - at));
        }
    }
    digests_emit(sizes, state->tensor_count, leaves, state->leaf_count, wanted);
    expect_bytes(trainer, name, DIGESTS_NAME, wanted, size);
    digest = hash_bytes(wanted, size);
    free(sizes);
    free(leaves);
    free(wanted);
    return digest;
}

void fake_expect_published(const struct fake_trainer *trainer, const struct fake_state *state, const char *name)
{
    char hex[DIGEST_HEX_BYTES + 1], manifest[160];
    size_t size;

    for (uint32_t i = 0; i < state->file_count; i++)
        expect_bytes(trainer, name, state->files[i].name, state->images[i], state->files[i].size);
    expect_bytes(trainer, name, OBJECTS_NAME, state->objects, state->objects_size);
    digest_to_hex(expect_digests(trainer, state, name), hex);
    size = (size_t)snprintf(manifest, sizeof(manifest), "{ \"digests\": \"%s\", \"digest\": \"", hex);
    digest_to_hex(hash_bytes(manifest, size), hex);
    snprintf(manifest + size, sizeof(manifest) - size, "%s\" }\n", hex);
    expect_bytes(trainer, name, MANIFEST_NAME, manifest, strlen(manifest));
}

void fake_put_file(const struct fake_trainer *trainer, const char *path, const char *text)
{
    int fd = openat(trainer->root_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

    cr_assert_geq(fd, 0, "%s: %s", path, strerror(errno));
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

bool fake_file_is(const struct fake_trainer *trainer, const char *path, const char *text)
{
    uint64_t size;
    uint8_t *bytes = file_read(trainer, path, "", &size);
    bool same = size == strlen(text) && memcmp(bytes, text, size) == 0;

    free(bytes);
    return same;
}
