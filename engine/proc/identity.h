/* proc/identity.h - telling a process from another that later has the same pid: by its start time, within one boot and one pid
 * namespace.
 */
#ifndef PROC_IDENTITY_H
#define PROC_IDENTITY_H

#include <stdint.h>

struct process_identity {
    uint32_t pid;
    uint64_t start;            /* clock ticks after the boot: field 22 of /proc/<pid>/stat */
    uint64_t pid_namespace;    /* inode of /proc/<pid>/ns/pid: pids count in there only */
    uint8_t boot_id[16];
};

/* Our own. 0 or -errno (no /proc). */
int process_identify(struct process_identity *self);

enum process_sight {
    PROCESS_LIVES = 1,
    PROCESS_GONE,              /* it is not there, is a zombie, or its pid is another's by now */
    PROCESS_UNSEEN             /* of another machine, boot or container, or hidden from us: nothing can be said */
};
enum process_sight process_look(const struct process_identity *other);

#endif
