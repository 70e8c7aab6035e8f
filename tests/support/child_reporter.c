/* A program for proc's tests to execute in the writer's place: tells over descriptor 3 what it inherited, then obeys.
 *
 * Commands, one datagram each: "settle" (calls process_settle and reports again), "exit" (with status 3). At the end of
 * the stream it waits to be killed, as a writer does that still has work.
 */
#include <proc/proc.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHANNEL 3

extern char **environ;

static void report_descriptors(FILE *out)
{
    char path[32], target[256];

    fprintf(out, "fds:");
    for (int fd = 0; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            fprintf(out, " %d", fd);
    fprintf(out, "\n");
    for (int fd = 0; fd < 3; fd++) {
        ssize_t length;

        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        length = readlink(path, target, sizeof target - 1);
        fprintf(out, "fd%d: %.*s\n", fd, length > 0 ? (int)length : 0, target);
    }
}

static void report_status(FILE *out)
{
    char line[1024];
    FILE *status = fopen("/proc/self/status", "re");

    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "SigBlk", 6) || !strncmp(line, "SigIgn", 6) || !strncmp(line, "Cpus_allowed_list", 17))
            fputs(line, out);
    if (status)
        fclose(status);
}

static void report(const char *name)
{
    static char text[16384];
    char directory[4096];
    int variables = 0;
    FILE *out;

    memset(text, 0, sizeof text);
    while (environ[variables])
        variables++;
    out = fmemopen(text, sizeof text - 1, "w");
    report_descriptors(out);
    report_status(out);
    fprintf(out, "argv0: %s\nenviron: %d\nleader: %d\ncwd: %s\nno_new_privs: %d\ndumpable: %d\n", name, variables,
            getpgrp() == getpid() && getsid(0) == getsid(getppid()), getcwd(directory, sizeof directory), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
            prctl(PR_GET_DUMPABLE));
    fclose(out);
    send(CHANNEL, text, strlen(text), MSG_NOSIGNAL);
}

int main(int argc, char **argv)
{
    char command[32];
    ssize_t got;

    (void)argc;
    report(argv[0]);
    while ((got = recv(CHANNEL, command, sizeof command - 1, 0)) > 0) {
        command[got] = '\0';
        if (strcmp(command, "exit") == 0)
            return 3;
        if (strcmp(command, "settle") == 0 && dup2(0, 40) == 40 && process_settle() == 0) /* 40: must be gone then */
            report(argv[0]);
    }
    for (;;)
        pause();
}
