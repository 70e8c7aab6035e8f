/* wire/message.h - what trainer and writer tell each other. Pure.
 *
 * Fixed-size messages on a SEQPACKET socket: one datagram is one message. Memory holds bytes, the channel holds facts:
 * nothing shared is ever trusted or polled. Each side copies a message, then message_decode validates every field;
 * anything else is -EBADMSG, and the receiver ends the connection.
 *
 *   trainer -> writer                                   writer -> trainer
 *   HELLO    settings; fds: arena, root, trainer pidfd   READY     what really runs
 *   BEGIN    one attempt of a save; fds: sheet, appendix RELEASED  a slot whose chunk needs it no more
 *   STAGED   a chunk lies in a slot                      WRITTEN   every byte written and checked
 *   ABANDON  end that attempt, remove its files          DURABLE   this rank's part survives power loss
 *   CLOSE    finish what is staged, then exit            PUBLISHED it stands under its name
 *   PING     heartbeat                                   FAILED, UNKNOWN  with the record
 *                                                        PONG      heartbeat, and the oldest op in flight
 *                                                        PREPARED  space is preallocated, files are open
 *                                                        ABANDONED the attempt's files are gone
 * All integers are host-endian: both ends are one machine and one build (version checked in HELLO and READY).
 */
#ifndef WIRE_MESSAGE_H
#define WIRE_MESSAGE_H

#include <stddef.h>
#include <stdint.h>

#define WIRE_MAGIC 0x4c505354u /* "TSPL" */
#define WIRE_VERSION 1u

enum message_kind {
    MESSAGE_HELLO = 1, MESSAGE_BEGIN, MESSAGE_STAGED, MESSAGE_ABANDON, MESSAGE_CLOSE, MESSAGE_PING,
    MESSAGE_READY = 64, MESSAGE_PREPARED, MESSAGE_RELEASED, MESSAGE_WRITTEN, MESSAGE_DURABLE, MESSAGE_PUBLISHED,
    MESSAGE_FAILED, MESSAGE_UNKNOWN, MESSAGE_ABANDONED, MESSAGE_PONG
};

struct attempt { uint8_t save_id[16]; uint32_t number; }; /* number counts from 1 */

struct message_hello {
    char version[16];
    uint64_t arena_bytes, chunk_bytes;   /* chunk_bytes: CHUNK_BYTES of plan/ */
    uint64_t bytes_per_second, heartbeat_ns;
    uint32_t item_bytes, depth, io, hash_threads, rank, world_size;
    uint32_t submit_batch;               /* writes to one call of the kernel; 0: 1 */
    uint32_t keep;                        /* how many published checkpoints stay; 0: all */
    uint8_t buffered, registered;
    uint8_t boot_id[16];                  /* from here on: who the trainer is, for part records (format/part.h) */
    uint32_t trainer_pid;                 /* 0: not known */
    uint64_t trainer_start, pid_namespace;
};                                        /* fds: arena memfd, root directory, trainer pidfd (absent with thread isolation) */
#define KEEP_MAX 65536u
#define HELLO_FD_ARENA 0
#define HELLO_FD_ROOT 1
#define HELLO_FD_TRAINER 2
struct message_ready {
    char version[16], backend[16], filesystem[16], note[160];
    int32_t pid;
    uint32_t memory_align, offset_align; /* of O_DIRECT in the root; 0: buffered */
    uint8_t direct, registered;
    int32_t error;                        /* errno: cannot serve; `note` says why. 0: ready */
};
struct message_begin {
    char name[181];                       /* the checkpoint's */
    uint8_t replace;
    uint8_t hash_late;                    /* leaves are hashed once all chunks are staged: the trainer's copying needs the CPUs */
    uint64_t sheet_bytes, appendix_bytes; /* sizes of the sealed memfds; see wire/sheet.h */
    uint64_t deadline_ns;                 /* allowed between the last STAGED and DURABLE; 0: none */
};                                        /* fds: sheet, appendix */
struct message_staged { uint32_t chunk, slot; };
struct message_released { uint32_t chunk, slot; };
struct kept_account {                     /* of retention; zero without */
    uint64_t removed, removed_bytes;      /* checkpoints that went, and what became free, since the writer began */
    int32_t error;                        /* errno of the last pass; 0: it left nothing that was to go */
    char left[181];                       /* what could not be removed; "": the root could not be looked over */
};
struct message_progress {                 /* PREPARED, WRITTEN, DURABLE, PUBLISHED */
    uint64_t at_ns;                       /* CLOCK_MONOTONIC of the writer (same machine, same clock) */
    uint64_t synced_ns;                   /* when all syncs of the part were through; 0 before */
    uint64_t writes, short_writes, bytes, hash_cpu_ns;
    uint32_t item_bytes, depth;
    uint8_t direct, registered;
    struct kept_account kept;
};
struct message_failure {                  /* FAILED, UNKNOWN */
    int32_t error;
    uint32_t stage;                       /* enum tspool_stage */
    uint32_t file;                        /* index of the sheet's file, or UINT32_MAX */
    uint64_t file_offset;                 /* TSPOOL_NO_OFFSET */
    char operation[24], path[256], cause[512];
};
struct message_ping { uint64_t sequence; };
struct message_pong { uint64_t sequence, oldest_op_ns; char oldest_op[24], oldest_path[256]; };
struct message_close { uint8_t abandon; };

struct message {
    uint32_t magic;
    uint16_t version, kind;
    struct attempt attempt;               /* zero in HELLO, READY, CLOSE, PING, PONG */
    uint32_t reserved;
    union {
        struct message_hello hello;
        struct message_ready ready;
        struct message_begin begin;
        struct message_staged staged;
        struct message_released released;
        struct message_progress progress;
        struct message_failure failure;
        struct message_ping ping;
        struct message_pong pong;
        struct message_close close;
    };
};

/* Zeroes everything (no stray stack bytes cross the channel), then sets the front. */
void message_init(struct message *message, enum message_kind kind, const struct attempt *attempt);
/* Bytes on the wire of that kind; 0 for what is no kind. */
size_t message_size(enum message_kind kind);
/* How many descriptors come with that kind at least and at most. */
void message_fd_range(enum message_kind kind, unsigned *least, unsigned *most);
/* Copies and checks: magic, version, kind, size, every string terminated, enums and booleans in range, sizes sane.
 * 0; -EPROTO for another version; -EBADMSG. */
int message_decode(const void *bytes, size_t size, struct message *message);
const char *message_kind_name(enum message_kind kind); /* static */

#endif
