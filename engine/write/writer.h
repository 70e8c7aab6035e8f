/* write/writer.h - the writer's side: one step machine that turns staged chunks into committed checkpoints.
 *
 * The machine does nothing by itself: every effect is an op of struct io, the time is io_now(), and memory that other
 * processes share comes through struct writer_memory. It runs under io_uring, under threads, and under a simulated disk
 * and clock, on one thread, and never blocks. It has no globals: several may live in one process.
 *
 *     while (!writer_finished(writer)) {
 *         count = io_wait(io, batch, capacity, writer_deadline(writer));
 *         if (count == 0) writer_step(writer, NULL);
 *         for (i = 0; i < count; i++) writer_step(writer, &batch[i]);
 *     }
 *
 * It trusts nobody: messages are decoded and checked, sheets are sealed and checked, results of the kernel are checked.
 */
#ifndef WRITE_WRITER_H
#define WRITE_WRITER_H

#include <io/io.h>
#include <stdbool.h>
#include <stdint.h>
#include <tspool/failure.h>
#include <wire/message.h>

struct writer;

/* An io for a writer has room for so many reads and writes more than hello.depth: part records are written beside, never more
 * of them at a time. */
#define PART_WRITES 4u

/* Where shared memory comes from: arena/ in the real writer, plain memory in a simulation. map and unmap are called on
 * compute threads too. `context` is handed to each. */
struct writer_memory {
    void *context;
    int (*attach)(void *context, int handle, uint64_t bytes, void **base, struct tspool_failure *failure);
    void (*detach)(void *context, void *base, uint64_t bytes);
    int (*map)(void *context, int handle, uint64_t bytes, const void **base, struct tspool_failure *failure);
    void (*unmap)(void *context, const void *base, uint64_t bytes);
    uint64_t (*cpu_ns)(void *context); /* CPU time of the calling thread, for accounts; NULL: not accounted */
};

/* Retention, which stands a floor above (collect/keeper.h): it works between the saves, on a thread of its own. Whoever runs the
 * machine makes and ends it; the machine tells it of its saves, and asks it for room. All calls return at once. */
struct keeper;
enum save_end {
    SAVE_CAME_TO_NOTHING, /* or its end is not known */
    SAVE_PUBLISHED,
    SAVE_IS_PART          /* durable; whoever publishes it is not heard of here */
};
struct keeping {
    int (*create)(int root, const struct message_hello *hello, struct keeper **keeper, struct tspool_failure *failure);
    void (*save_begins)(struct keeper *keeper);
    void (*save_ends)(struct keeper *keeper, enum save_end end, const uint8_t save_id[16], const char *hidden);
    void (*account)(struct keeper *keeper, struct kept_account *account);
    bool (*makes_room)(struct keeper *keeper); /* true: something is going away, without regard to saves now */
    void (*destroy)(struct keeper *keeper);    /* waits, a bounded while, for what is going away */
};

/* What HELLO brought and what the host found out before. Handles stay the caller's and outlive the writer. */
struct writer_settings {
    struct message_hello hello;         /* decoded, and accepted by writer_hello_refusal */
    int channel, arena, root;
    int trainer;                        /* pidfd; -1: thread isolation, then the end of the stream is the end */
    int term;                           /* readable when SIGTERM came; -1: none */
    int32_t pid;
    const char *note;                   /* why the io backend is not the preferred one; NULL: it is. Copied */
    const struct writer_memory *memory; /* outlives the writer */
    const struct keeping *keeping;
    struct keeper *keeper;              /* NULL: there is none; outlives the writer */
};

/* Why this build cannot serve that HELLO: a positive errno and a static text, or 0. */
int writer_hello_refusal(const struct message_hello *hello, const char **reason);

/* Takes up the work: probes the root, then sends READY. 0 or -errno (no memory, the arena cannot be mapped). */
int writer_create(struct io *io, const struct writer_settings *settings, struct writer **writer, struct tspool_failure *failure);
/* Hands over one completion; NULL when writer_deadline passed. */
void writer_step(struct writer *writer, const struct completion *completion);
/* When writer_step(writer, NULL) is wanted, in io_now(); IO_FOREVER: never. */
uint64_t writer_deadline(const struct writer *writer);
/* True when nothing is in flight and nothing will ever be. */
bool writer_finished(const struct writer *writer);
/* A finished one, or one whose io was destroyed before (a simulated kill). NULL is fine. */
void writer_destroy(struct writer *writer);

#endif
