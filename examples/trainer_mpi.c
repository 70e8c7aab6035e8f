/* trainer_mpi.c - one model sharded over several ranks, which save one checkpoint together: MPI, and nothing else of it matters.
 *
 *     mpirun -n 4 ./trainer_mpi --root /tmp/run              trains; a checkpoint every 20 steps
 *     mpirun -n 4 ./trainer_mpi --root /tmp/run --resume     goes on from the newest whole checkpoint
 *
 * The model is a table of weights that learns to equal a known one. Each rank owns some of its rows (sharded); all ranks have the
 * learning rate's state (replicated). What this file shows is how ranks save together:
 *
 *     opening      tspool_open with rank and world_size: each rank has its own spool, arena and writer
 *     one id       rank 0: tspool_save_id; broadcast
 *     saving       each rank: tspool_save_begin with that id, its shard with its place in the whole tensor, _submit, _wait DURABLE
 *     publishing   all ranks durable? then one of them: tspool_publish
 *     resuming     tspool_latest on rank 0, broadcast; each rank reads its rows, out of whichever files have them
 *
 * A run may be resumed by another number of ranks: rows are found by their place, not by who saved them.
 */
#include <getopt.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <tspool/tspool.h>

#define ROWS 96u
#define COLUMNS 256u
#define FOREVER UINT64_MAX

struct job {
    const char *root, *writer;
    unsigned long long steps, save_every;
    bool resume;
    int rank, ranks;
    uint64_t first_row, row_count;
    float *rows;                 /* this rank's */
    float momentum[COLUMNS];     /* the same on all */
    unsigned long long step;
    struct tspool *spool;
};

static int failed(const struct job *job, const struct tspool_failure *failure)
{
    fprintf(stderr, "rank %d: %s\n", job->rank, failure->message);
    return -1;
}

/* A failure of one is a failure of all: nobody may wait for who has given up. */
static bool all_are_well(int error)
{
    int mine = error < 0, worst = 0;

    MPI_Allreduce(&mine, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    return worst == 0;
}

/* The model ----------------------------------------------------------------------------------------------------------- */

static float goal_at(uint64_t row, uint64_t column) { return (float)((row * 31 + column * 17) % 101) / 101.0f; }

static int model_init(struct job *job)
{
    job->first_row = ROWS * (uint64_t)job->rank / (uint64_t)job->ranks;
    job->row_count = ROWS * (uint64_t)(job->rank + 1) / (uint64_t)job->ranks - job->first_row;
    job->rows = calloc(job->row_count * COLUMNS + 1, sizeof(float));
    return job->rows ? 0 : -1;
}

/* One step; the loss of the whole model, which every rank knows. Every rank has the same momentum: it comes out of a sum. */
static double model_step(struct job *job)
{
    float mine[COLUMNS] = { 0 }, all[COLUMNS];
    double loss = 0, sum = 0;

    for (uint64_t i = 0; i < job->row_count * COLUMNS; i++) {
        float error = goal_at(job->first_row + i / COLUMNS, i % COLUMNS) - job->rows[i];

        mine[i % COLUMNS] += error;
        loss += (double)error * (double)error;
        job->rows[i] += 0.1f * error + 0.001f * job->momentum[i % COLUMNS];
    }
    MPI_Allreduce(mine, all, COLUMNS, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(&loss, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (unsigned i = 0; i < COLUMNS; i++)
        job->momentum[i] = 0.9f * job->momentum[i] + all[i] / ROWS;
    job->step++;
    return sum / (ROWS * COLUMNS);
}

/* Saving ---------------------------------------------------------------------------------------------------------------- */

static int declare(struct job *job, struct tspool_save *save, struct tspool_failure *failure)
{
    const uint64_t shape[2] = { job->row_count, COLUMNS }, whole[2] = { ROWS, COLUMNS }, place[2] = { job->first_row, 0 };
    const uint64_t columns[1] = { COLUMNS };
    struct tspool_tensor weight = TSPOOL_TENSOR_INIT, momentum = TSPOOL_TENSOR_INIT;
    char step[32];

    snprintf(step, sizeof step, "%llu", job->step);
    weight.name = "weight";
    weight.dtype = momentum.dtype = TSPOOL_F32;
    weight.rank = 2;
    weight.shape = shape;
    weight.data = job->rows;
    weight.global_shape = whole;    /* a shard: its place in the whole */
    weight.global_offsets = place;
    momentum.name = "momentum";
    momentum.rank = 1;
    momentum.shape = columns;
    momentum.data = job->momentum;
    if (tspool_save_add(save, &weight, failure) < 0)
        return -1;
    if (job->rank == 0 && tspool_save_add(save, &momentum, failure) < 0) /* once is enough: all have the same */
        return -1;
    return tspool_save_metadata(save, "step", step, failure);
}

/* This rank's part: durable when it returns 0. */
static int part_save(struct job *job, const char *name, const uint8_t id[TSPOOL_SAVE_ID_BYTES], struct tspool_failure *failure)
{
    struct tspool_save_options options = TSPOOL_SAVE_OPTIONS_INIT;
    struct tspool_save_result result = TSPOOL_SAVE_RESULT_INIT;
    struct tspool_save *save = NULL;
    int error;

    options.save_id = id;
    options.replace = job->resume; /* steps that are done again give the same checkpoint again */
    error = tspool_save_begin(job->spool, name, &options, &save, failure);
    if (error == 0)
        error = declare(job, save, failure);
    if (error == 0)
        error = tspool_save_submit(save, failure); /* STAGED: the rows may change; here we wait on, for the example's sake */
    if (error == 0 && (error = tspool_save_wait(save, TSPOOL_DURABLE, FOREVER)) < 0) {
        tspool_save_result(save, &result);
        *failure = result.failure;
    }
    tspool_save_free(save);
    return error;
}

/* Training goes on without a checkpoint that cannot be had. */
static int checkpoint_save(struct job *job)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    uint8_t id[TSPOOL_SAVE_ID_BYTES];
    char name[32];
    int error;

    snprintf(name, sizeof name, "step-%08llu", job->step);
    if (job->rank == 0)
        tspool_save_id(job->spool, id);
    MPI_Bcast(id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    if ((error = part_save(job, name, id, &failure)) < 0)
        failed(job, &failure);
    if (!all_are_well(error)) /* also the barrier: every part is durable after it */
        return -1;
    if (job->rank == 0 && (error = tspool_publish(job->root, name, id, (uint32_t)job->ranks, &failure)) < 0)
        failed(job, &failure);
    if (!all_are_well(error))
        return -1;
    if (job->rank == 0)
        printf("checkpoint %s published by %d ranks\n", name, job->ranks);
    return 0;
}

/* Resuming --------------------------------------------------------------------------------------------------------------- */

/* What entry `index` has of our rows, into its place. */
static int rows_read(struct job *job, struct tspool_checkpoint *checkpoint, size_t index, const struct tspool_tensor_info *info,
                     struct tspool_failure *failure)
{
    uint64_t end = job->first_row + job->row_count, its_end = info->global_offsets[0] + info->shape[0];
    uint64_t from = job->first_row > info->global_offsets[0] ? job->first_row : info->global_offsets[0];
    uint64_t to = end < its_end ? end : its_end, start[2] = { 0, 0 }, extent[2] = { 0, COLUMNS };
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;

    if (from >= to)
        return 0;
    start[0] = from - info->global_offsets[0];
    extent[0] = to - from;
    request.tensor = index;
    request.start = start;
    request.extent = extent;
    request.data = job->rows + (from - job->first_row) * COLUMNS;
    request.bytes = extent[0] * COLUMNS * sizeof(float);
    return tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, failure);
}

static int momentum_read(struct job *job, struct tspool_checkpoint *checkpoint, size_t index, struct tspool_failure *failure)
{
    struct tspool_read_request request = TSPOOL_READ_REQUEST_INIT;

    request.tensor = index;
    request.data = job->momentum;
    request.bytes = sizeof job->momentum;
    return tspool_checkpoint_read(checkpoint, &request, 1, NULL, NULL, failure);
}

/* Every shard of every rank that saved is an entry of its own, under the one name. */
static int entries_read(struct job *job, struct tspool_checkpoint *checkpoint, struct tspool_failure *failure)
{
    int error = 0;

    for (size_t i = 0; i < tspool_checkpoint_count(checkpoint) && error == 0; i++) {
        struct tspool_tensor_info info = TSPOOL_TENSOR_INFO_INIT;

        tspool_checkpoint_tensor(checkpoint, i, &info);
        if (strcmp(info.name, "weight") == 0 && info.rank == 2 && info.shape[1] == COLUMNS && info.global_offsets)
            error = rows_read(job, checkpoint, i, &info, failure);
        else if (strcmp(info.name, "momentum") == 0)
            error = momentum_read(job, checkpoint, i, failure);
    }
    return error;
}

static int checkpoint_load(struct job *job, const char *path)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct tspool_checkpoint *checkpoint;
    const char *step;
    int error = tspool_checkpoint_open(path, NULL, &checkpoint, &failure);

    if (error < 0)
        return failed(job, &failure);
    error = entries_read(job, checkpoint, &failure);
    step = tspool_checkpoint_metadata(checkpoint, "step");
    job->step = step ? strtoull(step, NULL, 10) : 0;
    tspool_checkpoint_close(checkpoint);
    return error < 0 ? failed(job, &failure) : 0;
}

/* Rank 0 decides which one, so that all take the same. */
static int resume(struct job *job)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char path[4096] = "";
    char *found = NULL;

    if (job->rank == 0 && tspool_latest(job->root, &found, &failure) == 0)
        snprintf(path, sizeof path, "%s", found);
    free(found);
    MPI_Bcast(path, sizeof path, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (!path[0])
        return 0;
    if (!all_are_well(checkpoint_load(job, path)))
        return -1;
    if (job->rank == 0)
        printf("resumed from %s with %d ranks\n", path, job->ranks);
    return 0;
}

/* Training ---------------------------------------------------------------------------------------------------------------- */

static int train(struct job *job)
{
    double loss = 0;
    int error = 0;

    while (job->step < job->steps) {
        loss = model_step(job);
        if (job->step % job->save_every == 0 || job->step == job->steps)
            error = checkpoint_save(job);
    }
    if (job->rank == 0)
        printf("step %llu loss %.9f\n", job->step, loss);
    return error; /* of the last one: the state that the next run wants */
}

static int run(struct job *job)
{
    struct tspool_options options = TSPOOL_OPTIONS_INIT;
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    int error;

    options.root = job->root;
    options.writer_path = job->writer;
    options.rank = (uint32_t)job->rank;
    options.world_size = (uint32_t)job->ranks;
    options.local_ranks = (uint32_t)job->ranks; /* that share a machine's memory: here all */
    options.arena_bytes = UINT64_C(64) << 20;
    error = tspool_open(&options, &job->spool, &failure);
    if (error < 0)
        failed(job, &failure);
    if (all_are_well(error) && all_are_well(model_init(job)) && (!job->resume || resume(job) == 0))
        error = train(job);
    else
        error = -1;
    free(job->rows);
    tspool_close(job->spool, FOREVER, NULL);
    return error;
}

static void settings_take(struct job *job, int argc, char **argv)
{
    static const struct option options[] = {
        { "root", required_argument, NULL, 'r' }, { "writer", required_argument, NULL, 'w' },
        { "steps", required_argument, NULL, 'n' }, { "save-every", required_argument, NULL, 's' },
        { "resume", no_argument, NULL, 'c' }, { NULL, 0, NULL, 0 },
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (option) {
        case 'r': job->root = optarg; break;
        case 'w': job->writer = optarg; break;
        case 'n': job->steps = strtoull(optarg, NULL, 10); break;
        case 's': job->save_every = strtoull(optarg, NULL, 10); break;
        case 'c': job->resume = true; break;
        default:  job->root = NULL; return;
        }
    if (job->steps == 0 || job->save_every == 0)
        job->root = NULL;
}

int main(int argc, char **argv)
{
    struct job job = { .steps = 60, .save_every = 20 };
    int error = -1;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &job.ranks);
    settings_take(&job, argc, argv);
    if (job.root) {
        if (job.rank == 0)
            mkdir(job.root, 0777); /* whatever is wrong with it shows when it is opened */
        MPI_Barrier(MPI_COMM_WORLD);
        error = run(&job);
    } else if (job.rank == 0) {
        fputs("usage: mpirun -n RANKS trainer_mpi --root FOLDER [--resume] [--steps N] [--save-every N] [--writer PATH]\n", stderr);
    }
    MPI_Finalize();
    return error < 0;
}
