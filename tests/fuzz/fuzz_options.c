/* fuzz_options - texts that people give: sizes ("64M", "1GiB") and lists of CPUs ("0-3,8"). A size is refused or means what a
 * slow reading of it says; a list is refused or read without a step outside. */
#include <assert.h>
#include <proc/proc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../tools/commands/command.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Digits, then nothing or one of K M G T in either case, then nothing or B or iB. False when it is not that, or too large. */
static int size_read_slowly(const char *text, uint64_t *bytes)
{
    static const char *const units[] = { "", "k", "m", "g", "t" };
    size_t digits = strspn(text, "0123456789");
    unsigned __int128 value = 0;

    for (size_t i = 0; i < digits; i++) {
        value = value * 10 + (unsigned)(text[i] - '0');
        if (value > UINT64_MAX)
            return 0;
    }
    for (unsigned unit = 0; digits && unit < 5; unit++) {
        const char *rest = text + digits + (unit > 0);

        if (unit && (text[digits] | 0x20) != units[unit][0])
            continue;
        if (*rest && (!unit || (strcmp(rest, "B") && strcmp(rest, "iB"))))
            continue;
        value <<= 10 * unit;
        *bytes = (uint64_t)value;
        return value <= UINT64_MAX;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t bytes = 0, expected = 0;
    char *text = malloc(size + 1);

    memcpy(text, data, size);
    text[size] = 0;
    assert(size_parse(text, &bytes) == size_read_slowly(text, &expected));
    assert(bytes == expected || !size_read_slowly(text, &expected));
    cpu_list_check(text);
    free(text);
    return 0;
}
