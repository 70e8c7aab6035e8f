/* wire/message.c - checking what the other process says. A message is copied first and judged after: the sender may be
 * hostile, broken or of another build. What passes here needs no second look at ranges; whether it makes sense now
 * (a known attempt, a chunk of the sheet, a slot of the arena) is for the receiving machine to say.
 */
#include <base/checked.h>
#include <base/names.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <tspool/failure.h>
#include <tspool/spool.h>
#include <wire/message.h>
#include <wire/sheet.h>

#define FRONT_BYTES offsetof(struct message, hello)
#define ERRNO_MAX 4095
#define DEPTH_MAX 1024u
#define THREADS_MAX 64u
#define ARENA_BYTES_MAX ((uint64_t)1 << 46) /* half of what a process can map */
#define TEXT_BYTES_MAX ((uint64_t)1 << 40)

struct kind_rules {
    const char *name;
    size_t payload_bytes;
    unsigned fds_least, fds_most;
    bool of_attempt;                             /* names a save's attempt; the others carry zeroes there */
    bool (*is_sane)(const struct message *message);
};

static bool is_flag(uint8_t value) { return value <= 1; }

static bool is_terminated(const char *text, size_t capacity) { return memchr(text, '\0', capacity) != NULL; }

static bool is_alignment(uint32_t value) { return value == 0 || (is_power_of_two(value) && value <= CHUNK_BYTES); }

static bool item_is_sane(uint32_t item_bytes)
{
    return item_bytes >= 4096 && item_bytes <= CHUNK_BYTES && is_aligned(item_bytes, 4096);
}

static bool hello_is_sane(const struct message *message)
{
    const struct message_hello *hello = &message->hello;

    return is_terminated(hello->version, sizeof(hello->version)) && hello->chunk_bytes == CHUNK_BYTES &&
           hello->arena_bytes >= CHUNK_BYTES && hello->arena_bytes <= ARENA_BYTES_MAX &&
           is_aligned(hello->arena_bytes, CHUNK_BYTES) && item_is_sane(hello->item_bytes) &&
           hello->depth >= 1 && hello->depth <= DEPTH_MAX && hello->submit_batch <= DEPTH_MAX && hello->io <= TSPOOL_IO_THREADS &&
           hello->hash_threads >= 1 && hello->hash_threads <= THREADS_MAX &&
           hello->rank < hello->world_size && is_flag(hello->buffered) && is_flag(hello->registered) &&
           hello->keep <= KEEP_MAX && hello->trainer_pid <= INT32_MAX;
}

static bool ready_is_sane(const struct message *message)
{
    const struct message_ready *ready = &message->ready;

    return is_terminated(ready->version, sizeof(ready->version)) && is_terminated(ready->backend, sizeof(ready->backend)) &&
           is_terminated(ready->filesystem, sizeof(ready->filesystem)) && is_terminated(ready->note, sizeof(ready->note)) &&
           ready->pid >= 0 && is_alignment(ready->memory_align) && is_alignment(ready->offset_align) &&
           is_flag(ready->direct) && is_flag(ready->registered) && ready->error >= 0 && ready->error <= ERRNO_MAX;
}

static bool begin_is_sane(const struct message *message)
{
    const struct message_begin *begin = &message->begin;
    const char *reason;

    return is_terminated(begin->name, sizeof(begin->name)) && checkpoint_name_check(begin->name, &reason) == 0 &&
           is_flag(begin->replace) && is_flag(begin->hash_late) &&
           begin->sheet_bytes >= sizeof(struct sheet_front) && begin->sheet_bytes <= TEXT_BYTES_MAX &&
           begin->appendix_bytes >= sizeof(struct appendix_front) && begin->appendix_bytes <= TEXT_BYTES_MAX;
}

static bool staged_is_sane(const struct message *message)
{
    return message->staged.chunk != UINT32_MAX && message->staged.slot != UINT32_MAX;
}

static bool released_is_sane(const struct message *message)
{
    return message->released.chunk != UINT32_MAX && message->released.slot != UINT32_MAX;
}

static bool progress_is_sane(const struct message *message)
{
    const struct message_progress *progress = &message->progress;

    return is_flag(progress->direct) && is_flag(progress->registered) && progress->short_writes <= progress->writes &&
           progress->kept.error >= 0 && progress->kept.error <= ERRNO_MAX &&
           is_terminated(progress->kept.left, sizeof(progress->kept.left));
}

static bool failure_is_sane(const struct message *message)
{
    const struct message_failure *failure = &message->failure;

    return failure->error > 0 && failure->error <= ERRNO_MAX && failure->stage <= TSPOOL_STAGE_WRITER &&
           is_terminated(failure->operation, sizeof(failure->operation)) &&
           is_terminated(failure->path, sizeof(failure->path)) && is_terminated(failure->cause, sizeof(failure->cause));
}

static bool pong_is_sane(const struct message *message)
{
    const struct message_pong *pong = &message->pong;

    return is_terminated(pong->oldest_op, sizeof(pong->oldest_op)) && is_terminated(pong->oldest_path, sizeof(pong->oldest_path));
}

static bool close_is_sane(const struct message *message) { return is_flag(message->close.abandon); }

static bool always_sane(const struct message *message) { return true; }

/* NULL for what is no kind. */
static const struct kind_rules *kind_rules_of(unsigned kind)
{
    static const struct kind_rules rules[] = {
        [MESSAGE_HELLO] = { "HELLO", sizeof(struct message_hello), 2, 3, false, hello_is_sane },
        [MESSAGE_BEGIN] = { "BEGIN", sizeof(struct message_begin), 2, 2, true, begin_is_sane },
        [MESSAGE_STAGED] = { "STAGED", sizeof(struct message_staged), 0, 0, true, staged_is_sane },
        [MESSAGE_ABANDON] = { "ABANDON", 0, 0, 0, true, always_sane },
        [MESSAGE_CLOSE] = { "CLOSE", sizeof(struct message_close), 0, 0, false, close_is_sane },
        [MESSAGE_PING] = { "PING", sizeof(struct message_ping), 0, 0, false, always_sane },
        [MESSAGE_READY] = { "READY", sizeof(struct message_ready), 0, 0, false, ready_is_sane },
        [MESSAGE_PREPARED] = { "PREPARED", sizeof(struct message_progress), 0, 0, true, progress_is_sane },
        [MESSAGE_RELEASED] = { "RELEASED", sizeof(struct message_released), 0, 0, true, released_is_sane },
        [MESSAGE_WRITTEN] = { "WRITTEN", sizeof(struct message_progress), 0, 0, true, progress_is_sane },
        [MESSAGE_DURABLE] = { "DURABLE", sizeof(struct message_progress), 0, 0, true, progress_is_sane },
        [MESSAGE_PUBLISHED] = { "PUBLISHED", sizeof(struct message_progress), 0, 0, true, progress_is_sane },
        [MESSAGE_FAILED] = { "FAILED", sizeof(struct message_failure), 0, 0, true, failure_is_sane },
        [MESSAGE_UNKNOWN] = { "UNKNOWN", sizeof(struct message_failure), 0, 0, true, failure_is_sane },
        [MESSAGE_ABANDONED] = { "ABANDONED", 0, 0, 0, true, always_sane },
        [MESSAGE_PONG] = { "PONG", sizeof(struct message_pong), 0, 0, false, pong_is_sane },
    };

    if (kind >= sizeof(rules) / sizeof(rules[0]) || !rules[kind].name)
        return NULL;
    return &rules[kind];
}

void message_init(struct message *message, enum message_kind kind, const struct attempt *attempt)
{
    memset(message, 0, sizeof(*message));
    message->magic = WIRE_MAGIC;
    message->version = WIRE_VERSION;
    message->kind = (uint16_t)kind;
    if (attempt) {
        memcpy(message->attempt.save_id, attempt->save_id, sizeof(attempt->save_id));
        message->attempt.number = attempt->number;
    }
}

size_t message_size(enum message_kind kind)
{
    const struct kind_rules *rules = kind_rules_of(kind);

    return rules ? FRONT_BYTES + rules->payload_bytes : 0;
}

void message_fd_range(enum message_kind kind, unsigned *least, unsigned *most)
{
    const struct kind_rules *rules = kind_rules_of(kind);

    *least = rules ? rules->fds_least : 0;
    *most = rules ? rules->fds_most : 0;
}

const char *message_kind_name(enum message_kind kind)
{
    const struct kind_rules *rules = kind_rules_of(kind);

    return rules ? rules->name : "unknown";
}

static bool attempt_is_sane(const struct attempt *attempt, bool of_attempt)
{
    static const struct attempt nobody;

    if (of_attempt)
        return attempt->number >= 1;
    return attempt->number == 0 && memcmp(attempt->save_id, nobody.save_id, sizeof(nobody.save_id)) == 0;
}

/* The version is looked at before the size and everything else, so that another build's message is told from a damaged one. */
int message_decode(const void *bytes, size_t size, struct message *message)
{
    const struct kind_rules *rules;
    struct message copy;

    if (size < FRONT_BYTES || size > sizeof(copy))
        return -EBADMSG;
    memset(&copy, 0, sizeof(copy));
    memcpy(&copy, bytes, size);
    if (copy.magic != WIRE_MAGIC)
        return -EBADMSG;
    if (copy.version != WIRE_VERSION)
        return -EPROTO;
    rules = kind_rules_of(copy.kind);
    if (!rules || size != FRONT_BYTES + rules->payload_bytes || copy.reserved != 0)
        return -EBADMSG;
    if (!attempt_is_sane(&copy.attempt, rules->of_attempt) || !rules->is_sane(&copy))
        return -EBADMSG;
    *message = copy;
    return 0;
}
