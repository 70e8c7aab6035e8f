/* plan/chunks.c - file images cut into pieces of CHUNK_BYTES, their order, and what each is filled with.
 *
 * The order goes round-robin over a few files: each inode has costs of its own in the kernel (extent tree, size updates),
 * and writes to several files at once are not merged into large requests, which a queue of 512 KiB items would suffer from.
 */
#include <base/checked.h>
#include <base/failure.h>
#include <errno.h>
#include <plan/chunks.h>
#include <stdlib.h>

#define FILES_AT_A_TIME 4u
#define CHUNKS_MAX (UINT32_MAX - 1) /* UINT32_MAX is no chunk on the wire */

/* Numbering ------------------------------------------------------------------------------------------------------- */

struct lane { uint32_t next, end; };

/* A lane that is through with its file takes up the next one. */
static bool lane_has_chunk(struct lane *lane, const struct plan *plan, uint32_t *next_file)
{
    const struct plan_file *file;

    if (lane->next < lane->end)
        return true;
    if (*next_file == plan->file_count)
        return false;
    file = &plan->files[(*next_file)++];
    *lane = (struct lane){ file->chunk_first, file->chunk_first + file->chunk_count };
    return true;
}

static void order_make(struct plan *plan)
{
    struct lane lanes[FILES_AT_A_TIME] = { 0 };
    uint32_t next_file = 0, ordered = 0;

    while (ordered < plan->chunk_count)
        for (unsigned i = 0; i < FILES_AT_A_TIME; i++)
            if (lane_has_chunk(&lanes[i], plan, &next_file))
                plan->chunk_order[ordered++] = lanes[i].next++;
}

int chunks_number(struct plan *plan, struct tspool_failure *failure)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < plan->file_count; i++) {
        struct plan_file *file = &plan->files[i];
        uint64_t count = divide_up(file->size, CHUNK_BYTES);

        if (count > CHUNKS_MAX - total)
            return failure_set(failure, TSPOOL_STAGE_PLAN, EOVERFLOW, FAILURE_AT(.path = file->name),
                               "the state is larger than 64 PiB; check the shapes");
        file->chunk_first = (uint32_t)total;
        file->chunk_count = (uint32_t)count;
        total += count;
    }
    plan->chunk_count = (uint32_t)total;
    plan->chunk_order = malloc(total * sizeof(*plan->chunk_order));
    if (!plan->chunk_order)
        return failure_set(failure, TSPOOL_STAGE_PLAN, ENOMEM, FAILURE_NOWHERE, NULL);
    order_make(plan);
    return 0;
}

/* Looking up ------------------------------------------------------------------------------------------------------ */

/* The last file that begins at or before the chunk; every file has at least one. */
static uint32_t file_of_chunk(const struct plan *plan, uint32_t chunk)
{
    uint32_t low = 0, high = plan->file_count;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (plan->files[middle].chunk_first <= chunk)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static struct plan_chunk chunk_in_file(const struct plan *plan, uint32_t file, uint32_t chunk)
{
    uint64_t file_offset = (uint64_t)(chunk - plan->files[file].chunk_first) * CHUNK_BYTES;

    return (struct plan_chunk){ file, file_offset, min_u64(CHUNK_BYTES, plan->files[file].size - file_offset) };
}

struct plan_chunk plan_chunk_at(const struct plan *plan, uint32_t chunk)
{
    return chunk_in_file(plan, file_of_chunk(plan, chunk), chunk);
}

/* The first entry of the file that ends after file_offset: entries ascend, empty ones end where they begin. */
static size_t entry_at(const struct plan *plan, const struct plan_file *file, uint64_t file_offset)
{
    size_t low = file->entry_first, high = file->entry_first + file->entry_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (plan->entries[middle].file_offset + plan->entries[middle].size <= file_offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void plan_cursor_init(struct plan_cursor *cursor, const struct plan *plan, uint32_t chunk)
{
    uint32_t file = file_of_chunk(plan, chunk);
    uint64_t file_offset = chunk_in_file(plan, file, chunk).file_offset;

    *cursor = (struct plan_cursor){ .chunk = chunk, .file = file, .entry = entry_at(plan, &plan->files[file], file_offset) };
}

bool plan_cursor_next(struct plan_cursor *cursor, const struct plan *plan, struct plan_piece *piece)
{
    const struct plan_file *file = &plan->files[cursor->file];
    struct plan_chunk chunk = chunk_in_file(plan, cursor->file, cursor->chunk);
    uint64_t file_offset = chunk.file_offset + cursor->chunk_offset, left = chunk.size - cursor->chunk_offset, begin, end;
    bool in_header = file_offset < file->header_size;

    if (left == 0)
        return false;
    begin = in_header ? 0 : plan->entries[cursor->entry].file_offset;
    end = in_header ? file->header_size : begin + plan->entries[cursor->entry].size;
    *piece = (struct plan_piece){
        .kind = in_header ? PIECE_HEADER : PIECE_TENSOR,
        .entry = cursor->entry,
        .source_offset = file_offset - begin,
        .chunk_offset = cursor->chunk_offset,
        .size = min_u64(end - file_offset, left),
    };
    cursor->chunk_offset += piece->size;
    if (!in_header && file_offset + piece->size == end)
        cursor->entry++; /* empty ones are last in a file: what follows has bytes, or nothing follows */
    return true;
}
