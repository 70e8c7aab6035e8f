/* Messages: the other process may be hostile, broken or of another build. A field that passes decoding is used without a
 * second look, so each bound here is one that something later relies on. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <tspool/failure.h>
#include <wire/message.h>
#include <wire/sheet.h>

static const enum message_kind all_kinds[] = {
    MESSAGE_HELLO, MESSAGE_BEGIN, MESSAGE_STAGED, MESSAGE_ABANDON, MESSAGE_CLOSE, MESSAGE_PING,
    MESSAGE_READY, MESSAGE_PREPARED, MESSAGE_RELEASED, MESSAGE_WRITTEN, MESSAGE_DURABLE, MESSAGE_PUBLISHED,
    MESSAGE_FAILED, MESSAGE_UNKNOWN, MESSAGE_ABANDONED, MESSAGE_PONG,
};
enum { KIND_COUNT = sizeof(all_kinds) / sizeof(all_kinds[0]) };

static const struct attempt some_attempt = { "0123456789abcde", 3 };

static bool is_of_attempt(enum message_kind kind)
{
    return kind != MESSAGE_HELLO && kind != MESSAGE_READY && kind != MESSAGE_CLOSE && kind != MESSAGE_PING &&
           kind != MESSAGE_PONG;
}

/* A message of that kind that every check accepts. */
static struct message valid(enum message_kind kind)
{
    struct message message;

    message_init(&message, kind, is_of_attempt(kind) ? &some_attempt : NULL);
    if (kind == MESSAGE_HELLO)
        message.hello = (struct message_hello){
            .version = "0.1.0", .arena_bytes = 4 * CHUNK_BYTES, .chunk_bytes = CHUNK_BYTES, .item_bytes = 524288, .depth = 16,
            .hash_threads = 2, .rank = 1, .world_size = 2,
        };
    if (kind == MESSAGE_READY)
        message.ready = (struct message_ready){
            .version = "0.1.0", .backend = "uring", .pid = 1, .memory_align = 4, .offset_align = 512,
        };
    if (kind == MESSAGE_BEGIN)
        message.begin = (struct message_begin){ .name = "step-1", .sheet_bytes = 4096, .appendix_bytes = 8192 };
    if (kind == MESSAGE_FAILED || kind == MESSAGE_UNKNOWN)
        message.failure = (struct message_failure){ .error = EIO, .stage = TSPOOL_STAGE_WRITE, .file = UINT32_MAX };
    return message;
}

static int decode(const struct message *message)
{
    struct message decoded;

    return message_decode(message, message_size((enum message_kind)message->kind), &decoded);
}

#define REFUSES(kind_, change) do { \
        struct message m = valid(kind_); \
        cr_assert_eq(decode(&m), 0); \
        change; \
        cr_assert_eq(decode(&m), -EBADMSG, "accepted " #change); \
    } while (0)
#define ACCEPTS(kind_, change) do { \
        struct message m = valid(kind_); \
        change; \
        cr_assert_eq(decode(&m), 0, "refused " #change); \
    } while (0)

Test(message, every_kind_survives_the_way_over_the_wire)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        struct message message = valid(all_kinds[i]), decoded;
        size_t size = message_size(all_kinds[i]);

        cr_assert_eq(message_decode(&message, size, &decoded), 0, "%s", message_kind_name(all_kinds[i]));
        cr_assert_eq(memcmp(&message, &decoded, size), 0);
    }
}

Test(message, a_size_other_than_the_kinds_is_refused)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        struct message message[2] = { valid(all_kinds[i]) }, decoded;

        for (size_t size = 0; size <= sizeof(message[0]) + 8; size++)
            if (size != message_size(all_kinds[i]))
                cr_assert_eq(message_decode(message, size, &decoded), -EBADMSG);
    }
}

Test(message, what_is_no_kind_has_no_size_and_is_refused)
{
    const unsigned strange[] = { 0, 7, 63, 74, 255, 65535 };

    for (unsigned i = 0; i < sizeof(strange) / sizeof(strange[0]); i++) {
        struct message message = valid(MESSAGE_ABANDON), decoded;
        size_t size = message_size(MESSAGE_ABANDON);

        message.kind = (uint16_t)strange[i];
        cr_assert_eq(message_size((enum message_kind)strange[i]), 0);
        cr_assert_eq(message_decode(&message, size, &decoded), -EBADMSG);
        cr_assert_str_eq(message_kind_name((enum message_kind)strange[i]), "unknown");
    }
}

Test(message, another_version_is_told_from_a_damaged_message)
{
    struct message message = valid(MESSAGE_PING), decoded;

    message.version = WIRE_VERSION + 1;
    cr_assert_eq(decode(&message), -EPROTO);
    cr_assert_eq(message_decode(&message, message_size(MESSAGE_PING) + 4, &decoded), -EPROTO, "it may have another size");
    message.magic++;
    cr_assert_eq(decode(&message), -EBADMSG);
}

Test(message, output_stays_untouched_on_refusal)
{
    struct message message = valid(MESSAGE_STAGED), decoded, before;

    memset(&decoded, 0x5a, sizeof(decoded));
    before = decoded;
    message.staged.slot = UINT32_MAX;
    cr_assert_eq(message_decode(&message, message_size(MESSAGE_STAGED), &decoded), -EBADMSG);
    cr_assert_eq(memcmp(&decoded, &before, sizeof(before)), 0);
}

Test(message, decodes_from_an_unaligned_buffer)
{
    uint8_t bytes[sizeof(struct message) + 1];
    struct message message = valid(MESSAGE_STAGED), decoded;

    message.staged = (struct message_staged){ 7, 9 };
    memcpy(bytes + 1, &message, message_size(MESSAGE_STAGED));
    cr_assert_eq(message_decode(bytes + 1, message_size(MESSAGE_STAGED), &decoded), 0);
    cr_assert_eq(decoded.staged.chunk, 7);
    cr_assert_eq(decoded.staged.slot, 9);
}

Test(message, names_an_attempt_exactly_where_one_is_meant)
{
    for (unsigned i = 0; i < KIND_COUNT; i++) {
        struct message message = valid(all_kinds[i]);

        message.attempt.number = is_of_attempt(all_kinds[i]) ? 0 : 1;
        cr_assert_eq(decode(&message), -EBADMSG, "%s", message_kind_name(all_kinds[i]));
        message = valid(all_kinds[i]);
        message.reserved = 1;
        cr_assert_eq(decode(&message), -EBADMSG, "%s", message_kind_name(all_kinds[i]));
    }
    REFUSES(MESSAGE_PING, m.attempt.save_id[15] = 1);
}

Test(message, init_leaves_no_stray_bytes)
{
    struct message message, zero;

    memset(&message, 0xff, sizeof(message));
    memset(&zero, 0, sizeof(zero));
    message_init(&message, MESSAGE_BEGIN, NULL);
    cr_assert_eq(memcmp(&message.attempt, &zero.attempt, sizeof(message) - offsetof(struct message, attempt)), 0);
}

Test(message, descriptors_come_with_hello_and_begin_only)
{
    unsigned least, most;

    for (unsigned i = 0; i < KIND_COUNT; i++) {
        message_fd_range(all_kinds[i], &least, &most);
        cr_assert_eq(least, all_kinds[i] == MESSAGE_HELLO || all_kinds[i] == MESSAGE_BEGIN ? 2 : 0);
        cr_assert_eq(most, all_kinds[i] == MESSAGE_HELLO ? 3 : all_kinds[i] == MESSAGE_BEGIN ? 2 : 0);
    }
}

Test(message, hello_is_held_to_what_the_writer_computes_with)
{
    REFUSES(MESSAGE_HELLO, memset(m.hello.version, 'x', sizeof(m.hello.version)));
    REFUSES(MESSAGE_HELLO, m.hello.chunk_bytes = CHUNK_BYTES / 2);
    REFUSES(MESSAGE_HELLO, m.hello.arena_bytes = 0);
    REFUSES(MESSAGE_HELLO, m.hello.arena_bytes = 4 * CHUNK_BYTES + 4096);
    REFUSES(MESSAGE_HELLO, m.hello.arena_bytes = UINT64_MAX - CHUNK_BYTES + 1);
    REFUSES(MESSAGE_HELLO, m.hello.item_bytes = 0);
    REFUSES(MESSAGE_HELLO, m.hello.item_bytes = 2048);
    REFUSES(MESSAGE_HELLO, m.hello.item_bytes = 524289);
    REFUSES(MESSAGE_HELLO, m.hello.item_bytes = 2 * CHUNK_BYTES);
    REFUSES(MESSAGE_HELLO, m.hello.depth = 0);
    REFUSES(MESSAGE_HELLO, m.hello.depth = 1025);
    REFUSES(MESSAGE_HELLO, m.hello.io = 3);
    REFUSES(MESSAGE_HELLO, m.hello.hash_threads = 0);
    REFUSES(MESSAGE_HELLO, m.hello.hash_threads = 65);
    REFUSES(MESSAGE_HELLO, m.hello.world_size = 1);
    REFUSES(MESSAGE_HELLO, m.hello.buffered = 2);
    REFUSES(MESSAGE_HELLO, m.hello.registered = 2);
    REFUSES(MESSAGE_HELLO, m.hello.trainer_pid = (uint32_t)INT32_MAX + 1);
    REFUSES(MESSAGE_HELLO, m.hello.keep = KEEP_MAX + 1);
    ACCEPTS(MESSAGE_HELLO, m.hello.keep = KEEP_MAX);
    ACCEPTS(MESSAGE_HELLO, m.hello.trainer_pid = INT32_MAX);
    ACCEPTS(MESSAGE_HELLO, m.hello.item_bytes = CHUNK_BYTES);
    ACCEPTS(MESSAGE_HELLO, m.hello.depth = 1024);
}

Test(message, ready_is_held_to_alignments_and_terminated_texts)
{
    REFUSES(MESSAGE_READY, memset(m.ready.backend, 'x', sizeof(m.ready.backend)));
    REFUSES(MESSAGE_READY, memset(m.ready.filesystem, 'x', sizeof(m.ready.filesystem)));
    REFUSES(MESSAGE_READY, memset(m.ready.note, 'x', sizeof(m.ready.note)));
    REFUSES(MESSAGE_READY, m.ready.offset_align = 4095);
    REFUSES(MESSAGE_READY, m.ready.memory_align = 1u << 31);
    REFUSES(MESSAGE_READY, m.ready.pid = -1);
    REFUSES(MESSAGE_READY, m.ready.error = -EIO);
    REFUSES(MESSAGE_READY, m.ready.error = 4096);
    REFUSES(MESSAGE_READY, m.ready.direct = 255);
    ACCEPTS(MESSAGE_READY, m.ready.offset_align = 0);
}

Test(message, begin_is_held_to_a_checkpoint_name_and_possible_sizes)
{
    REFUSES(MESSAGE_BEGIN, memset(m.begin.name, 'x', sizeof(m.begin.name)));
    REFUSES(MESSAGE_BEGIN, strcpy(m.begin.name, "../etc"));
    REFUSES(MESSAGE_BEGIN, strcpy(m.begin.name, ".hidden"));
    REFUSES(MESSAGE_BEGIN, m.begin.name[0] = '\0');
    REFUSES(MESSAGE_BEGIN, m.begin.replace = 2);
    REFUSES(MESSAGE_BEGIN, m.begin.sheet_bytes = 0);
    REFUSES(MESSAGE_BEGIN, m.begin.sheet_bytes = UINT64_MAX);
    REFUSES(MESSAGE_BEGIN, m.begin.appendix_bytes = 8);
    REFUSES(MESSAGE_BEGIN, m.begin.appendix_bytes = UINT64_MAX);
}

Test(message, chunks_slots_progress_and_failures_are_held_to_their_ranges)
{
    REFUSES(MESSAGE_STAGED, m.staged.chunk = UINT32_MAX);
    REFUSES(MESSAGE_STAGED, m.staged.slot = UINT32_MAX);
    REFUSES(MESSAGE_RELEASED, m.released.slot = UINT32_MAX);
    REFUSES(MESSAGE_RELEASED, m.released.chunk = UINT32_MAX);
    REFUSES(MESSAGE_PREPARED, m.progress.registered = 2);
    REFUSES(MESSAGE_READY, m.ready.direct = 2);
    REFUSES(MESSAGE_READY, m.ready.registered = 2);
    REFUSES(MESSAGE_READY, m.ready.error = -1);
    REFUSES(MESSAGE_READY, m.ready.error = 4096);
    REFUSES(MESSAGE_BEGIN, m.begin.hash_late = 2);
    REFUSES(MESSAGE_FAILED, m.failure.error = 4096);
    REFUSES(MESSAGE_WRITTEN, m.progress.direct = 2);
    REFUSES(MESSAGE_DURABLE, m.progress.short_writes = 1);
    REFUSES(MESSAGE_PUBLISHED, m.progress.kept.error = -1);
    REFUSES(MESSAGE_PUBLISHED, memset(m.progress.kept.left, 'x', sizeof(m.progress.kept.left)));
    REFUSES(MESSAGE_FAILED, m.failure.error = 0);
    REFUSES(MESSAGE_FAILED, m.failure.error = -EIO);
    REFUSES(MESSAGE_UNKNOWN, m.failure.stage = TSPOOL_STAGE_WRITER + 1);
    REFUSES(MESSAGE_FAILED, memset(m.failure.operation, 'x', sizeof(m.failure.operation)));
    REFUSES(MESSAGE_FAILED, memset(m.failure.path, 'x', sizeof(m.failure.path)));
    REFUSES(MESSAGE_FAILED, memset(m.failure.cause, 'x', sizeof(m.failure.cause)));
    REFUSES(MESSAGE_PONG, memset(m.pong.oldest_op, 'x', sizeof(m.pong.oldest_op)));
    REFUSES(MESSAGE_PONG, memset(m.pong.oldest_path, 'x', sizeof(m.pong.oldest_path)));
    REFUSES(MESSAGE_CLOSE, m.close.abandon = 2);
}
