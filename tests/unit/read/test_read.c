/* Reading: what arrives is what is stored, whichever way it is asked for, and damage never arrives. */
#include "made.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *root;
static struct tspool_failure failure = TSPOOL_FAILURE_INIT;

static void setup(void) { root = scratch_make(); }
static void teardown(void) { scratch_remove(root); }

static struct tspool_checkpoint *opened(const char *path, const struct tspool_checkpoint_options *options)
{
    struct tspool_checkpoint *checkpoint = NULL;
    int error = tspool_checkpoint_open(path, options, &checkpoint, &failure);

    cr_assert_eq(error, 0, "%s", failure.message);
    return checkpoint;
}

/* The three ways in which bytes can come. */
static const struct tspool_checkpoint_options ways[] = {
    { .size = sizeof *ways, .io = TSPOOL_IO_AUTO },
    { .size = sizeof *ways, .io = TSPOOL_IO_THREADS },
    { .size = sizeof *ways, .io = TSPOOL_IO_AUTO, .buffered = 1 },
    { .size = sizeof *ways, .io = TSPOOL_IO_THREADS, .unverified = 1, .item_bytes = 65536, .depth = 3 },
};
#define WAY_COUNT (sizeof ways / sizeof *ways)

static void read_all_and_compare(struct tspool_checkpoint *checkpoint, const struct made_tensor *tensors, size_t count,
                                 size_t misalign)
{
    struct tspool_read_request *requests = calloc(count, sizeof *requests);
    uint8_t **memory = calloc(count, sizeof *memory);

    for (size_t i = 0; i < count; i++) {
        memory[i] = aligned_alloc(4096, (tensors[i].bytes + misalign + 4096) & ~(size_t)4095);
        memset(memory[i], 0xee, tensors[i].bytes + misalign);
        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        requests[i].data = memory[i] + misalign;
        requests[i].bytes = tensors[i].bytes;
        cr_assert_eq(tspool_checkpoint_find(checkpoint, tensors[i].name, &requests[i].tensor), 0);
    }
    cr_assert_eq(tspool_checkpoint_read(checkpoint, requests, count, NULL, NULL, &failure), 0, "%s", failure.message);
    for (size_t i = 0; i < count; i++) {
        cr_assert_eq(memcmp(requests[i].data, tensors[i].data, tensors[i].bytes), 0, "%s", tensors[i].name);
        free(memory[i]);
    }
    free(memory);
    free(requests);
}

/* Sizes around every boundary there is: sector, page, item, leaf. */
static struct made_tensor sizes[] = {
    { "nothing", TSPOOL_U8, 1, { 0 } },
    { "big", TSPOOL_U8, 1, { 9 << 20 } },
    { "leaf", TSPOOL_U8, 1, { 4 << 20 } },
    { "leaf+1", TSPOOL_U8, 1, { (4 << 20) + 1 } },
    { "after", TSPOOL_U8, 1, { (5 << 20) - 1 } },
    { "item-1", TSPOOL_U8, 1, { 524287 } },
    { "page", TSPOOL_U8, 1, { 4096 } },
    { "scalar", TSPOOL_U8, 0, { 0 } },
    { "odd", TSPOOL_U8, 1, { 777777 } },
};
#define SIZE_COUNT (sizeof sizes / sizeof *sizes)

Test(read, gives_whole_tensors_of_every_size_by_every_way_into_any_memory, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT, .per_file = 4 };

    made_fill(sizes, SIZE_COUNT, 11);
    made_checkpoint(path_of(root, "step"), &made);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_checkpoint *checkpoint = opened(path_of(root, "step"), &ways[way]);

        read_all_and_compare(checkpoint, sizes, SIZE_COUNT, 0);
        read_all_and_compare(checkpoint, sizes, SIZE_COUNT, 512);
        read_all_and_compare(checkpoint, sizes, SIZE_COUNT, 3);
        tspool_checkpoint_close(checkpoint);
    }
    made_free(sizes, SIZE_COUNT);
}

Test(read, gives_plain_files_whose_data_starts_anywhere, .init = setup, .fini = teardown)
{
    made_fill(sizes, SIZE_COUNT, 12);
    made_file(path_of(root, "plain"), sizes, SIZE_COUNT, 1);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_checkpoint *checkpoint = opened(path_of(root, "plain"), &ways[way]);

        read_all_and_compare(checkpoint, sizes, SIZE_COUNT, 0);
        tspool_checkpoint_close(checkpoint);
    }
    made_free(sizes, SIZE_COUNT);
}

Test(read, gives_many_tiny_tensors_in_one_call, .init = setup, .fini = teardown)
{
    enum { MANY = 10000 };
    struct made_tensor *many = calloc(MANY, sizeof *many);
    struct made_checkpoint made = { many, MANY, .per_file = 1700 };

    for (size_t i = 0; i < MANY; i++) {
        char *name = NULL;

        cr_assert_geq(asprintf(&name, "t%zu", i), 0);
        many[i] = (struct made_tensor){ name, TSPOOL_U8, 1, { 1 + i * 7919 % 3000 } };
    }
    made_fill(many, MANY, 13);
    made_checkpoint(path_of(root, "step"), &made);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_checkpoint *checkpoint = opened(path_of(root, "step"), &ways[way]);

        read_all_and_compare(checkpoint, many, MANY, 0);
        tspool_checkpoint_close(checkpoint);
    }
    for (size_t i = 0; i < MANY; i++)
        free((char *)many[i].name);
    made_free(many, MANY);
    free(many);
}

static uint64_t slice_by_hand(const struct made_tensor *tensor, const uint64_t *start, const uint64_t *extent, uint64_t width,
                              uint8_t *out)
{
    uint64_t count = 1;

    for (uint32_t d = 0; d < tensor->rank; d++)
        count *= extent[d];
    for (uint64_t n = 0; n < count; n++) {
        uint64_t left = n, stride = 1, element = 0;

        for (uint32_t d = tensor->rank; d-- > 0;) {
            element += (start[d] + left % extent[d]) * stride;
            left /= extent[d];
            stride *= tensor->shape[d];
        }
        memcpy(out + n * width, tensor->data + element * width, width);
    }
    return count * width;
}

Test(read, gives_random_slices_many_at_once_as_picked_by_hand, .init = setup, .fini = teardown)
{
    static struct made_tensor boxes[] = {
        { "cube", TSPOOL_F32, 3, { 130, 110, 90 } },   /* 5.1 MB: two leaves */
        { "wide", TSPOOL_I16, 2, { 3, 900001 } },
        { "tall", TSPOOL_U8, 2, { 700000, 7 } },
        { "line", TSPOOL_F64, 1, { 5000 } },
    };
    const uint64_t widths[] = { 4, 2, 1, 8 };
    enum { ROUND = 24 };
    struct made_checkpoint made = { boxes, 4, .per_file = 2 };

    made_fill(boxes, 4, 14);
    made_checkpoint(path_of(root, "step"), &made);
    srand(3);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_checkpoint *checkpoint = opened(path_of(root, "step"), &ways[way]);
        struct tspool_read_request requests[ROUND];
        uint64_t start[ROUND][3], extent[ROUND][3];
        uint8_t *expected[ROUND];

        for (size_t i = 0; i < ROUND; i++) {
            size_t box = (size_t)rand() % 4;
            uint64_t count = 1;

            for (uint32_t d = 0; d < boxes[box].rank; d++) {
                start[i][d] = (uint64_t)rand() % boxes[box].shape[d];
                extent[i][d] = 1 + (uint64_t)rand() % (boxes[box].shape[d] - start[i][d]);
                if (rand() % 3 == 0)
                    start[i][d] = 0, extent[i][d] = boxes[box].shape[d];
                count *= extent[i][d];
            }
            expected[i] = malloc(count * widths[box]);
            requests[i] = (struct tspool_read_request){ sizeof *requests, 0, start[i], extent[i], malloc(count * widths[box]), 0,
                                                        NULL };
            requests[i].bytes = slice_by_hand(&boxes[box], start[i], extent[i], widths[box], expected[i]);
            cr_assert_eq(tspool_checkpoint_find(checkpoint, boxes[box].name, &requests[i].tensor), 0);
        }
        cr_assert_eq(tspool_checkpoint_read(checkpoint, requests, ROUND, NULL, NULL, &failure), 0, "%s", failure.message);
        for (size_t i = 0; i < ROUND; i++) {
            cr_assert_eq(memcmp(expected[i], requests[i].data, requests[i].bytes), 0, "way %zu, slice %zu", way, i);
            free(expected[i]);
            free(requests[i].data);
        }
        tspool_checkpoint_close(checkpoint);
    }
    made_free(boxes, 4);
}

struct pieces { unsigned calls[SIZE_COUNT]; pthread_t thread; const struct tspool_read_request *requests; };

static void piece_arrived(void *context, size_t request)
{
    struct pieces *pieces = context;

    cr_assert(pthread_equal(pieces->thread, pthread_self()));
    cr_assert_eq(memcmp(pieces->requests[request].data, sizes[request].data, sizes[request].bytes), 0,
                 "complete when it is called");
    pieces->calls[request]++;
}

Test(read, calls_on_piece_once_per_request_when_it_is_complete, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT };
    struct tspool_read_request requests[SIZE_COUNT];
    struct pieces pieces = { .thread = pthread_self(), .requests = requests };
    struct tspool_checkpoint *checkpoint;

    made_fill(sizes, SIZE_COUNT, 15);
    made_checkpoint(path_of(root, "step"), &made);
    checkpoint = opened(path_of(root, "step"), NULL);
    for (size_t i = 0; i < SIZE_COUNT; i++) {
        requests[i] = (struct tspool_read_request){ sizeof *requests, i, NULL, NULL, aligned_alloc(4096, 10 << 20),
                                                    sizes[i].bytes, NULL };
        cr_assert_eq(tspool_checkpoint_find(checkpoint, sizes[i].name, &requests[i].tensor), 0);
    }
    cr_assert_eq(tspool_checkpoint_read(checkpoint, requests, SIZE_COUNT, piece_arrived, &pieces, &failure), 0, "%s",
                 failure.message);
    for (size_t i = 0; i < SIZE_COUNT; i++) {
        cr_assert_eq(pieces.calls[i], 1, "%s", sizes[i].name);
        free(requests[i].data);
    }
    tspool_checkpoint_close(checkpoint);
    made_free(sizes, SIZE_COUNT);
}

Test(read, refuses_requests_that_do_not_fit_before_it_reads, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT };
    uint64_t start[] = { 1 }, extent[] = { 4 << 20 };
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    uint8_t *memory = malloc(5 << 20);
    struct tspool_checkpoint *checkpoint;

    made_fill(sizes, SIZE_COUNT, 16);
    made_checkpoint(path_of(root, "step"), &made);
    checkpoint = opened(path_of(root, "step"), NULL);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, "leaf", &request.tensor), 0);
    request.data = memory;
    request.bytes = 5;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EINVAL);
    cr_assert_str_eq(failure.tensor, "leaf");
    request.start = start;
    request.extent = extent;
    request.bytes = 4 << 20;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EINVAL);
    request = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
    request.tensor = 99;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EINVAL);
    request.tensor = 1;
    request.bytes = 9 << 20;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, NULL), -EINVAL, "data is NULL");
    request.size = 0;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EINVAL);
    tspool_checkpoint_close(checkpoint);
    made_free(sizes, SIZE_COUNT);
    free(memory);
}

Test(read, of_a_damaged_leaf_names_tensor_file_and_range, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT };
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;
    struct tspool_checkpoint_options trusting = TSPOOL_CHECKPOINT_OPTIONS_INIT;
    struct tspool_checkpoint *checkpoint;
    uint8_t *memory = aligned_alloc(4096, 9 << 20);

    made_fill(sizes, SIZE_COUNT, 17);
    made_checkpoint(path_of(root, "step"), &made);
    checkpoint = opened(path_of(root, "step"), NULL);
    cr_assert_eq(tspool_checkpoint_find(checkpoint, "big", &request.tensor), 0);
    tspool_checkpoint_tensor(checkpoint, request.tensor, &info);
    file_flip(path_of(root, "step/model.safetensors"), info.file_offset + (5 << 20));
    request.data = memory;
    request.bytes = 9 << 20;
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EBADMSG);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_VERIFY);
    cr_assert_str_eq(failure.tensor, "big");
    cr_assert_eq(failure.file_offset, info.file_offset + (4 << 20));
    cr_assert_not_null(strstr(failure.path, "step/model.safetensors"));
    cr_assert_not_null(strstr(failure.cause, "Bytes"), "%s", failure.message);
    tspool_checkpoint_close(checkpoint);
    trusting.unverified = 1;
    checkpoint = opened(path_of(root, "step"), &trusting);
    cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), 0, "asked for explicitly: %s",
                 failure.message);
    cr_assert_neq(memcmp(memory, sizes[1].data, 9 << 20), 0);
    tspool_checkpoint_close(checkpoint);
    made_free(sizes, SIZE_COUNT);
    free(memory);
}

Test(read, of_a_file_cut_after_the_open_says_where_it_ends, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT };

    made_fill(sizes, SIZE_COUNT, 18);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
        struct tspool_checkpoint *checkpoint;

        made_checkpoint(path_of(root, "step"), &made);
        checkpoint = opened(path_of(root, "step"), &ways[way]);
        cr_assert_eq(tspool_checkpoint_find(checkpoint, "big", &request.tensor), 0);
        request.bytes = 9 << 20;
        request.data = aligned_alloc(4096, request.bytes);
        cr_assert_eq(truncate(path_of(root, "step/model.safetensors"), 6000000), 0);
        cr_assert_eq(tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure), -EBADMSG);
        cr_assert_geq(failure.file_offset, 6000000, "%s", failure.message);
        tspool_checkpoint_close(checkpoint);
        free(request.data);
    }
    made_free(sizes, SIZE_COUNT);
}

struct shared { struct tspool_checkpoint *checkpoint; int error; };

static void *read_on_thread(void *argument)
{
    struct shared *shared = argument;

    for (unsigned round = 0; round < 5; round++)
        read_all_and_compare(shared->checkpoint, sizes, SIZE_COUNT, round);
    return NULL;
}

Test(read, works_from_several_threads_and_in_a_forked_child, .init = setup, .fini = teardown)
{
    struct made_checkpoint made = { sizes, SIZE_COUNT };
    struct shared shared = { 0 };
    pthread_t threads[3];
    int status = -1;
    pid_t child;

    made_fill(sizes, SIZE_COUNT, 19);
    made_checkpoint(path_of(root, "step"), &made);
    shared.checkpoint = opened(path_of(root, "step"), NULL);
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, read_on_thread, &shared), 0);
    for (unsigned i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    child = fork();
    if (child == 0) {
        struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
        uint8_t *memory = malloc(9 << 20);

        request.data = memory;
        request.bytes = 9 << 20;
        tspool_checkpoint_find(shared.checkpoint, "big", &request.tensor);
        status = tspool_checkpoint_read(shared.checkpoint, &request, 1, NULL, NULL, &failure);
        _exit(status == 0 && memcmp(memory, sizes[1].data, 9 << 20) == 0 ? 0 : 1);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    tspool_checkpoint_close(shared.checkpoint);
    made_free(sizes, SIZE_COUNT);
}

Test(read, gives_ranges_of_bytes_that_are_no_boxes, .init = setup, .fini = teardown)
{
    struct made_tensor tensor = { "t", TSPOOL_F32, 2, { 1000, 3001 } };
    struct made_checkpoint made = { &tensor, 1 };
    const uint64_t firsts[] = { 0, 1, 4095, 4194303, 4194304, 12003999 }, sizes_wanted[] = { 12004000, 7, 100000, 2, 4194304, 1 };

    made_fill(&tensor, 1, 41);
    made_checkpoint(path_of(root, "step"), &made);
    for (size_t way = 0; way < WAY_COUNT; way++) {
        struct tspool_checkpoint *checkpoint = opened(path_of(root, "step"), &ways[way]);
        struct tspool_read_request requests[6];

        for (size_t i = 0; i < 6; i++) {
            requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
            requests[i].by_bytes = 1;
            requests[i].first_byte = firsts[i];
            requests[i].bytes = sizes_wanted[i];
            requests[i].data = malloc(sizes_wanted[i]);
        }
        cr_assert_eq(tspool_checkpoint_read(checkpoint, requests, 6, NULL, NULL, &failure), 0, "%s", failure.message);
        for (size_t i = 0; i < 6; i++) {
            cr_assert_eq(memcmp(requests[i].data, tensor.data + firsts[i], sizes_wanted[i]), 0, "range %zu", i);
            free(requests[i].data);
        }
        requests[0].first_byte = 12004000;
        requests[0].bytes = 1;
        cr_assert_eq(tspool_checkpoint_read(checkpoint, requests, 1, NULL, NULL, &failure), -EINVAL);
        tspool_checkpoint_close(checkpoint);
    }
    made_free(&tensor, 1);
}
