/* bench/status.c - see status.h. On stderr. */
#include "status.h"

#include "../commands/command.h"

#define PAUSE_NS 250000000u

void status_begin(struct status *status, bool wanted, const char *name)
{
    uint64_t now = now_ns();

    *status = (struct status){ .wanted = wanted, .name = name, .started_ns = now, .last_ns = now };
}

static double share_of(const struct crew *crew, double elapsed_s, uint64_t *bytes)
{
    uint64_t done = 0, total = 0;
    double share;

    for (unsigned i = 0; i < crew->job->numjobs; i++) {
        done += atomic_load(&crew->shared->outcomes[i].done_bytes);
        total += atomic_load(&crew->shared->outcomes[i].total_bytes);
    }
    *bytes += done;
    share = total ? (double)done / (double)total : 0;
    if (crew->job->time_based)
        share = elapsed_s / ((double)(crew->job->runtime_ns + crew->job->ramp_ns) / 1e9);
    return share < 1 ? share : 1;
}

void status_show(struct status *status, const struct crew *crews, size_t count)
{
    uint64_t now = status->wanted ? now_ns() : 0, bytes = 0;
    double elapsed = (double)(now - status->started_ns) / 1e9, share = 1, speed;

    if (!status->wanted || now < status->next_ns)
        return;
    for (size_t i = 0; i < count; i++) {
        double of_job = crews[i].shared ? share_of(&crews[i], elapsed, &bytes) : 1;
        share = of_job < share ? of_job : share;
    }
    speed = now > status->last_ns && bytes > status->last_bytes ? (double)(bytes - status->last_bytes) * 1e9 /
                                                                  (double)(now - status->last_ns) : 0;
    fprintf(stderr, "\r%s: %zu job%s [%3.0f %%] [%s/s] [eta ", status->name, count, count == 1 ? "" : "s", 100 * share,
            human_bytes((uint64_t)speed).bytes);
    if (share > 0.01)
        fprintf(stderr, "%.0f s]\033[K", elapsed / share - elapsed);
    else
        fprintf(stderr, "--]\033[K");
    status->shown = true;
    status->next_ns = now + PAUSE_NS;
    status->last_ns = now;
    status->last_bytes = bytes;
}

void status_end(struct status *status)
{
    if (status->shown)
        fprintf(stderr, "\r\033[K");
}
