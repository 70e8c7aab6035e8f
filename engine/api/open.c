/* api/open.c - the top floor: the one place that knows both the trainer's side and the writer's machine, which thread
 * isolation runs inside the caller, with retention beside it.
 */
#include <collect/keeper.h>
#include <save/spool.h>
#include <write/host.h>

static int writer_run(int channel)
{
    const struct writer_host host = { .channel = channel, .term = -1, .keeping = &keeper_keeping };

    return writer_host_run(&host);
}

int tspool_open(const struct tspool_options *options, struct tspool **spool, struct tspool_failure *failure)
{
    return spool_open(options, writer_run, spool, failure);
}
