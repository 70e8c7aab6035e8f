/* support/sim_disk_inside.h - what sim_disk.c (names), sim_data.c (bytes) and sim_durable.c (effects and power
 * cuts) share. */
#ifndef SUPPORT_SIM_DISK_INSIDE_H
#define SUPPORT_SIM_DISK_INSIDE_H

#include "sim_disk.h"

struct sim_entry { char *name; uint32_t inode; };
struct sim_entries { struct sim_entry *items; size_t count, capacity; };      /* sorted by name */
struct sim_content { uint8_t *bytes; size_t capacity; uint64_t size; };       /* bytes beyond size are zero in "now" */

struct sim_inode {
    bool is_directory;
    uint32_t links, held;
    uint32_t parent;                 /* with `name`: where it was linked last */
    char *name;
    uint64_t allocated;              /* bytes of capacity it uses */
    struct sim_content now, durable;
    struct sim_entries names_now, names_durable;
};

enum sim_effect_kind { EFFECT_SECTOR, EFFECT_SIZE, EFFECT_ENTRY };
struct sim_assignment { char *name; uint32_t inode; }; /* inode 0: the name goes */
struct sim_effect {
    enum sim_effect_kind kind;
    uint32_t inode;                  /* the file, or the directory whose entries change */
    uint64_t moment;
    uint64_t transaction;            /* halves of one rename share it */
    uint64_t sector, size;           /* EFFECT_SECTOR, EFFECT_SIZE */
    uint8_t *bytes;                  /* EFFECT_SECTOR */
    struct sim_assignment assignments[2]; /* EFFECT_ENTRY */
    unsigned assignment_count;
};

struct sim_disk {
    struct sim_disk_settings settings;
    struct sim_inode *inodes;        /* [0] is unused, [SIM_ROOT] is "/" */
    size_t inode_count, inode_capacity;
    struct sim_effect *effects;
    size_t effect_count, effect_capacity;
    uint64_t moment, transaction;
    uint64_t used;
};

void entries_set(struct sim_entries *entries, const char *name, uint32_t inode);
uint32_t entries_find(const struct sim_entries *entries, const char *name); /* 0: none */
void entries_copy(struct sim_entries *to, const struct sim_entries *from);
void entries_deinit(struct sim_entries *entries);
void content_reserve(struct sim_content *content, uint64_t size);
void content_resize(struct sim_content *content, uint64_t size);
void content_copy(struct sim_content *to, const struct sim_content *from);

/* Notes one effect; the caller fills what its kind needs. Valid until the next note. */
struct sim_effect *effect_note(struct sim_disk *disk, enum sim_effect_kind kind, uint32_t inode);
void effect_assign(struct sim_effect *effect, const char *name, uint32_t inode);
void effect_deinit(struct sim_effect *effect);

#endif
