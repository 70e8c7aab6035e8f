/* support/sim_disk.c - names, as running programs see them; each change is noted for sim_durable.c. */
#include "sim_disk_inside.h"

#include <assert.h>
#include <base/array.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A test without memory cannot go on. */
static void must(bool done)
{
    if (!done)
        abort();
}

static char *copy_of(const char *text)
{
    char *copy = strdup(text);

    must(copy != NULL);
    return copy;
}

/* Entries ----------------------------------------------------------------------------------------------------------- */

static size_t entries_place(const struct sim_entries *entries, const char *name, bool *found)
{
    size_t low = 0, high = entries->count;

    *found = false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(entries->items[middle].name, name);

        if (order == 0)
            *found = true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t entries_find(const struct sim_entries *entries, const char *name)
{
    bool found;
    size_t place = entries_place(entries, name, &found);

    return found ? entries->items[place].inode : 0;
}

static void entries_insert(struct sim_entries *entries, size_t place, const char *name, uint32_t inode)
{
    void *items = entries->items;

    must(array_reserve(&items, &entries->capacity, entries->count + 1, sizeof(struct sim_entry)) == 0);
    entries->items = items;
    memmove(entries->items + place + 1, entries->items + place, (entries->count - place) * sizeof(struct sim_entry));
    entries->items[place] = (struct sim_entry){ copy_of(name), inode };
    entries->count++;
}

void entries_set(struct sim_entries *entries, const char *name, uint32_t inode)
{
    bool found;
    size_t place = entries_place(entries, name, &found);

    if (found && inode) {
        entries->items[place].inode = inode;
    } else if (found) {
        free(entries->items[place].name);
        entries->count--;
        memmove(entries->items + place, entries->items + place + 1, (entries->count - place) * sizeof(struct sim_entry));
    } else if (inode) {
        entries_insert(entries, place, name, inode);
    }
}

void entries_copy(struct sim_entries *to, const struct sim_entries *from)
{
    memset(to, 0, sizeof(*to));
    for (size_t i = 0; i < from->count; i++)
        entries_insert(to, i, from->items[i].name, from->items[i].inode);
}

void entries_deinit(struct sim_entries *entries)
{
    for (size_t i = 0; i < entries->count; i++)
        free(entries->items[i].name);
    free(entries->items);
    memset(entries, 0, sizeof(*entries));
}

/* The disk ---------------------------------------------------------------------------------------------------------- */

static uint32_t inode_new(struct sim_disk *disk, bool is_directory)
{
    void *inodes = disk->inodes;

    must(array_reserve(&inodes, &disk->inode_capacity, disk->inode_count + 1, sizeof(struct sim_inode)) == 0);
    disk->inodes = inodes;
    disk->inodes[disk->inode_count] = (struct sim_inode){ .is_directory = is_directory };
    return (uint32_t)disk->inode_count++;
}

struct sim_disk *sim_disk_create(const struct sim_disk_settings *settings)
{
    struct sim_disk *disk = calloc(1, sizeof(*disk));

    must(disk != NULL);
    disk->settings = *settings;
    if (!disk->settings.capacity)
        disk->settings.capacity = (uint64_t)1 << 40;
    inode_new(disk, false);
    inode_new(disk, true);
    disk->inodes[SIM_ROOT].parent = SIM_ROOT;
    disk->inodes[SIM_ROOT].links = 1;
    disk->inodes[SIM_ROOT].name = copy_of("");
    return disk;
}

static void inode_deinit(struct sim_inode *inode)
{
    free(inode->name);
    free(inode->now.bytes);
    free(inode->durable.bytes);
    entries_deinit(&inode->names_now);
    entries_deinit(&inode->names_durable);
}

void sim_disk_destroy(struct sim_disk *disk)
{
    if (!disk)
        return;
    for (size_t i = 0; i < disk->inode_count; i++)
        inode_deinit(&disk->inodes[i]);
    for (size_t i = 0; i < disk->effect_count; i++)
        effect_deinit(&disk->effects[i]);
    free(disk->inodes);
    free(disk->effects);
    free(disk);
}

static void inode_copy(struct sim_inode *to, const struct sim_inode *from)
{
    *to = *from;
    to->name = from->name ? copy_of(from->name) : NULL;
    content_copy(&to->now, &from->now);
    memset(&to->durable, 0, sizeof(to->durable));
    content_reserve(&to->durable, from->durable.capacity); /* sectors beyond the durable size count too */
    if (from->durable.capacity)
        memcpy(to->durable.bytes, from->durable.bytes, from->durable.capacity);
    to->durable.size = from->durable.size;
    entries_copy(&to->names_now, &from->names_now);
    entries_copy(&to->names_durable, &from->names_durable);
}

static void effect_copy(struct sim_effect *to, const struct sim_effect *from)
{
    *to = *from;
    if (from->bytes) {
        must((to->bytes = malloc(SIM_SECTOR_BYTES)) != NULL);
        memcpy(to->bytes, from->bytes, SIM_SECTOR_BYTES);
    }
    for (unsigned i = 0; i < from->assignment_count; i++)
        to->assignments[i].name = copy_of(from->assignments[i].name);
}

struct sim_disk *sim_disk_clone(const struct sim_disk *disk)
{
    struct sim_disk *clone = malloc(sizeof(*clone));

    must(clone != NULL);
    *clone = *disk;
    clone->inode_capacity = disk->inode_count;
    clone->effect_capacity = disk->effect_count;
    must((clone->inodes = malloc(disk->inode_count * sizeof(*clone->inodes))) != NULL);
    must((clone->effects = malloc((disk->effect_count + 1) * sizeof(*clone->effects))) != NULL);
    for (size_t i = 0; i < disk->inode_count; i++)
        inode_copy(&clone->inodes[i], &disk->inodes[i]);
    for (size_t i = 0; i < disk->effect_count; i++)
        effect_copy(&clone->effects[i], &disk->effects[i]);
    return clone;
}

/* Names ------------------------------------------------------------------------------------------------------------- */

static int name_check(const char *name)
{
    size_t length = strlen(name);

    if (length == 0)
        return -ENOENT;
    if (length > 255)
        return -ENAMETOOLONG;
    assert(!strchr(name, '/'));
    return 0;
}

int sim_disk_find(const struct sim_disk *disk, uint32_t directory, const char *name, uint32_t *inode)
{
    uint32_t found;
    int error = name_check(name);

    if (error)
        return error;
    if (!disk->inodes[directory].is_directory)
        return -ENOTDIR;
    if (strcmp(name, ".") == 0)
        found = directory;
    else if (strcmp(name, "..") == 0)
        found = disk->inodes[directory].parent;
    else
        found = entries_find(&disk->inodes[directory].names_now, name);
    if (!found)
        return -ENOENT;
    *inode = found;
    return 0;
}

int sim_disk_walk(const struct sim_disk *disk, uint32_t directory, const char *path, uint32_t *inode)
{
    uint32_t at = path[0] == '/' ? SIM_ROOT : directory;
    char name[256];
    int error;

    if (!path[0])
        return -ENOENT;
    for (;;) {
        size_t length;

        path += strspn(path, "/");
        if (!*path)
            break;
        length = strcspn(path, "/");
        if (length >= sizeof(name))
            return -ENAMETOOLONG;
        memcpy(name, path, length);
        name[length] = '\0';
        if ((error = sim_disk_find(disk, at, name, &at)))
            return error;
        path += length;
    }
    *inode = at;
    return 0;
}

/* A directory that was removed but is still open takes no new names. */
static int directory_check(const struct sim_disk *disk, uint32_t directory)
{
    if (!disk->inodes[directory].is_directory)
        return -ENOTDIR;
    return disk->inodes[directory].links ? 0 : -ENOENT;
}

static void inode_named(struct sim_disk *disk, uint32_t inode, uint32_t directory, const char *name)
{
    char *copy = copy_of(name); /* `name` may be the old one */

    free(disk->inodes[inode].name);
    disk->inodes[inode].name = copy;
    disk->inodes[inode].parent = directory;
}

static void inode_forget(struct sim_disk *disk, uint32_t inode)
{
    struct sim_inode *node = &disk->inodes[inode];

    if (node->links || node->held)
        return;
    disk->used -= node->allocated; /* durable content stays: a power cut may bring its name back */
    node->allocated = 0;
}

static void entry_change(struct sim_disk *disk, struct sim_effect *effect, const char *name, uint32_t inode)
{
    effect_assign(effect, name, inode);
    entries_set(&disk->inodes[effect->inode].names_now, name, inode);
}

int sim_disk_make(struct sim_disk *disk, uint32_t directory, const char *name, bool is_directory, uint32_t *inode)
{
    uint32_t made;
    int error = sim_disk_find(disk, directory, name, &made);

    if (error != -ENOENT || !name[0])
        return error ? error : -EEXIST;
    if ((error = directory_check(disk, directory)))
        return error;
    made = inode_new(disk, is_directory);
    disk->inodes[made].links = 1;
    inode_named(disk, made, directory, name);
    entry_change(disk, effect_note(disk, EFFECT_ENTRY, directory), name, made);
    *inode = made;
    return 0;
}

int sim_disk_link(struct sim_disk *disk, uint32_t inode, uint32_t directory, const char *name)
{
    uint32_t there;
    int error = sim_disk_find(disk, directory, name, &there);

    if (disk->inodes[inode].is_directory)
        return -EPERM;
    if (error != -ENOENT || !name[0])
        return error ? error : -EEXIST;
    if ((error = directory_check(disk, directory)))
        return error;
    disk->inodes[inode].links++;
    entry_change(disk, effect_note(disk, EFFECT_ENTRY, directory), name, inode);
    return 0;
}

int sim_disk_unlink(struct sim_disk *disk, uint32_t directory, const char *name, bool is_directory)
{
    uint32_t inode;
    int error = sim_disk_find(disk, directory, name, &inode);

    if (error)
        return error;
    if (is_directory && !disk->inodes[inode].is_directory)
        return -ENOTDIR;
    if (!is_directory && disk->inodes[inode].is_directory)
        return -EISDIR;
    if (is_directory && disk->inodes[inode].names_now.count)
        return -ENOTEMPTY;
    entry_change(disk, effect_note(disk, EFFECT_ENTRY, directory), name, 0);
    disk->inodes[inode].links--;
    inode_forget(disk, inode);
    return 0;
}

static int rename_over_check(const struct sim_disk *disk, uint32_t source, uint32_t target)
{
    const struct sim_inode *from = &disk->inodes[source], *to = &disk->inodes[target];

    if (from->is_directory && !to->is_directory)
        return -ENOTDIR;
    if (!from->is_directory && to->is_directory)
        return -EISDIR;
    return to->is_directory && to->names_now.count ? -ENOTEMPTY : 0;
}

static bool is_below(const struct sim_disk *disk, uint32_t inode, uint32_t ancestor)
{
    for (; inode != SIM_ROOT; inode = disk->inodes[inode].parent)
        if (inode == ancestor)
            return true;
    return ancestor == SIM_ROOT;
}

/* One effect inside a directory; between two directories one each, which share a transaction. */
static void rename_note(struct sim_disk *disk, uint32_t directory, const char *name, uint32_t becomes,
                        uint32_t to_directory, const char *to_name, uint32_t source)
{
    struct sim_effect *effect = effect_note(disk, EFFECT_ENTRY, directory);
    uint64_t transaction = effect->transaction;

    entry_change(disk, effect, name, becomes);
    if (directory != to_directory) {
        effect = effect_note(disk, EFFECT_ENTRY, to_directory);
        effect->transaction = transaction;
    }
    entry_change(disk, effect, to_name, source);
}

static int rename_check(const struct sim_disk *disk, uint32_t source, uint32_t target, uint32_t to_directory,
                        enum rename_flags flags)
{
    int error = directory_check(disk, to_directory);

    if (error)
        return error;
    if (flags == RENAME_OP_EXCHANGE && disk->settings.exchange_refused)
        return -EINVAL;
    if (flags == RENAME_OP_EXCHANGE && !target)
        return -ENOENT;
    if (flags == RENAME_OP_NOREPLACE && target)
        return -EEXIST;
    if (disk->inodes[source].is_directory && is_below(disk, to_directory, source))
        return -EINVAL;
    return flags == RENAME_PLAIN && target && target != source ? rename_over_check(disk, source, target) : 0;
}

int sim_disk_rename(struct sim_disk *disk, uint32_t directory, const char *name, uint32_t to_directory, const char *to_name,
                    enum rename_flags flags)
{
    uint32_t source, target = 0;
    int error = sim_disk_find(disk, directory, name, &source);

    if (error || ((error = sim_disk_find(disk, to_directory, to_name, &target)) && error != -ENOENT))
        return error;
    if ((error = rename_check(disk, source, target, to_directory, flags)))
        return error;
    if (source == target)
        return 0;
    if (flags == RENAME_OP_EXCHANGE) {
        rename_note(disk, directory, name, target, to_directory, to_name, source);
        inode_named(disk, target, directory, name);
    } else {
        rename_note(disk, directory, name, 0, to_directory, to_name, source);
        if (target) {
            disk->inodes[target].links--;
            inode_forget(disk, target);
        }
    }
    inode_named(disk, source, to_directory, to_name);
    return 0;
}

int sim_disk_list(const struct sim_disk *disk, uint32_t directory, struct io_list *list)
{
    const struct sim_entries *entries = &disk->inodes[directory].names_now;
    struct io_list filled = { NULL, 0 };

    if (!disk->inodes[directory].is_directory)
        return -ENOTDIR;
    must((filled.names = calloc(entries->count + 1, sizeof(char *))) != NULL);
    for (; filled.count < entries->count; filled.count++)
        filled.names[filled.count] = copy_of(entries->items[filled.count].name);
    *list = filled;
    return 0;
}

bool sim_disk_is_directory(const struct sim_disk *disk, uint32_t inode) { return disk->inodes[inode].is_directory; }

void sim_disk_path(const struct sim_disk *disk, uint32_t inode, char *path, size_t size)
{
    char tail[1024] = "", joined[1024 + 256];

    for (; inode != SIM_ROOT; inode = disk->inodes[inode].parent) {
        snprintf(joined, sizeof(joined), "/%.255s%s", disk->inodes[inode].name, tail);
        joined[sizeof(tail) - 1] = '\0';
        memcpy(tail, joined, sizeof(tail));
    }
    snprintf(path, size, "%s", tail[0] ? tail : "/");
}

void sim_disk_hold(struct sim_disk *disk, uint32_t inode) { disk->inodes[inode].held++; }

void sim_disk_release(struct sim_disk *disk, uint32_t inode)
{
    assert(disk->inodes[inode].held > 0);
    disk->inodes[inode].held--;
    inode_forget(disk, inode);
}
