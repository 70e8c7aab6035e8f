/* Several threads read one checkpoint, slices and whole tensors, for ThreadSanitizer (under which Criterion's runner does
 * not start): a plain program, by both backends. */
#include "made.h"

#include <pthread.h>

enum { THREADS = 3, ROUNDS = 4 };

static struct made_tensor tensors[] = {
    { "large", TSPOOL_U8, 2, { 9, 1 << 20 } },
    { "odd", TSPOOL_U8, 1, { 777777 } },
    { "small", TSPOOL_F32, 1, { 33 } },
};
#define COUNT (sizeof tensors / sizeof *tensors)

struct reader { struct tspool_checkpoint *checkpoint; unsigned number; int failed; };

static int read_whole(struct tspool_checkpoint *checkpoint, const struct made_tensor *tensor)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    int wrong;

    request.bytes = tensor->bytes;
    request.data = aligned_alloc(4096, (tensor->bytes + 4095) & ~(uint64_t)4095);
    wrong = !request.data || tspool_checkpoint_find(checkpoint, tensor->name, &request.tensor) < 0 ||
            tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, NULL) < 0 ||
                memcmp(request.data, tensor->data, tensor->bytes) != 0;
    free(request.data);
    return wrong;
}

static int read_column(struct tspool_checkpoint *checkpoint, unsigned column)
{
    uint64_t start[] = { 0, column * 1000 }, extent[] = { 9, 1000 };
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    uint8_t data[9000];
    int wrong = 0;

    request.start = start;
    request.extent = extent;
    request.data = data;
    request.bytes = sizeof data;
    if (tspool_checkpoint_find(checkpoint, "large", &request.tensor) < 0 ||
        tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, NULL) < 0)
        return 1;
    for (unsigned row = 0; row < 9; row++)
        wrong |= memcmp(data + row * 1000, tensors[0].data + ((uint64_t)row << 20) + column * 1000, 1000);
    return wrong;
}

static void *reader_main(void *argument)
{
    struct reader *reader = argument;

    for (unsigned round = 0; round < ROUNDS; round++) {
        reader->failed |= read_whole(reader->checkpoint, &tensors[(reader->number + round) % COUNT]);
        reader->failed |= read_column(reader->checkpoint, reader->number * ROUNDS + round);
    }
    return NULL;
}

static int race(const char *path, enum tspool_io io)
{
    struct tspool_checkpoint_options options = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct reader readers[THREADS];
    pthread_t threads[THREADS];
    struct tspool_checkpoint *checkpoint;
    int failed = 0;

    options.io = io;
    if (tspool_checkpoint_open(path, &options, &checkpoint, NULL) < 0)
        return 1;
    for (unsigned i = 0; i < THREADS; i++) {
        readers[i] = (struct reader){ checkpoint, i, 0 };
        pthread_create(&threads[i], NULL, reader_main, &readers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        failed |= readers[i].failed;
    }
    failed |= tspool_checkpoint_verify(checkpoint, NULL, NULL, NULL, NULL, NULL) != 0;
    tspool_checkpoint_close(checkpoint);
    return failed;
}

int main(void)
{
    struct made_checkpoint made = { tensors, COUNT };
    const char *root = scratch_make();
    int failed = 0;

    made_fill(tensors, COUNT, 51);
    made_checkpoint(path_of(root, "step"), &made);
    failed += race(path_of(root, "step"), TSPOOL_IO_AUTO);
    failed += race(path_of(root, "step"), TSPOOL_IO_THREADS);
    made_free(tensors, COUNT);
    scratch_remove(root);
    printf("%d passed, %d failed, 0 skipped\n", 2 - failed, failed);
    return failed != 0;
}
