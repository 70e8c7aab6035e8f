/* bench/units.h - quantities as fio writes them: 4k, 1m, 2gib; 30s, 5m, 10ms. Pure. */
#ifndef BENCH_UNITS_H
#define BENCH_UNITS_H

#include <stdbool.h>
#include <stdint.h>

/* "4096", "4k", "4kb", "4KiB", up to e: always by 1024, as fio has it unless told otherwise. */
bool units_bytes(const char *text, uint64_t *bytes);
/* "30", "30s", "500ms", "20us", "2m", "1h", "1d" in nanoseconds; a bare number counts in `bare_ns`. */
bool units_time(const char *text, uint64_t bare_ns, uint64_t *nanoseconds);
bool units_number(const char *text, uint64_t *number);
/* A positive decimal number, or a quotient of two: "0.25", "1/16". */
bool units_real(const char *text, double *value);

#endif
