/* plan/stream.c - the copy that the trainer waits for. A tensor is read once and its copy is read next by a disk: bringing
 * the destination into the caches would cost a read of it first, and throw out what the trainer works on.
 *
 * Measured on a 2-core virtual EPYC (Zen 4), two threads, 1.39 GiB into a warm 2 MiB-backed memfd, medians: 20-25 GiB/s,
 * where memcpy gives 12-16 and `rep movsb` 14. Several pages at a time gave 17-18, AVX-512 as much as AVX2; a prefetch 2 KiB
 * ahead gains a few percent, and as a non-temporal one it spares the L2.
 */
#include <base/checked.h>
#include <plan/stream.h>
#include <string.h>

#define LINE_BYTES 64u
#define STREAM_LEAST ((size_t)4 << 10) /* below, the fence and the two ends cost more than the caches gain */
#define AHEAD_BYTES 2048u

#if defined(__x86_64__)
#include <immintrin.h>

static void fetch_lines(const uint8_t *from, const uint8_t *end)
{
    for (; from < end; from += LINE_BYTES)
        _mm_prefetch((const char *)from, _MM_HINT_NTA);
}

/* `to` lies on a cache line, `size` is a multiple of two lines. Nothing is fetched past the end: for a tensor of a few KiB
 * that would be a good part of the traffic. */
__attribute__((target("avx2"))) static void stream_lines(uint8_t *to, const uint8_t *from, size_t size)
{
    const uint8_t *end = from + size;

    fetch_lines(from, from + (size < AHEAD_BYTES ? size : AHEAD_BYTES));
    for (; from < end; from += 2 * LINE_BYTES, to += 2 * LINE_BYTES) {
        const __m256i *source = (const __m256i *)from;
        __m256i *target = (__m256i *)to;
        __m256i a, b, c, d;

        if ((size_t)(end - from) > AHEAD_BYTES)
            fetch_lines(from + AHEAD_BYTES, from + AHEAD_BYTES + 2 * LINE_BYTES);
        a = _mm256_loadu_si256(source);
        b = _mm256_loadu_si256(source + 1);
        c = _mm256_loadu_si256(source + 2);
        d = _mm256_loadu_si256(source + 3);
        _mm256_stream_si256(target, a);
        _mm256_stream_si256(target + 1, b);
        _mm256_stream_si256(target + 2, c);
        _mm256_stream_si256(target + 3, d);
    }
    _mm_sfence(); /* non-temporal stores are weakly ordered: without it the message that says "staged" could overtake them */
}

static int can_stream(void) { return __builtin_cpu_supports("avx2"); }
#else
static void stream_lines(uint8_t *to, const uint8_t *from, size_t size) { memcpy(to, from, size); }
static int can_stream(void) { return 0; }
#endif

/* to = 0x1030, 10,000 bytes: 16 by memcpy up to 0x1040, 9,984 - 9,984 % 128 = 9,984 streamed, 0 by memcpy. */
void stream_copy(void *to, const void *from, size_t size)
{
    uint8_t *target = to;
    const uint8_t *source = from;
    size_t head, lines;

    if (size < STREAM_LEAST || !can_stream()) {
        memcpy(target, source, size);
        return;
    }
    head = (size_t)(align_up((uintptr_t)target, LINE_BYTES) - (uintptr_t)target);
    lines = (size_t)align_down(size - head, 2 * LINE_BYTES);
    memcpy(target, source, head);
    stream_lines(target + head, source + head, lines);
    memcpy(target + head + lines, source + head + lines, size - head - lines);
}
