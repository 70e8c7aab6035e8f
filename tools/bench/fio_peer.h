/* bench/fio_peer.h - fio as a contestant: the same bytes to the same place, its fsync in its clock. */
#ifndef BENCH_FIO_PEER_H
#define BENCH_FIO_PEER_H

#include "job.h"

enum fio_kind { FIO_TUNED, FIO_DEFAULT };

/* Runs fio once. `path`: a file that may be written; `bytes`: of each of numjobs= processes. Seconds by fio's own clock and the
 * bytes that it moved. 0, or -1 with the complaint. */
int fio_measure(const struct job *job, enum fio_kind kind, const char *path, uint64_t bytes, double *seconds, uint64_t *moved,
                struct complaint *complaint);
/* What was found of a fio report: milliseconds and bytes of its first job. For fio_measure, and tests. */
int fio_report_parse(const char *text, size_t size, bool reads, uint64_t *milliseconds, uint64_t *bytes);

#endif
