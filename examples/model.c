/* model.c - a small multilayer perceptron, written for one core and for the same result every time.
 *
 * Sums are made in a fixed order (eight lanes, then the lanes), so that the compiler may use vector instructions without
 * being allowed to reorder anything.
 */
#include "model.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EMBEDDING 12u
#define INPUTS (MODEL_CONTEXT * EMBEDDING)
#define LEARNING_RATE 0.002f
#define DROPOUT 0.1f
#define LANES 8u

enum { PART_EMBEDDING, PART_HIDDEN_WEIGHT, PART_HIDDEN_BIAS, PART_OUTPUT_WEIGHT, PART_OUTPUT_BIAS };

/* Views into one step's scratch memory, all MODEL_BATCH rows. */
struct activations { float *input, *hidden, *output, *input_gradient, *hidden_gradient; };

static size_t scratch_count(const struct model *model)
{
    return MODEL_BATCH * (2 * (size_t)INPUTS + 2 * (size_t)model->hidden + model->alphabet);
}

static struct activations activations_of(const struct model *model)
{
    struct activations view = { .input = model->scratch };

    view.hidden = view.input + MODEL_BATCH * (size_t)INPUTS;
    view.output = view.hidden + MODEL_BATCH * (size_t)model->hidden;
    view.input_gradient = view.output + MODEL_BATCH * (size_t)model->alphabet;
    view.hidden_gradient = view.input_gradient + MODEL_BATCH * (size_t)INPUTS;
    return view;
}

/* Arithmetic ------------------------------------------------------------------------------------------------------ */
static void add_scaled(float *restrict to, const float *restrict from, float by, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] += by * from[i];
}

static float dot(const float *restrict a, const float *restrict b, size_t count)
{
    float lanes[LANES] = { 0 }, sum = 0;
    size_t i = 0;

    for (; i + LANES <= count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += a[i + lane] * b[i + lane];
    for (; i < count; i++)
        sum += a[i] * b[i];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

/* to[row] = bias + from[row] * weight, for a weight of from_count rows. A weight's row serves the whole batch while it is
 * in the cache. */
static void layer_forward(float *to, size_t to_count, const float *from, size_t from_count, const float *weight,
                          const float *bias)
{
    for (size_t row = 0; row < MODEL_BATCH; row++)
        memcpy(to + row * to_count, bias, to_count * sizeof *to);
    for (size_t i = 0; i < from_count; i++)
        for (size_t row = 0; row < MODEL_BATCH; row++)
            if (from[row * from_count + i] != 0)
                add_scaled(to + row * to_count, weight + i * to_count, from[row * from_count + i], to_count);
}

/* The same backwards: from the gradient of `to`, those of weight, bias and `from`. */
static void layer_backward(const float *to_gradient, size_t to_count, const float *from, size_t from_count, const float *weight,
                           float *weight_gradient, float *bias_gradient, float *from_gradient)
{
    for (size_t row = 0; row < MODEL_BATCH; row++)
        add_scaled(bias_gradient, to_gradient + row * to_count, 1, to_count);
    for (size_t i = 0; i < from_count; i++)
        for (size_t row = 0; row < MODEL_BATCH; row++) {
            const float *gradient = to_gradient + row * to_count;

            if (from[row * from_count + i] != 0)
                add_scaled(weight_gradient + i * to_count, gradient, from[row * from_count + i], to_count);
            from_gradient[row * from_count + i] = dot(gradient, weight + i * to_count, to_count);
        }
}

/* splitmix64: the whole state is one number. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static float random_unit(uint64_t *state) /* [0, 1) */
{
    return (float)(random_next(state) >> 40) * 0x1p-24f;
}

/* Making ---------------------------------------------------------------------------------------------------------- */
static void parts_lay_out(struct model *model)
{
    uint64_t alphabet = model->alphabet, hidden = model->hidden;
    const struct model_part parts[MODEL_PARTS] = {
        [PART_EMBEDDING] = { "embedding.weight", 2, { alphabet, EMBEDDING }, 0, 0 },
        [PART_HIDDEN_WEIGHT] = { "hidden.weight", 2, { INPUTS, hidden }, 0, 0 },
        [PART_HIDDEN_BIAS] = { "hidden.bias", 1, { hidden, 1 }, 0, 0 },
        [PART_OUTPUT_WEIGHT] = { "output.weight", 2, { hidden, alphabet }, 0, 0 },
        [PART_OUTPUT_BIAS] = { "output.bias", 1, { alphabet, 1 }, 0, 0 },
    };

    memcpy(model->parts, parts, sizeof parts);
    for (size_t i = 0; i < MODEL_PARTS; i++) {
        model->parts[i].first = model->count;
        model->parts[i].count = parts[i].shape[0] * parts[i].shape[1];
        model->count += model->parts[i].count;
    }
}

/* Uniform in +-bound, biases zero. */
static void part_randomise(struct model *model, int part, float bound)
{
    float *values = model->parameters + model->parts[part].first;

    for (size_t i = 0; i < model->parts[part].count; i++)
        values[i] = bound * (2 * random_unit(&model->random) - 1);
}

int model_init(struct model *model, uint32_t alphabet, uint32_t hidden, uint64_t seed)
{
    *model = (struct model){ .alphabet = alphabet, .hidden = hidden, .random = seed };
    parts_lay_out(model);
    model->parameters = calloc(model->count, sizeof(float));
    model->moment1 = calloc(model->count, sizeof(float));
    model->moment2 = calloc(model->count, sizeof(float));
    model->gradients = calloc(model->count, sizeof(float));
    model->scratch = calloc(scratch_count(model), sizeof(float));
    if (!model->parameters || !model->moment1 || !model->moment2 || !model->gradients || !model->scratch) {
        model_deinit(model);
        return -ENOMEM;
    }
    part_randomise(model, PART_EMBEDDING, 0.5f);
    part_randomise(model, PART_HIDDEN_WEIGHT, sqrtf(6.0f / INPUTS));
    part_randomise(model, PART_OUTPUT_WEIGHT, sqrtf(3.0f / (float)hidden));
    return 0;
}

void model_deinit(struct model *model)
{
    free(model->parameters);
    free(model->moment1);
    free(model->moment2);
    free(model->gradients);
    free(model->scratch);
    *model = (struct model){ 0 };
}

/* Learning -------------------------------------------------------------------------------------------------------- */
static float *values_of(const struct model *model, float *all, int part)
{
    return all + model->parts[part].first;
}

static void embed(const struct model *model, const uint8_t *const contexts[], float *input)
{
    const float *embedding = values_of(model, model->parameters, PART_EMBEDDING);

    for (size_t row = 0; row < MODEL_BATCH; row++)
        for (size_t i = 0; i < MODEL_CONTEXT; i++)
            memcpy(input + row * INPUTS + i * EMBEDDING, embedding + contexts[row][i] * EMBEDDING, EMBEDDING * sizeof(float));
}

static void embed_backward(const struct model *model, const uint8_t *const contexts[], const float *input_gradient)
{
    float *gradient = values_of(model, model->gradients, PART_EMBEDDING);

    for (size_t row = 0; row < MODEL_BATCH; row++)
        for (size_t i = 0; i < MODEL_CONTEXT; i++)
            add_scaled(gradient + contexts[row][i] * EMBEDDING, input_gradient + row * INPUTS + i * EMBEDDING, 1, EMBEDDING);
}

/* ReLU and dropout at once: a unit that is off or dropped is 0, and no gradient passes it. */
static void activate(struct model *model, float *hidden)
{
    for (size_t i = 0; i < MODEL_BATCH * (size_t)model->hidden; i++)
        hidden[i] = random_unit(&model->random) >= DROPOUT && hidden[i] > 0 ? hidden[i] / (1 - DROPOUT) : 0;
}

static void activate_backward(const struct model *model, const float *hidden, float *gradient)
{
    for (size_t i = 0; i < MODEL_BATCH * (size_t)model->hidden; i++)
        gradient[i] = hidden[i] != 0 ? gradient[i] / (1 - DROPOUT) : 0;
}

/* Softmax and cross entropy: turns scores into their gradient, returns the mean loss. */
static float judge(const struct model *model, float *output, const uint8_t targets[])
{
    float loss = 0;

    for (size_t row = 0; row < MODEL_BATCH; row++) {
        float *scores = output + row * model->alphabet, highest = scores[0], sum = 0;

        for (size_t i = 1; i < model->alphabet; i++)
            highest = scores[i] > highest ? scores[i] : highest;
        for (size_t i = 0; i < model->alphabet; i++)
            sum += scores[i] = expf(scores[i] - highest);
        loss -= logf(scores[targets[row]] / sum) / MODEL_BATCH;
        for (size_t i = 0; i < model->alphabet; i++)
            scores[i] = (scores[i] / sum - (i == targets[row])) / MODEL_BATCH;
    }
    return loss;
}

float model_learn(struct model *model, const uint8_t *const contexts[MODEL_BATCH], const uint8_t targets[MODEL_BATCH])
{
    struct activations at = activations_of(model);
    float *weights = model->parameters, *gradients = model->gradients, loss;

    embed(model, contexts, at.input);
    layer_forward(at.hidden, model->hidden, at.input, INPUTS, values_of(model, weights, PART_HIDDEN_WEIGHT),
                  values_of(model, weights, PART_HIDDEN_BIAS));
    activate(model, at.hidden);
    layer_forward(at.output, model->alphabet, at.hidden, model->hidden, values_of(model, weights, PART_OUTPUT_WEIGHT),
                  values_of(model, weights, PART_OUTPUT_BIAS));
    loss = judge(model, at.output, targets);
    memset(gradients, 0, model->count * sizeof *gradients);
    layer_backward(at.output, model->alphabet, at.hidden, model->hidden, values_of(model, weights, PART_OUTPUT_WEIGHT),
                   values_of(model, gradients, PART_OUTPUT_WEIGHT), values_of(model, gradients, PART_OUTPUT_BIAS),
                   at.hidden_gradient);
    activate_backward(model, at.hidden, at.hidden_gradient);
    layer_backward(at.hidden_gradient, model->hidden, at.input, INPUTS, values_of(model, weights, PART_HIDDEN_WEIGHT),
                   values_of(model, gradients, PART_HIDDEN_WEIGHT), values_of(model, gradients, PART_HIDDEN_BIAS),
                   at.input_gradient);
    embed_backward(model, contexts, at.input_gradient);
    return loss;
}

void model_update(struct model *model, uint64_t step)
{
    float correction1 = 1 - powf(0.9f, (float)step), correction2 = 1 - powf(0.999f, (float)step);

    model->version++;
    for (size_t i = 0; i < model->count; i++) {
        float gradient = model->gradients[i];
        float mean = model->moment1[i] = 0.9f * model->moment1[i] + 0.1f * gradient;
        float variance = model->moment2[i] = 0.999f * model->moment2[i] + 0.001f * gradient * gradient;

        model->parameters[i] -= LEARNING_RATE * (mean / correction1) / (sqrtf(variance / correction2) + 1e-8f);
    }
}

/* Comparing ------------------------------------------------------------------------------------------------------- */
static uint64_t fnv(uint64_t digest, const void *data, size_t size)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < size; i++)
        digest = (digest ^ bytes[i]) * 0x100000001b3u;
    return digest;
}

uint64_t model_digest(const struct model *model)
{
    uint64_t digest = 0xcbf29ce484222325u;

    digest = fnv(digest, model->parameters, model->count * sizeof(float));
    digest = fnv(digest, model->moment1, model->count * sizeof(float));
    digest = fnv(digest, model->moment2, model->count * sizeof(float));
    return fnv(digest, &model->random, sizeof model->random);
}
