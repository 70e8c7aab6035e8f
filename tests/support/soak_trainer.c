/* support/soak_trainer.c - a trainer that does as it is told, for tools/soak: saves patterned tensors, says how far each came.
 *
 *   soak_trainer run ROOT WRITER BYTES IO HEARTBEAT_MS     lines on standard input, JSON lines on standard output
 *       save STEP     saves step-STEP; several may be in flight
 *       end           waits for what is in flight, closes, exits; the end of the input does the same
 *   It says {"event": E, ...}: "open"; per save "staged", "written", "durable", "published", "failed", "unknown", "refused"
 *   with its step; "closed". Each line has the writer's process id.
 *
 *   soak_trainer check PATH BYTES                          0 when the checkpoint at PATH holds what its step is made of
 *
 * What a tensor holds follows from step and tensor alone, so a reader needs to know nothing else.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/tspool.h>
#include <unistd.h>

#define IN_FLIGHT_MAX 3u
#define TENSORS 8u
#define FOREVER UINT64_MAX

struct shelf { uint8_t *bytes[TENSORS]; uint64_t sizes[TENSORS]; };
struct flight { struct tspool_save *save; uint64_t step; uint32_t told; };
struct trainer {
    struct tspool *spool;
    struct shelf shelf;
    struct flight flights[IN_FLIGHT_MAX]; /* oldest first */
    unsigned flying;
    bool ended;
};

/* The state -------------------------------------------------------------------------------------------------------- */

/* Halves, and what is not aligned to anything: 1 byte, 3 bytes, a page and one more, none. */
static void shelf_make(struct shelf *shelf, uint64_t bytes)
{
    const uint64_t sizes[TENSORS] = { bytes / 2, bytes / 4, bytes / 8 + 5, 4097, 8, 3, 1, 0 };

    for (unsigned i = 0; i < TENSORS; i++) {
        shelf->sizes[i] = sizes[i];
        shelf->bytes[i] = malloc((sizes[i] + 15) & ~UINT64_C(7));
        if (!shelf->bytes[i])
            abort();
    }
}

static void shelf_fill(struct shelf *shelf, uint64_t step)
{
    for (unsigned i = 0; i < TENSORS; i++) {
        uint64_t seed = (step * 8 + i + 1) * UINT64_C(0x9e3779b97f4a7c15);

        for (uint64_t k = 0; k < shelf->sizes[i]; k += 8) {
            uint64_t word = (seed ^ k) * UINT64_C(0xff51afd7ed558ccd);

            word ^= word >> 29;
            memcpy(shelf->bytes[i] + k, &word, sizeof word); /* each has room for a last whole word */
        }
    }
}

static const char *tensor_name(unsigned number)
{
    static char name[32];

    snprintf(name, sizeof name, "layer.%u.weight", number);
    return name;
}

/* Telling ---------------------------------------------------------------------------------------------------------- */

static void tell(struct trainer *trainer, const char *event, const char *format, ...)
{
    va_list arguments;

    printf("{\"event\": \"%s\", \"writer\": %d", event, trainer->spool ? tspool_writer_pid(trainer->spool) : 0);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    puts("}");
    fflush(stdout);
}

static void tell_failure(struct trainer *trainer, const char *event, uint64_t step, const struct tspool_failure *failure)
{
    char plain[sizeof failure->message];
    size_t size = 0;

    for (const char *at = failure->message; *at; at++)
        plain[size++] = *at == '"' || *at == '\\' || (unsigned char)*at < 0x20 ? '\'' : *at;
    plain[size] = 0;
    tell(trainer, event, ", \"step\": %" PRIu64 ", \"errno\": %d, \"message\": \"%s\"", step, failure->error, plain);
}

/* Saving ----------------------------------------------------------------------------------------------------------- */

static int declare(struct trainer *trainer, struct tspool_save *save, uint64_t step, struct tspool_failure *failure)
{
    char text[32];
    int error = 0;

    for (unsigned i = 0; i < TENSORS && error == 0; i++) {
        struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

        tensor.name = tensor_name(i);
        tensor.dtype = TSPOOL_U8;
        tensor.rank = 1;
        tensor.shape = &trainer->shelf.sizes[i];
        tensor.data = trainer->shelf.bytes[i];
        error = tspool_save_add(save, &tensor, failure);
    }
    snprintf(text, sizeof text, "%" PRIu64, step);
    if (error == 0)
        error = tspool_save_metadata(save, "step", text, failure);
    return error ? error : tspool_save_add_object(save, "note", "json", text, strlen(text), failure);
}

static int save_start(struct trainer *trainer, uint64_t step, struct tspool_save **save, struct tspool_failure *failure)
{
    char name[64];
    int error;

    snprintf(name, sizeof name, "step-%08" PRIu64, step);
    shelf_fill(&trainer->shelf, step);
    error = tspool_save_begin(trainer->spool, name, NULL, save, failure);
    if (error == 0)
        error = declare(trainer, *save, step, failure);
    return error ? error : tspool_save_submit(*save, failure); /* STAGED when it returns: the shelf may change */
}

/* True when the save is over. */
static bool flight_tell(struct trainer *trainer, struct flight *flight)
{
    static const char *const levels[] = { "", "staged", "written", "durable", "published" };
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    tspool_save_result(flight->save, &result);
    while (flight->told < result.level)
        tell(trainer, levels[++flight->told], ", \"step\": %" PRIu64 ", \"bytes\": %" PRIu64, flight->step, result.file_bytes);
    if (result.outcome == TSPOOL_OUTCOME_FAILED || result.outcome == TSPOOL_OUTCOME_UNKNOWN)
        tell_failure(trainer, result.outcome == TSPOOL_OUTCOME_FAILED ? "failed" : "unknown", flight->step, &result.failure);
    return result.outcome != TSPOOL_OUTCOME_PENDING;
}

static void flights_tell(struct trainer *trainer)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < trainer->flying; i++) {
        if (flight_tell(trainer, &trainer->flights[i]))
            tspool_save_free(trainer->flights[i].save);
        else
            trainer->flights[kept++] = trainer->flights[i];
    }
    trainer->flying = kept;
}

static void flights_await(struct trainer *trainer, unsigned allowed)
{
    while (trainer->flying > allowed) {
        tspool_save_wait(trainer->flights[0].save, TSPOOL_PUBLISHED, FOREVER);
        flights_tell(trainer);
    }
}

static void save(struct trainer *trainer, uint64_t step)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *started = NULL;
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    flights_await(trainer, IN_FLIGHT_MAX - 1);
    if (save_start(trainer, step, &started, &failure) == 0) {
        trainer->flights[trainer->flying++] = (struct flight){ started, step, 0 };
        flights_tell(trainer);
        return;
    }
    tell_failure(trainer, "refused", step, &failure);
    if (started)
        tspool_save_result(started, &result); /* seen: the next submit need not say it again */
    tspool_save_free(started);
}

/* The loop --------------------------------------------------------------------------------------------------------- */

static void obey(struct trainer *trainer, const char *line)
{
    uint64_t step;

    if (sscanf(line, "save %" SCNu64, &step) == 1)
        save(trainer, step);
    else
        trainer->ended = true;
}

/* Reads what is there, without a buffer that poll would not know of. */
static void input_take(struct trainer *trainer)
{
    static char line[128];
    static size_t size;
    char byte;

    if (read(STDIN_FILENO, &byte, 1) != 1) {
        trainer->ended = true;
        return;
    }
    if (byte != '\n' && size < sizeof line - 1) {
        line[size++] = byte;
        return;
    }
    line[size] = 0;
    size = 0;
    obey(trainer, line);
}

static void turn(struct trainer *trainer)
{
    struct pollfd fds[1 + IN_FLIGHT_MAX] = { { .fd = STDIN_FILENO, .events = POLLIN } };

    for (unsigned i = 0; i < trainer->flying; i++)
        fds[1 + i] = (struct pollfd){ .fd = tspool_save_fd(trainer->flights[i].save), .events = POLLIN };
    if (poll(fds, 1 + trainer->flying, -1) < 0 && errno != EINTR)
        exit(1);
    flights_tell(trainer);
    if (fds[0].revents)
        input_take(trainer);
}

static int run(char **arguments)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct trainer trainer = { .spool = NULL };

    options.root = arguments[0];
    options.writer_path = arguments[1];
    options.arena_bytes = 32u << 20;
    options.io = strcmp(arguments[3], "threads") ? TSPOOL_IO_AUTO : TSPOOL_IO_THREADS;
    options.heartbeat_ns = strtoull(arguments[4], NULL, 10) * 1000000;
    shelf_make(&trainer.shelf, strtoull(arguments[2], NULL, 10));
    if (tspool_open(&options, &trainer.spool, &failure) < 0) {
        tell_failure(&trainer, "refused", 0, &failure);
        return 1;
    }
    tell(&trainer, "open", ", \"pid\": %d", (int)getpid());
    while (!trainer.ended)
        turn(&trainer);
    flights_await(&trainer, 0);
    tspool_close(trainer.spool, FOREVER, NULL);
    trainer.spool = NULL;
    tell(&trainer, "closed", "%s", "");
    return 0;
}

/* Checking --------------------------------------------------------------------------------------------------------- */

static int differs(const char *path, const char *what)
{
    fprintf(stderr, "%s: %s\n", path, what);
    return 1;
}

static int tensor_check(struct tspool_checkpoint *checkpoint, const char *path, const struct shelf *shelf, unsigned number)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int same;

    if (tspool_checkpoint_find(checkpoint, tensor_name(number), &request.tensor) < 0)
        return differs(path, "a tensor is missing");
    request.bytes = shelf->sizes[number];
    request.data = malloc(request.bytes + 1);
    if (tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, &failure) < 0)
        return differs(path, failure.message);
    same = memcmp(request.data, shelf->bytes[number], request.bytes) == 0;
    free(request.data);
    return same ? 0 : differs(path, "a tensor holds something else than was saved");
}

static int check(char **arguments)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;
    struct shelf shelf;
    const char *step;
    void *note = NULL;
    size_t size;
    int status = 0;

    if (tspool_checkpoint_open(arguments[0], NULL, &checkpoint, &failure) < 0)
        return differs(arguments[0], failure.message);
    step = tspool_checkpoint_metadata(checkpoint, "step");
    if (!step || tspool_checkpoint_object_read(checkpoint, "note", &note, &size, &failure) < 0)
        return differs(arguments[0], step ? failure.message : "it has no step");
    if (size != strlen(step) || memcmp(note, step, size) != 0)
        return differs(arguments[0], "the object is another step's");
    shelf_make(&shelf, strtoull(arguments[1], NULL, 10));
    shelf_fill(&shelf, strtoull(step, NULL, 10));
    for (unsigned i = 0; i < TENSORS && status == 0; i++)
        status = tensor_check(checkpoint, arguments[0], &shelf, i);
    tspool_checkpoint_close(checkpoint);
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 7 && strcmp(argv[1], "run") == 0)
        return run(argv + 2);
    if (argc == 4 && strcmp(argv[1], "check") == 0)
        return check(argv + 2);
    fprintf(stderr, "usage: soak_trainer run ROOT WRITER BYTES IO HEARTBEAT_MS | check PATH BYTES\n");
    return 2;
}
