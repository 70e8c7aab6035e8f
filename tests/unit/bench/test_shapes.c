/* Shapes: a benchmark of a model is worth as much as its sizes are true. Held against what the models' authors published and
 * against the checkpoint sizes of MLPerf Storage v2. */
#include <bench/shape.h>

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static struct complaint complaint;

/* A job of options "a=b c=d". */
static struct job job_of(const char *options)
{
    char copy[256], *rest = copy, *one;
    struct job job;

    cr_assert_eq(job_defaults(&job, "test"), 0);
    snprintf(copy, sizeof copy, "%s", options);
    while ((one = strsep(&rest, " "))) {
        char *equals = strchr(one, '=');

        *equals = '\0';
        cr_assert_eq(job_set(&job, one, equals + 1, &complaint), 0, "%s", complaint.text);
    }
    return job;
}

static struct shape shape_of(const char *options, unsigned member)
{
    struct job job = job_of(options);
    struct shape shape;

    cr_assert_eq(shape_make(&job, member, &shape, &complaint), 0, "%s", complaint.text);
    job_drop(&job);
    return shape;
}

static uint64_t elements_of(const struct shape *shape, const char *kind)
{
    uint64_t elements = 0;

    for (size_t i = 0; i < shape->count; i++)
        if (strncmp(shape->tensors[i].kind, kind, strlen(kind)) == 0)
            elements += shape->tensors[i].bytes * 8 / tspool_dtype_bits(shape->tensors[i].dtype);
    return elements;
}

/* Over all ranks: every element of the model, and its bytes. */
static void sums_of(const char *options, uint64_t *model, uint64_t *optimizer, uint64_t *bytes)
{
    struct shape shape = shape_of(options, 0);
    uint64_t ranks = shape.world_size;

    shape_free(&shape);
    *model = *optimizer = *bytes = 0;
    for (uint64_t rank = 0; rank < ranks; rank++) {
        char ranked[256];

        snprintf(ranked, sizeof ranked, "%s rank=%lu", options, (unsigned long)rank);
        shape = shape_of(ranked, 0);
        *model += elements_of(&shape, "model.");
        *optimizer += elements_of(&shape, "optimizer.");
        *bytes += shape.bytes;
        shape_free(&shape);
    }
}

Test(shapes, models_have_the_parameters_that_were_published)
{
    static const struct { const char *shape; uint64_t parameters; } published[] = {
        { "shape=gpt2-124m", 124439808 }, { "shape=gpt2-xl", 1557611200 }, { "shape=llama3-8b", 8030261248 },
        { "shape=llama3-70b", 70553706496 }, { "shape=llama3-405b", 405853388800 },
        { "shape=mlperf-1t", 1183035102480 }, /* by the formula of its benchmark, from the published dimensions */
    };

    for (unsigned i = 0; i < sizeof published / sizeof *published; i++) {
        struct shape shape = shape_of(published[i].shape, 0);

        cr_assert_eq(shape.parameters, published[i].parameters, "%s: %lu", published[i].shape, (unsigned long)shape.parameters);
        shape_free(&shape);
    }
}

Test(shapes, checkpoints_are_as_large_as_those_of_mlperf_storage)
{
    /* GiB, though the table calls them GB. Its 70B has 128 heads where Meta's has 64: 0.9 % fewer parameters. Its 1T, "18 TB",
     * is of an earlier configuration without grouped heads; the one beside it in the table, which is ours, makes 15.4. */
    static const struct { const char *shape; double gib; } table[] = {
        { "shape=llama3-8b", 105 }, { "shape=llama3-70b", 912 }, { "shape=llama3-405b", 5290 }, { "shape=mlperf-1t", 15425 },
    };
    uint64_t model, optimizer, bytes;

    for (unsigned i = 0; i < sizeof table / sizeof *table; i++) {
        double gib;

        sums_of(table[i].shape, &model, &optimizer, &bytes);
        gib = (double)bytes / (1 << 30);
        cr_assert_leq(fabs(gib - table[i].gib), table[i].gib * 0.011, "%s: %.1f GiB", table[i].shape, gib);
    }
}

Test(shapes, ranks_together_hold_every_element_once)
{
    static const char *const splits[] = {
        "shape=llama3-8b", "shape=llama3-8b tp=8", "shape=llama3-8b tp=2 pp=4 dp=2", "shape=llama3-8b pp=3",
                "shape=llama3-8b dp=7",
        "shape=llama3-8b ranks=24 tp=3", "shape=llama3-70b", "shape=llama3-405b",
    };
    uint64_t model, optimizer, bytes;

    for (unsigned i = 0; i < sizeof splits / sizeof *splits; i++) {
        struct shape shape = shape_of(splits[i], 0);

        sums_of(splits[i], &model, &optimizer, &bytes);
        cr_assert_eq(model, shape.parameters, "%s: %lu", splits[i], (unsigned long)model);
        cr_assert_eq(optimizer, 3 * shape.parameters, "%s", splits[i]);
        shape_free(&shape);
    }
}

Test(shapes, shards_lie_within_their_tensors)
{
    for (unsigned rank = 0; rank < 16; rank++) {
        char options[128];
        struct shape shape;

        snprintf(options, sizeof options, "shape=llama3-8b tp=2 pp=4 dp=2 rank=%u", rank);
        shape = shape_of(options, 0);
        for (size_t i = 0; i < shape.count; i++)
            for (uint32_t d = 0; d < shape.tensors[i].rank; d++)
                cr_assert_leq(shape.tensors[i].global_offsets[d] + shape.tensors[i].shape[d], shape.tensors[i].global_shape[d],
                              "%s",
                              shape.tensors[i].name);
        shape_free(&shape);
    }
}

Test(shapes, gpt2_is_the_state_dict_that_a_trainer_saves)
{
    struct shape shape = shape_of("shape=gpt2-124m", 0);

    cr_assert_eq(shape.count, 444);
    cr_assert_eq(shape.bytes, 3 * 4 * (uint64_t)124439808);
    cr_assert_str_eq(shape.tensors[0].name, "model.transformer.wte.weight");
    cr_assert_eq(shape.tensors[0].shape[0], 50257);
    shape_free(&shape);
}

/* Each class within a tenth of its share. */
Test(shapes, scale_leaves_the_mix)
{
    static const char *const kinds[] = { "model.embedding", "model.attention", "model.mlp", "optimizer.mlp" };
    struct shape whole = shape_of("shape=llama3-8b dp=1", 0);

    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (unsigned by = 2; by <= 4096; by *= 8) {
            char options[96];
            struct shape part;
            double share;

            snprintf(options, sizeof options, "shape=llama3-8b dp=1 scale=1/%u", by);
            part = shape_of(options, 0);
            share = (double)elements_of(&part, kinds[i]) / (double)elements_of(&whole, kinds[i]) * by;
            cr_assert(share > 0.9 && share < 1.1, "%s at 1/%u: %g", kinds[i], by, share);
            shape_free(&part);
        }
    shape_free(&whole);
}

Test(shapes, so_many_tensors_of_such_a_size)
{
    struct shape shape = shape_of("shape=16x64k", 0);

    cr_assert_eq(shape.count, 16);
    cr_assert_eq(shape.bytes, 1 << 20);
    shape_free(&shape);
}

static void refused(const char *options, const char *saying)
{
    struct job job = job_of(options);
    struct shape shape;

    cr_assert_eq(shape_make(&job, 0, &shape, &complaint), -1, "%s", options);
    cr_assert_not_null(strstr(complaint.text, saying), "'%s' does not say '%s'", complaint.text, saying);
    job_drop(&job);
}

Test(shapes, what_cannot_be_is_refused_by_name)
{
    refused("shape=llama3-9b", "did you mean 'llama3-8b'");
    refused("shape=llama3-8b ranks=10 tp=4", "ranks=10 is not tp=4");
    refused("shape=llama3-8b rank=8", "beyond the 8 ranks");
    refused("shape=llama3-8b pp=16 scale=1/32", "give pp=1");
    refused("shape=0x4k", "not within");
    refused("shape=./nothing.safetensors", "nothing.safetensors");
}
