/* write/connection.h - the channel to the trainer: messages in, one at a time; messages out, queued, one in flight.
 *
 * The trainer's death is its readable pidfd. Its last messages are queued on the channel then, and end of stream may
 * never come, because a forked child may hold the socket: so receives are cancelled at once then, until one brings nothing.
 */
#ifndef WRITE_CONNECTION_H
#define WRITE_CONNECTION_H

#include <wire/message.h>
#include <write/task.h>

struct outgoing {
    struct outgoing *next;
    size_t size;
    uint8_t bytes[];
};

struct connection {
    struct task receive, send, trainer, term;
    uint8_t received[sizeof(struct message) + 1]; /* one more than any message: a longer one shows */
    struct outgoing *first, *last;                /* the first is in flight while `sending` */
    /* For an answer that no memory was left for: most likely it says just that. Free unless it is queued. */
    _Alignas(struct outgoing) uint8_t spare[sizeof(struct outgoing) + sizeof(struct message)];
    bool spare_is_queued;
    bool receiving, sending;
    bool draining;   /* only what is queued is received */
    bool last_look;  /* the receive in flight was cancelled at once */
    bool stream_over;/* nothing can be received any more */
    bool starved;    /* there was no memory for an answer, and the spare was queued: the writer must end */
    bool mute;       /* nothing can be sent any more */
};

void connection_init(struct writer *writer);          /* watches the trainer and SIGTERM */
void connection_receive(struct writer *writer);       /* keeps one receive in flight, while there is a stream */
void connection_drain(struct writer *writer);         /* ends in writer_drained */
void connection_send(struct writer *writer, const struct message *message);
void connection_mute(struct writer *writer);          /* drops what is queued; the send in flight is cancelled */
bool connection_is_quiet(const struct writer *writer);/* everything was sent */
void connection_deinit(struct writer *writer);

#endif
