/* support/sim_pair.c - one run: the world, the trainer's process in it, and steps until nothing more can happen.
 *
 * The trainer's structs are put together here as spool_open does it; what blocks or starts threads there is simulated.
 */
#include "sim_pair_inside.h"

#include <base/checked.h>
#include <base/names.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <tspool/version.h>
#include <unistd.h>

#define S ((uint64_t)1000000000)
#define HEARTBEAT_NS S
#define LONGEST_NS (600 * S)     /* of virtual time: no story may last so long */
#define STEPS_MAX 400000u
#define EXCLUSIVE_NS 2000u       /* while a thread can run the world does not run far ahead of it */

static char broken_text[1024];

void pair_broken(struct sim_pair *pair, const char *rule, const char *what, ...)
{
    int length;
    va_list arguments;

    if (broken_text[0])
        return;
    length = snprintf(broken_text, sizeof(broken_text), "%s: ", rule);
    va_start(arguments, what);
    vsnprintf(broken_text + length, sizeof(broken_text) - (size_t)length, what, arguments);
    va_end(arguments);
}

bool pair_is_broken(const struct sim_pair *pair) { return broken_text[0] || sim_world_violation(pair->world); }

/* The trainer -------------------------------------------------------------------------------------------------------- */

static struct sim_pair *playing; /* wakes and released slots have no context */

static void wake_raise(struct wake *wake)
{
    if (!playing->trainer_dead)
        sim_event_raise(playing->trainer, wake->handle);
}

static void wake_clear(struct wake *wake)
{
    if (!sim_io_is_dead(playing->trainer))
        sim_event_clear(playing->trainer, wake->handle);
}

void __real_arena_release(struct arena *arena, uint32_t slot);
void __wrap_arena_release(struct arena *arena, uint32_t slot);
void __real_arena_destroy(struct arena *arena);
void __wrap_arena_destroy(struct arena *arena);
int __real_close(int fd);
int __wrap_close(int fd);

void __wrap_arena_release(struct arena *arena, uint32_t slot)
{
    if (playing && playing->spool)
        judge_released(playing, slot);
    __real_arena_release(arena, slot);
}

/* What the trainer closes by itself, without an io. */
int __wrap_close(int fd)
{
    if (!playing || fd < SIM_HANDLE_FIRST)
        return __real_close(fd);
    if (!playing->trainer_dead)
        sim_close(playing->trainer, fd);
    return 0;
}

/* Arenas are kept for the next run. */
void __wrap_arena_destroy(struct arena *arena)
{
    if (!playing)
        __real_arena_destroy(arena);
}

static struct supervisor_settings supervisor_settings_of(const struct sim_pair *pair)
{
    const struct story *story = &pair->story;
    struct supervisor_settings settings = {
        .start_timeout_ns = S, .heartbeat_ns = HEARTBEAT_NS, .arena_fd = pair->arena_handle, .root_fd = pair->root_handle,
        .trainer_pidfd = pair->self_handle, .cpus_are_few = story->cpus_are_few,
        .hello = { .version = TSPOOL_VERSION, .arena_bytes = arena_bytes(pair->arena), .chunk_bytes = CHUNK_BYTES,
                   .heartbeat_ns = HEARTBEAT_NS, .item_bytes = 4096, .depth = story->depth, .hash_threads = story->hash_threads,
                   .world_size = 1, .buffered = story->buffered },
    };

    return settings;
}

/* Names are looked for in the file system's root, where none of them is: the writer finds out. */
static struct tspool *spool_make(struct sim_pair *pair)
{
    struct tspool *spool = calloc(1, sizeof(*spool));

    if (!spool || roster_init(&spool->roster, NULL))
        abort();
    wake_deinit(&spool->roster.wake);
    spool->roster.wake = (struct wake){ sim_event(pair->trainer), wake_raise, wake_clear };
    spool->has_roster = true;
    spool->owner = getpid();
    spool->options = (struct tspool_options){ .shard_bytes = pair->story.shard_bytes, .world_size = 1 };
    spool->root_fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    spool->self_pidfd = -1;
    spool->arena = pair->arena;
    pthread_mutex_init(&spool->submitting, NULL);
    return spool;
}

static void trainer_check_death(struct sim_pair *pair)
{
    if (pair->trainer_dead || pair->trainer_over || !sim_io_is_dead(pair->trainer))
        return;
    judge_death(pair);
    pair->trainer_dead = true;
    pair->report.trainer_died = true;
}

/* The thread "tspool-super" as far as those who join it can tell; its machine is stepped from the loop below. */
static void *supervisor_main(void *argument)
{
    struct sim_pair *pair = argument;

    while (!pair->spool->supervisor.done && !pair->trainer_dead)
        sim_thread_await(&pair->supervisor_over);
    pair->supervisor_over = true;
    io_destroy(pair->trainer);
    trainer_check_death(pair); /* at the very end */
    supervisor_deinit(&pair->spool->supervisor);
    return NULL;
}

void pair_supervise(struct sim_pair *pair, const struct completion *completion)
{
    struct supervisor *supervisor = &pair->spool->supervisor;

    if (pair->supervisor_over || supervisor->done)
        return;
    supervisor_step(supervisor, completion);
    if (supervisor->done)
        sim_threads_raise(pair->threads, &pair->supervisor_over);
    judge_saves(pair);
}

static void trainer_start(struct sim_pair *pair)
{
    const struct supervisor_settings settings = supervisor_settings_of(pair);
    struct tspool *spool = pair->spool = spool_make(pair);

    pair->trainer_handles = sim_handles(pair->trainer);
    if (stager_init(&spool->stager, &spool->roster, pair->arena, pair->story.staging_threads, NULL, NULL))
        abort();
    supervisor_init(&spool->supervisor, pair->trainer, &spool->roster, &pair->launcher.launcher, &settings);
    pair->supervisor_thread = sim_thread_start(pair->threads, supervisor_main, pair);
    spool->supervisor_thread = (pthread_t)pair->supervisor_thread;
    spool->has_supervisor = true;
    spool->roster.want_writer = true;
    pair->program = sim_thread_start(pair->threads, program_main, pair);
    pair_supervise(pair, NULL);
}

/* A dead process has no threads: these only free what they hold, and reach nobody. */
static void trainer_bury(struct sim_pair *pair)
{
    struct roster *roster;

    if (pair->trainer_over)
        return;
    pair->trainer_dead = true;
    if (pair->spool) {
        roster = &pair->spool->roster;
        pthread_mutex_lock(&roster->lock);
        roster->broken = true;
        for (struct tspool_save *save = roster->first; save; save = save->next_active)
            save_stop_staging(save);
        pthread_mutex_unlock(&roster->lock);
    }
    sim_threads_hasten(pair->threads);
    while (sim_threads_run(pair->threads))
        ;
}

/* Beginning ---------------------------------------------------------------------------------------------------------- */

static void pair_look(struct sim_world *world, const struct sim_seen *seen, void *context)
{
    judge_look(context, seen);
}

static void fault_plant(struct sim_pair *pair, const struct story_fault *fault)
{
    struct sim_fault planted = { .on = { .process = fault->process }, .ordinal = fault->ordinal };

    switch (fault->kind) {
    case STORY_OP: planted = fault->fault; break;
    case STORY_WRITER_KILLED:
    case STORY_TRAINER_KILLED: planted.action = SIM_KILL; break;
    case STORY_POWER_CUT: planted.action = SIM_POWER_CUT; break;
    case STORY_WRITER_STUCK: planted.action = SIM_DELAY, planted.delay_ns = 15 * S; break;
    case STORY_DISK_FULL: sim_disk_leave_free(sim_world_disk(pair->world), fault->bytes); return;
    default: return; /* see writer_signals, start_is_refused, and the settings of the world */
    }
    sim_world_fault(pair->world, &planted);
}

static void world_make(struct sim_pair *pair)
{
    struct sim_settings settings = pair->story.world;

    settings.trace = pair->options->trace;
    if (story_has(&pair->story, STORY_SHORT))
        settings.short_writes_per_mille = settings.short_reads_per_mille = 200;
    pair->world = sim_world_create(&settings, stage_disk(&settings.disk));
    for (unsigned i = 0; i < pair->story.fault_count; i++)
        if (story_strikes(&pair->story, i))
            fault_plant(pair, &pair->story.faults[i]);
    sim_world_observe(pair->world, pair_look, pair);
    pair->trainer = sim_io_create(pair->world, "trainer", 0);
    pair->arena = stage_arena(pair->story.slots);
    pair->arena_handle = sim_memory_of(pair->trainer, arena_slot(pair->arena, 0), arena_bytes(pair->arena));
    pair->root_handle = sim_open(pair->trainer, PAIR_ROOT);
    pair->self_handle = sim_process(pair->trainer, pair->trainer);
}

static void saves_make(struct sim_pair *pair)
{
    pair->old = stage_state(0);
    for (unsigned i = 0; i < pair->story.save_count; i++) {
        pair->saves[i].story = &pair->story.saves[i];
        pair->saves[i].state = stage_state(1 + i);
        memset(pair->saves[i].save_id, (int)(0xa0 + i), sizeof(pair->saves[i].save_id));
    }
}

/* Steps -------------------------------------------------------------------------------------------------------------- */

/* Hangs and SIGTERMs strike the writer that lives when so many ops of writers took effect. */
static void writer_signals(struct sim_pair *pair, uint64_t before)
{
    for (unsigned i = 0; i < pair->story.fault_count; i++) {
        const struct story_fault *fault = &pair->story.faults[i];

        if (!story_strikes(&pair->story, i) || fault->ordinal <= before || fault->ordinal > pair->writer_ops_seen)
            continue;
        for (struct pair_writer *writer = pair->writers; writer; writer = writer->next) {
            if (!writer->gone && fault->kind == STORY_WRITER_HANGS)
                writer->frozen = true;
            if (!writer->gone && fault->kind == STORY_WRITER_TERMED)
                sim_event_raise(writer->io, writer->term);
        }
    }
}

static uint64_t deadline_of(const struct sim_pair *pair)
{
    uint64_t deadline = writers_deadline(pair);

    if (pair->trainer_dead)
        return deadline;
    if (sim_threads_can_run(pair->threads))
        deadline = min_u64(deadline, sim_world_now(pair->world) + EXCLUSIVE_NS);
    return min_u64(deadline, sim_threads_deadline(pair->threads));
}

/* One thread until it gives way, or one completion, or the next deadline. False when nothing more can happen. */
static bool pair_step(struct sim_pair *pair)
{
    uint64_t ops_before = pair->writer_ops_seen;
    struct completion completion;
    struct io *io;
    int result;

    if (!pair->trainer_dead && sim_random_below(&pair->random, 2))
        sim_threads_run(pair->threads);
    result = sim_world_next(pair->world, deadline_of(pair), &io, &completion);
    trainer_check_death(pair);
    writer_signals(pair, ops_before);
    if (result == 1 && !writers_take(pair, io, &completion) && !sim_io_is_dead(pair->trainer) && pair->spool)
        pair_supervise(pair, &completion);
    writers_due(pair);
    writers_bury(pair);
    return result >= 0;
}

static bool is_over(const struct sim_pair *pair)
{
    return (pair->trainer_dead || pair->trainer_over) && writers_are_gone(pair);
}

static void pair_hangs(struct sim_pair *pair, const char *how)
{
    char state[700] = "";
    FILE *out = fmemopen(state, sizeof(state), "w");

    judge_describe(pair, out);
    fclose(out);
    pair_broken(pair, "nothing hangs", "%s%s", how, state);
}

static void pair_play(struct sim_pair *pair)
{
    uint64_t began = sim_world_now(pair->world);

    while (!is_over(pair) && !pair_is_broken(pair) && pair_step(pair)) {
        if (++pair->report.steps > STEPS_MAX || sim_world_now(pair->world) > began + LONGEST_NS) {
            pair_hangs(pair, "it goes on and on");
            break;
        }
    }
    pair->report.virtual_ns = sim_world_now(pair->world) - began;
    pair->report.power_cut = pair->world->power_cut;
    if (!is_over(pair) && !pair->report.power_cut)
        pair_hangs(pair, pair->trainer_dead || pair->trainer_over ? "the writer waits for what can never happen"
                                                                  : "the trainer waits for what can never happen");
}

static int lowest_descriptor(void)
{
    int fd = open("/", O_PATH | O_CLOEXEC);

    close(fd);
    return fd;
}

static void pair_run(struct sim_pair *pair)
{
    int lowest;

    playing = pair;
    saves_make(pair);
    world_make(pair);
    lowest = lowest_descriptor();
    writers_init(pair);
    judge_begin(pair);
    pair->threads = sim_threads_create(pair->world, pair->story.seed);
    sim_threads_enter(pair->threads);
    trainer_start(pair);
    pair_play(pair);
    judge_end(pair);
    writers_end(pair);
    trainer_bury(pair);
    sim_threads_leave();
    sim_threads_destroy(pair->threads);
    playing = NULL;
    if (lowest_descriptor() != lowest)
        pair_broken(pair, "no handle leaks", "a descriptor of the trainer's process stays open");
}

const char *sim_pair_run(uint64_t seed, const struct sim_pair_options *options)
{
    static const struct sim_pair_options none;
    struct sim_pair *pair = calloc(1, sizeof(*pair));

    if (!pair)
        abort();
    broken_text[0] = '\0';
    pair->options = options ? options : &none;
    story_make(&pair->story, seed);
    pair->story.left_out = pair->options->left_out;
    pair->random.state = sim_mix(seed ^ 0x70616972u);
    pair_run(pair);
    if (sim_world_violation(pair->world))
        pair_broken(pair, "the machines keep the world's rules", "%s", sim_world_violation(pair->world));
    if (pair->options->trace)
        pair->report.trace = strdup(sim_world_trace(pair->world));
    sim_world_destroy(pair->world);
    if (pair->options->report)
        *pair->options->report = pair->report;
    free(pair);
    return broken_text[0] ? broken_text : NULL;
}

uint32_t sim_pair_shrink(uint64_t seed)
{
    struct sim_pair_options options = { 0 };
    bool smaller = true;

    while (smaller) {
        smaller = false;
        for (unsigned i = 0; i < STORY_FAULTS_MAX; i++) {
            struct sim_pair_options tried = { .left_out = options.left_out | 1u << i };

            if (tried.left_out == options.left_out || !sim_pair_run(seed, &tried))
                continue;
            options = tried;
            smaller = true;
        }
    }
    return options.left_out;
}
