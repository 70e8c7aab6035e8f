/* bench/engine_bench.c - one trainer with a warm arena that measures on command, so that bench.py can interleave it with fio.
 *
 *     engine_bench --root DIR --writer PATH --state gpt2|small [--io uring|threads] [--background]
 *                  [--hash-threads N] [--depth N] [--keep N]
 *
 * Reads a command per line, answers with one JSON object per line:
 *     save    a whole save: stall, durable time (commit inside), CPU of this process and of the writer, memory, page cache
 *     soon    the same after the training step only, at_once without that too: beside what an earlier save left to be done
 *     load    a verified read of the last save into memory that was touched before
 *     killed  a save whose writer is killed (SIGKILL) when half of its bytes are written: time to durable, attempts
 *     copy    the best copy of the same bytes by two threads into warm memory: memcpy or non-temporal stores, whichever wins
 *     bare    a loop of writes of the same bytes from warm memory of that size, and nothing else (bare.h)
 *     quit
 * Before each other measure 3 GiB of memory are touched and given back: a virtual machine that gave pages back to its host would
 * otherwise charge their return to whoever comes first. Then a training step writes every tensor.
 */
#include "bare.h"
#include "state.h"

#include <fcntl.h>
#include <getopt.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <tspool/tspool.h>
#include <unistd.h>

#define PRIME_BYTES ((size_t)3 << 30)

struct bench {
    struct state state;
    struct tspool *spool;
    struct tspool_save *previous;
    const char *root;
    bool background;
    unsigned number;
    uint8_t *warm; /* as large as the state: target of copy and load */
};

static double seconds(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void prime(void)
{
    uint8_t *memory = mmap(NULL, PRIME_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return;
    for (size_t i = 0; i < PRIME_BYTES; i += 4096)
        memory[i] = 1;
    munmap(memory, PRIME_BYTES);
}

/* What an optimizer does right before a save: it reads and writes every tensor. Without it the first reader after prime()
 * pays for what the host does with 3 GiB that were just freed. */
static void train(struct bench *bench)
{
    uint64_t *words = (uint64_t *)(void *)bench->state.memory;

    for (uint64_t i = 0; i < bench->state.bytes / 8; i++)
        words[i] = words[i] * 6364136223846793005u + 1;
}

/* Value in bytes of a "Key:   N kB" line. */
static double kilobyte_line(const char *path, const char *key)
{
    char line[256];
    double value = 0;
    FILE *file = fopen(path, "r");

    while (file && fgets(line, sizeof(line), file))
        if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
            value = strtod(line + strlen(key) + 1, NULL) * 1024;
    if (file)
        fclose(file);
    return value;
}

static double process_cpu(int pid)
{
    char path[64], text[1024];
    unsigned long user = 0, system = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    file = fopen(path, "r");
    if (!file)
        return 0;
    if (fgets(text, sizeof(text), file))
        sscanf(strrchr(text, ')') + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    fclose(file);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double private_memory(int pid)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    return kilobyte_line(path, "RssAnon") + kilobyte_line(path, "RssFile");
}

static int die(const struct tspool_failure *failure, const char *what)
{
    fprintf(stderr, "engine_bench: %s: %s\n", what, failure->message);
    exit(1);
}

static struct tspool_save *save_declare(struct bench *bench, const char *name)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_save *save;

    options.staging = bench->background ? TSPOOL_STAGING_BACKGROUND : TSPOOL_STAGING_NOW;
    options.guarded = bench->background;
    if (bench->previous) {
        if (tspool_save_again(bench->spool, name, bench->previous, &options, &save, &failure) < 0)
            die(&failure, "again");
        return save;
    }
    if (tspool_save_begin(bench->spool, name, &options, &save, &failure) < 0)
        die(&failure, "begin");
    for (size_t i = 0; i < bench->state.count; i++) {
        struct tspool_tensor tensor;

        state_describe(&bench->state, i, &tensor);
        if (tspool_save_add(save, &tensor, &failure) < 0)
            die(&failure, "add");
    }
    return save;
}

static void print_save(const struct tspool_save_result *result, double stall, double durable, double cpu, double cache, double memory)
{
    printf("{\"stall_s\": %.6f, \"durable_s\": %.6f, \"cpu_s\": %.4f, \"hash_cpu_s\": %.4f, \"stage_cpu_s\": %.4f, \"page_cache_bytes\": %.0f, "
           "\"private_bytes\": %.0f, \"bytes\": %llu, \"backend\": \"%s\", \"direct\": %d, \"page_bytes\": %u, \"item_bytes\": %u, \"depth\": %u, "
           "\"plan_reused\": %d, \"attempts\": %u, \"planned_s\": %.6f, \"staged_s\": %.6f, \"written_s\": %.6f, \"synced_s\": %.6f}\n",
           stall, durable, cpu, (double)result->hash_cpu_ns * 1e-9, (double)result->stage_cpu_ns * 1e-9, cache, memory,
           (unsigned long long)result->file_bytes, result->backend, result->direct, result->page_bytes, result->item_bytes, result->depth,
           result->plan_reused, result->attempts, (double)result->planned_ns * 1e-9, (double)result->staged_ns * 1e-9, (double)result->written_ns * 1e-9,
           (double)result->synced_ns * 1e-9);
}

/* Half written: asked every 100 us, as a save's progress has no event of its own. */
static void writer_kill_halfway(struct bench *bench, struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    do {
        usleep(100);
        tspool_save_result(save, &result);
    } while (result.written_bytes < result.file_bytes / 2 && result.outcome == TSPOOL_OUTCOME_PENDING);
    kill(tspool_writer_pid(bench->spool), SIGKILL);
}

enum before { PRIMED, TRAINED, AT_ONCE };

static void bench_save(struct bench *bench, enum before before, bool kill_writer)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int writer = tspool_writer_pid(bench->spool);
    double started, stall, durable, cpu, cache;
    struct tspool_save *save;
    char name[32];

    snprintf(name, sizeof(name), "bench-%06u", ++bench->number);
    if (before == PRIMED)
        prime();
    if (before != AT_ONCE)
        train(bench);
    cache = kilobyte_line("/proc/meminfo", "Cached");
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) + process_cpu(writer);
    started = seconds(CLOCK_MONOTONIC);
    save = save_declare(bench, name);
    if (tspool_save_submit(save, &failure) < 0)
        die(&failure, "submit");
    stall = seconds(CLOCK_MONOTONIC) - started;
    if (kill_writer)
        writer_kill_halfway(bench, save);
    if (tspool_save_wait(save, TSPOOL_PUBLISHED, UINT64_MAX) < 0) {
        tspool_save_result(save, &result);
        die(&result.failure, "save");
    }
    durable = seconds(CLOCK_MONOTONIC) - started;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) + process_cpu(writer) - cpu;
    tspool_save_result(save, &result);
    print_save(&result, stall, durable, cpu, kilobyte_line("/proc/meminfo", "Cached") - cache,
               private_memory(writer) + private_memory(getpid()) - (double)bench->state.bytes * (bench->warm ? 2 : 1));
    tspool_save_free(bench->previous);
    bench->previous = save;
}

static void warm_prepare(struct bench *bench)
{
    if (bench->warm)
        return;
    bench->warm = mmap(NULL, bench->state.bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bench->warm == MAP_FAILED)
        exit(1);
    bench->warm = (uint8_t *)(((uintptr_t)bench->warm + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
    madvise(bench->warm, bench->state.bytes, MADV_HUGEPAGE);
    memset(bench->warm, 1, bench->state.bytes);
}

static void bench_load(struct bench *bench)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_read_request *requests = calloc(bench->state.count, sizeof(*requests));
    struct tspool_checkpoint_info info = TSPOOL_CHECKPOINT_INFO_INIT;
    struct tspool_checkpoint *checkpoint;
    double started, elapsed, cpu;
    char path[4096];
    int wrong = 0;

    warm_prepare(bench);
    prime();
    memset(bench->warm, 1, bench->state.bytes);
    snprintf(path, sizeof(path), "%s/bench-%06u", bench->root, bench->number);
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    started = seconds(CLOCK_MONOTONIC);
    if (tspool_checkpoint_open(path, NULL, &checkpoint, &failure) < 0)
        die(&failure, "open");
    for (size_t i = 0; i < bench->state.count; i++) {
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        tspool_checkpoint_find(checkpoint, bench->state.tensors[i].name, &requests[i].tensor);
        requests[i].data = bench->warm + bench->state.tensors[i].memory_offset;
        requests[i].bytes = bench->state.tensors[i].bytes;
    }
    if (tspool_checkpoint_read(checkpoint, requests, bench->state.count, NULL, NULL, &failure) < 0)
        die(&failure, "read");
    elapsed = seconds(CLOCK_MONOTONIC) - started;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    for (size_t i = 0; i < bench->state.count; i++)
        wrong += memcmp(requests[i].data, bench->state.memory + bench->state.tensors[i].memory_offset, requests[i].bytes) != 0;
    tspool_checkpoint_info(checkpoint, &info);
    printf("{\"load_s\": %.6f, \"cpu_s\": %.4f, \"wrong\": %d, \"backend\": \"%s\", \"direct\": %d}\n", elapsed, cpu, wrong, info.backend, info.direct);
    tspool_checkpoint_close(checkpoint);
    free(requests);
}

struct copy_half { const struct bench *bench; uint64_t from, to; bool past_caches; };

__attribute__((target("avx2"))) static void copy_past_caches(uint8_t *to, const uint8_t *from, uint64_t size)
{
    for (uint64_t i = 0; i + 128 <= size; i += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 96));

        _mm256_stream_si256((__m256i *)(void *)(to + i), a);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), b);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 64), c);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 96), d);
    }
    _mm_sfence();
}

static void *copy_run(void *argument)
{
    struct copy_half *half = argument;
    const struct bench *bench = half->bench;

    if (half->past_caches)
        copy_past_caches(bench->warm + half->from, bench->state.memory + half->from, half->to - half->from);
    else
        memcpy(bench->warm + half->from, bench->state.memory + half->from, half->to - half->from);
    return NULL;
}

static double copy_once(const struct bench *bench, bool past_caches)
{
    uint64_t middle = bench->state.bytes / 2 & ~(uint64_t)4095;
    struct copy_half halves[2] = { { bench, 0, middle, past_caches }, { bench, middle, bench->state.bytes, past_caches } };
    double started = seconds(CLOCK_MONOTONIC);
    pthread_t other;

    pthread_create(&other, NULL, copy_run, &halves[0]);
    copy_run(&halves[1]);
    pthread_join(other, NULL);
    return seconds(CLOCK_MONOTONIC) - started;
}

static void bench_copy(struct bench *bench)
{
    double cached, streamed;

    warm_prepare(bench);
    prime();
    train(bench);
    cached = copy_once(bench, false);
    streamed = __builtin_cpu_supports("avx2") ? copy_once(bench, true) : cached;
    printf("{\"copy_s\": %.6f, \"memcpy_s\": %.6f, \"streamed_s\": %.6f, \"bytes\": %llu}\n", cached < streamed ? cached : streamed, cached,
           streamed, (unsigned long long)bench->state.bytes);
}

static void bench_bare(struct bench *bench)
{
    char path[4096];
    double elapsed;

    warm_prepare(bench);
    prime();
    snprintf(path, sizeof(path), "%s/bare.data", bench->root);
    elapsed = bare_write(path, bench->warm, bench->state.bytes, 32);
    if (elapsed < 0) {
        fprintf(stderr, "engine_bench: bare: %s\n", strerror((int)-elapsed));
        exit(1);
    }
    printf("{\"bare_s\": %.6f, \"bytes\": %llu}\n", elapsed, (unsigned long long)bench->state.bytes);
}

static void bench_open(struct bench *bench, const struct tspool_options *options)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    if (tspool_open(options, &bench->spool, &failure) < 0)
        die(&failure, "spool");
    if (tspool_reserve(bench->spool, bench->state.bytes + (64u << 20), &failure) < 0)
        die(&failure, "reserve");
}

int main(int argc, char **argv)
{
    static const struct option names[] = { { "root", 1, 0, 'r' }, { "writer", 1, 0, 'w' }, { "state", 1, 0, 's' }, { "io", 1, 0, 'i' },
                                           { "background", 0, 0, 'b' }, { "hash-threads", 1, 0, 'h' }, { "depth", 1, 0, 'd' },
                                           { "keep", 1, 0, 'k' }, { 0 } };
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct bench bench = { 0 };
    const char *state = "gpt2";
    char line[64];

    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;)
        switch (option) {
        case 'r': options.root = optarg; break;
        case 'w': options.writer_path = optarg; break;
        case 's': state = optarg; break;
        case 'i': options.io = !strcmp(optarg, "threads") ? TSPOOL_IO_THREADS : TSPOOL_IO_URING; break;
        case 'b': bench.background = true; break;
        case 'h': options.hash_threads = (uint32_t)atoi(optarg); break;
        case 'd': options.depth = (uint32_t)atoi(optarg); break;
        case 'k': options.keep = (uint32_t)atoi(optarg); break;
        default: return 2;
        }
    bench.root = options.root;
    if ((!strcmp(state, "small") ? state_small(&bench.state) : state_gpt2(&bench.state)) < 0)
        return 1;
    options.arena_bytes = bench.state.bytes + (128u << 20);
    bench_open(&bench, &options);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("{\"ready\": true, \"bytes\": %llu, \"tensors\": %zu}\n", (unsigned long long)bench.state.bytes, bench.state.count);
    while (fgets(line, sizeof(line), stdin)) {
        if (!strcmp(line, "save\n"))
            bench_save(&bench, PRIMED, false);
        else if (!strcmp(line, "soon\n"))
            bench_save(&bench, TRAINED, false);
        else if (!strcmp(line, "at_once\n"))
            bench_save(&bench, AT_ONCE, false);
        else if (!strcmp(line, "killed\n"))
            bench_save(&bench, PRIMED, true);
        else if (!strcmp(line, "bare\n"))
            bench_bare(&bench);
        else if (!strcmp(line, "load\n"))
            bench_load(&bench);
        else if (!strcmp(line, "copy\n"))
            bench_copy(&bench);
        else
            break;
    }
    tspool_save_free(bench.previous);
    tspool_close(bench.spool, UINT64_MAX, NULL);
    state_free(&bench.state);
    return 0;
}
