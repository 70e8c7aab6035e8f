/* fixture.h - declaring tensors in few words, and judging a plan as a whole: what must hold for every plan, whatever was
 * declared. Judges return NULL, or what is wrong. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <plan/plan.h>

#define SHAPE(...) (uint32_t)(sizeof((uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t)), (uint64_t[]){ __VA_ARGS__ }
#define SCALAR 0, NULL

/* A contiguous tensor; asserts that it is accepted. */
void declare(struct state_dict *dict, const char *name, enum tspool_dtype dtype, const void *data, uint32_t rank,
             const uint64_t *shape);
void declare_shard(struct state_dict *dict, const char *name, enum tspool_dtype dtype, const void *data, uint32_t rank,
                   const uint64_t *shape, const uint64_t *global_shape, const uint64_t *global_offsets);
/* Plans and asserts success. */
struct plan *plan_of(const struct state_dict *dict, const struct plan_rules *rules);
/* One whole state dict, 4096, defaults. */
extern const struct plan_rules plain_rules;

/* The number in plan->entries of a declared tensor; SIZE_MAX when it is not stored. */
size_t entry_of(const struct plan *plan, uint32_t source);
const char *stored_name(const struct state_dict *dict, const struct plan *plan, size_t entry);

/* Layout, chunks, pieces, items, order, sheet. Chunks beyond a few hundred are sampled. */
const char *judge_structure(const struct state_dict *dict, const struct plan *plan, const struct plan_rules *rules);
/* Stages every chunk in order into file images, parses them as a reader would, and compares every tensor with an
 * element-by-element copy. */
const char *judge_bytes(const struct state_dict *dict, const struct plan *plan);
/* Nothing differs between two plans. */
const char *judge_equal(const struct plan *a, const struct plan *b);

/* The contiguous form, element by element; malloc'ed. */
uint8_t *naive_copy(const struct tspool_tensor *tensor, uint64_t size);

/* Seeded numbers (splitmix64). */
struct random { uint64_t state; };
uint64_t random_u64(struct random *random);
uint64_t random_below(struct random *random, uint64_t bound);

#endif
