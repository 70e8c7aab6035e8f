/* format/header_parse.c - the header of a safetensors file that anybody may have written.
 *
 * What is accepted, Python's safetensors accepts too: the JSON is walked by the strict scanner, then the entries, in the
 * order of their data, must cover it without hole, overlap or rest, each as large as dtype and shape say. Stricter than
 * Python: a name given twice is refused (it keeps the last), so is a NUL in a name and a rank above TSPOOL_RANK_MAX.
 */
#include <format/safetensors.h>

#include <base/array.h>
#include <base/checked.h>
#include <base/mutant.h>
#include <endian.h>
#include <errno.h>
#include <format/name_table.h>
#include <format/scan.h>
#include <format/sharding.h>
#include <string.h>

struct parser {
    struct parsed_header *header;
    struct pool pool;
    size_t tensor_capacity, metadata_capacity;
    const char *sharding;
    size_t sharding_size;
    bool metadata_seen;
};

int header_length_check(const uint8_t prefix[8], uint64_t file_size, uint64_t *json_size, const char **reason)
{
    uint64_t length;

    memcpy(&length, prefix, sizeof length);
    length = le64toh(length);
    if (length < 2)
        *reason = "the header's length is too small: not a safetensors file";
    else if (length > SAFETENSORS_HEADER_MAX)
        *reason = "the header's length is above 100,000,000 bytes: not a safetensors file";
    else if ((file_size < sizeof length || length > file_size - sizeof length) && !MUTANT(HEADER_LENGTH_UNCHECKED))
        *reason = "the header's length is more than the file has: cut off, or not a safetensors file";
    else {
        *json_size = length;
        return 0;
    }
    return -EBADMSG;
}

/* The JSON -------------------------------------------------------------------------------------------------------- */

static int take_pair(struct scan *scan, struct scan_token key, void *context)
{
    struct parser *parser = context;
    struct parsed_header *header = parser->header;
    struct header_pair pair;
    size_t size;
    int error = scan_keep(scan, key, &pair.key, NULL);

    if (!error)
        error = scan_text(scan, &pair.value, &size);
    if (error)
        return error;
    if (array_reserve((void **)&header->metadata, &parser->metadata_capacity, header->metadata_count + 1, sizeof pair))
        return scan_no_memory(scan);
    header->metadata[header->metadata_count++] = pair;
    if (!strcmp(pair.key, SHARDING_INFO_KEY)) {
        parser->sharding = pair.value;
        parser->sharding_size = size;
    }
    return 0;
}

static int take_metadata(struct scan *scan, struct parser *parser)
{
    bool is_null;
    int error;

    if (parser->metadata_seen)
        return scan_fault(scan, "__metadata__ is given twice");
    parser->metadata_seen = true;
    error = scan_null(scan, &is_null);
    return error || is_null ? error : scan_map(scan, take_pair, parser);
}

static int take_dtype(struct scan *scan, void *to)
{
    struct parsed_tensor *tensor = to;
    struct scan_token token;
    char name[16];
    int error = scan_string(scan, &token);

    if (error)
        return error;
    if (token.escaped || token.size >= sizeof name)
        return scan_fault(scan, "the dtype is unknown");
    memcpy(name, token.bytes, token.size);
    name[token.size] = 0;
    tensor->dtype = tspool_dtype_parse(name);
    return tensor->dtype ? 0 : scan_fault(scan, "the dtype is unknown");
}

static int take_shape(struct scan *scan, void *to)
{
    struct parsed_tensor *tensor = to;
    size_t rank;
    int error = scan_numbers(scan, TSPOOL_RANK_MAX, &tensor->shape, &rank);

    if (error)
        return error;
    tensor->rank = (uint32_t)rank;
    return 0;
}

struct pair_of_offsets { uint64_t values[2]; size_t count; };

static int take_offset(struct scan *scan, void *context)
{
    struct pair_of_offsets *pair = context;

    if (pair->count == 2)
        return scan_fault(scan, "data_offsets are two numbers");
    return scan_u64(scan, &pair->values[pair->count++]);
}

static int take_offsets(struct scan *scan, void *to)
{
    struct parsed_tensor *tensor = to;
    struct pair_of_offsets pair = { .count = 0 };
    int error = scan_array(scan, take_offset, &pair);

    if (error)
        return error;
    if (pair.count != 2)
        return scan_fault(scan, "data_offsets are two numbers");
    tensor->begin = pair.values[0];
    tensor->end = pair.values[1];
    return 0;
}

/* Whether dtype and shape make end - begin bytes. Factors are multiplied in order, as Python's safetensors does: a zero
 * after factors that overflow does not save them. */
static const char *tensor_fault(const struct parsed_tensor *tensor)
{
    uint64_t bits = 1;

    for (uint32_t i = 0; i < tensor->rank; i++)
        if (!checked_mul(bits, tensor->shape[i], &bits))
            return "a tensor's shape does not fit 64 bits";
    if (!checked_mul(bits, tspool_dtype_bits(tensor->dtype), &bits))
        return "a tensor's shape does not fit 64 bits";
    if (bits % 8)
        return "a tensor ends within a byte";
    if (tensor->end < tensor->begin)
        return "a tensor ends before it begins";
    return tensor->end - tensor->begin == bits / 8 ? NULL : "a tensor's data_offsets disagree with its dtype and shape";
}

static int take_tensor(struct scan *scan, struct scan_token key, struct parser *parser)
{
    static const struct scan_member members[] = {
        { "dtype", take_dtype, true, 0 }, { "shape", take_shape, true, 0 }, { "data_offsets", take_offsets, true, 0 }
    };
    struct parsed_header *header = parser->header;
    struct parsed_tensor tensor = { 0 };
    const char *fault;
    int error = scan_keep(scan, key, &tensor.name, NULL);

    if (!error)
        error = scan_object(scan, members, 3, &tensor);
    if (error)
        return error;
    fault = tensor_fault(&tensor);
    if (fault)
        return scan_fault(scan, fault);
    if (array_reserve((void **)&header->tensors, &parser->tensor_capacity, header->count + 1, sizeof tensor))
        return scan_no_memory(scan);
    header->tensors[header->count++] = tensor;
    return 0;
}

static int take_entry(struct scan *scan, struct scan_token key, void *context)
{
    return scan_token_is(key, "__metadata__") ? take_metadata(scan, context) : take_tensor(scan, key, context);
}

/* The whole ------------------------------------------------------------------------------------------------------- */

static int tensor_compare(const void *left, const void *right)
{
    const struct parsed_tensor *a = left, *b = right;

    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) /* an empty tensor before the one that starts where it stands */
        return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Nearly every file lists its entries in order already. */
static void tensors_sort(struct parsed_header *header)
{
    for (size_t i = 1; i < header->count; i++)
        if (tensor_compare(&header->tensors[i - 1], &header->tensors[i]) > 0) {
            qsort(header->tensors, header->count, sizeof *header->tensors, tensor_compare);
            return;
        }
}

static int coverage_check(struct scan *scan, const struct parsed_header *header, uint64_t data_bytes)
{
    uint64_t covered = 0;

    for (size_t i = 0; i < header->count; i++) {
        if (header->tensors[i].begin != covered)
            return scan_fault(scan, header->tensors[i].begin > covered ? "no tensor covers some of the data" : "tensors overlap");
        covered = header->tensors[i].end;
    }
    if (covered > data_bytes)
        return scan_fault(scan, "the file is too short for its tensors: cut off");
    return covered < data_bytes ? scan_fault(scan, "the file has bytes after its last tensor") : 0;
}

static int repeats_check(struct scan *scan, const struct parsed_header *header)
{
    int outcome = 0;

    if (header->count)
        outcome = names_repeat(&header->tensors->name, sizeof *header->tensors, header->count);
    if (outcome)
        return outcome < 0 ? scan_no_memory(scan) : scan_fault(scan, "a tensor's name is given twice");
    if (header->metadata_count)
        outcome = names_repeat(&header->metadata->key, sizeof *header->metadata, header->metadata_count);
    if (outcome)
        return outcome < 0 ? scan_no_memory(scan) : scan_fault(scan, "a key of __metadata__ is given twice");
    return 0;
}

static int sharding_take(struct scan *scan, struct parser *parser)
{
    struct parsed_header *header = parser->header;
    const char *reason = NULL;
    int error;

    if (!parser->sharding)
        return 0;
    error = sharding_parse(parser->sharding, parser->sharding_size, header->tensors, header->count, &parser->pool, &reason);
    return error == -EBADMSG ? scan_fault(scan, reason) : error ? scan_no_memory(scan) : 0;
}

static int parse(struct scan *scan, struct parser *parser, const char *json, size_t json_size, uint64_t data_bytes)
{
    int error = scan_init(scan, json, json_size, &parser->pool);

    if (!error)
        error = scan_map(scan, take_entry, parser);
    if (!error)
        error = scan_finish(scan);
    if (error)
        return error;
    tensors_sort(parser->header);
    error = coverage_check(scan, parser->header, data_bytes);
    if (!error)
        error = repeats_check(scan, parser->header);
    return error ? error : sharding_take(scan, parser);
}

/* parsed_header.memory is the pool's newest block: the pool itself is one pointer. */
void parsed_header_deinit(struct parsed_header *header)
{
    struct pool pool = { header->memory };

    pool_deinit(&pool);
    free(header->tensors);
    free(header->metadata);
    *header = (struct parsed_header){ 0 };
}

int header_parse(const char *json, size_t json_size, uint64_t data_bytes, struct parsed_header *header,
                 const char **reason, size_t *position)
{
    struct parsed_header parsed = { 0 };
    struct parser parser = { .header = &parsed };
    struct scan scan;
    int error = parse(&scan, &parser, json, json_size, data_bytes);

    parsed.memory = parser.pool.newest;
    if (error) {
        *reason = scan.reason;
        *position = scan_position(&scan);
        parsed_header_deinit(&parsed);
        return error;
    }
    parsed.data_bytes = data_bytes;
    *header = parsed;
    return 0;
}
