/* read/supply.c - see supply.h. */
#include <base/failure.h>
#include <errno.h>
#include <read/supply.h>
#include <stdlib.h>

int supply_init(struct supply *supply, const struct run *run, struct tspool_failure *failure)
{
    int error;

    *supply = (struct supply){ .run = run, .outstanding = malloc((run->count + 1) * sizeof *supply->outstanding) };
    if (!supply->outstanding)
        return failure_set(failure, TSPOOL_STAGE_READ, ENOMEM, FAILURE_AT(.operation = "read", .path = run->checkpoint->path),
                           NULL);
    error = requests_sort(run, &supply->sorted, failure);
    if (error < 0)
        return error;
    supply->next_file = supply->sorted;
    for (size_t i = 0; i < run->count; i++)
        supply->outstanding[i] = 1;
    return 0;
}

void supply_deinit(struct supply *supply)
{
    free(supply->sorted);
    free(supply->outstanding);
}

void supply_done(struct supply *supply, uint32_t request)
{
    if (--supply->outstanding[request] == 0 && supply->run->on_piece && !supply->silent)
        supply->run->on_piece(supply->run->context, request);
}

/* Requests of which every part is made are done with on the way. */
bool supply_more(struct supply *supply, unsigned stream, struct part *part)
{
    uint32_t ended = 0;
    int made;

    if (supply->has_returned[stream]) {
        *part = supply->returned[stream];
        supply->has_returned[stream] = false;
        return true;
    }
    do {
        made = part_next(&supply->streams[stream], part, &ended);
        if (made == 0)
            supply_done(supply, ended);
    } while (made == 0);
    if (made == 1)
        supply->outstanding[part->request]++;
    return made == 1;
}

void supply_return(struct supply *supply, unsigned stream, const struct part *part)
{
    supply->returned[stream] = *part;
    supply->has_returned[stream] = true;
}

/* Points the stream at the requests of the next file. */
static bool stream_start(struct supply *supply, struct part_stream *stream)
{
    const struct sorted_request *first = supply->next_file, *end = supply->sorted + supply->run->count, *last = first;

    if (first == end)
        return false;
    while (last < end && last->file == first->file)
        last++;
    *stream = (struct part_stream){ .run = supply->run, .next = first, .end = last,
                                    .file = &supply->run->checkpoint->files[first->file] };
    supply->next_file = last;
    return true;
}

bool supply_next(struct supply *supply, unsigned *stream, struct part *part)
{
    for (unsigned tries = 0; tries < STREAM_COUNT; tries++) {
        *stream = supply->turn++ % STREAM_COUNT;
        do {
            if (supply_more(supply, *stream, part))
                return true;
        } while (stream_start(supply, &supply->streams[*stream]));
    }
    return false;
}
