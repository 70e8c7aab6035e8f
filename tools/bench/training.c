/* bench/training.c - see training.h.
 *
 * A step multiplies matrices that lie in the caches, and reads and writes a stretch of memory that does not, as a forward and
 * backward pass and an optimizer do. How often is found at the start and then fixed: what a save takes shows as longer steps.
 *
 * Lost steps of a save: (its stall + what its steps took longer than the median step without a save) / that median.
 */
#include "training.h"
#include "state.h"

#include "../commands/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SIDE 192u                /* three matrices of floats: 432 KiB */
#define STREAM_BYTES ((uint64_t)16 << 20)
#define STEPS_KEPT 65536u

struct steps { double ns[STEPS_KEPT]; size_t kept; uint64_t count; double sum; };

struct training_loop {
    float *a, *b, *c;
    uint8_t *stream;
    unsigned repeats;            /* matrix products a step */
    struct steps before, during;
    double worst_ns, stall_ns;
    uint64_t saves, started_ns, ended_ns;
};

static void multiply(struct training_loop *loop)
{
    for (unsigned i = 0; i < SIDE; i++)
        for (unsigned k = 0; k < SIDE; k++) {
            float factor = loop->a[i * SIDE + k];

            for (unsigned j = 0; j < SIDE; j++)
                loop->c[i * SIDE + j] += factor * loop->b[k * SIDE + j];
        }
    for (unsigned i = 0; i < SIDE * SIDE; i++) /* kept small, or the floats would overflow within minutes */
        loop->c[i] *= 0.001f;
}

static void compute(struct training_loop *loop, unsigned repeats)
{
    for (unsigned i = 0; i < repeats; i++)
        multiply(loop);
    memory_step(loop->stream, STREAM_BYTES);
}

static uint64_t cpu_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* By CPU time: other work on the machine then makes no smaller steps. */
static void calibrate(struct training_loop *loop, uint64_t step_ns)
{
    uint64_t product = UINT64_MAX, started, stream;

    compute(loop, 1);
    started = cpu_ns();
    compute(loop, 0);
    stream = cpu_ns() - started;
    for (unsigned i = 0; i < 5; i++) {
        started = cpu_ns();
        multiply(loop);
        product = cpu_ns() - started < product ? cpu_ns() - started : product;
    }
    loop->repeats = step_ns > stream ? (unsigned)((step_ns - stream) / (product ? product : 1)) : 1;
    loop->repeats = loop->repeats ? loop->repeats : 1;
}

struct training_loop *training_create(uint64_t step_ns, uint64_t seed)
{
    struct training_loop *loop = calloc(1, sizeof *loop);

    if (!loop)
        return NULL;
    loop->a = calloc(SIDE * SIDE, sizeof(float));
    loop->b = calloc(SIDE * SIDE, sizeof(float));
    loop->c = calloc(SIDE * SIDE, sizeof(float));
    loop->stream = memory_map(STREAM_BYTES);
    if (!loop->a || !loop->b || !loop->c || !loop->stream) {
        training_destroy(loop);
        return NULL;
    }
    for (unsigned i = 0; i < SIDE * SIDE; i++) {
        loop->a[i] = (float)(i % 17) / 17;
        loop->b[i] = (float)(i % 13) / 13;
    }
    memory_fill(loop->stream, STREAM_BYTES, seed);
    calibrate(loop, step_ns);
    loop->started_ns = now_ns();
    return loop;
}

void training_destroy(struct training_loop *loop)
{
    if (!loop)
        return;
    free(loop->a);
    free(loop->b);
    free(loop->c);
    memory_unmap(loop->stream, STREAM_BYTES);
    free(loop);
}

static void steps_add(struct steps *steps, double ns)
{
    if (steps->kept < STEPS_KEPT)
        steps->ns[steps->kept++] = ns;
    steps->count++;
    steps->sum += ns;
}

void training_step(struct training_loop *loop, bool during)
{
    uint64_t started = now_ns();
    double took;

    compute(loop, loop->repeats);
    loop->ended_ns = now_ns();
    took = (double)(loop->ended_ns - started);
    steps_add(during ? &loop->during : &loop->before, took);
    if (during && took > loop->worst_ns)
        loop->worst_ns = took;
}

int training_until_save(struct training_loop *loop, struct crew *crew)
{
    uint64_t started = now_ns(), steps = 0;

    do {
        if (crew_is_given_up(crew))
            return -ECANCELED;
        training_step(loop, false);
        steps++;
    } while (steps < crew->job->interval_steps || now_ns() - started < crew->job->interval_ns);
    return 0;
}

void training_stalled(struct training_loop *loop, uint64_t stall_ns)
{
    loop->stall_ns += (double)stall_ns;
    loop->saves++;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median_of(const struct steps *steps)
{
    double *sorted = steps->kept ? malloc(steps->kept * sizeof *sorted) : NULL, median;

    if (!sorted)
        return 0;
    memcpy(sorted, steps->ns, steps->kept * sizeof *sorted);
    qsort(sorted, steps->kept, sizeof *sorted, by_size);
    median = steps->kept % 2 ? sorted[steps->kept / 2] : (sorted[steps->kept / 2 - 1] + sorted[steps->kept / 2]) / 2;
    free(sorted);
    return median;
}

/* What lies between rounds (removing the checkpoint before, priming) is no part of a training run: the wall time is that of
 * steps and stalls. */
void training_report(const struct training_loop *loop, struct training *report)
{
    double step = median_of(&loop->before), wall = loop->before.sum + loop->during.sum + loop->stall_ns;
    double longer = loop->during.sum - step * (double)loop->during.count;

    *report = (struct training){
        .steps = loop->before.count + loop->during.count, .steps_during = loop->during.count, .step_ns = step,
        .step_during_ns = median_of(&loop->during), .worst_step_ns = loop->worst_ns, .wall_ns = (uint64_t)wall,
        .lost_steps = step > 0 && loop->saves ? (loop->stall_ns + longer) / step / (double)loop->saves : 0,
        .goodput = wall > 0 ? step * (double)(loop->before.count + loop->during.count) / wall : 0,
    };
}
