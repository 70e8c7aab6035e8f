/* support/sim_durable.c - effects: noting them, making them durable, and what a power cut leaves of them. */
#include "sim_disk_inside.h"

#include <assert.h>
#include <base/array.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim_effect *effect_note(struct sim_disk *disk, enum sim_effect_kind kind, uint32_t inode)
{
    void *effects = disk->effects;
    struct sim_effect *effect;

    if (array_reserve(&effects, &disk->effect_capacity, disk->effect_count + 1, sizeof(struct sim_effect)))
        abort();
    disk->effects = effects;
    effect = &disk->effects[disk->effect_count++];
    *effect = (struct sim_effect){ .kind = kind, .inode = inode, .moment = ++disk->moment, .transaction = ++disk->transaction };
    return effect;
}

void effect_assign(struct sim_effect *effect, const char *name, uint32_t inode)
{
    struct sim_assignment *assignment = &effect->assignments[effect->assignment_count++];

    assert(effect->assignment_count <= 2);
    if (!(assignment->name = strdup(name)))
        abort();
    assignment->inode = inode;
}

void effect_deinit(struct sim_effect *effect)
{
    free(effect->bytes);
    for (unsigned i = 0; i < effect->assignment_count; i++)
        free(effect->assignments[i].name);
}

static void effect_apply(struct sim_inode *inode, const struct sim_effect *effect)
{
    switch (effect->kind) {
    case EFFECT_SECTOR:
        content_reserve(&inode->durable, (effect->sector + 1) * SIM_SECTOR_BYTES);
        memcpy(inode->durable.bytes + effect->sector * SIM_SECTOR_BYTES, effect->bytes, SIM_SECTOR_BYTES);
        break;
    case EFFECT_SIZE:
        content_resize(&inode->durable, effect->size);
        break;
    case EFFECT_ENTRY:
        for (unsigned i = 0; i < effect->assignment_count; i++)
            entries_set(&inode->names_durable, effect->assignments[i].name, effect->assignments[i].inode);
        break;
    }
}

/* Takes the marked effects out of the list: those that `applied` says are applied to what is durable, the others are
 * lost for ever. */
static void effects_settle(struct sim_disk *disk, const bool *marked, const bool *applied)
{
    size_t kept = 0;

    for (size_t i = 0; i < disk->effect_count; i++) {
        struct sim_effect *effect = &disk->effects[i];

        if (!marked[i]) {
            disk->effects[kept++] = *effect;
            continue;
        }
        if (applied[i])
            effect_apply(&disk->inodes[effect->inode], effect);
        effect_deinit(effect);
    }
    disk->effect_count = kept;
}

/* A journal commits a directory's effects in order and a rename as a whole: whatever must come along is marked too. */
static void journal_close(const struct sim_disk *disk, bool *marked)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < disk->effect_count; i++) {
            const struct sim_effect *one = &disk->effects[i];

            if (!marked[i] || one->kind != EFFECT_ENTRY)
                continue;
            for (size_t j = 0; j < disk->effect_count; j++) {
                const struct sim_effect *other = &disk->effects[j];
                bool comes = other->transaction == one->transaction || (j < i && other->inode == one->inode);

                if (!marked[j] && other->kind == EFFECT_ENTRY && comes)
                    marked[j] = changed = true;
            }
        }
    }
}

static bool *effects_of(const struct sim_disk *disk, uint32_t inode, uint64_t moment)
{
    bool *marked = calloc(disk->effect_count + 1, sizeof(bool));

    if (!marked)
        abort();
    for (size_t i = 0; i < disk->effect_count; i++)
        marked[i] = disk->effects[i].inode == inode && disk->effects[i].moment <= moment;
    if (disk->settings.ordering == SIM_JOURNAL)
        journal_close(disk, marked);
    return marked;
}

uint64_t sim_disk_moment(const struct sim_disk *disk) { return disk->moment; }

void sim_disk_sync(struct sim_disk *disk, uint32_t inode, uint64_t moment)
{
    bool *marked = effects_of(disk, inode, moment);

    effects_settle(disk, marked, marked);
    free(marked);
}

void sim_disk_sync_fails(struct sim_disk *disk, uint32_t inode, uint64_t moment, bool (*keep)(void *context), void *context)
{
    bool *marked = effects_of(disk, inode, moment), *applied = calloc(disk->effect_count + 1, sizeof(bool));

    if (!applied)
        abort();
    for (size_t i = 0; i < disk->effect_count; i++) {
        if (disk->effects[i].kind == EFFECT_ENTRY)
            marked[i] = false; /* a journal that fails to commit leaves entries as undecided as before */
        applied[i] = marked[i] && keep(context);
    }
    effects_settle(disk, marked, applied);
    free(applied);
    free(marked);
}

void sim_disk_sync_all(struct sim_disk *disk)
{
    for (size_t i = 0; i < disk->effect_count; i++) {
        effect_apply(&disk->inodes[disk->effects[i].inode], &disk->effects[i]);
        effect_deinit(&disk->effects[i]);
    }
    disk->effect_count = 0;
}

/* Power cuts -------------------------------------------------------------------------------------------------------- */

size_t sim_disk_pending(const struct sim_disk *disk) { return disk->effect_count; }

void sim_disk_describe(const struct sim_disk *disk, size_t number, char *text, size_t size)
{
    const struct sim_effect *effect = &disk->effects[number];
    char path[512];
    int length;

    sim_disk_path(disk, effect->inode, path, sizeof(path));
    if (effect->kind == EFFECT_SECTOR) {
        snprintf(text, size, "%s: sector %" PRIu64, path, effect->sector);
    } else if (effect->kind == EFFECT_SIZE) {
        snprintf(text, size, "%s: size %" PRIu64, path, effect->size);
    } else {
        length = snprintf(text, size, "%s:", path);
        for (unsigned i = 0; i < effect->assignment_count && length > 0 && (size_t)length < size; i++)
            length += snprintf(text + length, size - (size_t)length, " %c%s", effect->assignments[i].inode ? '+' : '-',
                               effect->assignments[i].name);
    }
}

void sim_disk_complete(const struct sim_disk *disk, bool *kept)
{
    if (disk->settings.ordering == SIM_JOURNAL)
        journal_close(disk, kept);
}

static bool assigns(const struct sim_effect *effect, uint32_t directory, const char *name)
{
    if (effect->kind != EFFECT_ENTRY || effect->inode != directory)
        return false;
    for (unsigned i = 0; i < effect->assignment_count; i++)
        if (strcmp(effect->assignments[i].name, name) == 0)
            return true;
    return false;
}

/* Marks the inode and whatever it may have below it, durable or pending. */
static void reach(const struct sim_disk *disk, uint32_t number, bool *reached)
{
    const struct sim_inode *inode = &disk->inodes[number];

    if (!number || reached[number])
        return;
    reached[number] = true;
    for (size_t i = 0; i < inode->names_durable.count; i++)
        reach(disk, inode->names_durable.items[i].inode, reached);
    for (size_t i = 0; i < disk->effect_count; i++)
        for (unsigned j = 0; disk->effects[i].inode == number && j < disk->effects[i].assignment_count; j++)
            reach(disk, disk->effects[i].assignments[j].inode, reached);
}

void sim_disk_relevant(const struct sim_disk *disk, uint32_t directory, const char *name, bool *relevant)
{
    bool *reached = calloc(disk->inode_count, sizeof(bool));

    if (!reached)
        abort();
    reach(disk, entries_find(&disk->inodes[directory].names_durable, name), reached);
    for (size_t i = 0; i < disk->effect_count; i++)
        for (unsigned j = 0; assigns(&disk->effects[i], directory, name) && j < disk->effects[i].assignment_count; j++)
            if (strcmp(disk->effects[i].assignments[j].name, name) == 0)
                reach(disk, disk->effects[i].assignments[j].inode, reached);
    for (size_t i = 0; i < disk->effect_count; i++)
        relevant[i] = reached[disk->effects[i].inode] || assigns(&disk->effects[i], directory, name);
    free(reached);
}

/* What is durable becomes what is seen. Names are set again from the tree: a power cut may have left an older one. */
static void inode_rise(struct sim_disk *disk, uint32_t number)
{
    struct sim_inode *inode = &disk->inodes[number];

    inode->links++;
    if (inode->links > 1)
        return;
    content_copy(&inode->now, &inode->durable);
    entries_copy(&inode->names_now, &inode->names_durable);
    inode->allocated = inode->now.capacity;
    disk->used += inode->allocated;
    for (size_t i = 0; i < inode->names_now.count; i++) {
        const struct sim_entry *entry = &inode->names_now.items[i];
        struct sim_inode *child = &disk->inodes[entry->inode];

        free(child->name);
        if (!(child->name = strdup(entry->name)))
            abort();
        child->parent = number;
        inode_rise(disk, entry->inode);
    }
}

static void inode_take_durable(struct sim_inode *to, const struct sim_inode *from)
{
    *to = (struct sim_inode){ .is_directory = from->is_directory };
    content_reserve(&to->durable, from->durable.capacity);
    if (from->durable.capacity)
        memcpy(to->durable.bytes, from->durable.bytes, from->durable.capacity);
    to->durable.size = from->durable.size;
    entries_copy(&to->names_durable, &from->names_durable);
}

struct sim_disk *sim_disk_power_cut(const struct sim_disk *disk, const bool *kept)
{
    struct sim_disk *found = calloc(1, sizeof(*found));

    if (!found || !(found->inodes = calloc(disk->inode_count, sizeof(*found->inodes))))
        abort();
    found->settings = disk->settings;
    found->inode_count = found->inode_capacity = disk->inode_count;
    for (size_t i = SIM_ROOT; i < disk->inode_count; i++)
        inode_take_durable(&found->inodes[i], &disk->inodes[i]);
    for (size_t i = 0; i < disk->effect_count; i++)
        if (kept[i])
            effect_apply(&found->inodes[disk->effects[i].inode], &disk->effects[i]);
    if (!(found->inodes[SIM_ROOT].name = strdup("")))
        abort();
    found->inodes[SIM_ROOT].parent = SIM_ROOT;
    inode_rise(found, SIM_ROOT);
    return found;
}

/* Fingerprints ------------------------------------------------------------------------------------------------------ */

static void fingerprint_add(const struct sim_disk *disk, uint32_t number, struct hash_stream *stream)
{
    const struct sim_inode *inode = &disk->inodes[number];
    const struct sim_content *content = &inode->now;
    uint64_t front[2] = { inode->is_directory, inode->is_directory ? inode->names_now.count : content->size };
    uint64_t stored = content->size < content->capacity ? content->size : content->capacity;
    static const uint8_t zeros[SIM_SECTOR_BYTES];

    hash_stream_update(stream, front, sizeof(front));
    if (stored)
        hash_stream_update(stream, content->bytes, stored);
    for (uint64_t hole = content->size - stored; hole; hole -= hole < sizeof(zeros) ? hole : sizeof(zeros))
        hash_stream_update(stream, zeros, hole < sizeof(zeros) ? hole : sizeof(zeros));
    for (size_t i = 0; i < inode->names_now.count; i++) {
        hash_stream_update(stream, inode->names_now.items[i].name, strlen(inode->names_now.items[i].name) + 1);
        fingerprint_add(disk, inode->names_now.items[i].inode, stream);
    }
}

struct digest sim_disk_fingerprint(const struct sim_disk *disk, uint32_t inode)
{
    struct hash_stream *stream = hash_stream_create();
    struct digest digest;

    if (!stream)
        abort();
    hash_stream_reset(stream);
    fingerprint_add(disk, inode, stream);
    digest = hash_stream_digest(stream);
    hash_stream_destroy(stream);
    return digest;
}
