/* fuzz_message - message_decode on arbitrary datagrams: no crash, and what is accepted keeps the promises that the
 * machines build on. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <wire/message.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

static void check_texts(const struct message *message)
{
    if (message->kind == MESSAGE_BEGIN)
        require(strlen(message->begin.name) < sizeof(message->begin.name) && !strchr(message->begin.name, '/'));
    if (message->kind == MESSAGE_READY)
        require(strlen(message->ready.note) < sizeof(message->ready.note));
    if (message->kind == MESSAGE_FAILED || message->kind == MESSAGE_UNKNOWN)
        require(strlen(message->failure.cause) < sizeof(message->failure.cause) && message->failure.error > 0);
    if (message->kind == MESSAGE_PONG)
        require(strlen(message->pong.oldest_path) < sizeof(message->pong.oldest_path));
    if (message->kind == MESSAGE_HELLO)
        require(message->hello.arena_bytes % message->hello.chunk_bytes == 0 && message->hello.depth > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct message message, again;

    memset(&message, 0x5a, sizeof(message));
    if (message_decode(data, size, &message) < 0) {
        require(message.magic == 0x5a5a5a5au); /* outputs change only on success */
        return 0;
    }
    require(size == message_size((enum message_kind)message.kind));
    require(memcmp(&message, data, size) == 0);
    check_texts(&message);
    require(message_decode(&message, size, &again) == 0);
    return 0;
}
