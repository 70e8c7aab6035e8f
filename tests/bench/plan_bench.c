/* plan_bench - a million tensors declared and planned, as one line of JSON:
 *
 *   plan_bench [TENSORS]
 *
 * add_s: state_dict_add of all; build_s: plan_build; plan_s: both. Names and shapes are a deep model's; the data is never
 * touched.
 */
#include <plan/plan.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int declare(struct state_dict *dict, size_t count, struct tspool_failure *failure)
{
    static const char *const parts[] = { "attn.c_attn.weight", "attn.c_attn.bias", "ln_1.weight", "mlp.c_fc.weight" };
    static const uint64_t shapes[][2] = { { 64, 48 }, { 1, 99 }, { 1, 33 }, { 16, 64 } };
    char name[128];

    for (size_t i = 0; i < count; i++) {
        struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;
        int rc;

        snprintf(name, sizeof(name), "optimizer.state.exp_avg.transformer.h.%zu.%s", i / 4, parts[i % 4]);
        tensor.name = name;
        tensor.dtype = i % 8 < 4 ? TSPOOL_F32 : TSPOOL_BF16;
        tensor.rank = 2;
        tensor.shape = shapes[i % 4];
        tensor.data = (const void *)((uintptr_t)0x100000000 + i * 16384);
        if ((rc = state_dict_add(dict, &tensor, true, failure)) < 0)
            return rc;
    }
    return 0;
}

static void report(size_t count, const struct plan *plan, double add, double build)
{
    struct rusage usage;
    uint64_t header_bytes = 0;

    getrusage(RUSAGE_SELF, &usage);
    for (uint32_t i = 0; i < plan->file_count; i++)
        header_bytes += plan->files[i].header_size;
    printf("{\"tensors\": %zu, \"add_s\": %.3f, \"build_s\": %.3f, \"plan_s\": %.3f, \"files\": %" PRIu32
           ", \"header_bytes\": %" PRIu64 ", \"peak_rss_mib\": %ld}\n",
           count, add, build, add + build, plan->file_count, header_bytes, usage.ru_maxrss / 1024);
}

int main(int argc, char **argv)
{
    size_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct plan_rules rules = { .offset_align = 4096, .world_size = 1 };
    struct state_dict *dict = state_dict_create();
    struct plan *plan = NULL;
    double start = seconds(), declared;

    if (!dict || declare(dict, count, &failure) < 0) {
        fprintf(stderr, "plan_bench: %s\n", failure.message);
        return 1;
    }
    declared = seconds();
    if (plan_build(dict, &rules, &plan, &failure) < 0) {
        fprintf(stderr, "plan_bench: %s\n", failure.message);
        return 1;
    }
    report(count, plan, declared - start, seconds() - declared);
    plan_destroy(plan);
    state_dict_destroy(dict);
    return 0;
}
