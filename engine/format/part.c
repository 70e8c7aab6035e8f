/* format/part.c - see part.h.
 *
 *     tspool-part 1 writer 4711 trainer 4700 start 123456 pidns 4026531836 boot 0f1e...32 digits
 */
#include <base/hash.h>
#include <format/part.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void part_emit(const struct part_record *record, char text[PART_TEXT_BYTES])
{
    char line[PART_TEXT_BYTES + 1], hex[DIGEST_HEX_BYTES + 1];
    struct digest boot;

    memcpy(boot.bytes, record->boot_id, sizeof boot.bytes);
    digest_to_hex(boot, hex);
    snprintf(line, sizeof line,
             "tspool-part 1 writer %" PRIu32 " trainer %" PRIu32 " start %" PRIu64 " pidns %" PRIu64 " boot %s",
             record->writer_pid, record->trainer_pid, record->trainer_start, record->pid_namespace, hex);
    memset(text, ' ', PART_TEXT_BYTES);
    memcpy(text, line, strlen(line));
    text[PART_TEXT_BYTES - 1] = '\n';
}

/* A member " <name> <digits>"; moves *at behind it. */
static bool number_take(const char **at, const char *name, uint64_t most, uint64_t *value)
{
    size_t length = strlen(name);
    uint64_t taken = 0;

    if (strncmp(*at, name, length) != 0)
        return false;
    *at += length;
    if (**at < '0' || **at > '9')
        return false;
    for (; **at >= '0' && **at <= '9'; ++*at)
        if (__builtin_mul_overflow(taken, (uint64_t)10, &taken) ||
            __builtin_add_overflow(taken, (uint64_t)(**at - '0'), &taken) || taken > most)
            return false;
    *value = taken;
    return true;
}

static bool boot_take(const char **at, uint8_t boot_id[16])
{
    static const char name[] = " boot ";
    char hex[DIGEST_HEX_BYTES + 1] = "";
    struct digest boot;

    if (strncmp(*at, name, sizeof name - 1) != 0)
        return false;
    snprintf(hex, sizeof hex, "%.32s", *at + sizeof name - 1);
    if (digest_from_hex(hex, &boot) < 0)
        return false;
    memcpy(boot_id, boot.bytes, sizeof boot.bytes);
    *at += sizeof name - 1 + DIGEST_HEX_BYTES;
    return true;
}

bool part_parse(const char *text, size_t size, struct part_record *record)
{
    char line[PART_TEXT_BYTES + 1];
    const char *at = line;
    uint64_t version, writer, trainer;
    struct part_record taken;

    if (size < PART_TEXT_BYTES)
        return false;
    memcpy(line, text, PART_TEXT_BYTES);
    line[PART_TEXT_BYTES] = '\0';
    if (!number_take(&at, "tspool-part ", 1, &version) || version != 1 || !number_take(&at, " writer ", INT32_MAX, &writer) ||
        !number_take(&at, " trainer ", INT32_MAX, &trainer) || !number_take(&at, " start ", UINT64_MAX, &taken.trainer_start) ||
        !number_take(&at, " pidns ", UINT64_MAX, &taken.pid_namespace) || !boot_take(&at, taken.boot_id))
        return false;
    at += strspn(at, " ");
    if (strcmp(at, "\n") != 0)
        return false;
    taken.writer_pid = (uint32_t)writer;
    taken.trainer_pid = (uint32_t)trainer;
    *record = taken;
    return true;
}
