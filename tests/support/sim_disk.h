/* support/sim_disk.h - a file system in memory that knows what a power cut would leave.
 *
 * Every change is made at once in what running programs see ("now") and noted as an effect that is not durable yet.
 * sim_disk_sync of a file makes its data and size durable, of a directory its entries, and nothing else: neither covers
 * the other, and a directory that is renamed takes only its durable entries with it. A power cut keeps any choice of
 * the effects that were not synced:
 *
 *   effect        unit                                              what it may tear
 *   sector        512 bytes of a file                               a write, anywhere
 *   size          a file's size                                     size without data (zeros) and data without size
 *   entry         a name set or removed; a rename inside one        a rename between two directories (one half), the
 *                 directory or an exchange is one effect            order of any two operations
 *
 * SIM_STRICT allows every choice: less than POSIX promises nobody promises. SIM_JOURNAL is what ext4 and xfs do: the
 * entry effects of one directory become durable in order, a rename between directories as a whole. Each state that
 * SIM_JOURNAL leaves SIM_STRICT can leave too.
 *
 * A failed fsync (sim_disk_sync_fails) behaves as Linux does: the effects count as clean from then on, some of them are on
 * the disk, and a later fsync that succeeds does not bring the others back.
 *
 * One thread, no I/O, no time, no hidden state: the caller owns every random choice.
 */
#ifndef SUPPORT_SIM_DISK_H
#define SUPPORT_SIM_DISK_H

#include <base/hash.h>
#include <io/io.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_SECTOR_BYTES 512u
#define SIM_ROOT 1u /* inode of "/" */

enum sim_ordering { SIM_STRICT = 0, SIM_JOURNAL };
struct sim_disk_settings {
    enum sim_ordering ordering;
    uint64_t capacity;      /* bytes of file data; 0: 1 TiB */
    bool exchange_refused;  /* RENAME_EXCHANGE is -EINVAL, as on NFS */
};

struct sim_disk;
struct sim_disk *sim_disk_create(const struct sim_disk_settings *settings);
void sim_disk_destroy(struct sim_disk *disk);
struct sim_disk *sim_disk_clone(const struct sim_disk *disk);
/* From now on `free_bytes` are free. */
void sim_disk_leave_free(struct sim_disk *disk, uint64_t free_bytes);

/* Names: `name` is one component of directory `directory`. 0 or the errno that Linux gives. --------------------------- */
int sim_disk_find(const struct sim_disk *disk, uint32_t directory, const char *name, uint32_t *inode);
/* Follows a path of several components from `directory` (from "/" when it starts with one). */
int sim_disk_walk(const struct sim_disk *disk, uint32_t directory, const char *path, uint32_t *inode);
int sim_disk_make(struct sim_disk *disk, uint32_t directory, const char *name, bool is_directory, uint32_t *inode);
int sim_disk_link(struct sim_disk *disk, uint32_t inode, uint32_t directory, const char *name);
int sim_disk_unlink(struct sim_disk *disk, uint32_t directory, const char *name, bool is_directory);
int sim_disk_rename(struct sim_disk *disk, uint32_t directory, const char *name, uint32_t to_directory, const char *to_name,
                    enum rename_flags flags);
int sim_disk_list(const struct sim_disk *disk, uint32_t directory, struct io_list *list);
bool sim_disk_is_directory(const struct sim_disk *disk, uint32_t inode);
/* The path under which it was last linked, from "/"; for traces. */
void sim_disk_path(const struct sim_disk *disk, uint32_t inode, char *path, size_t size);

/* Open files: an inode that is held outlives its names. */
void sim_disk_hold(struct sim_disk *disk, uint32_t inode);
void sim_disk_release(struct sim_disk *disk, uint32_t inode);

/* Data: bytes moved (fewer when space ends), or -errno. ------------------------------------------------------------- */
int64_t sim_disk_read(const struct sim_disk *disk, uint32_t inode, uint64_t file_offset, void *bytes, size_t size);
int64_t sim_disk_write(struct sim_disk *disk, uint32_t inode, uint64_t file_offset, const void *bytes, size_t size);
int sim_disk_resize(struct sim_disk *disk, uint32_t inode, uint64_t size);
int sim_disk_allocate(struct sim_disk *disk, uint32_t inode, uint64_t size);
void sim_disk_stat(const struct sim_disk *disk, uint32_t inode, struct io_stat *stat); /* all but times and alignment */

/* Durability -------------------------------------------------------------------------------------------------------- */

/* The moment up to which a sync that is submitted now will reach: later effects are not its concern. */
uint64_t sim_disk_moment(const struct sim_disk *disk);
void sim_disk_sync(struct sim_disk *disk, uint32_t inode, uint64_t moment);
/* keep(context) is asked once per effect: whether it got to the disk before the error. */
void sim_disk_sync_fails(struct sim_disk *disk, uint32_t inode, uint64_t moment, bool (*keep)(void *context), void *context);
void sim_disk_sync_all(struct sim_disk *disk);

/* Effects that are not durable, oldest first. */
size_t sim_disk_pending(const struct sim_disk *disk);
void sim_disk_describe(const struct sim_disk *disk, size_t effect, char *text, size_t size);
/* The disk as found after the power cut; everything on it is durable. */
struct sim_disk *sim_disk_power_cut(const struct sim_disk *disk, const bool *kept);

/* Which effects can have any influence on what a power cut leaves under `name` of `directory`: relevant[effect] is set. */
void sim_disk_relevant(const struct sim_disk *disk, uint32_t directory, const char *name, bool *relevant);
/* Adds to `kept` whatever must be kept with it. */
void sim_disk_complete(const struct sim_disk *disk, bool *kept);

/* Digest of a file, or of a directory with all below it: names, sizes, bytes. */
struct digest sim_disk_fingerprint(const struct sim_disk *disk, uint32_t inode);

#endif
