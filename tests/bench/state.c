/* bench/state.c - see state.h. Tensors lie in one mapping each 64 bytes aligned, as an allocator of a trainer places them. */
#include "state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { GPT2_LAYERS = 12, GPT2_WIDTH = 768, SMALL_COUNT = 20000 };

static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void state_append(struct state *state, const char *name, uint64_t rows, uint64_t columns)
{
    struct state_tensor *tensor = &state->tensors[state->count++];

    snprintf(tensor->name, sizeof(tensor->name), "%s", name);
    tensor->rank = columns ? 2 : 1;
    tensor->shape[0] = rows;
    tensor->shape[1] = columns;
    tensor->bytes = rows * (columns ? columns : 1) * 4;
    tensor->memory_offset = state->bytes;
    state->bytes += (tensor->bytes + 63) & ~(uint64_t)63;
}

/* Ordinary trainer memory: anonymous, huge pages where the machine grants them to madvise. */
static int state_fill(struct state *state)
{
    uint64_t seed = 1, size = (state->bytes + (2u << 20)) & ~(uint64_t)((2u << 20) - 1);

    state->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (state->memory == MAP_FAILED)
        return -1;
    madvise(state->memory, size, MADV_HUGEPAGE);
    for (uint64_t i = 0; i < state->bytes / 8; i++)
        ((uint64_t *)(void *)state->memory)[i] = next_random(&seed);
    return 0;
}

static void gpt2_append(struct state *state, const char *prefix)
{
    static const struct { const char *name; unsigned rows, columns; } block[] = {
        { "ln_1.weight", 768, 0 }, { "ln_1.bias", 768, 0 }, { "attn.c_attn.weight", 768, 2304 }, { "attn.c_attn.bias", 2304, 0 },
        { "attn.c_proj.weight", 768, 768 }, { "attn.c_proj.bias", 768, 0 }, { "ln_2.weight", 768, 0 }, { "ln_2.bias", 768, 0 },
        { "mlp.c_fc.weight", 768, 3072 }, { "mlp.c_fc.bias", 3072, 0 }, { "mlp.c_proj.weight", 3072, 768 }, { "mlp.c_proj.bias", 768, 0 },
    };
    char name[96];

    snprintf(name, sizeof(name), "%stransformer.wte.weight", prefix);
    state_append(state, name, 50257, GPT2_WIDTH);
    snprintf(name, sizeof(name), "%stransformer.wpe.weight", prefix);
    state_append(state, name, 1024, GPT2_WIDTH);
    for (int layer = 0; layer < GPT2_LAYERS; layer++)
        for (size_t i = 0; i < sizeof(block) / sizeof(block[0]); i++) {
            snprintf(name, sizeof(name), "%stransformer.h.%d.%s", prefix, layer, block[i].name);
            state_append(state, name, block[i].rows, block[i].columns);
        }
    snprintf(name, sizeof(name), "%stransformer.ln_f.weight", prefix);
    state_append(state, name, GPT2_WIDTH, 0);
    snprintf(name, sizeof(name), "%stransformer.ln_f.bias", prefix);
    state_append(state, name, GPT2_WIDTH, 0);
}

int state_gpt2(struct state *state)
{
    memset(state, 0, sizeof(*state));
    state->tensors = calloc(3 * (4 + 12 * GPT2_LAYERS), sizeof(*state->tensors));
    if (!state->tensors)
        return -1;
    gpt2_append(state, "model.");
    gpt2_append(state, "optimizer.exp_avg.");
    gpt2_append(state, "optimizer.exp_avg_sq.");
    return state_fill(state);
}

int state_small(struct state *state)
{
    uint64_t seed = 2;
    char name[96];

    memset(state, 0, sizeof(*state));
    state->tensors = calloc(SMALL_COUNT, sizeof(*state->tensors));
    if (!state->tensors)
        return -1;
    for (int i = 0; i < SMALL_COUNT; i++) {
        snprintf(name, sizeof(name), "model.experts.%d.%d.weight", i / 64, i % 64);
        state_append(state, name, 256 + next_random(&seed) % (15 * 256), 0);
    }
    return state_fill(state);
}

void state_free(struct state *state)
{
    free(state->tensors);
    munmap(state->memory, (state->bytes + (2u << 20)) & ~(uint64_t)((2u << 20) - 1));
}

void state_describe(const struct state *state, size_t index, struct tspool_tensor *tensor)
{
    const struct state_tensor *source = &state->tensors[index];

    *tensor = (struct tspool_tensor)TSPOOL_TENSOR_INIT;
    tensor->name = source->name;
    tensor->dtype = TSPOOL_F32;
    tensor->rank = source->rank;
    tensor->shape = source->shape;
    tensor->data = state->memory + source->memory_offset;
}
