/* bench/units.c - see units.h. Digits first, then a suffix, then nothing; what overflows is no quantity. */
#include "units.h"

#include <base/checked.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool digits_take(const char *text, const char **end, uint64_t *value)
{
    char *stop;

    if (*text < '0' || *text > '9') /* strtoull takes signs and blanks */
        return false;
    errno = 0;
    *value = strtoull(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

bool units_number(const char *text, uint64_t *number)
{
    const char *end;
    uint64_t value;

    if (!digits_take(text, &end, &value) || *end)
        return false;
    *number = value;
    return true;
}

/* The power of two of a suffix, or -1: "", "k", "kb", "kib" in any case. */
static int shift_of(const char *suffix)
{
    static const char letters[] = "kmgtpe";
    const char *letter;

    if (!*suffix || strcasecmp(suffix, "b") == 0)
        return 0;
    letter = strchr(letters, *suffix | 0x20);
    if (!letter || (suffix[1] && strcasecmp(suffix + 1, "b") != 0 && strcasecmp(suffix + 1, "ib") != 0
                    && strcasecmp(suffix + 1, "i") != 0))
        return -1;
    return 10 * (int)(letter - letters + 1);
}

bool units_bytes(const char *text, uint64_t *bytes)
{
    const char *end;
    uint64_t value;
    int shift;

    if (!digits_take(text, &end, &value) || (shift = shift_of(end)) < 0 || value > UINT64_MAX >> shift)
        return false;
    *bytes = value << shift;
    return true;
}

bool units_time(const char *text, uint64_t bare_ns, uint64_t *nanoseconds)
{
    static const struct { const char *suffix; uint64_t ns; } suffixes[] = {
        { "us", 1000 }, { "usec", 1000 }, { "ms", 1000000 }, { "msec", 1000000 }, { "s", 1000000000 }, { "sec", 1000000000 },
        { "m", 60000000000 }, { "h", 3600000000000 }, { "d", 86400000000000 },
    };
    uint64_t value, unit = bare_ns;
    const char *end;

    if (!digits_take(text, &end, &value))
        return false;
    for (unsigned i = 0; *end && i < sizeof suffixes / sizeof *suffixes; i++)
        if (strcasecmp(end, suffixes[i].suffix) == 0) {
            unit = suffixes[i].ns;
            end += strlen(end);
        }
    return *end == '\0' && checked_mul(value, unit, nanoseconds);
}

static bool decimal_take(const char *text, const char **end, double *value)
{
    char *stop;

    if ((*text < '0' || *text > '9') && *text != '.')
        return false;
    *value = strtod(text, &stop);
    *end = stop;
    return stop != text;
}

bool units_real(const char *text, double *value)
{
    double above, below = 1;
    const char *end;

    if (!decimal_take(text, &end, &above) || (*end == '/' && !decimal_take(end + 1, &end, &below)))
        return false;
    if (*end || !(above > 0) || !(below > 0))
        return false;
    *value = above / below;
    return true;
}
