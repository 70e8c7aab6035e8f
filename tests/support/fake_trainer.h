/* support/fake_trainer.h - a trainer written by hand: it speaks the channel's messages to a real writer on a thread, over a
 * real socketpair, with a real arena and real files. Every step is the test's to take.
 *
 * Whatever the writer does that has no place in a test (silence for 20 s, a message of another attempt) fails the test.
 */
#ifndef SUPPORT_FAKE_TRAINER_H
#define SUPPORT_FAKE_TRAINER_H

#include <arena/arena.h>
#include <pthread.h>
#include <stdbool.h>
#include <tspool/spool.h>
#include <wire/message.h>
#include <wire/sheet.h>
#include <write/host.h>

#define FAKE_FILES_MAX 4u
#define FAKE_TENSORS_MAX 64u
#define FAKE_CHUNKS_MAX 16u

/* What a checkpoint consists of: shard files as images, tensors in them, and the other files' bytes. */
struct fake_file {
    const char *name;
    uint64_t size;
    uint64_t tensors[FAKE_TENSORS_MAX]; /* sizes, one after the other; the last ends with the file; the rest is header */
    uint32_t tensor_count;
};
struct fake_state {
    struct fake_file files[FAKE_FILES_MAX];
    uint32_t file_count;
    uint8_t *images[FAKE_FILES_MAX];
    uint32_t chunk_count;
    uint64_t tensor_count, leaf_count;
    uint8_t *sheet, *appendix;
    uint64_t sheet_size, appendix_size, patch;
    char *objects;
    uint64_t objects_size;
};
/* `files` ascend by name. Contents are pseudo-random and follow from `seed`. */
void fake_state_init(struct fake_state *state, uint64_t seed, const struct fake_file *files, uint32_t file_count);
void fake_state_deinit(struct fake_state *state);

struct fake_settings {
    uint64_t arena_bytes;        /* 0: 64 MiB */
    uint64_t bytes_per_second, deadline_ns;
    uint32_t item_bytes, depth;  /* 0: 512 KiB, 16 */
    enum tspool_io io;
    bool buffered, registered, hash_late;
    bool mortal;                 /* HELLO carries the pidfd of a child that fake_trainer_kill kills */
    const char *root;            /* NULL: a fresh directory below /tmp, removed at the end */
    struct writer_host host;     /* io_create and io_context are taken over */
    const char *version;         /* NULL: ours */
};
struct fake_trainer {
    struct fake_settings settings;
    int channel, writer_end, root_fd, pidfd;
    pid_t child;
    char root[256];
    bool owns_root, writer_runs;
    struct arena *arena;
    pthread_t thread;
    int outcome;                 /* of writer_host_run, after fake_trainer_join */
    struct message_ready ready;
};

struct fake_save {
    const struct fake_state *state;
    struct attempt attempt;
    char name[CHECKPOINT_NAME_MAX + 1];
    uint32_t slots[FAKE_CHUNKS_MAX];
    bool staged[FAKE_CHUNKS_MAX], released[FAKE_CHUNKS_MAX];
    unsigned released_count;
    unsigned counts[256];        /* messages by kind */
    struct message_progress progress;
    struct message_failure failure;
};

void fake_trainer_start(struct fake_trainer *trainer, const struct fake_settings *settings);
/* Waits for the writer's end and removes everything. */
void fake_trainer_end(struct fake_trainer *trainer);
void fake_trainer_join(struct fake_trainer *trainer);
void fake_trainer_close(struct fake_trainer *trainer, bool abandon); /* CLOSE, then join */
void fake_trainer_hang_up(struct fake_trainer *trainer);             /* closes the trainer's end */
void fake_trainer_kill(struct fake_trainer *trainer);

void fake_send(struct fake_trainer *trainer, const struct message *message, const int *fds, unsigned fd_count);
void fake_send_raw(struct fake_trainer *trainer, const void *bytes, size_t size);
bool fake_receive(struct fake_trainer *trainer, struct message *message); /* false at the end of the stream */

void fake_begin(struct fake_trainer *trainer, struct fake_save *save, const struct fake_state *state, const char *name,
                bool replace);
/* Copies the chunk into the slot and says so. */
void fake_stage(struct fake_trainer *trainer, struct fake_save *save, uint32_t chunk, uint32_t slot);
void fake_stage_all(struct fake_trainer *trainer, struct fake_save *save); /* chunk n in slot n */
void fake_abandon(struct fake_trainer *trainer, struct fake_save *save);
/* Takes messages of this save until one of that kind came. */
void fake_await(struct fake_trainer *trainer, struct fake_save *save, enum message_kind kind);
/* The same for the end: returns PUBLISHED, FAILED, UNKNOWN or ABANDONED. */
enum message_kind fake_await_end(struct fake_trainer *trainer, struct fake_save *save);

/* Expectations: they fail the test. `names` are sorted, and end with NULL. */
void fake_expect_names(const struct fake_trainer *trainer, const char *directory, const char *const *names);
void fake_expect_published(const struct fake_trainer *trainer, const struct fake_state *state, const char *name);
void fake_put_file(const struct fake_trainer *trainer, const char *path, const char *text);
bool fake_file_is(const struct fake_trainer *trainer, const char *path, const char *text);

#endif
