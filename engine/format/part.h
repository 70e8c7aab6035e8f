/* format/part.h - what stands in a part record: who writes this attempt, and for whom. Pure.
 *
 * The lock on the record says that a writer lives. What stands in it says whether the writer's trainer does: a reader that
 * sees the same pids looks the trainer up, and a writer that notices its trainer's death marks the record, for everybody
 * else. The mark is the file's size: growing a file needs neither space nor a place among the writes, and cannot tear.
 *
 * A record helps to wait for the right ones and is no more than that: it is never synced, and an empty or damaged one says
 * nothing.
 */
#ifndef FORMAT_PART_H
#define FORMAT_PART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PART_TEXT_BYTES 256u   /* one line, padded with spaces, a newline last */
#define PART_ORPHAN_BYTES 512u /* size of a record whose writer saw its trainer die; zeros follow the text */

struct part_record {
    uint32_t writer_pid;       /* all pids as seen in pid_namespace */
    uint32_t trainer_pid;      /* 0: not known */
    uint64_t trainer_start;    /* clock ticks after the boot: field 22 of /proc/<pid>/stat */
    uint64_t pid_namespace;    /* inode of /proc/<pid>/ns/pid */
    uint8_t boot_id[16];       /* /proc/sys/kernel/random/boot_id */
};

void part_emit(const struct part_record *record, char text[PART_TEXT_BYTES]);
/* `text`: what was read, `size` bytes of it. False when it is no such line, or one of a newer version. */
bool part_parse(const char *text, size_t size, struct part_record *record);

#endif
