/* format/scan.h - a strict JSON scanner: walks the text, builds no tree. For headers, indices, manifests: hostile input.
 *
 * It accepts RFC 8259 as serde_json does, which reads these files for Python's safetensors, and nothing more: UTF-8 only,
 * no lone surrogates, no control bytes in strings, integers in 64 bits, nesting at most SCAN_DEPTH_MAX. Time is linear in
 * the text; memory is only what is kept of it.
 *
 * Callers describe what they expect and get called for it. Every function returns 0, -ENOMEM, or -EBADMSG with the
 * reason and the place in the scan; a callback's error ends the scan.
 */
#ifndef FORMAT_SCAN_H
#define FORMAT_SCAN_H

#include <format/pool.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCAN_DEPTH_MAX 64

struct scan {
    const char *start, *at, *end;
    const char *reason;    /* of the first fault; static */
    struct pool *pool;     /* for texts that are kept; the caller's */
    int error;             /* 0 or the first fault's -errno */
};

/* A string's place in the text, between its quotes. */
struct scan_token { const char *bytes; size_t size; bool escaped; };

/* One expected member of an object: `take` gets the address `offset` bytes into what scan_object was given. */
struct scan_member {
    const char *name;
    int (*take)(struct scan *scan, void *to);
    bool required;
    size_t offset;
};
typedef int (*scan_take_entry)(struct scan *scan, struct scan_token key, void *context);
typedef int (*scan_take_element)(struct scan *scan, void *context);

/* Checks that the text is UTF-8. */
int scan_init(struct scan *scan, const char *text, size_t size, struct pool *pool);
/* Nothing but white space is left. */
int scan_finish(struct scan *scan);
/* Records a fault here; returns -EBADMSG. */
int scan_fault(struct scan *scan, const char *reason);
int scan_no_memory(struct scan *scan);
size_t scan_position(const struct scan *scan);

/* An object of known members, in any order: `take` of each that is there. Unknown ones are skipped, one given twice or a
 * required one left out is a fault. At most 32 members. */
int scan_object(struct scan *scan, const struct scan_member *members, size_t count, void *to);
/* An object whose keys are data. Repeated keys are the caller's to find (name_table.h). */
int scan_map(struct scan *scan, scan_take_entry take, void *context);
int scan_array(struct scan *scan, scan_take_element take, void *context);
int scan_string(struct scan *scan, struct scan_token *token);
/* A non-negative integer of 64 bits. */
int scan_u64(struct scan *scan, uint64_t *value);
int scan_u32(struct scan *scan, uint32_t *value);
/* null, if it is next: then *is_null and it is consumed. */
int scan_null(struct scan *scan, bool *is_null);
/* true or false. */
int scan_bool(struct scan *scan, bool *value);
int scan_skip(struct scan *scan);

bool scan_token_is(struct scan_token token, const char *name);
/* Unescaped, NUL-terminated, in the pool. A NUL within is a fault: such a name would be cut silently. */
int scan_keep(struct scan *scan, struct scan_token token, const char **text, size_t *size);
/* scan_string and scan_keep. `size` may be NULL. */
int scan_text(struct scan *scan, const char **text, size_t *size);
/* For tables of members: a uint64_t, a uint32_t, a const char *. */
int scan_take_u64(struct scan *scan, void *to);
int scan_take_u32(struct scan *scan, void *to);
int scan_take_text(struct scan *scan, void *to);
/* An array of integers, kept in the pool. */
int scan_numbers(struct scan *scan, size_t count_max, const uint64_t **values, size_t *count);

#endif
