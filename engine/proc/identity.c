/* proc/identity.c - see identity.h. A zombie counts as gone: its pidfd is readable, and it will never do anything again. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <proc/identity.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What fits of a small file, as text. Its size, or -errno. */
static int text_read(const char *path, char *text, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), error;
    ssize_t size;

    if (fd < 0)
        return -errno;
    size = read(fd, text, capacity - 1);
    error = -errno;
    close(fd);
    if (size < 0)
        return error;
    text[size] = '\0';
    return (int)size;
}

struct process_stat { char state; long threads; uint64_t start; };

/* "4711 (any (name) here) S 1 4711 ...": the name may hold anything, so fields count from behind the last ')'. */
static int stat_read(uint32_t pid, struct process_stat *found)
{
    char path[40], text[1024], *at;
    int size, count;

    snprintf(path, sizeof path, "/proc/%" PRIu32 "/stat", pid);
    size = text_read(path, text, sizeof text);
    if (size < 0)
        return size;
    at = strrchr(text, ')');
    if (!at)
        return -EBADMSG;
    count = sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %" SCNu64, &found->state,
                   &found->threads, &found->start);
    return count == 3 ? 0 : -EBADMSG;
}

static int namespace_read(uint64_t *pid_namespace)
{
    struct stat found;

    if (stat("/proc/self/ns/pid", &found) < 0)
        return -errno;
    *pid_namespace = found.st_ino;
    return 0;
}

/* "0f1e2d3c-4b5a-...": 32 digits and four dashes. */
static int boot_read(uint8_t boot_id[16])
{
    char text[64];
    const char *at = text;
    int size = text_read("/proc/sys/kernel/random/boot_id", text, sizeof text);

    for (unsigned i = 0; size > 0 && i < 16; i++) {
        at += *at == '-';
        if (sscanf(at, "%2hhx", &boot_id[i]) != 1)
            return -EBADMSG;
        at += 2;
    }
    return size < 0 ? size : 0;
}

static int place_read(struct process_identity *identity)
{
    int error = namespace_read(&identity->pid_namespace);

    return error < 0 ? error : boot_read(identity->boot_id);
}

int process_identify(struct process_identity *self)
{
    struct process_identity made = { .pid = (uint32_t)getpid() };
    struct process_stat found;
    int error = place_read(&made);

    if (error == 0)
        error = stat_read(made.pid, &found);
    if (error < 0)
        return error;
    made.start = found.start;
    *self = made;
    return 0;
}

enum process_sight process_look(const struct process_identity *other)
{
    struct process_identity here;
    struct process_stat found;

    if (other->pid == 0 || place_read(&here) < 0 || here.pid_namespace != other->pid_namespace ||
        memcmp(here.boot_id, other->boot_id, sizeof here.boot_id) != 0)
        return PROCESS_UNSEEN;
    if (kill((pid_t)other->pid, 0) < 0 && errno == ESRCH)
        return PROCESS_GONE;
    if (stat_read(other->pid, &found) < 0) /* /proc may hide the processes of others */
        return PROCESS_UNSEEN;
    if (found.start != other->start)
        return PROCESS_GONE;
    /* A leading thread that ended before the others is a zombie too. */
    return (found.state == 'Z' && found.threads <= 1) || found.state == 'X' ? PROCESS_GONE : PROCESS_LIVES;
}
