/* rank_saver - one rank of a small job, for tests: saves its part of one checkpoint and says how far it has come.
 *
 *     rank_saver ROOT NAME SAVE_ID RANK WORLD WRITER [replace] [hold] [rows=N] [step=N] [size=KIB] [state=TEXT]
 *
 * It saves: "sharded.weight", of which each rank has 4 rows (rows=N: the whole has N); "replicated.bias", the same on all;
 * "rank.<r>", its own; "tied.weight", the first under another name; the objects "state", the same on all (state=TEXT: that), and
 * "state.<r>", its own; and the step. Contents follow from names and places, so that anyone can say what a reader must find.
 *
 * On stdout, a line each: "begun PID-OF-THE-WRITER", with `hold` nothing more until a line comes on stdin; "staged"; then
 * "durable", "published" or "failed MESSAGE". Then each line on stdin names another checkpoint to save likewise, under an id
 * whose first byte is one more, until its end: the writer lives as long.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/tspool.h>

#define ROWS_PER_RANK 4u
#define COLUMNS 1024u
#define FOREVER UINT64_MAX

struct rank {
    const char *root, *name, *writer, *step, *state;
    uint8_t id[TSPOOL_SAVE_ID_BYTES];
    uint32_t rank, world;
    uint64_t whole_rows, own_bytes;
    bool replace, hold;
};

static void say(const char *format, const char *text)
{
    printf(format, text);
    fflush(stdout);
}

static int failed(const struct tspool_failure *failure)
{
    say("failed %s\n", failure->message);
    return 1;
}

/* The element at a place of the whole tensor. */
static float weight_at(uint64_t row, uint64_t column) { return (float)(row * COLUMNS + column); }

static void *filled(uint64_t bytes, uint8_t value)
{
    void *memory = malloc(bytes);

    if (!memory)
        abort();
    return memset(memory, value, bytes);
}

static int tensor_add(struct tspool_save *save, const char *name, enum tspool_dtype dtype, const void *data, uint32_t dimensions,
                      const uint64_t *shape, const uint64_t *global_shape, const uint64_t *global_offsets,
                      struct tspool_failure *failure)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

    tensor.name = name;
    tensor.dtype = dtype;
    tensor.data = data;
    tensor.rank = dimensions;
    tensor.shape = shape;
    tensor.global_shape = global_shape;
    tensor.global_offsets = global_offsets;
    return tspool_save_add(save, &tensor, failure);
}

static int declare(const struct rank *rank, struct tspool_save *save, struct tspool_failure *failure)
{
    uint64_t shape[2] = { ROWS_PER_RANK, COLUMNS }, whole[2] = { rank->whole_rows, COLUMNS };
    uint64_t place[2] = { rank->rank * ROWS_PER_RANK, 0 }, bias[1] = { 100 }, own[1] = { rank->own_bytes };
    float *weight = filled(sizeof(float) * ROWS_PER_RANK * COLUMNS, 0);
    char name[32], own_name[32], own_state[32];
    int error;

    for (uint64_t i = 0; i < ROWS_PER_RANK * COLUMNS; i++)
        weight[i] = weight_at(place[0] + i / COLUMNS, i % COLUMNS);
    snprintf(name, sizeof(name), "rank.%u", rank->rank);
    snprintf(own_name, sizeof(own_name), "state.%u", rank->rank);
    snprintf(own_state, sizeof(own_state), "{\"rank\": %u}", rank->rank);
    error = tensor_add(save, "sharded.weight", TSPOOL_F32, weight, 2, shape, whole, place, failure);
    if (error == 0)
        error = tensor_add(save, "tied.weight", TSPOOL_F32, weight, 2, shape, whole, place, failure);
    if (error == 0)
        error = tensor_add(save, "replicated.bias", TSPOOL_U8, filled(100, 7), 1, bias, NULL, NULL, failure);
    if (error == 0)
        error = tensor_add(save, name, TSPOOL_U8, filled(rank->own_bytes, (uint8_t)rank->rank), 1, own, NULL, NULL, failure);
    if (error == 0)
        error = tspool_save_add_object(save, "state", "json", rank->state, strlen(rank->state), failure);
    if (error == 0)
        error = tspool_save_add_object(save, own_name, "json", own_state, strlen(own_state), failure);
    return error == 0 ? tspool_save_metadata(save, "step", rank->step, failure) : error;
}

static void line_wait(void)
{
    int byte;

    while ((byte = getchar()) != EOF && byte != '\n')
        ;
}

static int finish(struct tspool_save *save)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    int error = tspool_save_wait(save, TSPOOL_STAGED, FOREVER);

    if (error == 0)
        say("%s\n", "staged");
    if (error == 0)
        tspool_save_wait(save, TSPOOL_DURABLE, FOREVER);
    tspool_save_result(save, &result);
    if (result.outcome == TSPOOL_OUTCOME_FAILED || result.outcome == TSPOOL_OUTCOME_UNKNOWN)
        return failed(&result.failure);
    say("%s\n", result.outcome == TSPOOL_OUTCOME_DURABLE ? "durable" : "published");
    return 0;
}

static int save_begin(struct rank *rank, struct tspool *spool, const char *name, struct tspool_save **save)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    options.save_id = rank->id;
    options.replace = rank->replace;
    if (tspool_save_begin(spool, name, &options, save, &failure) < 0 || declare(rank, *save, &failure) < 0)
        return failed(&failure);
    return 0;
}

static int save_finish(struct tspool_save *save)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    return tspool_save_submit(save, &failure) < 0 ? failed(&failure) : finish(save);
}

static int save_first(struct rank *rank, struct tspool *spool, struct tspool_save **save)
{
    char pid[16];
    int status = save_begin(rank, spool, rank->name, save);

    if (status)
        return status;
    snprintf(pid, sizeof(pid), "%d", tspool_writer_pid(spool));
    say("begun %s\n", pid);
    if (rank->hold)
        line_wait();
    return save_finish(*save);
}

static void save_more(struct rank *rank, struct tspool *spool)
{
    char name[128];

    while (fgets(name, sizeof(name), stdin)) {
        struct tspool_save *save = NULL;

        name[strcspn(name, "\n")] = '\0';
        rank->id[0]++;
        if (save_begin(rank, spool, name, &save) == 0)
            save_finish(save);
        tspool_save_free(save);
    }
}

static int run(struct rank *rank)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;
    struct tspool *spool;
    int status;

    options.root = rank->root;
    options.writer_path = rank->writer;
    options.rank = rank->rank;
    options.world_size = rank->world;
    options.arena_bytes = UINT64_C(64) << 20;
    if (tspool_open(&options, &spool, &failure) < 0)
        return failed(&failure);
    status = save_first(rank, spool, &save);
    save_more(rank, spool);
    tspool_save_free(save);
    tspool_close(spool, FOREVER, NULL);
    return status;
}

static bool id_parse(const char *hex, uint8_t id[TSPOOL_SAVE_ID_BYTES])
{
    for (unsigned i = 0; i < TSPOOL_SAVE_ID_BYTES; i++)
        if (sscanf(hex + 2 * (size_t)i, "%2hhx", &id[i]) != 1)
            return false;
    return hex[2 * TSPOOL_SAVE_ID_BYTES] == '\0';
}

static void option_take(struct rank *rank, const char *option)
{
    if (strcmp(option, "replace") == 0)
        rank->replace = true;
    else if (strcmp(option, "hold") == 0)
        rank->hold = true;
    else if (strncmp(option, "rows=", 5) == 0)
        rank->whole_rows = strtoull(option + 5, NULL, 10);
    else if (strncmp(option, "step=", 5) == 0)
        rank->step = option + 5;
    else if (strncmp(option, "size=", 5) == 0)
        rank->own_bytes = strtoull(option + 5, NULL, 10) << 10;
    else if (strncmp(option, "state=", 6) == 0)
        rank->state = option + 6;
}

int main(int argc, char **argv)
{
    struct rank rank = { .step = "1", .state = "{\"ranks\": \"alike\"}", .own_bytes = 5000 };

    if (argc < 7 || strlen(argv[3]) != 2 * TSPOOL_SAVE_ID_BYTES || !id_parse(argv[3], rank.id)) {
        fputs("usage: rank_saver ROOT NAME SAVE_ID RANK WORLD WRITER [replace] [hold] [rows=N] [step=N] [size=KIB] "
              "[state=TEXT]\n", stderr);
        return 2;
    }
    rank.root = argv[1];
    rank.name = argv[2];
    rank.rank = (uint32_t)strtoul(argv[4], NULL, 10);
    rank.world = (uint32_t)strtoul(argv[5], NULL, 10);
    rank.writer = argv[6];
    rank.whole_rows = (uint64_t)rank.world * ROWS_PER_RANK;
    for (int i = 7; i < argc; i++)
        option_take(&rank, argv[i]);
    return run(&rank);
}
