/* bench/jobfile.c - fio's job files: sections of "option=value" lines.
 *
 * What stands in [global] holds for the sections after it; several [global] add up. Comments begin with ; or #, at the
 * start of a line or after a blank.
 */
#include "job.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOBFILE_BYTES_MAX ((size_t)1 << 20)

struct parser { struct jobs *jobs; const char *path; unsigned line; struct job *job; bool in_global; };

static char *trim(char *text)
{
    char *end;

    while (isspace((unsigned char)*text))
        text++;
    end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return text;
}

static void comment_cut(char *line)
{
    for (char *at = line; *at; at++)
        if ((*at == ';' || *at == '#') && (at == line || isspace((unsigned char)at[-1]))) {
            *at = '\0';
            return;
        }
}

static int placed(const struct parser *parser, struct complaint *complaint)
{
    struct complaint plain = *complaint;

    return complaint_set(complaint, "%.100s:%u: %.380s", parser->path, parser->line, plain.text);
}

static int section_begin(struct parser *parser, char *line, struct complaint *complaint)
{
    char *end = strchr(line, ']'), *name;

    if (!end || *trim(end + 1)) {
        complaint_set(complaint, "a section is [name] on a line of its own");
        return placed(parser, complaint);
    }
    *end = '\0';
    name = trim(line + 1);
    if (!*name) {
        complaint_set(complaint, "the section has no name");
        return placed(parser, complaint);
    }
    parser->in_global = strcmp(name, "global") == 0;
    parser->jobs->has_global |= parser->in_global;
    parser->job = parser->in_global ? &parser->jobs->global : jobs_add(parser->jobs, name);
    return parser->job ? 0 : complaint_set(complaint, "out of memory");
}

static int option_line(struct parser *parser, char *line, struct complaint *complaint)
{
    char *equals = strchr(line, '=');

    if (!parser->job) {
        complaint_set(complaint, "'%s' stands before the first section: begin with [global] or the name of a job", line);
        return placed(parser, complaint);
    }
    if (equals)
        *equals = '\0';
    if (job_set(parser->job, trim(line), equals ? trim(equals + 1) : NULL, complaint) < 0)
        return placed(parser, complaint);
    return 0;
}

int jobfile_parse(struct jobs *jobs, char *text, const char *path, struct complaint *complaint)
{
    struct parser parser = { .jobs = jobs, .path = path };
    char *rest = text, *line;

    while ((line = strsep(&rest, "\n"))) {
        parser.line++;
        comment_cut(line);
        line = trim(line);
        if (!*line)
            continue;
        if ((*line == '[' ? section_begin : option_line)(&parser, line, complaint) < 0)
            return -1;
    }
    return 0;
}

/* The whole of it, NUL-terminated, or NULL with errno. */
static char *text_read(FILE *file)
{
    char *text = malloc(JOBFILE_BYTES_MAX + 1);
    size_t size = text ? fread(text, 1, JOBFILE_BYTES_MAX + 1, file) : 0;

    if (text && !ferror(file) && size <= JOBFILE_BYTES_MAX && !memchr(text, '\0', size)) {
        text[size] = '\0';
        return text;
    }
    errno = !text ? ENOMEM : size > JOBFILE_BYTES_MAX ? EFBIG : ferror(file) ? errno : EILSEQ;
    free(text);
    return NULL;
}

int jobfile_read(struct jobs *jobs, const char *path, struct complaint *complaint)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char *text = file ? text_read(file) : NULL;
    int error = errno, status;

    if (file && file != stdin)
        fclose(file);
    if (!text)
        return complaint_set(complaint, "job file %s: %s", path, strerror(error));
    status = jobfile_parse(jobs, text, path, complaint);
    free(text);
    return status;
}
