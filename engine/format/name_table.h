/* format/name_table.h - finds names among many, and names given twice, in O(n log n) whatever the names are.
 *
 * A sorted array of hashes, not a hash table: these names come from files, and whoever makes a file can make names that
 * collide. Ties are ordered by the names themselves, so collisions cost a comparison and never a long chain.
 */
#ifndef FORMAT_NAME_TABLE_H
#define FORMAT_NAME_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct name_slot { uint64_t hash; const char *name; size_t index; };
struct name_table { struct name_slot *slots; size_t count; };

#define NAME_REPEATED 1
/* names[0] is at `first`, each following one `stride` bytes on; they are not copied. 0, NAME_REPEATED, or -ENOMEM. */
int name_table_build(struct name_table *table, const void *first, size_t stride, size_t count);
/* The number of `name`, or SIZE_MAX. */
size_t name_table_find(const struct name_table *table, const char *name);
void name_table_deinit(struct name_table *table);

/* Whether a name occurs twice: 0, NAME_REPEATED, or -ENOMEM. */
int names_repeat(const void *first, size_t stride, size_t count);

#endif
