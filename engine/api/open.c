/* api/open.c - the top floor: the one place that knows both the trainer's side and the writer's machine, which thread
 * isolation runs inside the caller.
 */
#include <save/spool.h>
#include <write/writer.h>

int tspool_open(const struct tspool_options *options, struct tspool **spool, struct tspool_failure *failure)
{
    return spool_open(options, writer_run, spool, failure);
}
