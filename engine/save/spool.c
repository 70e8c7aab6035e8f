/* save/spool.c - see spool.h. Opening checks everything that can be known before training starts. */
#include <save/spool.h>

#include <base/checked.h>
#include <base/failure.h>
#include <claim/orphans.h>
#include <errno.h>
#include <fcntl.h>
#include <io/io.h>
#include <limits.h>
#include <proc/identity.h>
#include <proc/proc.h>
#include <save/save.h>
#include <save/structs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <tspool/version.h>
#include <unistd.h>

#define DEFAULT_ITEM_BYTES (512u << 10)
#define ITEM_BYTES_MAX (16u << 20)
#define DEFAULT_DEPTH 32u /* 16 keeps a disk busy; twice that rides over the moments when hashing has the CPU */
#define DEPTH_MAX 1024u
#define THREADS_MAX 64u
#define NS_PER_S ((uint64_t)1000000000)
#define DEFAULT_HEARTBEAT_NS (30 * NS_PER_S)
#define DEFAULT_START_NS (30 * NS_PER_S)

/* Options ----------------------------------------------------------------------------------------------------------- */

static int refuse(struct tspool_failure *failure, const char *cause)
{
    return failure_set(failure, TSPOOL_STAGE_OPEN, EINVAL, FAILURE_AT(.operation = "options"), "%s", cause);
}

static int options_check(const struct tspool_options *options, struct tspool_failure *failure)
{
    if (!options->root || !*options->root)
        return refuse(failure, "root is missing: name the directory that holds the checkpoints");
    if (options->arena_bytes && options->arena_bytes < 2 * ARENA_SLOT_BYTES)
        return refuse(failure, "arena_bytes is below 32 MiB");
    if (options->item_bytes && (options->item_bytes % 4096 != 0 || options->item_bytes > ITEM_BYTES_MAX))
        return refuse(failure, "item_bytes is not a multiple of 4096 from 4 KiB to 16 MiB");
    if (options->depth > DEPTH_MAX)
        return refuse(failure, "depth is above 1024");
    if (options->submit_batch > DEPTH_MAX)
        return refuse(failure, "submit_batch is above 1024");
    if ((unsigned)options->io > TSPOOL_IO_THREADS)
        return refuse(failure, "io is none of enum tspool_io");
    if ((unsigned)options->isolation > TSPOOL_ISOLATION_THREAD)
        return refuse(failure, "isolation is none of enum tspool_isolation");
    if (options->staging_threads > THREADS_MAX)
        return refuse(failure, "staging_threads is above 64");
    if (options->hash_threads > THREADS_MAX)
        return refuse(failure, "hash_threads is above 64");
    if (options->rank >= (options->world_size ? options->world_size : 1))
        return refuse(failure, "rank is not below world_size");
    if (options->keep > KEEP_MAX)
        return refuse(failure, "keep is above 65536; 0 keeps all checkpoints");
    if (options->excluded_cpus && cpu_list_check(options->excluded_cpus) < 0)
        return refuse(failure, "excluded_cpus is no list of CPUs such as \"0-3,8\"");
    return 0;
}

static uint32_t default_threads(void) { return sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2 : 1; }

static void options_fill(struct tspool_options *options)
{
    uint32_t threads = default_threads();

    options->item_bytes = options->item_bytes ? options->item_bytes : DEFAULT_ITEM_BYTES;
    options->depth = options->depth ? options->depth : DEFAULT_DEPTH;
    options->submit_batch = options->submit_batch ? options->submit_batch : 1;
    options->staging_threads = options->staging_threads ? options->staging_threads : threads;
    options->hash_threads = options->hash_threads ? options->hash_threads : threads;
    options->heartbeat_ns = options->heartbeat_ns ? options->heartbeat_ns : DEFAULT_HEARTBEAT_NS;
    options->start_timeout_ns = options->start_timeout_ns ? options->start_timeout_ns : DEFAULT_START_NS;
    options->world_size = options->world_size ? options->world_size : 1;
    options->local_ranks = options->local_ranks ? options->local_ranks : 1;
    options->orphan_wait_ns = options->orphan_wait_ns ? options->orphan_wait_ns : ORPHANS_WAIT_NS;
}

static int strings_keep(struct tspool *spool, struct tspool_failure *failure)
{
    struct tspool_options *options = &spool->options;
    char path[PATH_MAX];
    int error = 0;

    if (options->isolation == TSPOOL_ISOLATION_PROCESS) {
        error = writer_path_find(options->writer_path, path, failure);
        if (error < 0)
            return error;
        spool->writer_path = strdup(path);
    }
    spool->root = strdup(options->root);
    if (options->excluded_cpus)
        spool->excluded_cpus = strdup(options->excluded_cpus);
    if (!spool->root || (options->excluded_cpus && !spool->excluded_cpus)
        || (options->isolation == TSPOOL_ISOLATION_PROCESS && !spool->writer_path))
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_NOWHERE, NULL);
    options->root = spool->root;
    options->excluded_cpus = spool->excluded_cpus;
    options->writer_path = spool->writer_path;
    return 0;
}

static int root_open(struct tspool *spool, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "open", .path = spool->root);

    spool->root_fd = open(spool->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (spool->root_fd < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, errno, at,
                           errno == ENOENT ? "the root directory does not exist; create it first"
                           : errno == ENOTDIR ? "the root is not a directory" : "the root directory cannot be opened");
    if (faccessat(spool->root_fd, ".", W_OK | X_OK, AT_EACCESS) < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, errno, at,
                           errno == EROFS ? "the root is on a file system that is mounted read-only"
                                          : "the root directory is not writable for this user");
    return 0;
}

static int wait_refuse(const struct tspool *spool, int error, struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_OPEN, -error, FAILURE_AT(.operation = "wait", .path = spool->root), NULL);
}

/* Before any memory is taken: what an orphan's arena holds is free again afterwards. Waiting is a kindness, no condition: an
 * orphan that still works at the timeout has another save id, and the name is refused to whoever comes second. */
static int orphans_await(struct tspool *spool, struct tspool_failure *failure)
{
    const struct io_settings settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                          .thread_name = "tspool" };
    struct io *io = NULL;
    int error = io_create_threads(&settings, &io, failure);

    if (error < 0)
        return error;
    error = orphans_wait(io, spool->root_fd, spool->options.orphan_wait_ns, &spool->orphans);
    io_destroy(io);
    return error < 0 ? wait_refuse(spool, error, failure) : 0;
}

/* Starting ---------------------------------------------------------------------------------------------------------- */

static int memory_open(struct tspool *spool, struct tspool_failure *failure)
{
    const struct arena_settings settings = { .bytes = spool->options.arena_bytes, .local_ranks = spool->options.local_ranks,
                                             .hook = spool->options.on_arena, .hook_context = spool->options.on_arena_context };

    return arena_create(&settings, &spool->arena, failure);
}

static int identity_open(struct tspool *spool, struct tspool_failure *failure)
{
    if (spool->options.isolation == TSPOOL_ISOLATION_THREAD)
        return 0; /* a thread dies with us; there is nothing to watch */
    spool->self_pidfd = pidfd_open(getpid(), 0);
    if (spool->self_pidfd < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, errno, FAILURE_AT(.operation = "pidfd_open"),
                           "Linux 5.3 or later is needed, and a seccomp profile that allows pidfd_open");
    return 0;
}

/* Zeroes where there is no /proc: then others take us for living until the writer says that we are not. */
static void hello_sign(struct message_hello *hello)
{
    struct process_identity self;

    if (process_identify(&self) < 0)
        return;
    hello->trainer_pid = self.pid;
    hello->trainer_start = self.start;
    hello->pid_namespace = self.pid_namespace;
    memcpy(hello->boot_id, self.boot_id, sizeof(hello->boot_id));
}

static struct supervisor_settings supervisor_settings_of(const struct tspool *spool)
{
    const struct tspool_options *options = &spool->options;
    struct supervisor_settings settings = {
        .start_timeout_ns = options->start_timeout_ns, .heartbeat_ns = options->heartbeat_ns,
        .arena_fd = arena_fd(spool->arena), .root_fd = spool->root_fd, .trainer_pidfd = spool->self_pidfd,
        .cpus_are_few = cpu_count(options->excluded_cpus) <= options->staging_threads + options->hash_threads,
        .hello = { .version = TSPOOL_VERSION, .arena_bytes = arena_bytes(spool->arena), .chunk_bytes = CHUNK_BYTES,
                   .bytes_per_second = options->bytes_per_second, .heartbeat_ns = options->heartbeat_ns,
                   .item_bytes = options->item_bytes, .depth = options->depth, .submit_batch = options->submit_batch, .io = options->io,
                   .hash_threads = options->hash_threads, .rank = options->rank, .world_size = options->world_size,
                   .keep = options->keep, .buffered = options->buffered != 0 },
    };

    hello_sign(&settings.hello);
    return settings;
}

static void supervisor_break(struct tspool *spool, const struct tspool_failure *failure)
{
    pthread_mutex_lock(&spool->roster.lock);
    spool->roster.broken = true;
    spool->roster.presence = WRITER_REFUSED;
    spool->roster.writer_failure = *failure;
    roster_changed(&spool->roster);
    pthread_mutex_unlock(&spool->roster.lock);
}

/* The loop of the thread "tspool-super". Its io is made here, so that the io's threads keep off the excluded CPUs too. */
static void *supervisor_main(void *argument)
{
    struct tspool *spool = argument;
    const struct io_settings io_settings = { .depth = 2, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                             .thread_name = "tspool" };
    const struct supervisor_settings settings = supervisor_settings_of(spool);
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct completion completions[16];
    struct io *io = NULL;
    int count = 0;

    if (io_create_threads(&io_settings, &io, &failure) < 0) {
        supervisor_break(spool, &failure);
        return NULL;
    }
    supervisor_init(&spool->supervisor, io, &spool->roster, &spool->launcher, &settings);
    supervisor_step(&spool->supervisor, NULL);
    while (!spool->supervisor.done && count >= 0) {
        count = io_wait(io, completions, 16, IO_FOREVER);
        for (int i = 0; i < count; i++)
            supervisor_step(&spool->supervisor, &completions[i]);
    }
    if (count < 0) {
        failure_set(&failure, TSPOOL_STAGE_WRITER, -count, FAILURE_AT(.operation = "wait"), NULL);
        supervisor_break(spool, &failure);
    }
    io_destroy(io);
    supervisor_deinit(&spool->supervisor);
    return NULL;
}

static int supervisor_start(struct tspool *spool, int (*writer_run)(int channel), struct tspool_failure *failure)
{
    int error;

    if (spool->options.isolation == TSPOOL_ISOLATION_THREAD)
        launcher_init_thread(&spool->launcher, writer_run, spool->excluded_cpus);
    else
        launcher_init_process(&spool->launcher, spool->writer_path, spool->excluded_cpus);
    spool->roster.want_writer = true;
    error = thread_start(&spool->supervisor_thread, "tspool-super", spool->excluded_cpus, supervisor_main, spool);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_OPEN, -error, FAILURE_AT(.operation = "thread"), THREAD_CAUSE);
    spool->has_supervisor = true;
    return 0;
}

/* The supervisor watches the start timeout. */
static int writer_await(struct tspool *spool, struct tspool_failure *failure)
{
    struct roster *roster = &spool->roster;
    int error = 0;

    pthread_mutex_lock(&roster->lock);
    while (roster->presence != WRITER_SERVING && roster->presence != WRITER_REFUSED)
        roster_wait(roster, UINT64_MAX);
    if (roster->presence == WRITER_REFUSED) {
        failure_give(failure, &roster->writer_failure);
        error = -roster->writer_failure.error;
    }
    pthread_mutex_unlock(&roster->lock);
    return error;
}

static int spool_start(struct tspool *spool, int (*writer_run)(int channel), struct tspool_failure *failure)
{
    int error = strings_keep(spool, failure);

    if (error == 0)
        error = root_open(spool, failure);
    if (error == 0)
        error = orphans_await(spool, failure);
    if (error == 0)
        error = memory_open(spool, failure);
    if (error == 0)
        error = identity_open(spool, failure);
    if (error == 0)
        error = roster_init(&spool->roster, failure);
    if (error < 0)
        return error;
    spool->has_roster = true;
    error = stager_init(&spool->stager, &spool->roster, spool->arena, spool->options.staging_threads, spool->excluded_cpus,
                        failure);
    if (error == 0)
        error = supervisor_start(spool, writer_run, failure);
    if (error == 0)
        error = writer_await(spool, failure);
    return error;
}

/* Ending ------------------------------------------------------------------------------------------------------------- */

static void supervisor_stop(struct tspool *spool)
{
    if (!spool->has_supervisor)
        return;
    pthread_mutex_lock(&spool->roster.lock);
    spool->roster.want_stop = true;
    roster_wake(&spool->roster);
    pthread_mutex_unlock(&spool->roster.lock);
    pthread_join(spool->supervisor_thread, NULL);
}

/* Handles outlive the spool; what only the spool kept goes with it. */
static void saves_detach(struct tspool *spool)
{
    struct tspool_save *save, *next;

    for (save = spool->roster.first; save; save = next) {
        next = save->next_active;
        save->is_active = false;
        save->recovery.in_flight = false; /* the io is gone */
        recovery_deinit(&save->recovery);
        save_release(save);
    }
    while ((save = spool->roster.unlooked))
        save_look(save);
    for (save = spool->known; save; save = save->next_known)
        save->spool = NULL;
}

void spool_destroy(struct tspool *spool)
{
    supervisor_stop(spool);
    stager_deinit(&spool->stager);
    if (spool->has_roster) {
        saves_detach(spool);
        roster_deinit(&spool->roster);
    }
    pthread_mutex_destroy(&spool->submitting);
    layout_drop(spool->latest);
    arena_destroy(spool->arena);
    if (spool->root_fd >= 0)
        close(spool->root_fd);
    if (spool->self_pidfd >= 0)
        close(spool->self_pidfd);
    free(spool->root);
    free(spool->writer_path);
    free(spool->excluded_cpus);
    free(spool);
}

int spool_open(const struct tspool_options *options, int (*writer_run)(int channel), struct tspool **spool,
               struct tspool_failure *failure)
{
    struct tspool *made;
    int error;

    if (!options || !spool)
        return refuse(failure, "options or the place for the spool is NULL");
    made = calloc(1, sizeof(*made));
    if (!made)
        return failure_set(failure, TSPOOL_STAGE_OPEN, ENOMEM, FAILURE_NOWHERE, NULL);
    made->owner = getpid();
    made->root_fd = made->self_pidfd = -1;
    pthread_mutex_init(&made->submitting, NULL);
    error = struct_take(&made->options, sizeof(made->options), options);
    if (error < 0)
        failure_set(failure, TSPOOL_STAGE_OPEN, -error, FAILURE_AT(.operation = "options"), "tspool_options.size is not set, or "
                    "a field is set that this version of the library does not know; use TSPOOL_OPTIONS_INIT");
    else
        error = options_check(&made->options, failure);
    if (error == 0) {
        options_fill(&made->options);
        error = spool_start(made, writer_run, failure);
    }
    if (error < 0) {
        spool_destroy(made);
        return error;
    }
    *spool = made;
    return 0;
}

int spool_check(const struct tspool *spool)
{
    if (!spool)
        return -EINVAL;
    return spool->owner == getpid() ? 0 : -EPERM;
}

struct plan_rules spool_plan_rules(struct tspool *spool)
{
    struct plan_rules rules = { .shard_bytes = spool->options.shard_bytes, .rank = spool->options.rank,
                                .world_size = spool->options.world_size };

    pthread_mutex_lock(&spool->roster.lock);
    rules.offset_align = spool->roster.ready.offset_align ? spool->roster.ready.offset_align : 4096;
    pthread_mutex_unlock(&spool->roster.lock);
    return rules;
}

/* The rest of spool.h ------------------------------------------------------------------------------------------------ */

int tspool_reserve(struct tspool *spool, uint64_t bytes, struct tspool_failure *failure)
{
    int error = spool_check(spool);

    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "reserve"), NULL);
    return arena_populate(spool->arena, bytes, failure);
}

int tspool_open_report(struct tspool *spool, struct tspool_open_report *report)
{
    struct tspool_open_report made = TSPOOL_OPEN_REPORT_INIT;
    int error = report ? spool_check(spool) : -EINVAL;

    if (error < 0)
        return error;
    made.waited_ns = spool->orphans.waited_ns;
    made.orphans_seen = spool->orphans.seen;
    made.orphans_finished = spool->orphans.finished;
    made.orphans_left = spool->orphans.left;
    memcpy(made.orphan_left, spool->orphans.left_name, sizeof(made.orphan_left));
    return struct_give(report, &made, sizeof(made));
}

int tspool_save_id(struct tspool *spool, uint8_t id[TSPOOL_SAVE_ID_BYTES])
{
    int error = id ? spool_check(spool) : -EINVAL;

    if (error < 0)
        return error;
    /* 16 bytes never come short. */
    return getrandom(id, TSPOOL_SAVE_ID_BYTES, 0) == TSPOOL_SAVE_ID_BYTES ? 0 : -errno;
}

int tspool_writer_pid(struct tspool *spool)
{
    int pid, error = spool_check(spool);

    if (error < 0)
        return error;
    pthread_mutex_lock(&spool->roster.lock);
    pid = spool->roster.presence == WRITER_SERVING ? spool->roster.writer_pid : 0;
    pthread_mutex_unlock(&spool->roster.lock);
    return pid;
}
