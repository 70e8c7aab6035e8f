/* save/save.c - declaring a save and submitting it. Until submit a save belongs to its caller's thread. */
#include <save/save.h>

#include <arena/arena.h>
#include <base/array.h>
#include <base/checked.h>
#include <base/failure.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <save/spool.h>
#include <save/stager.h>
#include <save/structs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define OBJECT_KIND_MAX 32u

/* Beginning --------------------------------------------------------------------------------------------------------- */

static int options_take(const struct tspool *spool, const struct tspool_save_options *given, struct tspool_save_options *own,
                        struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "begin");
    int error;

    *own = (struct tspool_save_options)TSPOOL_SAVE_OPTIONS_INIT;
    if (given) {
        error = struct_take(own, sizeof(*own), given);
        if (error < 0)
            return failure_set(failure, TSPOOL_STAGE_DECLARE, -error, at, "tspool_save_options.size is not set, or a field is "
                               "set that this version of the library does not know; use TSPOOL_SAVE_OPTIONS_INIT");
    }
    if ((unsigned)own->staging > TSPOOL_STAGING_CALLER)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "staging is none of enum tspool_staging");
    if (own->staging == TSPOOL_STAGING_BACKGROUND && !own->guarded)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "background staging needs `guarded`: the promise that no "
                           "tensor is changed before the save is STAGED");
    if (spool->options.world_size > 1 && !own->save_id)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "with several ranks each save needs the save_id that "
                           "rank 0 made with tspool_save_id and broadcast");
    return 0;
}

/* An empty directory may be published onto, as rename(2) does; anything else of that name is in the way. */
static bool is_empty_directory(int root_fd, const char *name)
{
    int fd = openat(root_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    unsigned entries = 0;

    if (!directory) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    while (entries <= 2 && readdir(directory))
        entries++;
    closedir(directory);
    return entries <= 2;
}

static int name_take(const struct tspool *spool, const char *name, bool replace, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "begin", .path = name);
    const char *reason = NULL;
    struct stat status;

    if (!name || checkpoint_name_check(name, &reason) < 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "not a checkpoint's name: %s",
                           name ? reason : "there is none");
    if (fstatat(spool->root_fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : failure_set(failure, TSPOOL_STAGE_DECLARE, errno, at, NULL);
    if (replace || is_empty_directory(spool->root_fd, name))
        return 0;
    return failure_set(failure, TSPOOL_STAGE_DECLARE, EEXIST, at, "a checkpoint of that name exists; choose another name, or "
                       "set `replace` to exchange it");
}

static void known_add(struct tspool *spool, struct tspool_save *save)
{
    save->has_handle = true;
    save->next_known = spool->known;
    if (spool->known)
        spool->known->known_link = &save->next_known;
    save->known_link = &spool->known;
    spool->known = save;
}

static struct tspool_save *save_create(struct tspool *spool, const char *name, const struct tspool_save_options *options,
                                       struct layout *layout)
{
    struct tspool_save *save = calloc(1, sizeof(*save));

    if (!save)
        return NULL;
    *save = (struct tspool_save){
        .spool = spool, .roster = &spool->roster, .arena = spool->arena, .stager = &spool->stager, .owner = spool->owner,
        .staging = options->staging, .replace = options->replace != 0,
        .deadline_ns = options->deadline_ns ? options->deadline_ns : spool->options.deadline_ns,
        .rank = spool->options.rank, .world_size = spool->options.world_size,
        .layout = layout, .attempt.number = 1, .appendix_fd = -1, .fd = -1, .intended = TSPOOL_FAILURE_INIT,
        .result = TSPOOL_SAVE_RESULT_INIT,
    };
    save->result.failure = (struct tspool_failure)TSPOOL_FAILURE_INIT;
    memcpy(save->name, name, strlen(name) + 1);
    return save;
}

static int begin(struct tspool *spool, const char *name, const struct tspool_save_options *given, struct layout *shared,
                 struct tspool_save **save, struct tspool_failure *failure)
{
    struct tspool_save_options options;
    struct tspool_save *made;
    struct layout *layout;
    int error = options_take(spool, given, &options, failure);

    if (error == 0)
        error = name_take(spool, name, options.replace != 0, failure);
    if (error < 0)
        return error;
    layout = shared ? layout_hold(shared) : layout_create();
    made = layout ? save_create(spool, name, &options, layout) : NULL;
    if (!made) {
        layout_drop(layout);
        return failure_set(failure, TSPOOL_STAGE_DECLARE, ENOMEM, FAILURE_AT(.operation = "begin", .path = name), NULL);
    }
    if (options.save_id)
        memcpy(made->attempt.save_id, options.save_id, TSPOOL_SAVE_ID_BYTES);
    else
        tspool_save_id(spool, made->attempt.save_id);
    pthread_mutex_lock(&spool->roster.lock);
    known_add(spool, made);
    pthread_mutex_unlock(&spool->roster.lock);
    *save = made;
    return 0;
}

int tspool_save_begin(struct tspool *spool, const char *name, const struct tspool_save_options *options,
                      struct tspool_save **save, struct tspool_failure *failure)
{
    int error = save ? spool_check(spool) : -EINVAL;

    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, -error, FAILURE_AT(.operation = "begin"), NULL);
    return begin(spool, name, options, NULL, save, failure);
}

static int data_copy(struct tspool_save *save, const struct tspool_save *previous)
{
    size_t count = state_dict_count(save->layout->dict);

    if (!previous->data || count == 0)
        return 0;
    save->data = malloc(count * sizeof(*save->data));
    if (!save->data)
        return -ENOMEM;
    memcpy(save->data, previous->data, count * sizeof(*save->data));
    return 0;
}

int tspool_save_again(struct tspool *spool, const char *name, struct tspool_save *previous,
                      const struct tspool_save_options *options, struct tspool_save **save, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "again", .path = name);
    struct tspool_save *made;
    int error = save && previous ? spool_check(spool) : -EINVAL;

    if (error == 0)
        error = save_check(previous);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, -error, at, NULL);
    if (previous->spool != spool || !previous->layout->plan)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at,
                           "the previous save is of another spool, or was never submitted");
    error = begin(spool, name, options, previous->layout, &made, failure);
    if (error < 0)
        return error;
    made->layout_given = true;
    error = data_copy(made, previous);
    if (error < 0) {
        tspool_save_free(made);
        return failure_set(failure, TSPOOL_STAGE_DECLARE, -error, at, NULL);
    }
    *save = made;
    return 0;
}

/* Declaring --------------------------------------------------------------------------------------------------------- */

/* 0 while the save takes declarations. */
static int declare_check(const struct tspool_save *save, const void *what, const char *operation, struct tspool_failure *failure)
{
    int error = save && what ? save_check(save) : -EINVAL;

    if (error == 0 && save->state != SAVE_DECLARED)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, FAILURE_AT(.operation = operation),
                           "the save was submitted already");
    return error < 0 ? failure_set(failure, TSPOOL_STAGE_DECLARE, -error, FAILURE_AT(.operation = operation), NULL) : 0;
}

int tspool_save_add(struct tspool_save *save, const struct tspool_tensor *tensor, struct tspool_failure *failure)
{
    struct tspool_tensor own;
    int error = declare_check(save, tensor, "add", failure);

    if (error < 0)
        return error;
    if (save->layout_given || save->data)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, FAILURE_AT(.operation = "add"),
                           "this save has the tensors of the one that it repeats; tspool_save_begin declares others");
    error = struct_take(&own, sizeof(own), tensor);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, -error, FAILURE_AT(.operation = "add"),
                           "tspool_tensor.size is not set, or a field is set that this version of the library does not know; "
                           "use TSPOOL_TENSOR_INIT");
    return layout_add(save->layout, &own, save->staging != TSPOOL_STAGING_CALLER, failure);
}

static int data_unshare(struct tspool_save *save)
{
    size_t count = state_dict_count(save->layout->dict);
    struct tspool_tensor tensor;
    const void **data;

    if (save->data)
        return 0;
    data = calloc(count, sizeof(*data));
    if (!data)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        state_dict_tensor(save->layout->dict, i, &tensor);
        data[i] = tensor.data;
    }
    save->data = data;
    return 0;
}

int tspool_save_rebind(struct tspool_save *save, size_t index, const void *data)
{
    struct tspool_tensor tensor;
    int error = save ? save_check(save) : -EINVAL;

    if (error == 0 && (save->state != SAVE_DECLARED || index >= state_dict_count(save->layout->dict)))
        error = -EINVAL;
    if (error < 0)
        return error;
    state_dict_tensor(save->layout->dict, index, &tensor);
    if (!data && tensor.data)
        return -EINVAL;
    error = data_unshare(save);
    if (error == 0)
        save->data[index] = data;
    return error;
}

static int object_append(struct tspool_save *save, const char *name, const char *kind, const void *bytes, size_t size)
{
    struct save_object object = { .file_offset = save->object_size, .size = size };
    size_t end;

    if (__builtin_add_overflow(save->object_size, size, &end))
        return -EOVERFLOW;
    if (array_reserve((void **)&save->objects, &save->object_capacity, save->object_count + 1, sizeof(object)) < 0
        || array_reserve((void **)&save->object_bytes, &save->object_bytes_capacity, end, 1) < 0)
        return -ENOMEM;
    object.name = strdup(name);
    object.kind = strdup(kind);
    if (!object.name || !object.kind) {
        free(object.name);
        free(object.kind);
        return -ENOMEM;
    }
    if (size > 0)
        memcpy(save->object_bytes + save->object_size, bytes, size);
    save->object_size = end;
    save->objects[save->object_count++] = object;
    return 0;
}

static bool object_exists(const struct tspool_save *save, const char *name)
{
    for (size_t i = 0; i < save->object_count; i++)
        if (strcmp(save->objects[i].name, name) == 0)
            return true;
    return false;
}

static bool is_text(const char *text, size_t least, size_t most)
{
    size_t size = strnlen(text, most + 1);

    return size >= least && size <= most && utf8_is_valid(text, size);
}

int tspool_save_add_object(struct tspool_save *save, const char *name, const char *kind, const void *bytes, size_t size,
                           struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "add object", .tensor = name);
    int error = declare_check(save, name, "add object", failure);

    if (error < 0)
        return error;
    if (!is_text(name, 1, TSPOOL_TENSOR_NAME_MAX))
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "an object's name is UTF-8 of 1 to %u bytes",
                           TSPOOL_TENSOR_NAME_MAX);
    if (!kind || !is_text(kind, 1, OBJECT_KIND_MAX))
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "an object's kind is a word of 1 to %u bytes",
                           OBJECT_KIND_MAX);
    if (!bytes && size > 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "the object has a size but no bytes");
    if (object_exists(save, name))
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EEXIST, at, "an object of that name was added before");
    error = object_append(save, name, kind, bytes, size);
    return error < 0 ? failure_set(failure, TSPOOL_STAGE_DECLARE, -error, at, NULL) : 0;
}

static int metadata_set(struct tspool_save *save, const char *key, char *value)
{
    char *copy;

    for (size_t i = 0; i < save->metadata_count; i++)
        if (strcmp(save->metadata[i].key, key) == 0) {
            free((void *)(uintptr_t)save->metadata[i].value);
            save->metadata[i].value = value;
            return 0;
        }
    if (array_reserve((void **)&save->metadata, &save->metadata_capacity, save->metadata_count + 1,
                      sizeof(*save->metadata)) < 0 || !(copy = strdup(key)))
        return -ENOMEM;
    save->metadata[save->metadata_count++] = (struct header_pair){ copy, value };
    return 0;
}

int tspool_save_metadata(struct tspool_save *save, const char *key, const char *value, struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "metadata", .tensor = key);
    int error = declare_check(save, key, "metadata", failure);
    char *copy;

    if (error < 0)
        return error;
    if (!is_text(key, 1, TSPOOL_TENSOR_NAME_MAX) || !value || !utf8_is_valid(value, strlen(value)))
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "metadata are UTF-8; a key has 1 to %u bytes",
                           TSPOOL_TENSOR_NAME_MAX);
    copy = strdup(value);
    error = copy ? metadata_set(save, key, copy) : -ENOMEM;
    if (error < 0)
        free(copy);
    return error < 0 ? failure_set(failure, TSPOOL_STAGE_DECLARE, -error, at, NULL) : 0;
}

/* Submitting -------------------------------------------------------------------------------------------------------- */

/* A failure that nobody looked at is told to the next one who submits. */
static int unlooked_tell(struct roster *roster, struct tspool_failure *failure)
{
    struct tspool_save *failed;

    pthread_mutex_lock(&roster->lock);
    failed = roster->unlooked;
    if (failed) {
        failure_give(failure, &failed->result.failure);
        save_look(failed);
    }
    pthread_mutex_unlock(&roster->lock);
    return failed ? -ECANCELED : 0;
}

/* The plan of the spool's latest save, if this one declares the very same. Drops the save's own layout then. */
static bool plan_reuse(struct tspool *spool, struct tspool_save *save, const struct plan_rules *rules)
{
    struct layout *latest;

    if (save->layout->plan)
        return layout_has_rules(save->layout, rules);
    pthread_mutex_lock(&spool->roster.lock);
    latest = spool->latest ? layout_hold(spool->latest) : NULL;
    pthread_mutex_unlock(&spool->roster.lock);
    if (!latest || !layout_has_rules(latest, rules) || !layout_equal(latest, save->layout)) {
        layout_drop(latest);
        return false;
    }
    layout_drop(save->layout);
    save->layout = latest;
    return true;
}

static void plan_remember(struct tspool *spool, struct layout *layout)
{
    struct layout *old;

    pthread_mutex_lock(&spool->roster.lock);
    old = spool->latest;
    spool->latest = layout_hold(layout);
    pthread_mutex_unlock(&spool->roster.lock);
    layout_drop(old);
}

static int save_plan_get(struct tspool_save *save, struct tspool_failure *failure)
{
    struct plan_rules rules = spool_plan_rules(save->spool);
    bool reused = plan_reuse(save->spool, save, &rules);
    int error = 0;

    /* save_again after the writer came back with other alignment: the old plan is still right, its padding larger or
     * smaller than it could be; only the tail's padding must suit, and chunk_pad takes the larger of both. */
    if (!reused && !save->layout->plan)
        error = layout_plan(save->layout, &rules, failure);
    if (error < 0)
        return error;
    save->result.plan_reused = reused || save->layout_given;
    save->result.tensor_bytes = save_plan(save)->tensor_bytes;
    save->result.file_bytes = save_plan(save)->file_bytes;
    save->result.files = save_plan(save)->file_count;
    plan_remember(save->spool, save->layout);
    return 0;
}

/* A tied tensor is stored with the one that it is tied to: pointing only one of both elsewhere would lose the other. */
static int ties_follow(struct tspool_save *save, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    struct tspool_tensor alias, declared;

    for (size_t i = 0; save->data && i < plan->alias_count; i++) {
        const void *stored = save->data[plan->aliases[i].stored];

        save_tensor(save, plan->aliases[i].alias, &alias);
        state_dict_tensor(save->layout->dict, plan->aliases[i].alias, &declared);
        if (alias.data != declared.data && alias.data != stored)
            return failure_set(failure, TSPOOL_STAGE_PLAN, EINVAL, FAILURE_AT(.tensor = alias.name, .operation = "rebind"),
                               "the tensor was tied to another when it was declared and now has memory of its own; declare the "
                               "tensors again with tspool_save_begin");
    }
    return 0;
}

static int chunks_create(struct tspool_save *save)
{
    uint32_t count = save_plan(save)->chunk_count;

    save->slots = malloc(count * sizeof(*save->slots));
    save->chunks = calloc(count, sizeof(*save->chunks));
    save->staged = malloc(count * sizeof(*save->staged));
    save->versions = calloc(save->layout->versioned_count + 1, sizeof(*save->versions));
    if (!save->slots || !save->chunks || !save->staged || !save->versions)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++)
        save->slots[i] = ARENA_NO_SLOT;
    return 0;
}

static void versions_take(struct tspool_save *save)
{
    struct tspool_tensor tensor;

    for (size_t i = 0; i < save->layout->versioned_count; i++) {
        state_dict_tensor(save->layout->dict, save->layout->versioned[i], &tensor);
        save->versions[i] = __atomic_load_n(tensor.version, __ATOMIC_ACQUIRE);
    }
}

static void slots_give_back(struct tspool_save *save)
{
    for (uint32_t i = 0; i < save_plan(save)->chunk_count; i++)
        save_free_slot(save, i);
}

/* Slots that are free now: one run, else what there is, in the order in which they are needed. What is missing is acquired
 * when it is staged, in the line's order. */
static int slots_reserve(struct tspool_save *save, struct tspool_failure *failure)
{
    const struct plan *plan = save_plan(save);
    uint32_t first = 0;
    int error = arena_acquire_run(save->arena, plan->chunk_count, &first, failure);

    if (error == 0)
        for (uint32_t i = 0; i < plan->chunk_count; i++)
            save->slots[i] = first + i;
    if (error != -EAGAIN)
        return error;
    for (uint32_t i = 0; i < plan->chunk_count; i++) {
        error = arena_acquire(save->arena, 0, NULL, &save->slots[plan->chunk_order[i]], failure);
        if (error < 0)
            return error == -ETIMEDOUT ? 0 : error;
    }
    return 0;
}

/* A save that is behind another in line may not take slots that the other one needs. */
static int save_reserve(struct tspool_save *save, struct tspool_failure *failure)
{
    struct tspool_failure ignored = TSPOOL_FAILURE_INIT;
    bool is_first;
    int error;

    save->replayable = save_plan(save)->chunk_count <= arena_slot_count(save->arena);
    pthread_mutex_lock(&save->roster->lock);
    is_first = !save->stager->first;
    pthread_mutex_unlock(&save->roster->lock);
    if (!save->replayable || !is_first)
        return 0;
    error = slots_reserve(save, &ignored);
    if (error < 0) {
        slots_give_back(save);
        failure_give(failure, &ignored);
    }
    return error;
}

static bool has_all_slots(const struct tspool_save *save)
{
    for (uint32_t i = 0; i < save_plan(save)->chunk_count; i++)
        if (save->slots[i] == ARENA_NO_SLOT)
            return false;
    return true;
}

/* Into the line, unless the caller fills spans and needs nobody to wait for slots: they are all here, or the state is
 * larger than the arena and each is waited for in tspool_save_next_span. */
static void stage_begin(struct tspool_save *save)
{
    if (save->staging != TSPOOL_STAGING_CALLER || (save->replayable && !has_all_slots(save)))
        stager_enter(save->stager, save);
    if (save->staging == TSPOOL_STAGING_NOW)
        stager_help(save->stager, save);
}

/* Staging "now": until STAGED, or until the failure is final. */
static int stage_wait(struct tspool_save *save, struct tspool_failure *failure)
{
    while (save->result.level < TSPOOL_STAGED && save->state != SAVE_RESOLVED && !save->roster->broken)
        roster_wait(save->roster, UINT64_MAX);
    if (save->result.level >= TSPOOL_STAGED)
        return 0;
    failure_give(failure, &save->result.failure);
    save_look(save);
    return save_error(save);
}

static int submit_prepared(struct tspool_save *save, struct tspool_failure *failure)
{
    int error = 0;

    pthread_mutex_lock(&save->roster->lock);
    roster_add(save->roster, save);
    stage_begin(save);
    if (save->staging == TSPOOL_STAGING_NOW)
        error = stage_wait(save, failure);
    save->result.stall_ns = monotonic_ns() - save->submit_ns;
    pthread_mutex_unlock(&save->roster->lock);
    return error;
}

static void chunks_destroy(struct tspool_save *save)
{
    free(save->slots);
    free(save->chunks);
    free(save->staged);
    free(save->versions);
    save->slots = save->staged = NULL;
    save->chunks = NULL;
    save->versions = NULL;
}

int tspool_save_submit(struct tspool_save *save, struct tspool_failure *failure)
{
    int error = declare_check(save, save, "submit", failure);

    if (error < 0)
        return error;
    error = unlooked_tell(save->roster, failure);
    if (error < 0)
        return error;
    save->submit_ns = monotonic_ns();
    error = save_plan_get(save, failure);
    if (error == 0)
        error = ties_follow(save, failure);
    if (error < 0)
        return error;
    save->result.planned_ns = monotonic_ns() - save->submit_ns;
    error = chunks_create(save);
    if (error < 0)
        failure_set(failure, TSPOOL_STAGE_RESERVE, -error, FAILURE_AT(.operation = "submit"), NULL);
    else
        error = save_reserve(save, failure);
    if (error < 0) {
        chunks_destroy(save);
        return error;
    }
    versions_take(save);
    return submit_prepared(save, failure);
}
