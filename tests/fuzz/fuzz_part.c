/* fuzz_part - part_parse on arbitrary bytes: no crash, nothing changes on a refusal, and what is accepted is written the same
 * way again. */
#include <format/part.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct part_record record, again, untouched;
    char text[PART_TEXT_BYTES];

    memset(&record, 0x5a, sizeof(record));
    untouched = record;
    if (!part_parse((const char *)data, size, &record)) {
        require(memcmp(&record, &untouched, sizeof(record)) == 0);
        return 0;
    }
    part_emit(&record, text);
    require(part_parse(text, sizeof(text), &again));
    require(again.writer_pid == record.writer_pid && again.trainer_pid == record.trainer_pid &&
            again.trainer_start == record.trainer_start && again.pid_namespace == record.pid_namespace &&
            memcmp(again.boot_id, record.boot_id, sizeof(again.boot_id)) == 0);
    return 0;
}
