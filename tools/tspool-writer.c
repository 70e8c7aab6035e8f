/* tools/tspool-writer.c - the process that outlives a trainer: run by libtspool, with its channel as descriptor 3.
 *
 * It settles first (nothing that it inherited may end or slow it), then runs the writer's machine until the trainer is
 * done with it, or dead and everything staged is published.
 */
#include <collect/keeper.h>
#include <proc/proc.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <tspool/version.h>
#include <write/host.h>

#define CHANNEL 3

/* Many shard files may be open at once; the limit that programs inherit is low for the sake of select(2) only. */
static void files_allow(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static bool channel_is_there(void)
{
    int type;
    socklen_t size = sizeof(type);

    return getsockopt(CHANNEL, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET;
}

int main(int argc, char **argv)
{
    struct writer_host host = { .channel = CHANNEL, .keeping = &keeper_keeping };

    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("tspool-writer %s\n", TSPOOL_VERSION);
        return 0;
    }
    if (argc > 1 || !channel_is_there()) {
        fprintf(stderr, "tspool-writer: started by libtspool only; see tspool(7)\n");
        return 2;
    }
    if (process_settle() < 0 || (host.term = process_term_fd()) < 0)
        return 1;
    files_allow();
    return writer_host_run(&host) < 0 ? 1 : 0;
}
