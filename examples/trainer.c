/* trainer.c - a whole training run that checkpoints while it trains: start it, kill it, start it again with --resume.
 *
 *     mkdir /tmp/run && ./trainer --root /tmp/run            trains; a checkpoint every 50 steps
 *     kill -9 %1                                             at any moment
 *     ./trainer --root /tmp/run --resume                     goes on from the newest whole checkpoint
 *
 * The model (model.c) learns to guess the next character of text.txt. What this file shows is the rest:
 *
 *     opening      tspool_open                                   once, before training
 *     saving       tspool_save_begin, _add, _metadata, _submit   the first time; then tspool_save_again
 *     training on  tspool_save_wait(save, level, 0)              asks how far a save has come, without waiting
 *     resuming     tspool_latest, tspool_checkpoint_open, _read
 *     leaving      tspool_close
 *
 * The loop never waits for the disk. A resumed run continues bit for bit as an uninterrupted one would: everything that
 * decides the next step is saved, which is parameters, optimizer moments, random state, step, and place in the data.
 */
#include "model.h"

#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <tspool/tspool.h>

#define IN_FLIGHT_MAX 4u                 /* saves at a time; beyond, the disk is slower than we save, and we skip one */
#define TENSORS (3u * MODEL_PARTS + 1u)  /* parameters, both moments, random state */
#define FOREVER UINT64_MAX

struct settings {
    const char *root, *text, *writer;
    uint64_t steps, save_every, print_every, seed, keep;
    uint32_t hidden;
    bool resume, background, final_digest;
};

/* The text as symbols 0 .. alphabet - 1, and how much of it was used. */
struct lessons { uint8_t *symbols; size_t size; uint32_t alphabet; uint64_t examples_seen; };

struct flight { struct tspool_save *save; uint64_t step; };

struct saver {
    struct tspool *spool;
    const struct settings *settings;
    struct tspool_save *first;            /* declared the tensors; the later saves are like it */
    struct flight flights[IN_FLIGHT_MAX]; /* submitted, not yet published; oldest first */
    unsigned flying;
    uint64_t random;                      /* the random state as saved: the model's own moves on while it is being staged */
    uint64_t published_step;
};

static int failed(const struct tspool_failure *failure)
{
    fprintf(stderr, "trainer: %s\n", failure->message);
    return -1;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The data -------------------------------------------------------------------------------------------------------- */
static void lessons_number_symbols(struct lessons *lessons)
{
    bool used[256] = { false };
    uint8_t number[256] = { 0 };

    for (size_t i = 0; i < lessons->size; i++)
        used[lessons->symbols[i]] = true;
    for (size_t byte = 0; byte < 256; byte++)
        if (used[byte])
            number[byte] = (uint8_t)lessons->alphabet++;
    for (size_t i = 0; i < lessons->size; i++)
        lessons->symbols[i] = number[lessons->symbols[i]];
}

static int lessons_read(struct lessons *lessons, const char *path)
{
    struct stat status;
    FILE *file = fopen(path, "rb");

    *lessons = (struct lessons){ 0 };
    if (file && fstat(fileno(file), &status) == 0 && status.st_size > 4096)
        lessons->symbols = malloc((size_t)status.st_size);
    if (lessons->symbols)
        lessons->size = fread(lessons->symbols, 1, (size_t)status.st_size, file);
    if (file)
        fclose(file);
    if (lessons->size <= 4096) {
        fprintf(stderr, "trainer: cannot learn from %s: it must be a readable text of more than 4 KiB\n", path);
        free(lessons->symbols);
        return -1;
    }
    lessons_number_symbols(lessons);
    return 0;
}

/* Example number n is the place n * 40507 in the text: a prime, so that every place comes once before any comes twice. */
static void lessons_next(struct lessons *lessons, const uint8_t *contexts[MODEL_BATCH], uint8_t targets[MODEL_BATCH])
{
    uint64_t places = lessons->size - MODEL_CONTEXT;

    for (unsigned i = 0; i < MODEL_BATCH; i++) {
        uint64_t place = lessons->examples_seen++ % places * 40507 % places;

        contexts[i] = lessons->symbols + place;
        targets[i] = lessons->symbols[place + MODEL_CONTEXT];
    }
}

/* Tensors: the same list names them for saving and for loading ------------------------------------------------------ */
struct entry { char name[64]; enum tspool_dtype dtype; uint32_t rank; const uint64_t *shape; void *data; uint64_t bytes; };

static void entries_list(struct model *model, uint64_t *random, struct entry entries[TENSORS])
{
    static const char *const prefixes[3] = { "", "adam.mean.", "adam.variance." };
    float *const arrays[3] = { model->parameters, model->moment1, model->moment2 };

    for (unsigned i = 0; i < 3 * MODEL_PARTS; i++) {
        const struct model_part *part = &model->parts[i % MODEL_PARTS];

        entries[i] = (struct entry){ .dtype = TSPOOL_F32, .rank = part->rank, .shape = part->shape,
                                     .data = arrays[i / MODEL_PARTS] + part->first, .bytes = part->count * sizeof(float) };
        snprintf(entries[i].name, sizeof entries[i].name, "%s%s", prefixes[i / MODEL_PARTS], part->name);
    }
    entries[TENSORS - 1] = (struct entry){ .name = "random", .dtype = TSPOOL_U64, .data = random, .bytes = sizeof *random };
}

/* Saving ---------------------------------------------------------------------------------------------------------- */
/* The first save tells the library what there is; the later ones reuse its plan. */
static int saver_begin(struct saver *saver, struct model *model, const char *name, struct tspool_save **save,
                       struct tspool_failure *failure)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct entry entries[TENSORS];

    options.staging = saver->settings->background ? TSPOOL_STAGING_BACKGROUND : TSPOOL_STAGING_NOW;
    options.guarded = saver->settings->background; /* we keep that promise in guard(), below */
    options.replace = saver->settings->resume;     /* steps that are done again give the same checkpoint again */
    if (saver->first)
        return tspool_save_again(saver->spool, name, saver->first, &options, save, failure);
    if (tspool_save_begin(saver->spool, name, &options, save, failure) < 0)
        return -1;
    entries_list(model, &saver->random, entries);
    for (unsigned i = 0; i < TENSORS; i++) {
        struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

        tensor.name = entries[i].name;
        tensor.dtype = entries[i].dtype;
        tensor.rank = entries[i].rank;
        tensor.shape = entries[i].shape;
        tensor.data = entries[i].data;
        tensor.version = &model->version; /* changed too early, it fails the save instead of spoiling it */
        if (tspool_save_add(*save, &tensor, failure) < 0)
            return -1;
    }
    return 0;
}

/* Beside the tensors: the step, by which tspool_latest orders, and an object that says where in the data we are. */
static int saver_describe(struct tspool_save *save, uint64_t step, const struct lessons *lessons, struct tspool_failure *failure)
{
    char number[32], place[64];
    int length = snprintf(place, sizeof place, "{\"examples_seen\": %llu}", (unsigned long long)lessons->examples_seen);

    snprintf(number, sizeof number, "%llu", (unsigned long long)step);
    if (tspool_save_metadata(save, "step", number, failure) < 0)
        return -1;
    return tspool_save_add_object(save, "data_position", "json", place, (size_t)length, failure);
}

static void flight_report(struct saver *saver, const struct flight *flight)
{
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;

    if (tspool_save_result(flight->save, &result) < 0)
        return;
    if (result.outcome == TSPOOL_OUTCOME_PUBLISHED) {
        saver->published_step = flight->step;
        printf("          checkpoint step-%08llu published: %.1f MB, safe after %.1f ms, of which training stood still for "
               "%.1f ms\n",
               (unsigned long long)flight->step, (double)result.file_bytes * 1e-6, (double)result.published_ns * 1e-6,
               (double)result.stall_ns * 1e-6);
    } else {
        printf("          checkpoint step-%08llu lost: %s\n", (unsigned long long)flight->step, result.failure.message);
    }
}

/* Reports and forgets the saves that are through; waits for at most timeout_ns for each. */
static void saver_reap(struct saver *saver, uint64_t timeout_ns)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < saver->flying; i++) {
        struct flight flight = saver->flights[i];

        if (tspool_save_wait(flight.save, TSPOOL_PUBLISHED, timeout_ns) == -ETIMEDOUT) {
            saver->flights[kept++] = flight;
            continue;
        }
        flight_report(saver, &flight);
        if (flight.save != saver->first)
            tspool_save_free(flight.save);
    }
    saver->flying = kept;
    fflush(stdout);
}

/* A checkpoint that cannot be had is no reason to stop training: it is reported, and the next one is tried. */
static void saver_save(struct saver *saver, struct model *model, const struct lessons *lessons, uint64_t step)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_save *save = NULL;
    char name[32];

    if (saver->flying == IN_FLIGHT_MAX) {
        printf("          no checkpoint at step %llu: %u are still being written\n", (unsigned long long)step, IN_FLIGHT_MAX);
        return;
    }
    snprintf(name, sizeof name, "step-%08llu", (unsigned long long)step);
    saver->random = model->random;
    if (saver_begin(saver, model, name, &save, &failure) < 0 || saver_describe(save, step, lessons, &failure) < 0 ||
        tspool_save_submit(save, &failure) < 0) {
        failed(&failure);
        tspool_save_free(save);
        return;
    }
    if (!saver->first)
        saver->first = save;
    saver->flights[saver->flying++] = (struct flight){ save, step };
}

/* With --background the copy runs while the next gradients are computed; what it copies must not change before it is
 * done. That is the one moment when training may wait, and it waits for memory, not for the disk. */
static void guard(const struct saver *saver)
{
    if (saver->settings->background && saver->flying)
        tspool_save_wait(saver->flights[saver->flying - 1].save, TSPOOL_STAGED, FOREVER);
}

static int saver_open(struct saver *saver, const struct settings *settings)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;

    *saver = (struct saver){ .settings = settings };
    options.root = settings->root;
    options.writer_path = settings->writer;
    return tspool_open(&options, &saver->spool, &failure) < 0 ? failed(&failure) : 0;
}

static void saver_close(struct saver *saver)
{
    saver_reap(saver, FOREVER);
    tspool_save_free(saver->first);
    tspool_close(saver->spool, FOREVER, NULL);
}

/* Resuming -------------------------------------------------------------------------------------------------------- */
/* Every tensor straight into the model's own memory, each byte checked against its digest on the way. */
static int tensors_load(struct tspool_checkpoint *checkpoint, struct model *model, struct tspool_failure *failure)
{
    struct tspool_read_request requests[TENSORS];
    struct entry entries[TENSORS];

    entries_list(model, &model->random, entries);
    for (unsigned i = 0; i < TENSORS; i++) {
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

        requests[i] = (struct tspool_read_request)TSPOOL_READ_REQUEST_INIT;
        if (tspool_checkpoint_find(checkpoint, entries[i].name, &requests[i].tensor) < 0 ||
            tspool_checkpoint_tensor(checkpoint, requests[i].tensor, &info) < 0 || info.dtype != entries[i].dtype ||
            info.bytes != entries[i].bytes) {
            snprintf(failure->message, sizeof failure->message, "the checkpoint's tensor %s does not fit; was it made with "
                     "another --hidden or --text?", entries[i].name);
            return -1;
        }
        requests[i].data = entries[i].data;
        requests[i].bytes = entries[i].bytes;
    }
    return tspool_checkpoint_read(checkpoint, requests, TENSORS, NULL, NULL, failure);
}

static int position_load(struct tspool_checkpoint *checkpoint, struct lessons *lessons, uint64_t *step,
                         struct tspool_failure *failure)
{
    const char *number = tspool_checkpoint_metadata(checkpoint, "step");
    unsigned long long seen = 0;
    char text[64] = "";
    void *place = NULL;
    size_t size = 0;
    int found = 0;

    if (tspool_checkpoint_object_read(checkpoint, "data_position", &place, &size, failure) < 0)
        return -1;
    if (size < sizeof text) {
        memcpy(text, place, size);
        found = sscanf(text, "{\"examples_seen\": %llu}", &seen);
    }
    free(place);
    if (found != 1 || !number) {
        snprintf(failure->message, sizeof failure->message, "the checkpoint does not say where training was");
        return -1;
    }
    lessons->examples_seen = seen;
    *step = strtoull(number, NULL, 10);
    return 0;
}

static int checkpoint_load(const char *path, struct model *model, struct lessons *lessons, uint64_t *step)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;
    int error;

    if (tspool_checkpoint_open(path, NULL, &checkpoint, &failure) < 0)
        return failed(&failure);
    error = tensors_load(checkpoint, model, &failure);
    if (error == 0)
        error = position_load(checkpoint, lessons, step, &failure);
    tspool_checkpoint_close(checkpoint);
    return error < 0 ? failed(&failure) : 0;
}

/* Finds where to start: *step is the last one done, 0 for a fresh run. */
static int start_find(const struct settings *settings, struct model *model, struct lessons *lessons, uint64_t *step)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char *path = NULL;
    int error = tspool_latest(settings->root, &path, &failure);

    *step = 0;
    if (error == -ENOENT) {
        if (settings->resume)
            printf("nothing to resume in %s yet: starting afresh\n", settings->root);
        return 0;
    }
    if (error < 0)
        return failed(&failure);
    if (!settings->resume) {
        fprintf(stderr, "trainer: %s holds checkpoints already; add --resume to go on from them, or choose another --root\n",
                settings->root);
        error = -1;
    } else {
        error = checkpoint_load(path, model, lessons, step);
        if (error == 0)
            printf("resumed from %s\n", path);
    }
    free(path);
    return error;
}

/* Training -------------------------------------------------------------------------------------------------------- */
static void progress_print(uint64_t step, double loss_sum, uint64_t steps, uint64_t began_ns)
{
    printf("step %5llu  loss %.3f  %.1f ms a step\n", (unsigned long long)step, loss_sum / (double)steps,
           (double)(now_ns() - began_ns) * 1e-6 / (double)steps);
    fflush(stdout);
}

static void train(const struct settings *settings, struct model *model, struct lessons *lessons, struct saver *saver,
                  uint64_t step)
{
    const uint8_t *contexts[MODEL_BATCH];
    uint8_t targets[MODEL_BATCH];
    uint64_t printed_step = step, printed_ns = now_ns();
    double loss_sum = 0;

    while (step < settings->steps) {
        step++;
        lessons_next(lessons, contexts, targets);
        loss_sum += (double)model_learn(model, contexts, targets);
        guard(saver);
        model_update(model, step);
        if (step % settings->print_every == 0 || step == settings->steps) {
            progress_print(step, loss_sum, step - printed_step, printed_ns);
            printed_step = step;
            printed_ns = now_ns();
            loss_sum = 0;
        }
        /* Between steps, only a look; after the last one nothing is held up, and that state must not be skipped. */
        saver_reap(saver, step == settings->steps ? FOREVER : 0);
        if (step % settings->save_every == 0 || step == settings->steps)
            saver_save(saver, model, lessons, step);
    }
}

static int run(const struct settings *settings, struct model *model, struct lessons *lessons)
{
    struct saver saver;
    uint64_t step;

    if (start_find(settings, model, lessons, &step) < 0 || saver_open(&saver, settings) < 0)
        return 1;
    printf("%zu parameters, state of %.1f MB, %zu characters of text, step %llu of %llu\n", model->count,
           (double)(3 * model->count * sizeof(float)) * 1e-6, lessons->size, (unsigned long long)step,
           (unsigned long long)settings->steps);
    fflush(stdout);
    saver.published_step = step;
    train(settings, model, lessons, &saver, step);
    saver_close(&saver);
    if (settings->final_digest)
        printf("final digest %016llx\n", (unsigned long long)model_digest(model));
    if (settings->keep)
        printf("to keep only the newest %llu: tspool gc %s --keep %llu\n", (unsigned long long)settings->keep, settings->root,
               (unsigned long long)settings->keep);
    return saver.published_step >= settings->steps ? 0 : 1; /* 1: the last state was not saved */
}

/* Command line ---------------------------------------------------------------------------------------------------- */
static const char usage[] =
    "usage: trainer --root FOLDER [options]\n"
    "Trains a small character model and checkpoints it while it trains.\n\n"
    "  --root FOLDER      where checkpoints go (made if its parent exists)\n"
    "  --resume           go on from the newest checkpoint there\n"
    "  --steps N          stop after step N (600)\n"
    "  --save-every N     a checkpoint every N steps and at the end (50)\n"
    "  --print-every N    a line every N steps (50)\n"
    "  --background       copy the state while the next gradients are computed, not before\n"
    "  --hidden N         hidden units (1024): the state takes about 3 KB for each\n"
    "  --seed N           of the first parameters and of dropout (1)\n"
    "  --text FILE        learn from this text\n"
    "  --keep N           say at the end how to keep only the newest N checkpoints\n"
    "  --final-digest     print a digest of the final state, to compare runs bit for bit\n"
    "  --writer PATH      the tspool-writer program, when it is not installed\n";

/* A whole number from 1 to `most`; anything else ends the program. */
static uint64_t number_take(const char *option, const char *text, uint64_t most)
{
    char *end;
    unsigned long long number;

    errno = 0;
    number = strtoull(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || number < 1 || number > most) {
        fprintf(stderr, "trainer: --%s takes a whole number from 1 to %llu, not \"%s\"\n", option, (unsigned long long)most,
                text);
        exit(2);
    }
    return number;
}

static void settings_take(struct settings *settings, int argc, char **argv)
{
    static const struct option options[] = {
        { "root", required_argument, NULL, 'r' }, { "resume", no_argument, NULL, 'c' }, { "steps", required_argument, NULL, 'n' },
        { "save-every", required_argument, NULL, 's' }, { "print-every", required_argument, NULL, 'p' },
        { "background", no_argument, NULL, 'b' }, { "hidden", required_argument, NULL, 'u' },
        { "seed", required_argument, NULL, 'e' }, { "text", required_argument, NULL, 't' },
        { "keep", required_argument, NULL, 'k' },
        { "final-digest", no_argument, NULL, 'd' }, { "writer", required_argument, NULL, 'w' },
        { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 },
    };
    int option, index = 0;

    while ((option = getopt_long(argc, argv, "h", options, &index)) != -1)
        switch (option) {
        case 'r': settings->root = optarg; break;
        case 'c': settings->resume = true; break;
        case 'n': settings->steps = number_take(options[index].name, optarg, 1u << 24); break; /* Adam counts in floats */
        case 's': settings->save_every = number_take(options[index].name, optarg, INT64_MAX); break;
        case 'p': settings->print_every = number_take(options[index].name, optarg, INT64_MAX); break;
        case 'b': settings->background = true; break;
        case 'u': settings->hidden = (uint32_t)number_take(options[index].name, optarg, 10000000); break;
        case 'e': settings->seed = number_take(options[index].name, optarg, INT64_MAX); break;
        case 't': settings->text = optarg; break;
        case 'k': settings->keep = number_take(options[index].name, optarg, INT64_MAX); break;
        case 'd': settings->final_digest = true; break;
        case 'w': settings->writer = optarg; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs("Try 'trainer --help'.\n", stderr); exit(2);
        }
    if (!settings->root || optind < argc) {
        fputs(usage, stderr);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct settings settings = { .text = EXAMPLE_TEXT, .steps = 600, .save_every = 50, .print_every = 50, .seed = 1,
                                 .hidden = 1024 };
    struct lessons lessons;
    struct model model;
    int status;

    settings_take(&settings, argc, argv);
    if (mkdir(settings.root, 0777) < 0 && errno != EEXIST) {
        fprintf(stderr, "trainer: cannot make %s: %s\n", settings.root, strerror(errno));
        return 1;
    }
    if (lessons_read(&lessons, settings.text) < 0)
        return 1;
    if (model_init(&model, lessons.alphabet, settings.hidden, settings.seed) < 0) {
        fprintf(stderr, "trainer: no memory for %u hidden units\n", settings.hidden);
        free(lessons.symbols);
        return 1;
    }
    status = run(&settings, &model, &lessons);
    model_deinit(&model);
    free(lessons.symbols);
    return status;
}
