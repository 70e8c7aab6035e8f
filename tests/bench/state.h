/* bench/state.h - the state dicts that are measured: real shapes, incompressible contents from a seed. */
#ifndef BENCH_STATE_H
#define BENCH_STATE_H

#include <stddef.h>
#include <stdint.h>
#include <tspool/tensor.h>

struct state_tensor { char name[96]; uint64_t shape[2]; uint32_t rank; uint64_t bytes; uint64_t memory_offset; };
struct state { struct state_tensor *tensors; size_t count; uint64_t bytes; uint8_t *memory; };

/* GPT-2 124M (148 parameters, F32) with Adam's two moments: 444 tensors, 1.39 GiB. */
int state_gpt2(struct state *state);
/* 20,000 tensors of 1-16 KiB. */
int state_small(struct state *state);
void state_free(struct state *state);
void state_describe(const struct state *state, size_t index, struct tspool_tensor *tensor);

#endif
