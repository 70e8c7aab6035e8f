/* base/failure.c - failure records: filled once where the error was met, readable by a person without the code at hand.
 *
 * A record may be filled from its own fields (a path prefixed, a cause refined), so it is composed aside and copied over
 * last. Texts that come from others - names, paths - are cut on a UTF-8 boundary and never carry control bytes: a
 * tensor's name must not be able to write to somebody's terminal.
 */
#include <base/failure.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const stage_names[] = {
    [TSPOOL_STAGE_NONE] = "none",       [TSPOOL_STAGE_OPEN] = "open",       [TSPOOL_STAGE_DECLARE] = "declare",
    [TSPOOL_STAGE_PLAN] = "plan",       [TSPOOL_STAGE_RESERVE] = "reserve", [TSPOOL_STAGE_STAGE] = "stage",
    [TSPOOL_STAGE_PREPARE] = "prepare", [TSPOOL_STAGE_WRITE] = "write",     [TSPOOL_STAGE_SEAL] = "seal",
    [TSPOOL_STAGE_SYNC] = "sync",       [TSPOOL_STAGE_PUBLISH] = "publish", [TSPOOL_STAGE_READ] = "read",
    [TSPOOL_STAGE_VERIFY] = "verify",   [TSPOOL_STAGE_WRITER] = "writer",
};

static const struct { int error; const char *cause; } likely_causes[] = {
    { ENOSPC, "the file system is full; free space there, or remove old checkpoints with 'tspool gc'" },
    { EDQUOT, "the disk quota is used up; remove old checkpoints with 'tspool gc', or ask for more quota" },
    { EIO, "the device or its connection failed; the kernel log (dmesg) names it; do not trust what this file holds" },
    { EROFS, "the file system is mounted read-only, often after an error; the kernel log (dmesg) says why" },
    { EACCES, "the permissions of the directory or one above it forbid this user" },
    { EPERM, "not allowed: an immutable file, a security policy, or a call from a forked child" },
    { ENOENT, "it does not exist, or was removed while in use" },
    { EEXIST, "the name is taken; choose another, or ask for the old one to be replaced" },
    { ENOTEMPTY, "a directory with files in it has that name; choose another, or ask for it to be replaced" },
    { ENOTDIR, "a component of the path is not a directory" },
    { EISDIR, "a directory stands where a file is expected" },
    { ELOOP, "a symbolic link stands where none is followed" },
    { EMFILE, "this process has too many open files; raise 'ulimit -n'" },
    { ENFILE, "the machine has too many open files; raise fs.file-max" },
    { ENOMEM, "no memory: the machine's, the cgroup's or the locked-memory limit is reached" },
    { EFBIG, "larger than the file system or the file size limit ('ulimit -f') allows" },
    { EINVAL, "a value that is not accepted here" },
    { E2BIG, "more than the format can hold" },
    { EOVERFLOW, "a size that does not fit 64 bits" },
    { ENAMETOOLONG, "the name is longer than is allowed" },
    { EBADMSG, "the contents are damaged or were not written by this software" },
    { EPROTO, "written by a newer version; update this one" },
    { ENODATA, "nothing was recorded that could answer this" },
    { ESTALE, "the file vanished under an open handle, as network file systems do; what the last step did is unknown" },
    { ETIMEDOUT, "it took longer than its deadline: a hung or overloaded device or file server" },
    { ECANCELED, "given up on request" },
    { ENOSYS, "this kernel does not offer it, or a container's seccomp profile forbids it" },
    { EOPNOTSUPP, "the file system does not offer it" },
    { EXDEV, "the two places are on different file systems" },
    { EBUSY, "somebody else is using it" },
    { EAGAIN, "a resource is used up for the moment" },
    { EPIPE, "the process at the other end is gone" },
    { ECONNRESET, "the process at the other end is gone" },
    { ECHILD, "the process is gone and somebody else has collected its status" },
    { EFAULT, "memory that was handed over is not readable or writable" },
    { ENXIO, "the device is gone" },
    { ENODEV, "the device is gone" },
};

const char *tspool_stage_name(enum tspool_stage stage)
{
    size_t number = (size_t)stage;

    return number < sizeof stage_names / sizeof *stage_names ? stage_names[number] : "unknown";
}

const char *failure_likely_cause(int error)
{
    for (size_t i = 0; i < sizeof likely_causes / sizeof *likely_causes; i++)
        if (likely_causes[i].error == error)
            return likely_causes[i].cause;
    return "";
}

/* The longest prefix of `size` bytes or fewer that does not end inside a UTF-8 sequence. */
static size_t whole_characters(const char *text, size_t size)
{
    while (size > 0 && ((unsigned char)text[size] & 0xc0) == 0x80)
        size--;
    return size;
}

static void text_clean(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

/* "a long na..." when it does not fit; `from` may be NULL. */
static void text_put(char *to, size_t capacity, const char *from)
{
    size_t size = from ? strnlen(from, capacity) : 0;

    if (size < capacity) {
        memcpy(to, from ? from : "", size);
        to[size] = 0;
    } else {
        size = whole_characters(from, capacity - sizeof "...");
        memcpy(to, from, size);
        memcpy(to + size, "...", sizeof "...");
    }
    text_clean(to);
}

struct composer { char *text; size_t capacity, used; };

static void append(struct composer *composer, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(struct composer *composer, const char *format, ...)
{
    va_list arguments;
    int written;

    va_start(arguments, format);
    written = vsnprintf(composer->text + composer->used, composer->capacity - composer->used, format, arguments);
    va_end(arguments);
    if (written > 0)
        composer->used += (size_t)written;
    if (composer->used >= composer->capacity)
        composer->used = composer->capacity - 1;
}

/* write: cannot fsync "step-1/model.safetensors" at byte 4096, tensor "w": Input/output error (EIO): the device ... */
void failure_compose(struct tspool_failure *failure)
{
    struct composer composer = { failure->message, sizeof failure->message, 0 };
    const char *name = strerrorname_np(failure->error), *meaning = strerrordesc_np(failure->error);

    failure->message[0] = 0;
    if (strcmp(failure->operation, tspool_stage_name(failure->stage)) != 0) /* "write: write ..." would say it twice */
        append(&composer, "%s: ", tspool_stage_name(failure->stage));
    if (failure->operation[0])
        append(&composer, "%s%s", failure->operation, failure->path[0] ? " " : ": ");
    if (failure->path[0])
        append(&composer, "\"%s\"", failure->path);
    if (failure->path[0] && failure->file_offset != TSPOOL_NO_OFFSET)
        append(&composer, " at byte %llu", (unsigned long long)failure->file_offset);
    if (failure->path[0])
        append(&composer, failure->tensor[0] ? ", " : ": ");
    if (failure->tensor[0])
        append(&composer, "tensor \"%s\": ", failure->tensor);
    if (name)
        append(&composer, "%s (%s)", meaning, name);
    else
        append(&composer, "error %d", failure->error);
    if (failure->cause[0])
        append(&composer, ": %s", failure->cause);
    text_clean(failure->message);
}

int failure_set(struct tspool_failure *failure, enum tspool_stage stage, int error, struct failure_at at,
                const char *cause, ...)
{
    struct tspool_failure made = TSPOOL_FAILURE_INIT;
    char text[sizeof made.cause * 2];
    va_list arguments;

    if (!failure)
        return -error;
    made.error = error;
    made.stage = stage;
    made.file_offset = at.file_offset;
    text_put(made.operation, sizeof made.operation, at.operation);
    text_put(made.tensor, sizeof made.tensor, at.tensor);
    text_put(made.path, sizeof made.path, at.path);
    if (cause) {
        va_start(arguments, cause);
        if (vsnprintf(text, sizeof text, cause, arguments) < 0)
            text[0] = 0;
        va_end(arguments);
        text_put(made.cause, sizeof made.cause, text);
    } else
        text_put(made.cause, sizeof made.cause, failure_likely_cause(error));
    failure_compose(&made);
    *failure = made;
    return -error;
}
