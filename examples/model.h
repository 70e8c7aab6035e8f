/* model.h - the trainer's model: guesses the next character from the last 16. Nothing in here knows of checkpoints.
 *
 *     characters -> embedding -> one hidden layer (ReLU, dropout) -> softmax over the alphabet; Adam
 *
 * Everything that decides how training goes on is in this struct and in the number of examples seen: two models with equal
 * parameters, moments and random state, fed the same examples, stay equal bit for bit.
 */
#ifndef EXAMPLES_MODEL_H
#define EXAMPLES_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define MODEL_CONTEXT 16u /* characters that it sees */
#define MODEL_BATCH 16u   /* examples per step */
#define MODEL_PARTS 5u

struct model_part {
    const char *name;
    uint32_t rank;
    uint64_t shape[2];
    size_t first, count; /* in `parameters` and in both moments */
};

struct model {
    uint32_t alphabet, hidden;
    struct model_part parts[MODEL_PARTS];
    size_t count;
    float *parameters, *moment1, *moment2; /* Adam keeps a mean and a variance per parameter */
    float *gradients, *scratch;            /* of one step; not worth saving */
    uint64_t random;                       /* state of the generator that drops hidden units */
    uint64_t version;                      /* raised by every change of parameters and moments */
};

/* Fresh parameters from `seed`. 0 or -ENOMEM. */
int model_init(struct model *model, uint32_t alphabet, uint32_t hidden, uint64_t seed);
void model_deinit(struct model *model);

/* Forward and backward over one batch: contexts[i] are MODEL_CONTEXT symbols, targets[i] the one that follows. Fills the
 * gradients, advances `random`, returns the mean loss. Parameters and moments are only read. */
float model_learn(struct model *model, const uint8_t *const contexts[MODEL_BATCH], const uint8_t targets[MODEL_BATCH]);
/* The optimizer's step, number `step` from 1: changes parameters and moments. */
void model_update(struct model *model, uint64_t step);

/* FNV-1a over parameters, moments and random state: equal models, equal digests. */
uint64_t model_digest(const struct model *model);

#endif
