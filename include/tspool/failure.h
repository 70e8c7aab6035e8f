/* tspool/failure.h - the failure record: what went wrong, where, and what to do about it.
 *
 * Functions return 0 or -errno. Those that take a `struct tspool_failure *` also fill it, on failure only,
 * when it is not NULL. The record belongs to the caller and holds no pointers: copy it, keep it, print it.
 *
 *     struct tspool_failure failure = TSPOOL_FAILURE_INIT;
 *     if (tspool_open(&options, &spool, &failure) < 0)
 *         fprintf(stderr, "%s\n", failure.message);
 */
#ifndef TSPOOL_FAILURE_H
#define TSPOOL_FAILURE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where in the life of a save or a read it happened. */
enum tspool_stage {
    TSPOOL_STAGE_NONE = 0,
    TSPOOL_STAGE_OPEN,      /* opening the spool: root directory, arena, writer process */
    TSPOOL_STAGE_DECLARE,   /* a tensor, object or metadata entry was refused */
    TSPOOL_STAGE_PLAN,      /* laying tensors out in shard files */
    TSPOOL_STAGE_RESERVE,   /* arena memory */
    TSPOOL_STAGE_STAGE,     /* copying tensors into the arena */
    TSPOOL_STAGE_PREPARE,   /* hidden directory, open, preallocate */
    TSPOOL_STAGE_WRITE,     /* tensor bytes to the shard files */
    TSPOOL_STAGE_SEAL,      /* digests, manifest, index, cut of padded tails */
    TSPOOL_STAGE_SYNC,      /* fsync of files and of the hidden directory */
    TSPOOL_STAGE_PUBLISH,   /* rename onto the checkpoint's name, fsync of the root */
    TSPOOL_STAGE_READ,      /* opening or reading a checkpoint */
    TSPOOL_STAGE_VERIFY,    /* bytes disagree with their digests */
    TSPOOL_STAGE_WRITER     /* the writer process itself: spawn, handshake, heartbeat, death */
};

#define TSPOOL_NO_OFFSET UINT64_MAX

struct tspool_failure {
    size_t size;              /* sizeof(struct tspool_failure), set by TSPOOL_FAILURE_INIT */
    int error;                /* a positive errno value; 0 while there is no failure */
    enum tspool_stage stage;
    uint64_t file_offset;     /* bytes from the start of `path`; TSPOOL_NO_OFFSET where no place in a file is meant */
    char operation[24];       /* the verb that failed: "write", "fsync", "rename", ...; may be empty */
    char tensor[256];         /* tensor or object name, cut with "..." when longer; empty when none is concerned */
    char path[1024];          /* file or directory, relative to the root or as given; may be empty */
    char cause[512];          /* the likely cause and what to do, one sentence or two */
    char message[2048];       /* all of the above on one line, ready to print; no newline */
};

#define TSPOOL_FAILURE_INIT { sizeof(struct tspool_failure), 0, TSPOOL_STAGE_NONE, TSPOOL_NO_OFFSET, "", "", "", "", "" }

/* "plan", "write", ...: the stage's name in messages and JSON. Static; "unknown" for other values. */
const char *tspool_stage_name(enum tspool_stage stage);

#ifdef __cplusplus
}
#endif
#endif
