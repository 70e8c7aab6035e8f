/* bench/contest.c - see contest.h. Contestants of ours are trainers with warm arenas that measure on command; fio is run anew. */
#include "contest.h"
#include "rank.h"
#include "state.h"
#include "trust.h"
#include "workspace.h"

#include "../commands/command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int contest_init(struct contest *contest, uint64_t rounds, const char *what, bool shows_progress)
{
    *contest = (struct contest){ .rounds = rounds, .what = what, .shows_progress = shows_progress };
    contest->contestants = calloc(CONTESTANTS_MAX, sizeof *contest->contestants);
    return contest->contestants ? 0 : -1;
}

void contest_deinit(struct contest *contest)
{
    for (unsigned i = 0; i < contest->count; i++)
        job_drop(&contest->contestants[i].job);
    free(contest->contestants);
    *contest = (struct contest){ 0 };
}

struct contestant *contest_add(struct contest *contest, const struct job *job, const char *name)
{
    struct contestant *added = contest->count < CONTESTANTS_MAX ? &contest->contestants[contest->count] : NULL;

    if (!added || job_inherit(&added->job, job, job->name) < 0)
        return NULL;
    snprintf(added->name, sizeof added->name, "%s", name);
    contest->count++;
    return added;
}

/* Beginning and end ---------------------------------------------------------------------------------------------------- */

static int bytes_find(struct contestant *contestant, struct complaint *complaint)
{
    struct shape shape;

    contestant->state_bytes = contestant->job.size;
    if (job_is_plain(&contestant->job))
        return 0;
    if (!contestant->job.shape)
        return complaint_set(complaint, "--compare needs shape=: fio cannot read a checkpoint");
    if (shape_make(&contestant->job, 0, &shape, complaint) < 0)
        return -1;
    contestant->state_bytes = shape.bytes;
    shape_free(&shape);
    return 0;
}

static int contestant_begin(struct contestant *contestant, struct complaint *complaint)
{
    int error;

    if (job_check(&contestant->job, complaint) < 0 || bytes_find(contestant, complaint) < 0)
        return -1;
    if (contestant->job.filename)
        return complaint_set(complaint, "--compare works in files of its own: give directory=, not filename=");
    if (workspace_make(contestant->job.directory, contestant->root, complaint) < 0 ||
        space_check(contestant->root, 2 * contestant->state_bytes * contestant->job.numjobs, complaint) < 0)
        return -1;
    if (contestant->is_fio)
        return 0;
    if (job_is_plain(&contestant->job))
        contestant->job.end_fsync = true; /* in every clock */
    error = crew_start(&contestant->crew, &contestant->job, contestant->root, rank_serve);
    return error < 0 ? complaint_set(complaint, "%s: no process could be started: %s", contestant->name, strerror(-error)) : 0;
}

static void contest_end(struct contest *contest)
{
    for (unsigned i = 0; i < contest->count; i++)
        if (contest->contestants[i].crew.shared)
            crew_dismiss(&contest->contestants[i].crew);
    for (unsigned i = 0; i < contest->count; i++) {
        if (contest->contestants[i].crew.shared)
            crew_join(&contest->contestants[i].crew);
        crew_destroy(&contest->contestants[i].crew);
        if (*contest->contestants[i].root)
            directory_remove(contest->contestants[i].root);
    }
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) /* writers that lost their rank */
        ;
}

/* Rounds --------------------------------------------------------------------------------------------------------------- */

static int crew_complain(const struct contestant *contestant, struct complaint *complaint)
{
    for (unsigned i = 0; i < contestant->job.numjobs; i++)
        if (contestant->crew.shared->outcomes[i].error)
            return complaint_set(complaint, "%s: %.400s", contestant->name, contestant->crew.shared->outcomes[i].message);
    return complaint_set(complaint, "%s: its process ended", contestant->name);
}

static int crew_round(struct contestant *contestant, uint32_t number, double *seconds, double *stall, struct complaint *complaint)
{
    const struct crew_shared *shared = contestant->crew.shared;
    uint64_t wall_ns = 0, stall_ns = 0;

    if (crew_order(&contestant->crew) < 0)
        return interrupted() ? -EINTR : crew_complain(contestant, complaint);
    contestant->bytes = 0;
    for (unsigned i = 0; i < contestant->job.numjobs; i++) {
        const struct round *round = &shared->outcomes[i].rounds[number];

        wall_ns = round->wall_ns > wall_ns ? round->wall_ns : wall_ns;
        stall_ns = round->stall_ns > stall_ns ? round->stall_ns : stall_ns;
        contestant->bytes += round->bytes;
    }
    contestant->is_direct = shared->outcomes[0].is_direct;
    memcpy(contestant->backend, shared->outcomes[0].backend, sizeof contestant->backend);
    *seconds = (double)wall_ns / 1e9;
    *stall = (double)stall_ns / 1e9;
    return 0;
}

static int fio_round(struct contestant *contestant, double *seconds, double *stall, struct complaint *complaint)
{
    char path[4200];
    int fd = open(contestant->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC), status;

    snprintf(path, sizeof path, contestant->job.numjobs > 1 ? "%s" : "%s/fio.data", contestant->root);
    if (!job_is_reading(&contestant->job) && contestant->job.numjobs == 1)
        unlink(path);
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
    memory_prime(contestant->job.prime);
    status = fio_measure(&contestant->job, contestant->fio_kind, path, contestant->state_bytes, seconds, &contestant->bytes,
                         complaint);
    contestant->is_direct = contestant->fio_kind == FIO_TUNED;
    snprintf(contestant->backend, sizeof contestant->backend, "%s", contestant->fio_kind == FIO_TUNED ? "io_uring" : "psync");
    *stall = *seconds;
    return interrupted() ? -EINTR : status;
}

static int one_round(struct contest *contest, unsigned who, uint32_t number, bool counts, struct complaint *complaint)
{
    struct contestant *contestant = &contest->contestants[who];
    double seconds = 0, stall = 0;
    int status = contestant->is_fio ? fio_round(contestant, &seconds, &stall, complaint)
                                    : crew_round(contestant, number, &seconds, &stall, complaint);

    contest->own_bytes += contestant->bytes;
    if (status < 0 || !counts)
        return status;
    contestant->seconds[contest->rounds_done] = seconds;
    contestant->stall[contest->rounds_done] = stall;
    contestant->pace[contest->rounds_done] = contestant->bytes ? seconds / ((double)contestant->bytes / (1 << 30)) : 0;
    return 0;
}

static void shuffle(unsigned *order, unsigned count, uint64_t *seed)
{
    for (unsigned i = count; i > 1; i--) {
        unsigned j, kept;

        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        j = (unsigned)((*seed >> 33) % i);
        kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

static void progress_line(const struct contest *contest)
{
    if (contest->shows_progress)
        fprintf(stderr, "\r%s: round %llu of %llu\033[K", contest->what, (unsigned long long)contest->rounds_done + 1,
                (unsigned long long)contest->rounds);
}

static int rounds_run(struct contest *contest, struct complaint *complaint)
{
    uint64_t seed = contest->contestants[0].job.seed;
    unsigned order[CONTESTANTS_MAX];
    int status = 0;

    for (unsigned i = 0; i < contest->count; i++)
        order[i] = i;
    for (unsigned i = 0; i < contest->count && status == 0; i++) /* populates what is left, and is not counted */
        status = one_round(contest, i, 0, false, complaint);
    for (uint32_t number = 1; contest->rounds_done < contest->rounds && status == 0; number++) {
        progress_line(contest);
        shuffle(order, contest->count, &seed);
        for (unsigned i = 0; i < contest->count && status == 0; i++)
            status = one_round(contest, order[i], number, true, complaint);
        contest->rounds_done += status == 0;
    }
    if (contest->shows_progress)
        fprintf(stderr, "\r\033[K");
    return status;
}

void contest_doubts_put(FILE *out, const struct contest *contest)
{
    if (!*contest->device.name)
        fprintf(out, "Not to be trusted: there is no block device beneath %s.\n",
                *contest->device.filesystem ? contest->device.filesystem : "the directory");
    if (contest->foreign_cpu > TRUST_FOREIGN_CPU)
        fprintf(out, "Not to be trusted: other work took %.0f %% of the machine's CPU time meanwhile.\n",
                100 * contest->foreign_cpu);
    if ((double)contest->foreign_bytes > TRUST_FOREIGN_DISK * (double)contest->own_bytes)
        fprintf(out, "Not to be trusted: others read and wrote %s on %s meanwhile, beside our %s.\n",
                human_bytes(contest->foreign_bytes).bytes, contest->device.disk, human_bytes(contest->own_bytes).bytes);
}

static void others_note(struct contest *contest, const struct cpu_clock *clock, const struct disk_load *load)
{
    struct disk_load after, between;
    struct cpu_clock now;

    cpu_clock_read(&now);
    contest->foreign_cpu = cpu_foreign(clock, &now, 0);
    if (!disk_load_read(&contest->device, &after))
        return;
    between = disk_load_between(load, &after);
    between.written_bytes += between.read_bytes;
    contest->foreign_bytes = between.written_bytes > contest->own_bytes ? between.written_bytes - contest->own_bytes : 0;
}

int contest_run(struct contest *contest, struct complaint *complaint)
{
    struct disk_load load = { 0 };
    struct cpu_clock clock;
    int status = 0;

    if (contest->rounds > STATS_ROUNDS_MAX || contest->rounds >= ROUNDS_KEPT)
        return complaint_set(complaint, "--rounds is above %u", STATS_ROUNDS_MAX);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (unsigned i = 0; i < contest->count && status == 0; i++)
        status = contestant_begin(&contest->contestants[i], complaint);
    if (status == 0) {
        device_look(contest->contestants[0].root, &contest->device);
        disk_load_read(&contest->device, &load);
        cpu_clock_read(&clock);
        status = rounds_run(contest, complaint);
    }
    contest_end(contest); /* before the CPU is looked at: what has not ended is not counted as ours */
    if (status == 0)
        others_note(contest, &clock, &load);
    return status;
}
