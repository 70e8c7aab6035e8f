/* commands/command.h - what a command is, and how all of them speak. */
#ifndef COMMANDS_COMMAND_H
#define COMMANDS_COMMAND_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <tspool/tspool.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

struct command {
    const char *name, *summary;
    const char *arguments;              /* after "usage: tspool NAME " */
    const char *description;            /* paragraphs and options, as --help prints them */
    int (*run)(int argc, char **argv);  /* argv[0] is the command's name; --help was dealt with */
};
extern const struct command command_copy, command_ls, command_verify, command_diff, command_latest, command_publish,
    command_gc, command_doctor, command_bench, command_tune;

void command_help(const struct command *command, FILE *out);
int command_run(const struct command *command, int argc, char **argv);
/* The status, or EXIT_FAILED when what was printed could not be written (a full disk, a closed pipe). */
int finish(int status);

/* "tspool NAME: ..." on stderr, one line; control bytes in names become '?'. */
void complain(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* complain about wrong usage, with the way to help: returns EXIT_USAGE. */
int usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The failure's message; returns EXIT_FAILED. */
int fail_with(const char *command, const struct tspool_failure *failure);

/* In a build folder the writer stands beside this program; NULL: installed, the library knows where it is. */
const char *writer_beside(void);

/* Quantities --------------------------------------------------------------------------------------------------------- */
struct text { char bytes[64]; };
struct text human_bytes(uint64_t bytes);                 /* "1.39 GiB", "812 B" */
struct text human_seconds(uint64_t nanoseconds);
struct text shape_text(uint32_t rank, const uint64_t *shape); /* "50257x768", "scalar" */
struct text hex_text(const uint8_t *bytes, size_t size); /* at most 31 bytes */
/* "512M", "4GiB", "1000": false when it is no size. */
bool size_parse(const char *text, uint64_t *bytes);
uint64_t now_ns(void);

/* JSON, one object per line: json_begin, members, json_end. Strings are escaped; what is not UTF-8 is replaced. */
struct json { FILE *out; bool first; };
struct json json_begin(FILE *out);
void json_string(struct json *json, const char *key, const char *value); /* NULL: null */
void json_number(struct json *json, const char *key, uint64_t value);
void json_signed(struct json *json, const char *key, int64_t value);
void json_seconds(struct json *json, const char *key, uint64_t nanoseconds);
void json_bool(struct json *json, const char *key, bool value);
void json_shape(struct json *json, const char *key, uint32_t rank, const uint64_t *shape); /* NULL: left out */
void json_failure(struct json *json, const struct tspool_failure *failure); /* stage, operation, tensor, path, ... message */
void json_end(struct json *json);
void json_text(FILE *out, const char *text); /* one string, between its quotes */

/* A progress line on stderr, only where stderr is a terminal; rewritten a few times a second. */
struct progress { bool shown, wanted; uint64_t started_ns, next_ns; };
void progress_init(struct progress *progress, bool wanted);
void progress_show(struct progress *progress, const char *what, uint64_t done, uint64_t total);
void progress_clear(struct progress *progress);

/* Ctrl-C and SIGTERM set a flag; a second one ends the program at once. */
void interrupts_catch(void);
bool interrupted(void);

#endif
