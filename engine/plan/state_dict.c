/* plan/state_dict.c - what the caller declared, checked and copied. Whatever is wrong with one tensor is said here, by its
 * name and with the remedy; what is wrong between tensors (names given twice) shows when the plan is built.
 */
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <base/names.h>
#include <errno.h>
#include <inttypes.h>
#include <plan/dict.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)256 << 10)
#define STAGE TSPOOL_STAGE_DECLARE

struct dict_block {
    struct dict_block *next;
    size_t used, capacity;
    uint64_t bytes[];
};

struct state_dict *state_dict_create(void) { return calloc(1, sizeof(struct state_dict)); }

void state_dict_destroy(struct state_dict *dict)
{
    if (!dict)
        return;
    for (struct dict_block *block = dict->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    free(dict->tensors);
    free(dict);
}

/* Memory that lives as long as the dict, 8-byte aligned. */
static void *dict_take(struct state_dict *dict, size_t bytes)
{
    struct dict_block *block = dict->blocks;
    void *taken;

    bytes = align_up(bytes, sizeof(uint64_t));
    if (!block || block->capacity - block->used < bytes) {
        size_t capacity = bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES;

        if (!(block = malloc(sizeof(*block) + capacity)))
            return NULL;
        *block = (struct dict_block){ .next = dict->blocks, .used = 0, .capacity = capacity };
        dict->blocks = block;
    }
    taken = (uint8_t *)block->bytes + block->used;
    block->used += bytes;
    return taken;
}

/* Checks ---------------------------------------------------------------------------------------------------------- */

static struct failure_at at(const struct tspool_tensor *tensor)
{
    return FAILURE_AT(.tensor = tensor->name);
}

static int check_front(const struct tspool_tensor *tensor, size_t *name_size, struct tspool_failure *failure)
{
    if (tensor->size < sizeof(*tensor))
        return failure_set(failure, STAGE, EINVAL, FAILURE_NOWHERE,
                           "tspool_tensor.size is %zu; initialise the struct with TSPOOL_TENSOR_INIT", tensor->size);
    if (!tensor->name || !tensor->name[0])
        return failure_set(failure, STAGE, EINVAL, FAILURE_NOWHERE, "a tensor without a name; give it one");
    *name_size = strnlen(tensor->name, TSPOOL_TENSOR_NAME_MAX + 1);
    if (*name_size > TSPOOL_TENSOR_NAME_MAX)
        return failure_set(failure, STAGE, ENAMETOOLONG, at(tensor), "the name is longer than %u bytes; shorten it",
                           TSPOOL_TENSOR_NAME_MAX);
    if (!utf8_is_valid(tensor->name, *name_size))
        return failure_set(failure, STAGE, EINVAL, at(tensor), "the name is not UTF-8, which safetensors requires; encode it");
    if (strcmp(tensor->name, "__metadata__") == 0)
        return failure_set(failure, STAGE, EINVAL, at(tensor), "safetensors reserves this name for metadata; choose another");
    return 0;
}

/* The product runs over all extents in order, as readers compute it: {2^40, 2^40, 0} is refused like {2^40, 2^40}. */
static int check_shape(const struct tspool_tensor *tensor, uint64_t *size, struct tspool_failure *failure)
{
    unsigned bits = tspool_dtype_bits(tensor->dtype);
    uint64_t elements = 1, total_bits;

    if (bits == 0)
        return failure_set(failure, STAGE, EINVAL, at(tensor), "dtype %d is unknown; use one of enum tspool_dtype",
                           (int)tensor->dtype);
    if (tensor->rank > TSPOOL_RANK_MAX)
        return failure_set(failure, STAGE, EINVAL, at(tensor), "rank %" PRIu32 " is more than %u dimensions; reshape it",
                           tensor->rank, TSPOOL_RANK_MAX);
    if (tensor->rank > 0 && !tensor->shape)
        return failure_set(failure, STAGE, EINVAL, at(tensor), "shape is NULL though rank is %" PRIu32, tensor->rank);
    for (uint32_t i = 0; i < tensor->rank; i++)
        if (!checked_mul(elements, tensor->shape[i], &elements))
            return failure_set(failure, STAGE, EOVERFLOW, at(tensor),
                               "the number of elements overflows 64 bits at dimension %" PRIu32 "; check the shape", i);
    if (!checked_mul(elements, bits, &total_bits))
        return failure_set(failure, STAGE, EOVERFLOW, at(tensor), "%" PRIu64 " elements of %u bits overflow; check the shape",
                           elements, bits);
    if (total_bits % 8 != 0)
        return failure_set(failure, STAGE, EINVAL, at(tensor),
                           "%" PRIu64 " elements of %u bits do not fill whole bytes; pad a dimension", elements, bits);
    *size = total_bits / 8;
    return 0;
}

static uint64_t stride_at(const struct tspool_tensor *tensor, uint32_t dimension) { return (uint64_t)tensor->strides[dimension]; }

/* Strides of dimensions with one element say nothing. */
static bool is_contiguous(const struct tspool_tensor *tensor, uint64_t size)
{
    uint64_t expected = 1;

    if (!tensor->strides || size == 0)
        return true;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        if (tensor->shape[i] != 1 && stride_at(tensor, i) != expected)
            return false;
        expected *= tensor->shape[i];
    }
    return true;
}

/* Bytes from the first element to past the last one: a 3 x 2 F32 tensor with strides {100, 1} reaches 201 * 4. */
static bool reach_of(const struct tspool_tensor *tensor, uint64_t *reach)
{
    uint64_t elements = 1, step;

    for (uint32_t i = 0; i < tensor->rank; i++)
        if (!checked_mul(tensor->shape[i] - 1, stride_at(tensor, i), &step) || !checked_add(elements, step, &elements))
            return false;
    return checked_mul(elements, tspool_dtype_bits(tensor->dtype) / 8, reach) && *reach <= INT64_MAX;
}

static int check_strides(const struct tspool_tensor *tensor, uint64_t size, bool *is_strided, struct tspool_failure *failure)
{
    uint64_t reach = size;

    for (uint32_t i = 0; tensor->strides && i < tensor->rank; i++)
        if (tensor->strides[i] < 0)
            return failure_set(failure, STAGE, EINVAL, at(tensor),
                               "dimension %" PRIu32 " has the negative stride %" PRId64 "; declare a contiguous copy", i,
                               tensor->strides[i]);
    *is_strided = !is_contiguous(tensor, size);
    if (*is_strided && tspool_dtype_bits(tensor->dtype) % 8 != 0)
        return failure_set(failure, STAGE, EINVAL, at(tensor),
                           "elements of %u bits must be contiguous; declare a contiguous copy", tspool_dtype_bits(tensor->dtype));
    if ((*is_strided && !reach_of(tensor, &reach)) || (tensor->data && reach > UINTPTR_MAX - (uintptr_t)tensor->data))
        return failure_set(failure, STAGE, EOVERFLOW, at(tensor), "shape and strides reach past the address space; check them");
    return 0;
}

static int check_shard(const struct tspool_tensor *tensor, struct tspool_failure *failure)
{
    uint64_t end;

    if (!tensor->global_shape != !tensor->global_offsets)
        return failure_set(failure, STAGE, EINVAL, at(tensor),
                           "a shard needs both global_shape and global_offsets, a whole tensor neither");
    for (uint32_t i = 0; tensor->global_shape && i < tensor->rank; i++)
        if (!checked_add(tensor->global_offsets[i], tensor->shape[i], &end) || end > tensor->global_shape[i])
            return failure_set(failure, STAGE, EINVAL, at(tensor),
                               "the shard leaves its tensor in dimension %" PRIu32 ": offset %" PRIu64 " and extent %" PRIu64
                               " exceed the global extent %" PRIu64 "; check global_offsets", i, tensor->global_offsets[i],
                               tensor->shape[i], tensor->global_shape[i]);
    return 0;
}

/* Copies ---------------------------------------------------------------------------------------------------------- */

/* Strides are kept in a normal form, so that equal layouts compare equal: 0 where a dimension has one element. */
static void copy_extents(const struct tspool_tensor *tensor, bool is_strided, uint64_t *to)
{
    for (uint32_t i = 0; i < tensor->rank; i++)
        *to++ = tensor->shape[i];
    for (uint32_t i = 0; is_strided && i < tensor->rank; i++)
        *to++ = tensor->shape[i] == 1 ? 0 : stride_at(tensor, i);
    for (uint32_t i = 0; tensor->global_shape && i < tensor->rank; i++)
        *to++ = tensor->global_shape[i];
    for (uint32_t i = 0; tensor->global_shape && i < tensor->rank; i++)
        *to++ = tensor->global_offsets[i];
}

static int dict_append(struct state_dict *dict, const struct tspool_tensor *tensor, const struct declared *checked)
{
    size_t numbers = (size_t)checked->rank * (1 + (checked->is_strided ? 1 : 0) + (checked->is_shard ? 2 : 0));
    struct declared *kept;
    uint8_t *memory;

    if (dict->count >= UINT32_MAX - 1 ||
        array_reserve((void **)&dict->tensors, &dict->capacity, dict->count + 1, sizeof(*dict->tensors)) < 0 ||
        !(memory = dict_take(dict, numbers * sizeof(uint64_t) + checked->name_size + 1)))
        return -ENOMEM;
    kept = &dict->tensors[dict->count];
    *kept = *checked;
    kept->extents = (uint64_t *)memory;
    copy_extents(tensor, checked->is_strided, (uint64_t *)memory);
    kept->name = memcpy(memory + numbers * sizeof(uint64_t), tensor->name, (size_t)checked->name_size + 1);
    dict->count++;
    return 0;
}

int state_dict_add(struct state_dict *dict, const struct tspool_tensor *tensor, bool data_required,
                   struct tspool_failure *failure)
{
    struct declared checked = { .data = tensor->data };
    size_t name_size = 0;
    int rc;

    if ((rc = check_front(tensor, &name_size, failure)) < 0 ||
        (rc = check_shape(tensor, &checked.size, failure)) < 0 ||
        (rc = check_strides(tensor, checked.size, &checked.is_strided, failure)) < 0 ||
        (rc = check_shard(tensor, failure)) < 0)
        return rc;
    if (data_required && checked.size > 0 && !tensor->data)
        return failure_set(failure, STAGE, EINVAL, at(tensor), "data is NULL; only empty tensors and caller staging go without");
    checked.version = tensor->version;
    checked.name_size = (uint16_t)name_size;
    checked.dtype = (uint8_t)tensor->dtype;
    checked.rank = (uint8_t)tensor->rank;
    checked.is_shard = tensor->global_shape != NULL;
    checked.is_untied = tensor->untied != 0;
    if (dict_append(dict, tensor, &checked) < 0)
        return failure_set(failure, STAGE, ENOMEM, at(tensor), NULL);
    return 0;
}

size_t state_dict_count(const struct state_dict *dict) { return dict->count; }

void state_dict_tensor(const struct state_dict *dict, size_t index, struct tspool_tensor *tensor)
{
    const struct declared *kept = &dict->tensors[index];

    *tensor = (struct tspool_tensor){
        .size = sizeof(*tensor),
        .name = kept->name,
        .dtype = (enum tspool_dtype)kept->dtype,
        .rank = kept->rank,
        .shape = declared_shape(kept),
        .strides = (const int64_t *)declared_strides(kept),
        .data = kept->data,
        .global_shape = declared_global_shape(kept),
        .global_offsets = declared_global_offsets(kept),
        .version = kept->version,
        .untied = kept->is_untied,
    };
}
