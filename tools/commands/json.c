/* commands/json.c - one JSON object per line on stdout. See command.h. */
#include "command.h"

#include <base/names.h>
#include <inttypes.h>
#include <string.h>

void json_text(FILE *out, const char *text)
{
    bool valid = utf8_is_valid(text, strlen(text));

    fputc('"', out);
    for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
        if (*at == '"' || *at == '\\')
            fprintf(out, "\\%c", *at);
        else if (*at < 0x20 || *at == 0x7f)
            fprintf(out, "\\u%04x", *at);
        else if (*at >= 0x80 && !valid)
            fputs("\\ufffd", out);
        else
            fputc(*at, out);
    }
    fputc('"', out);
}

static void member(struct json *json, const char *key)
{
    if (!json->first)
        fputs(", ", json->out);
    json->first = false;
    json_text(json->out, key);
    fputs(": ", json->out);
}

struct json json_begin(FILE *out)
{
    fputc('{', out);
    return (struct json){ out, true };
}

void json_string(struct json *json, const char *key, const char *value)
{
    member(json, key);
    if (value)
        json_text(json->out, value);
    else
        fputs("null", json->out);
}

void json_number(struct json *json, const char *key, uint64_t value)
{
    member(json, key);
    fprintf(json->out, "%" PRIu64, value);
}

void json_signed(struct json *json, const char *key, int64_t value)
{
    member(json, key);
    fprintf(json->out, "%" PRId64, value);
}

void json_seconds(struct json *json, const char *key, uint64_t nanoseconds)
{
    member(json, key);
    fprintf(json->out, "%.6f", (double)nanoseconds / 1e9);
}

void json_bool(struct json *json, const char *key, bool value)
{
    member(json, key);
    fputs(value ? "true" : "false", json->out);
}

void json_shape(struct json *json, const char *key, uint32_t rank, const uint64_t *shape)
{
    if (!shape && rank)
        return;
    member(json, key);
    fputc('[', json->out);
    for (uint32_t d = 0; d < rank; d++)
        fprintf(json->out, "%s%" PRIu64, d ? ", " : "", shape[d]);
    fputc(']', json->out);
}

void json_failure(struct json *json, const struct tspool_failure *failure)
{
    json_string(json, "stage", tspool_stage_name(failure->stage));
    json_string(json, "operation", failure->operation);
    json_string(json, "tensor", *failure->tensor ? failure->tensor : NULL);
    json_string(json, "path", *failure->path ? failure->path : NULL);
    if (failure->file_offset != TSPOOL_NO_OFFSET)
        json_number(json, "file_offset", failure->file_offset);
    json_signed(json, "errno", failure->error);
    json_string(json, "cause", failure->cause);
    json_string(json, "message", failure->message);
}

void json_end(struct json *json)
{
    fputs("}\n", json->out);
    fflush(json->out);
}
