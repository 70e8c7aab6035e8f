/* commands/diff.c - what differs between two checkpoints: tensors, objects, metadata.
 *
 * Both lists are sorted by (name, place in the global tensor) and walked side by side. What several ranks saved alike counts
 * once, as the first of them has it. Where both sides have digests and
 * they agree or differ, no data is read; else the bytes are compared, a bounded piece at a time.
 */
#include "command.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((uint64_t)8 << 20)

struct side {
    const char *path;
    struct tspool_checkpoint *checkpoint;
    struct tspool_tensor_info *tensors; /* sorted */
    size_t *entries;                    /* tensors[i] is entry entries[i] */
    size_t count;
    void *piece;
};

struct comparison {
    struct side a, b;
    bool as_json, quiet;
    uint64_t added, removed, changed, same;
    struct tspool_failure failure;
};

/* Sides -------------------------------------------------------------------------------------------------------------- */

static int u64s_compare(uint32_t count, const uint64_t *a, const uint64_t *b)
{
    for (uint32_t i = 0; i < count; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

static int tensors_compare(const struct tspool_tensor_info *a, const struct tspool_tensor_info *b)
{
    int order = strcmp(a->name, b->name);

    if (order == 0 && a->global_offsets && b->global_offsets && a->rank == b->rank)
        order = u64s_compare(a->rank, a->global_offsets, b->global_offsets);
    return order;
}

static int entries_compare(const void *left, const void *right, void *context)
{
    const struct tspool_tensor_info *infos = context;
    size_t a = *(const size_t *)left, b = *(const size_t *)right;
    int order = tensors_compare(&infos[a], &infos[b]);

    return order ? order : (a > b) - (a < b);
}

static bool is_replica(const struct tspool_tensor_info *before, const struct tspool_tensor_info *after)
{
    return before->global_offsets && after->global_offsets && tensors_compare(before, after) == 0;
}

/* From the sorted entries. */
static void tensors_keep(struct side *side, const struct tspool_tensor_info *infos)
{
    size_t kept = 0;

    for (size_t i = 0; i < side->count; i++) {
        const struct tspool_tensor_info *info = &infos[side->entries[i]];

        if (kept > 0 && is_replica(&side->tensors[kept - 1], info))
            continue;
        side->entries[kept] = side->entries[i];
        side->tensors[kept++] = *info;
    }
    side->count = kept;
}

static int side_sort(struct side *side)
{
    struct tspool_tensor_info *infos = calloc(side->count + 1, sizeof *infos);

    side->tensors = calloc(side->count + 1, sizeof *side->tensors);
    side->entries = calloc(side->count + 1, sizeof *side->entries);
    if (!infos || !side->tensors || !side->entries) {
        free(infos);
        return -ENOMEM;
    }
    for (size_t i = 0; i < side->count; i++) {
        infos[i] = (struct tspool_tensor_info)TSPOOL_TENSOR_INFO_INIT;
        tspool_checkpoint_tensor(side->checkpoint, i, &infos[i]);
        side->entries[i] = i;
    }
    qsort_r(side->entries, side->count, sizeof *side->entries, entries_compare, infos);
    tensors_keep(side, infos);
    free(infos);
    return 0;
}

static int side_open(struct side *side, const char *path, struct tspool_failure *failure)
{
    int error = tspool_checkpoint_open(path, NULL, &side->checkpoint, failure);

    if (error < 0)
        return error;
    side->path = path;
    side->count = tspool_checkpoint_count(side->checkpoint);
    side->piece = aligned_alloc(4096, PIECE_BYTES);
    error = side->piece ? side_sort(side) : -ENOMEM;
    if (error < 0)
        snprintf(failure->message, sizeof failure->message, "%s: %s", path, strerror(-error));
    return error;
}

static void side_close(struct side *side)
{
    tspool_checkpoint_close(side->checkpoint);
    free(side->tensors);
    free(side->entries);
    free(side->piece);
}

/* Saying it ---------------------------------------------------------------------------------------------------------- */

static void tell(const struct comparison *comparison, char sign, const char *what, const char *name, const char *detail)
{
    if (comparison->as_json) {
        struct json json = json_begin(stdout);

        json_string(&json, "change", sign == '+' ? "added" : sign == '-' ? "removed" : "changed");
        json_string(&json, "what", what);
        json_string(&json, "name", name);
        json_string(&json, "detail", detail);
        json_end(&json);
    } else if (!comparison->quiet) {
        printf("%c %s %s%s%s\n", sign, what, name, *detail ? "  " : "", detail);
    }
}

static void tell_tensor(struct comparison *comparison, char sign, const struct tspool_tensor_info *tensor)
{
    char detail[160];

    snprintf(detail, sizeof detail, "%s %s %s", tspool_dtype_name(tensor->dtype), shape_text(tensor->rank, tensor->shape).bytes,
             human_bytes(tensor->bytes).bytes);
    tell(comparison, sign, "tensor", tensor->name, detail);
    comparison->added += sign == '+';
    comparison->removed += sign == '-';
}

static void tell_changed(struct comparison *comparison, const char *what, const char *name, const char *detail)
{
    tell(comparison, '~', what, name, detail);
    comparison->changed++;
}

/* Tensors ------------------------------------------------------------------------------------------------------------ */

static int piece_read(struct side *side, size_t number, uint64_t first_byte, uint64_t bytes, struct tspool_failure *failure)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;

    request.tensor = side->entries[number];
    request.data = side->piece;
    request.bytes = bytes;
    request.first_byte = first_byte;
    request.by_bytes = 1;
    return tspool_checkpoint_read(side->checkpoint, &request, 1, NULL, NULL, failure);
}

/* 1: they differ, 0: the same, or -errno. */
static int data_differ(struct comparison *comparison, size_t a, size_t b, uint64_t total)
{
    int error = 0;

    for (uint64_t at = 0; at < total && error == 0; at += PIECE_BYTES) {
        uint64_t bytes = total - at < PIECE_BYTES ? total - at : PIECE_BYTES;

        error = piece_read(&comparison->a, a, at, bytes, &comparison->failure);
        if (error == 0)
            error = piece_read(&comparison->b, b, at, bytes, &comparison->failure);
        if (error == 0 && memcmp(comparison->a.piece, comparison->b.piece, bytes) != 0)
            return 1;
    }
    return error;
}

static bool same_layout(const struct tspool_tensor_info *a, const struct tspool_tensor_info *b)
{
    return a->dtype == b->dtype && a->rank == b->rank && u64s_compare(a->rank, a->shape, b->shape) == 0;
}

static int both_compare(struct comparison *comparison, size_t a, size_t b)
{
    const struct tspool_tensor_info *left = &comparison->a.tensors[a], *right = &comparison->b.tensors[b];
    char detail[200];
    int differ;

    if (!same_layout(left, right)) {
        snprintf(detail, sizeof detail, "%s %s -> %s %s", tspool_dtype_name(left->dtype),
                 shape_text(left->rank, left->shape).bytes,
                 tspool_dtype_name(right->dtype), shape_text(right->rank, right->shape).bytes);
        tell_changed(comparison, "tensor", left->name, detail);
        return 0;
    }
    if (left->has_digest && right->has_digest)
        differ = memcmp(left->digest, right->digest, sizeof left->digest) != 0;
    else
        differ = data_differ(comparison, a, b, left->bytes);
    if (differ == 1)
        tell_changed(comparison, "tensor", left->name, "values differ");
    comparison->same += differ == 0;
    return differ < 0 ? differ : 0;
}

static int tensors_walk(struct comparison *comparison)
{
    size_t a = 0, b = 0;
    int error = 0;

    while (error == 0 && (a < comparison->a.count || b < comparison->b.count)) {
        int order = a == comparison->a.count ? 1 : b == comparison->b.count ? -1
            : tensors_compare(&comparison->a.tensors[a], &comparison->b.tensors[b]);

        if (order < 0)
            tell_tensor(comparison, '-', &comparison->a.tensors[a++]);
        else if (order > 0)
            tell_tensor(comparison, '+', &comparison->b.tensors[b++]);
        else
            error = both_compare(comparison, a++, b++);
    }
    return error;
}

/* Metadata and objects ----------------------------------------------------------------------------------------------- */

static void metadata_walk(struct comparison *comparison)
{
    struct tspool_checkpoint *a = comparison->a.checkpoint, *b = comparison->b.checkpoint;
    const char *key, *value, *other;
    char detail[512];

    for (size_t i = 0; tspool_checkpoint_metadata_at(a, i, &key, &value) == 0; i++) {
        other = tspool_checkpoint_metadata(b, key);
        snprintf(detail, sizeof detail, "%.200s -> %.200s", value, other ? other : "");
        if (!other) {
            tell(comparison, '-', "metadata", key, value);
            comparison->removed++;
        } else if (strcmp(value, other) != 0) {
            tell_changed(comparison, "metadata", key, detail);
        }
    }
    for (size_t i = 0; tspool_checkpoint_metadata_at(b, i, &key, &value) == 0; i++)
        if (!tspool_checkpoint_metadata(a, key)) {
            tell(comparison, '+', "metadata", key, value);
            comparison->added++;
        }
}

/* 1: the object of A is in B and the same; 0: it is there and differs; -ENOENT: it is not there. */
static int object_same(struct comparison *comparison, const char *name)
{
    void *a = NULL, *b = NULL;
    size_t a_size = 0, b_size = 0;
    int error = tspool_checkpoint_object_read(comparison->b.checkpoint, name, &b, &b_size, &comparison->failure);
    int same;

    if (error == 0)
        error = tspool_checkpoint_object_read(comparison->a.checkpoint, name, &a, &a_size, &comparison->failure);
    same = error == 0 ? a_size == b_size && memcmp(a, b, a_size) == 0 : error;
    free(a);
    free(b);
    return same;
}

static int objects_walk(struct comparison *comparison)
{
    struct tspool_checkpoint *a = comparison->a.checkpoint, *b = comparison->b.checkpoint;
    const char *name, *kind;
    uint64_t size;

    for (size_t i = 0; i < tspool_checkpoint_object_count(a); i++) {
        int same = tspool_checkpoint_object(a, i, &name, &kind, &size) == 0 ? object_same(comparison, name) : 1;

        if (same == 0)
            tell_changed(comparison, "object", name, "bytes differ");
        else if (same == -ENOENT) {
            tell(comparison, '-', "object", name, kind);
            comparison->removed++;
        } else if (same < 0) {
            return same;
        }
    }
    for (size_t i = 0; i < tspool_checkpoint_object_count(b); i++) {
        bool absent = true;
        const char *other, *other_kind;

        tspool_checkpoint_object(b, i, &name, &kind, &size);
        for (size_t j = 0; j < tspool_checkpoint_object_count(a) && absent; j++)
            absent = tspool_checkpoint_object(a, j, &other, &other_kind, &size) < 0 || strcmp(other, name) != 0;
        if (absent) {
            tell(comparison, '+', "object", name, kind);
            comparison->added++;
        }
    }
    return 0;
}

/* The whole ---------------------------------------------------------------------------------------------------------- */

static void summary_print(const struct comparison *comparison)
{
    if (comparison->as_json) {
        struct json json = json_begin(stdout);

        json_string(&json, "event", "compared");
        json_number(&json, "added", comparison->added);
        json_number(&json, "removed", comparison->removed);
        json_number(&json, "changed", comparison->changed);
        json_number(&json, "same_tensors", comparison->same);
        json_end(&json);
    } else if (!comparison->quiet) {
        printf("%" PRIu64 " added, %" PRIu64 " removed, %" PRIu64 " changed, %" PRIu64 " tensors the same\n", comparison->added,
               comparison->removed, comparison->changed, comparison->same);
    }
}

static int compare(struct comparison *comparison, const char *a, const char *b)
{
    int error = side_open(&comparison->a, a, &comparison->failure);

    if (error == 0)
        error = side_open(&comparison->b, b, &comparison->failure);
    if (error == 0)
        error = tensors_walk(comparison);
    if (error == 0)
        metadata_walk(comparison);
    if (error == 0)
        error = objects_walk(comparison);
    if (error == 0)
        summary_print(comparison);
    side_close(&comparison->a);
    side_close(&comparison->b);
    return error;
}

static int run(int argc, char **argv)
{
    static const struct option options[] = {
        { "json", no_argument, NULL, 'j' }, { "quiet", no_argument, NULL, 'q' }, { "exit-code", no_argument, NULL, 'e' }, { 0 },
    };
    struct comparison comparison = { .failure = TSPOOL_FAILURE_INIT };
    bool exit_code = false;
    int option;

    while ((option = getopt_long(argc, argv, "q", options, NULL)) != -1) {
        if (option == '?')
            return usage_error("diff", NULL);
        comparison.as_json |= option == 'j';
        comparison.quiet |= option == 'q';
        exit_code |= option == 'e';
    }
    if (argc - optind != 2)
        return usage_error("diff", "give two checkpoints");
    if (compare(&comparison, argv[optind], argv[optind + 1]) < 0)
        return fail_with("diff", &comparison.failure);
    return exit_code && comparison.added + comparison.removed + comparison.changed ? EXIT_FAILED : EXIT_DONE;
}

const struct command command_diff = {
    .name = "diff",
    .summary = "tensors added, removed, changed between two checkpoints",
    .arguments = "[--json] [--quiet] [--exit-code] A B",
    .description = "Compares two checkpoints, in any of the forms that tspool reads: '+' stands only in B, '-' only\n"
                   "in A, '~' differs. Where both have digests no data is read; otherwise the bytes are compared.\n\n"
                   "  --exit-code  exit with 1 when they differ\n"
                   "  --json       one JSON object per difference, and one at the end\n"
                   "  -q, --quiet  print nothing (with --exit-code)\n"
                   "  -h, --help   this text\n",
    .run = run,
};
