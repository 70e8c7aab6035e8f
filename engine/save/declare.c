/* save/declare.c - beginning a save and declaring what is in it. Until submit a save belongs to its caller's thread. */
#include <save/save.h>

#include <base/array.h>
#include <base/failure.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <save/spool.h>
#include <save/structs.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
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
    if (own->staging == TSPOOL_STAGING_CALLER && own->check_torn)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, EINVAL, at, "check_torn is for tensors that the library copies; these "
                           "are copied by the caller");
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
        .staging = options->staging, .replace = options->replace != 0, .check_torn = options->check_torn != 0,
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

int save_declare_check(const struct tspool_save *save, const void *what, const char *operation, struct tspool_failure *failure)
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
    int error = save_declare_check(save, tensor, "add", failure);

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

/* An optimizer has thousands of small objects: their names are kept in a tree beside the list. */
static int names_compare(const void *a, const void *b) { return strcmp(a, b); }

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
    if (!tsearch(object.name, &save->object_names, names_compare)) {
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

static bool is_text(const char *text, size_t least, size_t most)
{
    size_t size = strnlen(text, most + 1);

    return size >= least && size <= most && utf8_is_valid(text, size);
}

int tspool_save_add_object(struct tspool_save *save, const char *name, const char *kind, const void *bytes, size_t size,
                           struct tspool_failure *failure)
{
    struct failure_at at = FAILURE_AT(.operation = "add object", .tensor = name);
    int error = save_declare_check(save, name, "add object", failure);

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
    if (tfind(name, &save->object_names, names_compare))
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
    int error = save_declare_check(save, key, "metadata", failure);
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
