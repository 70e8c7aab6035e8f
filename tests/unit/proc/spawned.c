/* Spawning tests/support/child_reporter.c and talking to it. */
#include "spawned.h"

#include <criterion/criterion.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* It is built into a folder beside the test's own program. */
void reporter_path(char *path)
{
    char own[PATH_MAX - 64];
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);

    cr_assert_gt(length, 0);
    own[length] = '\0';
    *strrchr(own, '/') = '\0';
    snprintf(path, PATH_MAX, "%s/proc/child-reporter", own);
}

void spawned_listen(struct spawned *spawned)
{
    struct pollfd ready = { .fd = spawned->channel, .events = POLLIN };
    ssize_t got;

    cr_assert_eq(poll(&ready, 1, 10000), 1, "the child said nothing");
    got = recv(spawned->channel, spawned->report, REPORT_MAX - 1, 0);
    cr_assert_gt(got, 0, "the child ended");
    spawned->report[got] = '\0';
}

void spawned_start(struct spawned *spawned, const char *excluded_cpus)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    char path[PATH_MAX];
    int ends[2], result;

    reporter_path(path);
    cr_assert_eq(channel_create(ends, NULL), 0);
    result = child_spawn(path, ends[1], excluded_cpus, &spawned->child, &failure);
    cr_assert_eq(result, 0, "%s", failure.message);
    close(ends[1]);
    spawned->channel = ends[0];
    spawned_listen(spawned);
}

void spawned_tell(struct spawned *spawned, const char *command)
{
    cr_assert_eq(send(spawned->channel, command, strlen(command), MSG_NOSIGNAL), (ssize_t)strlen(command));
}

void child_await_death(const struct child *child)
{
    struct pollfd death = { .fd = child->pidfd, .events = POLLIN };

    cr_assert_eq(poll(&death, 1, 10000), 1, "the child lives on");
}

void spawned_end(struct spawned *spawned)
{
    int status;

    child_kill(&spawned->child);
    child_await_death(&spawned->child);
    child_release(&spawned->child, &status);
    close(spawned->channel);
}

const char *report_line(const struct spawned *spawned, const char *key)
{
    static char line[1024];
    const char *found = strstr(spawned->report, key);

    cr_assert(found, "no %s in the report:\n%s", key, spawned->report);
    snprintf(line, sizeof line, "%.*s", (int)strcspn(found, "\n"), found);
    return line;
}
