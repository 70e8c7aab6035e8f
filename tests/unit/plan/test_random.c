/* Random state dicts, seeded: every byte of every tensor lands exactly once, at the place the header says, whatever was
 * declared. A failing case prints its seed; run it alone by setting FIRST and CASES to it and 1. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL_BYTES = 1 << 20, MOST_TENSORS = 30 };

static uint8_t pool[POOL_BYTES];

static void pool_fill(void)
{
    struct random random = { 42 };

    for (size_t i = 0; i < sizeof(pool); i += 8) {
        uint64_t value = random_u64(&random);
        memcpy(pool + i, &value, 8);
    }
}

/* One random tensor, with memory of its own for what it points to. */
struct made {
    char name[64];
    uint64_t shape[TSPOOL_RANK_MAX], global_shape[TSPOOL_RANK_MAX], global_offsets[TSPOOL_RANK_MAX];
    int64_t strides[TSPOOL_RANK_MAX];
    struct tspool_tensor tensor;
};

static void make_name(struct random *random, unsigned number, char *name)
{
    static const char *const parts[] = { "weight", "bias\"", "a\\b", "größe", "\x01", "层", "x/y", "" };

    snprintf(name, 64, "%s.%u%s", parts[random_below(random, 8)], number, parts[random_below(random, 8)]);
}

/* Mostly small; now and then an empty, a page multiple or a prime number of elements. */
static uint64_t make_extent(struct random *random, uint32_t rank)
{
    static const uint64_t odd[] = { 0, 1, 1, 2, 64, 127, 1024 };

    if (random_below(random, 4) == 0)
        return rank <= 2 ? odd[random_below(random, 7)] : odd[random_below(random, 4)];
    return 1 + random_below(random, rank <= 2 ? 70 : 7);
}

/* Permuted, sliced or expanded views of one buffer: strides need not make sense as long as they stay inside the pool. */
static void make_strides(struct random *random, struct made *made, size_t element_bytes)
{
    uint64_t reach = 1, limit = POOL_BYTES / 2 / element_bytes;

    for (uint32_t i = 0; i < made->tensor.rank; i++) {
        uint64_t steps = made->shape[i] > 1 ? made->shape[i] - 1 : 1, most = (limit - reach) / steps;

        made->strides[i] = (int64_t)random_below(random, random_below(random, 3) ? 1 + most / 4 % 97 : 3);
        if ((uint64_t)made->strides[i] > most)
            made->strides[i] = 0;
        reach += steps * (uint64_t)made->strides[i];
    }
    made->tensor.strides = made->strides;
}

/* Strides of a transposed contiguous tensor. */
static void make_transposed(struct made *made)
{
    int64_t stride = 1;

    for (uint32_t i = 0; i < made->tensor.rank; i++) {
        made->strides[i] = stride;
        stride *= (int64_t)(made->shape[i] ? made->shape[i] : 1);
    }
    made->tensor.strides = made->strides;
}

static void make_shard(struct random *random, struct made *made)
{
    for (uint32_t i = 0; i < made->tensor.rank; i++) {
        made->global_offsets[i] = random_below(random, 1000);
        made->global_shape[i] = 5000;
    }
    made->tensor.global_shape = made->global_shape;
    made->tensor.global_offsets = made->global_offsets;
}

static void make_tensor(struct random *random, unsigned number, bool with_shards, struct made *made)
{
    struct tspool_tensor *tensor = &made->tensor;
    unsigned bits;

    *tensor = (struct tspool_tensor)TSPOOL_TENSOR_INIT;
    make_name(random, number, made->name);
    tensor->name = made->name;
    tensor->dtype = (enum tspool_dtype)(1 + random_below(random, TSPOOL_DTYPE_COUNT - 1));
    bits = tspool_dtype_bits(tensor->dtype);
    tensor->rank = (uint32_t)random_below(random, 6);
    for (uint32_t i = 0; i < tensor->rank; i++)
        made->shape[i] = make_extent(random, tensor->rank);
    if (tensor->rank > 0 && bits < 8)
        made->shape[tensor->rank - 1] *= 4;
    else if (bits < 8)
        tensor->dtype = TSPOOL_U8;
    tensor->shape = made->shape;
    bits = tspool_dtype_bits(tensor->dtype);
    if (bits >= 8 && random_below(random, 3) == 0)
        make_strides(random, made, bits / 8);
    else if (bits >= 8 && random_below(random, 4) == 0)
        make_transposed(made);
    if (with_shards && random_below(random, 2))
        make_shard(random, made);
    tensor->data = pool + random_below(random, POOL_BYTES / 2 - 70 * 1024 * 8 / 2);
}

static uint64_t reach_of(const struct tspool_tensor *tensor)
{
    uint64_t elements = 1, reach = 1;

    for (uint32_t i = 0; i < tensor->rank; i++)
        elements *= tensor->shape[i];
    if (!tensor->strides)
        return elements * tspool_dtype_bits(tensor->dtype) / 8;
    for (uint32_t i = 0; i < tensor->rank && elements > 0; i++)
        reach += (tensor->shape[i] - 1) * (uint64_t)tensor->strides[i];
    return elements > 0 ? reach * (tspool_dtype_bits(tensor->dtype) / 8) : 0;
}

/* Some of the time: the same memory under another name, or another shard of the same name. */
static void make_related(struct random *random, struct made *made, unsigned number)
{
    const struct made *other = &made[random_below(random, number)];
    char name[sizeof(made->name)];

    memcpy(name, made[number].name, sizeof(name));
    made[number] = *other;
    made[number].tensor.name = made[number].name;
    made[number].tensor.shape = made[number].shape;
    made[number].tensor.strides = other->tensor.strides ? made[number].strides : NULL;
    made[number].tensor.global_shape = other->tensor.global_shape ? made[number].global_shape : NULL;
    made[number].tensor.global_offsets = other->tensor.global_offsets ? made[number].global_offsets : NULL;
    if (other->tensor.global_shape && other->tensor.rank > 0 && random_below(random, 2))
        made[number].global_offsets[0] = 1000 + number;
    else
        memcpy(made[number].name, name, sizeof(name));
}

static struct state_dict *make_dict(struct random *random, bool with_shards)
{
    struct state_dict *dict = state_dict_create();
    struct made made[MOST_TENSORS];
    unsigned count = (unsigned)random_below(random, MOST_TENSORS + 1);

    for (unsigned i = 0; i < count; i++) {
        struct tspool_failure failure = TSPOOL_FAILURE_INIT;

        make_tensor(random, i, with_shards, &made[i]);
        if (i > 0 && random_below(random, 5) == 0)
            make_related(random, made, i);
        while (reach_of(&made[i].tensor) > (uint64_t)(pool + POOL_BYTES - (const uint8_t *)made[i].tensor.data))
            made[i].shape[0] /= 2;
        if (tspool_dtype_bits(made[i].tensor.dtype) < 8 && made[i].tensor.rank == 1)
            made[i].shape[0] &= ~(uint64_t)3;
        cr_assert_eq(state_dict_add(dict, &made[i].tensor, true, &failure), 0, "%s", failure.message);
    }
    return dict;
}

static struct plan_rules make_rules(struct random *random)
{
    static const uint64_t shard_bytes[] = { 0, 1, 5000, 65536 };
    static const uint32_t header_bytes[] = { 0, 0, 1, 4088, 20000 }, aligns[] = { 0, 512, 4096, 16384 };
    uint32_t world_size = (uint32_t)random_below(random, 3);

    return (struct plan_rules){
        shard_bytes[random_below(random, 4)], header_bytes[random_below(random, 5)], aligns[random_below(random, 4)],
        world_size ? (uint32_t)random_below(random, world_size) : 0, world_size,
    };
}

static const char *judge_case(uint64_t seed)
{
    struct random random = { seed };
    struct state_dict *dict = make_dict(&random, random_below(&random, 3) == 0);
    struct plan_rules rules = make_rules(&random);
    struct plan *plan = plan_of(dict, &rules), *again = plan_of(dict, &rules);
    const char *fault = judge_structure(dict, plan, &rules);

    if (!fault)
        fault = judge_bytes(dict, plan);
    if (!fault)
        fault = judge_equal(plan, again);
    plan_destroy(plan);
    plan_destroy(again);
    state_dict_destroy(dict);
    return fault;
}

Test(plan_random, every_byte_of_every_tensor_lands_exactly_once)
{
    enum { FIRST = 1, CASES = 3000 };
    const char *fault;

    pool_fill();
    for (uint64_t seed = FIRST; seed < FIRST + CASES; seed++)
        if ((fault = judge_case(seed)))
            cr_assert_fail("seed %lu: %s", (unsigned long)seed, fault);
}

/* Sizes up to a TiB, whose bytes nobody touches. */
static const char *judge_large_case(uint64_t seed)
{
    struct random random = { seed };
    struct state_dict *dict = state_dict_create();
    unsigned count = (unsigned)random_below(&random, 40);
    struct plan_rules rules = { random_below(&random, 3) ? (uint64_t)1 << random_below(&random, 44) : 0, 0, 4096, 0, 1 };
    struct plan *plan;
    const char *fault;
    char name[32];

    for (unsigned i = 0; i < count; i++) {
        uint64_t extent = random_u64(&random) >> (24 + random_below(&random, 36));

        snprintf(name, sizeof(name), "t%u", i);
        declare(dict, name, random_below(&random, 2) ? TSPOOL_F32 : TSPOOL_BF16, NULL, SHAPE(extent));
    }
    plan = plan_of(dict, &rules);
    fault = judge_structure(dict, plan, &rules);
    plan_destroy(plan);
    state_dict_destroy(dict);
    return fault;
}

Test(plan_random, huge_states_are_cut_without_gap_or_overlap)
{
    enum { FIRST = 1, CASES = 300 };
    const char *fault;

    for (uint64_t seed = FIRST; seed < FIRST + CASES; seed++)
        if ((fault = judge_large_case(seed)))
            cr_assert_fail("seed %lu: %s", (unsigned long)seed, fault);
}
