/* read/supply.h - which part is read next: up to four files in turn, each from front to back; and when a request has had
 * its last part. */
#ifndef READ_SUPPLY_H
#define READ_SUPPLY_H

#include <read/reader.h>

#define STREAM_COUNT 4u

struct supply {
    const struct run *run;
    struct sorted_request *sorted;
    const struct sorted_request *next_file; /* the first request of the next file that has no stream yet */
    uint32_t *outstanding;                  /* per request: parts given out, and 1 until its parts have all been made */
    struct part_stream streams[STREAM_COUNT];
    struct part returned[STREAM_COUNT];
    bool has_returned[STREAM_COUNT];
    unsigned turn;
    bool silent;                            /* the run failed: no request is complete any more */
};

int supply_init(struct supply *supply, const struct run *run, struct tspool_failure *failure);
void supply_deinit(struct supply *supply);
/* A part of the stream whose turn it is, or of the next one that has any; false when all is given out. */
bool supply_next(struct supply *supply, unsigned *stream, struct part *part);
/* The part after it, of the same stream; false at its end. */
bool supply_more(struct supply *supply, unsigned stream, struct part *part);
/* Takes the part back that supply_more gave last: it is given again. */
void supply_return(struct supply *supply, unsigned stream, const struct part *part);
/* One of the request's parts is done with. The last one calls the run's on_piece. */
void supply_done(struct supply *supply, uint32_t request);

#endif
