/* format/name_table.c - names sorted by hash. */
#include <format/name_table.h>

#include <base/hash.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash_of(const char *name)
{
    struct digest digest = hash_bytes(name, strlen(name));
    uint64_t hash;

    memcpy(&hash, digest.bytes, sizeof hash);
    return hash;
}

static int slot_compare(const void *left, const void *right)
{
    const struct name_slot *a = left, *b = right;

    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int slots_repeat(const struct name_slot *slots, size_t count)
{
    for (size_t i = 1; i < count; i++)
        if (!slot_compare(&slots[i - 1], &slots[i]))
            return NAME_REPEATED;
    return 0;
}

int name_table_build(struct name_table *table, const void *first, size_t stride, size_t count)
{
    struct name_slot *slots = calloc(count ? count : 1, sizeof *slots);

    if (!slots)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        const char *name;

        memcpy(&name, (const char *)first + i * stride, sizeof name);
        slots[i] = (struct name_slot){ hash_of(name), name, i };
    }
    qsort(slots, count, sizeof *slots, slot_compare);
    if (slots_repeat(slots, count)) {
        free(slots);
        return NAME_REPEATED;
    }
    *table = (struct name_table){ slots, count };
    return 0;
}

size_t name_table_find(const struct name_table *table, const char *name)
{
    struct name_slot wanted = { hash_of(name), name, 0 }, *found;

    found = bsearch(&wanted, table->slots, table->count, sizeof wanted, slot_compare);
    return found ? found->index : SIZE_MAX;
}

void name_table_deinit(struct name_table *table)
{
    free(table->slots);
    *table = (struct name_table){ NULL, 0 };
}

int names_repeat(const void *first, size_t stride, size_t count)
{
    struct name_table table;
    int error = name_table_build(&table, first, stride, count);

    if (!error)
        name_table_deinit(&table);
    return error;
}
