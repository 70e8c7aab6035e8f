/* support/sim_party.c - see sim_party.h. */
#include "sim_party.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define STACK_BYTES (512u << 10)

static struct sim_party *party_of(struct io *io) { return (struct sim_party *)((char *)io - offsetof(struct sim_party, io)); }

static int party_submit(struct io *io, struct op *op) { return io_submit(party_of(io)->inner, op); }

static int party_wait(struct io *io, struct completion *completions, unsigned capacity, uint64_t deadline_ns)
{
    struct sim_party *party = party_of(io);

    while (!party->has_mail && !party->is_ending)
        swapcontext(&party->here, &party->driver);
    if (!party->has_mail)
        return -ESHUTDOWN;
    *completions = party->mail;
    party->has_mail = false;
    return 1;
}

static uint64_t party_now(struct io *io) { return io_now(party_of(io)->inner); }

static void party_random(struct io *io, void *bytes, size_t size) { io_random(party_of(io)->inner, bytes, size); }

static const struct io_ops party_ops = { .submit = party_submit, .wait = party_wait, .now = party_now, .random = party_random };

/* makecontext passes ints only. */
static void party_main(unsigned high, unsigned low)
{
    struct sim_party *party = (struct sim_party *)(uintptr_t)((uint64_t)high << 32 | low);

    party->result = party->run(&party->io, party->argument);
    party->done = true;
}

static void party_resume(struct sim_party *party) { swapcontext(&party->driver, &party->here); }

void sim_party_start(struct sim_party *party, struct sim_world *world, const char *name, int (*run)(struct io *io, void *argument),
                     void *argument)
{
    uint64_t self = (uint64_t)(uintptr_t)party;

    memset(party, 0, sizeof(*party));
    party->io = (struct io){ .ops = &party_ops, .backend = "simulated" };
    party->inner = sim_io_create(world, name, 4);
    party->run = run;
    party->argument = argument;
    if (!(party->stack = malloc(STACK_BYTES)) || getcontext(&party->here))
        abort();
    party->here.uc_stack.ss_sp = party->stack;
    party->here.uc_stack.ss_size = STACK_BYTES;
    party->here.uc_link = &party->driver;
    makecontext(&party->here, (void (*)(void))party_main, 2, (unsigned)(self >> 32), (unsigned)self);
    party_resume(party);
}

void sim_party_take(struct sim_party *party, const struct completion *completion)
{
    party->mail = *completion;
    party->has_mail = true;
    party_resume(party);
}

void sim_parties_run(struct sim_world *world, struct sim_party *parties, unsigned count)
{
    struct completion completion;
    struct io *io;

    while (sim_world_next(world, IO_FOREVER, &io, &completion) > 0)
        for (unsigned i = 0; i < count; i++)
            if (parties[i].inner == io && !parties[i].done)
                sim_party_take(&parties[i], &completion);
}

bool sim_party_scene_step(struct sim_party *party, struct scene *scene)
{
    bool running = !writer_finished(scene->writer);
    struct completion completion;
    struct io *io;
    int result = sim_world_next(scene->world, running ? writer_deadline(scene->writer) : IO_FOREVER, &io, &completion);

    if (result < 0)
        return false;
    if (result == 0 || io == scene->writer_io)
        writer_step(scene->writer, result ? &completion : NULL);
    else if (io == scene->trainer_io)
        sim_trainer_step(&scene->trainer, &completion);
    else
        sim_party_take(party, &completion);
    return true;
}

void sim_party_end(struct sim_party *party)
{
    sim_io_kill(party->inner); /* from here on every op is refused: it unwinds, and changes nothing */
    party->is_ending = true;
    if (!party->done)
        party_resume(party);
    io_destroy(party->inner);
    free(party->stack);
}
