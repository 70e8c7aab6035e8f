/* api/stream_race.c - several streams at once, each passed from thread to thread, over both backends, for ThreadSanitizer.
 *
 * A plain program: Criterion's sandbox does not start under ThreadSanitizer.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/stream.h>
#include <unistd.h>

#define STREAMS 4u
#define HANDS 3u
#define PIECE 700001u

static char root[] = "/tmp/tspool-stream-race-XXXXXX";
static uint8_t bytes[PIECE];

static void fail(const char *what, int line)
{
    fprintf(stderr, "stream_race.c:%d: %s\n", line, what);
    abort();
}
#define REQUIRE(holds) ((holds) ? (void)0 : fail(#holds, __LINE__))

static void *hand_main(void *argument)
{
    struct tspool_stream_report report = TSPOOL_STREAM_REPORT_INIT;
    struct tspool_stream *stream = argument;

    REQUIRE(tspool_stream_write(stream, bytes, PIECE, NULL) == 0);
    REQUIRE(tspool_stream_room(stream, UINT64_MAX, NULL) > 0);
    REQUIRE(tspool_stream_report(stream, &report) == 0);
    REQUIRE(tspool_stream_sync(stream, NULL) == 0);
    return NULL;
}

static void *stream_main(void *argument)
{
    struct tspool_stream_options options = TSPOOL_STREAM_OPTIONS_INIT;
    unsigned number = *(unsigned *)argument;
    struct tspool_stream *stream;
    char path[100];

    options.io = number ? TSPOOL_IO_THREADS : TSPOOL_IO_AUTO; /* liburing maps rings behind the sanitizer's back: a ring
                                                                * where another thread's was looks like a race to it */
    options.block_bytes = 65536;
    options.depth = 3;
    snprintf(path, sizeof(path), "%s/%u", root, number);
    for (unsigned round = 0; round < 3; round++) {
        REQUIRE(tspool_stream_open(path, &options, &stream, NULL) == 0);
        for (unsigned i = 0; i < HANDS; i++) {
            pthread_t hand;

            REQUIRE(pthread_create(&hand, NULL, hand_main, stream) == 0);
            pthread_join(hand, NULL);
        }
        if (round == 1)
            tspool_stream_abort(stream);
        else
            REQUIRE(tspool_stream_commit(stream, NULL) == 0);
    }
    unlink(path);
    return NULL;
}

int main(void)
{
    unsigned numbers[STREAMS];
    pthread_t threads[STREAMS];

    REQUIRE(mkdtemp(root));
    for (unsigned i = 0; i < STREAMS; i++) {
        numbers[i] = i;
        REQUIRE(pthread_create(&threads[i], NULL, stream_main, &numbers[i]) == 0);
    }
    for (unsigned i = 0; i < STREAMS; i++)
        pthread_join(threads[i], NULL);
    REQUIRE(rmdir(root) == 0);
    return 0;
}
