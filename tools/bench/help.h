/* bench/help.h - the text of tspool bench --help. */
#ifndef BENCH_HELP_H
#define BENCH_HELP_H

extern const char bench_help[];

#endif
