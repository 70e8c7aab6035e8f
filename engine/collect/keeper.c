/* collect/keeper.c - see keeper.h. The writer's thread changes the counts under the lock and returns; all the rest happens on
 * the keeper's own thread, which looks at them between two slices.
 */
#include <collect/keeper.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/names.h>
#include <collect/collect.h>
#include <errno.h>
#include <fcntl.h>
#include <proc/proc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SLICE_BYTES ((uint64_t)64 << 20) /* a tenth of a second where freed blocks are discarded at once */
#define END_GRACE_NS 2000000000u
#define LOOK_NS 100000000u       /* for a save of several ranks to be published, at first */
#define LOOK_NS_MAX 10000000000u
#define NICENESS 10

struct keeper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;                  /* the writer's thread has said something */
    int root;
    uint32_t keep;

    /* Under the lock. */
    uint32_t under_way;                      /* saves of this writer */
    uint64_t published, served;              /* saves after which there is something to do, and for which it was done */
    uint64_t since;                          /* of `published`: a pass waits, or works, for this one */
    bool unfinished;                         /* at first: what another left half deleted is to be finished */
    bool at_work, room_wanted, ending;
    bool is_loose;                           /* blocks of what was deleted may not be free yet */
    uint64_t ending_ns;                      /* when it stops in any case */
    uint8_t (*saved)[16];                    /* ring of `keep`: the ids of what this writer saved last */
    uint64_t saved_count;
    char awaited[HIDDEN_NAME_MAX + 1];       /* a save of several ranks that nobody published yet; "": none */
    uint64_t look_ns, next_look_ns;
    struct kept_account account;
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What the collection asks --------------------------------------------------------------------------------------------- */

static enum collect_pace pace_locked(const struct keeper *keeper)
{
    if (keeper->room_wanted || keeper->published > keeper->since)
        return COLLECT_GOES;
    return keeper->under_way ? COLLECT_WAITS : COLLECT_LOOKS;
}

static enum collect_pace pace(void *context)
{
    struct keeper *keeper = context;
    enum collect_pace pace;

    pthread_mutex_lock(&keeper->lock);
    pace = pace_locked(keeper);
    pthread_mutex_unlock(&keeper->lock);
    return pace;
}

static bool is_stopped(void *context)
{
    struct keeper *keeper = context;
    bool stopped;

    pthread_mutex_lock(&keeper->lock);
    stopped = keeper->ending && now_ns() >= keeper->ending_ns;
    pthread_mutex_unlock(&keeper->lock);
    return stopped;
}

static bool is_spared(void *context, const uint8_t save_id[16])
{
    struct keeper *keeper = context;
    bool spared = false;

    pthread_mutex_lock(&keeper->lock);
    for (uint64_t i = 0; i < keeper->keep && i < keeper->saved_count && !spared; i++)
        spared = memcmp(keeper->saved[i], save_id, sizeof keeper->saved[i]) == 0;
    pthread_mutex_unlock(&keeper->lock);
    return spared;
}

static void tell(void *context, const struct collect_note *note)
{
    struct keeper *keeper = context;
    struct kept_account *account = &keeper->account;

    pthread_mutex_lock(&keeper->lock);
    if (note->event == COLLECT_REMOVED || note->event == COLLECT_SWEPT)
        account->removed_bytes += note->bytes;
    account->removed += note->event == COLLECT_REMOVED;
    if (note->event == COLLECT_FAILED) {
        account->error = note->error;
        snprintf(account->left, sizeof account->left, "%s", note->name);
    }
    pthread_mutex_unlock(&keeper->lock);
}

/* One pass --------------------------------------------------------------------------------------------------------------- */

/* The threads of its io are made with it, and inherit its priority. */
static int collect(struct keeper *keeper, uint64_t keep)
{
    static const struct collect_between between = { .pace = pace, .is_spared = is_spared };
    const struct io_settings io_settings = { .depth = 1, .verb_threads = 1, .compute_threads = 1, .transfer_threads = 1,
                                             .thread_name = "tspool-k" };
    const struct collect_settings settings = { .keep = keep, .slice_bytes = SLICE_BYTES, .context = keeper, .tell = tell,
                                               .is_stopped = is_stopped, .between = &between };
    struct io *io = NULL;
    int error = io_create_threads(&io_settings, &io, NULL);

    if (error == 0)
        error = collect_below(io, keeper->root, ".", &settings, NULL);
    io_destroy(io);
    return error;
}

/* With the lock held, which it lets go of meanwhile. Before the first save of ours is published nothing goes that has a name. */
static void pass(struct keeper *keeper)
{
    uint64_t keep = keeper->published > keeper->served ? keeper->keep : UINT64_MAX;
    int error;

    keeper->at_work = true;
    keeper->unfinished = false;
    keeper->since = keeper->served = keeper->published;
    keeper->account.error = 0;
    pthread_mutex_unlock(&keeper->lock);
    error = collect(keeper, keep);
    pthread_mutex_lock(&keeper->lock);
    keeper->is_loose = true;
    if (error < 0) {
        keeper->account.error = -error;
        keeper->account.left[0] = '\0';
    }
    keeper->at_work = false;
}

/* The thread --------------------------------------------------------------------------------------------------------------- */

static bool has_work(const struct keeper *keeper) { return keeper->unfinished || keeper->published > keeper->served; }

/* Published, or given up and swept: it has lost its hidden name. */
static bool is_gone(const struct keeper *keeper)
{
    struct stat stat;

    return fstatat(keeper->root, keeper->awaited, &stat, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT;
}

static void publication_look(struct keeper *keeper)
{
    if (!*keeper->awaited || now_ns() < keeper->next_look_ns)
        return;
    keeper->look_ns = min_u64(2 * keeper->look_ns, LOOK_NS_MAX);
    keeper->next_look_ns = now_ns() + keeper->look_ns;
    if (!is_gone(keeper))
        return;
    *keeper->awaited = '\0';
    keeper->published++;
}

static void change_await(struct keeper *keeper)
{
    struct timespec until;

    if (!*keeper->awaited) {
        pthread_cond_wait(&keeper->changed, &keeper->lock);
        return;
    }
    until.tv_sec = (time_t)(keeper->next_look_ns / 1000000000u);
    until.tv_nsec = (long)(keeper->next_look_ns % 1000000000u);
    pthread_cond_timedwait(&keeper->changed, &keeper->lock, &until);
}

/* Some file systems give back what was deleted with their next transaction only. */
static void blocks_free(struct keeper *keeper)
{
    keeper->is_loose = false;
    keeper->at_work = true;
    pthread_mutex_unlock(&keeper->lock);
    syncfs(keeper->root);
    pthread_mutex_lock(&keeper->lock);
    keeper->at_work = false;
}

/* False at the end. */
static bool turn_await(struct keeper *keeper)
{
    for (;;) {
        if (keeper->room_wanted && !has_work(keeper) && keeper->is_loose)
            blocks_free(keeper);
        if (!has_work(keeper))
            keeper->room_wanted = false;
        if (keeper->ending && (!has_work(keeper) || now_ns() >= keeper->ending_ns))
            return false;
        keeper->since = keeper->served + 1;
        if (has_work(keeper) && pace_locked(keeper) != COLLECT_WAITS)
            return true;
        change_await(keeper);
        publication_look(keeper);
    }
}

static void *keeper_main(void *argument)
{
    struct keeper *keeper = argument;

    setpriority(PRIO_PROCESS, (id_t)gettid(), getpriority(PRIO_PROCESS, (id_t)gettid()) + NICENESS);
    pthread_mutex_lock(&keeper->lock);
    while (turn_await(keeper))
        pass(keeper);
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

/* What the writer says --------------------------------------------------------------------------------------------------- */

static void save_begins(struct keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->under_way++;
    pthread_mutex_unlock(&keeper->lock);
}

static void saved_note(struct keeper *keeper, const uint8_t save_id[16])
{
    memcpy(keeper->saved[keeper->saved_count++ % keeper->keep], save_id, sizeof keeper->saved[0]);
}

/* One that nobody published until the next came counts as published: looking too often does no harm. */
static void publication_await(struct keeper *keeper, const char *hidden)
{
    keeper->published += *keeper->awaited != '\0';
    strcpy(keeper->awaited, hidden);
    keeper->look_ns = LOOK_NS;
    keeper->next_look_ns = now_ns() + LOOK_NS;
}

static void save_ends(struct keeper *keeper, enum save_end end, const uint8_t save_id[16], const char *hidden)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->under_way--;
    if (end != SAVE_CAME_TO_NOTHING)
        saved_note(keeper, save_id);
    if (end == SAVE_IS_PART)
        publication_await(keeper, hidden);
    keeper->published += end == SAVE_PUBLISHED;
    pthread_cond_signal(&keeper->changed);
    pthread_mutex_unlock(&keeper->lock);
}

static bool makes_room(struct keeper *keeper)
{
    bool comes;

    pthread_mutex_lock(&keeper->lock);
    comes = keeper->at_work || has_work(keeper) || keeper->is_loose;
    keeper->room_wanted = comes;
    pthread_cond_signal(&keeper->changed);
    pthread_mutex_unlock(&keeper->lock);
    return comes;
}

static void account_give(struct keeper *keeper, struct kept_account *account)
{
    pthread_mutex_lock(&keeper->lock);
    *account = keeper->account;
    pthread_mutex_unlock(&keeper->lock);
}

/* Beginning and end ------------------------------------------------------------------------------------------------------ */

static void keeper_free(struct keeper *keeper)
{
    pthread_cond_destroy(&keeper->changed);
    pthread_mutex_destroy(&keeper->lock);
    free(keeper->saved);
    free(keeper);
}

static struct keeper *keeper_make(int root, uint32_t keep)
{
    struct keeper *keeper = calloc(1, sizeof *keeper);
    pthread_condattr_t monotonic;

    if (!keeper || !(keeper->saved = calloc(keep, sizeof *keeper->saved))) {
        free(keeper);
        return NULL;
    }
    keeper->root = root;
    keeper->keep = keep;
    keeper->unfinished = true;
    pthread_mutex_init(&keeper->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&keeper->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return keeper;
}

/* It inherits the CPUs of the writer's thread, which may be fewer than the process has. */
static int thread_begin(struct keeper *keeper)
{
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = -pthread_create(&keeper->thread, NULL, keeper_main, keeper);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0)
        pthread_setname_np(keeper->thread, "tspool-keeper");
    return error;
}

static int keeper_create(int root, const struct message_hello *hello, struct keeper **keeper, struct tspool_failure *failure)
{
    struct keeper *made = keeper_make(root, hello->keep);
    int error;

    if (!made)
        return failure_set(failure, TSPOOL_STAGE_WRITER, ENOMEM, FAILURE_NOWHERE, NULL);
    error = thread_begin(made);
    if (error < 0) {
        keeper_free(made);
        return failure_set(failure, TSPOOL_STAGE_WRITER, -error, FAILURE_AT(.operation = "thread"), THREAD_CAUSE);
    }
    *keeper = made;
    return 0;
}

static void keeper_destroy(struct keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->ending = true;
    keeper->ending_ns = now_ns() + END_GRACE_NS;
    pthread_cond_signal(&keeper->changed);
    pthread_mutex_unlock(&keeper->lock);
    pthread_join(keeper->thread, NULL);
    keeper_free(keeper);
}

const struct keeping keeper_keeping = {
    .create = keeper_create, .save_begins = save_begins, .save_ends = save_ends, .account = account_give,
    .makes_room = makes_room, .destroy = keeper_destroy,
};
