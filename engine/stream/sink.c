/* stream/sink.c - see sink.h.
 *
 * Extending writes run at half the speed of writes into allocated space, so space is taken ahead: in steps that double, because
 * nobody knows how long the file will be, and while writes go on. Where somebody knows, it is taken once, and more only when the
 * file grows beyond. What is too much is cut at the end. A disk that is too full for a step may still hold the file: then only what
 * the next block needs is taken.
 */
#include <stream/sink.h>

#include <base/checked.h>
#include <base/failure.h>
#include <base/mutant.h>
#include <errno.h>

#define STEP_FIRST MIB(64)
#define STEP_MAX GIB(1)
#define STUCK_MAX 4u /* writes in a row that move nothing: a kernel that never errs would keep us for ever */

void sink_init(struct sink *sink, const struct place *place, uint64_t expected_bytes)
{
    *sink = (struct sink){ .place = place, .failure = TSPOOL_FAILURE_INIT, .step = STEP_FIRST,
                           .expected = align_up(min_u64(expected_bytes, INT64_MAX / 2), place->align) };
    if (sink->expected) /* estimates err by little */
        sink->step = min_u64(align_up(divide_up(sink->expected, 8), place->align), STEP_MAX);
}

void sink_push(struct sink *sink, struct sink_block *block)
{
    block->next = NULL;
    block->stuck = 0;
    if (sink->last)
        sink->last->next = block;
    else
        sink->first = block;
    sink->last = block;
}

static struct sink_block *sink_pop(struct sink *sink)
{
    struct sink_block *block = sink->first;

    sink->first = block->next;
    if (!sink->first)
        sink->last = NULL;
    return block;
}

void sink_give_up(struct sink *sink)
{
    while (sink->first)
        sink->written(sink->context, sink_pop(sink));
}

static void sink_fail(struct sink *sink, const char *operation, int error, uint64_t file_offset, const char *cause)
{
    if (!sink->error)
        sink->error = place_refuse(sink->place, TSPOOL_STAGE_WRITE, operation, error, file_offset, cause, &sink->failure);
    sink_give_up(sink);
}

/* Space ------------------------------------------------------------------------------------------------------------ */

static uint64_t block_end(const struct sink_block *block) { return block->op.file_offset + block->op.size; }

static void allocate_begin(struct sink *sink, uint64_t size)
{
    int error;

    sink->allocate = (struct op){ .kind = OP_ALLOCATE, .handle = sink->place->handle, .size = size };
    error = io_submit(sink->place->io, &sink->allocate);
    if (error < 0) {
        sink_fail(sink, "allocate", -error, size, NULL);
        return;
    }
    sink->allocating = true;
    sink->in_flight++;
}

/* At least to `needed`, which is more than there is. */
static void allocate_for(struct sink *sink, uint64_t needed)
{
    uint64_t ahead = sink->ending ? 0 : max_u64(sink->expected, sink->allocated + sink->step);

    allocate_begin(sink, max_u64(needed, ahead));
}

static void allocated(struct sink *sink, int64_t result)
{
    uint64_t asked = sink->allocate.size, before = sink->allocated;
    bool was_ahead = !sink->first || asked > block_end(sink->first);

    sink->allocating = false;
    if (result >= 0) {
        sink->allocated = asked;
        if (asked > sink->expected)
            sink->step = min_u64(2 * sink->step, STEP_MAX);
    } else if (was_ahead && (result == -ENOSPC || result == -EDQUOT || result == -EFBIG)) {
        sink->step = sink->expected = 0;
    } else {
        sink_fail(sink, "allocate", (int)-result, before, NULL);
    }
}

/* True: the block may go. */
static bool space_is_there(struct sink *sink, const struct sink_block *block)
{
    if (block_end(block) <= sink->allocated)
        return true;
    if (!sink->allocating)
        allocate_for(sink, block_end(block));
    return false;
}

/* The next step is taken when half of this one is left, so that no block has to wait for it. */
static void space_take_ahead(struct sink *sink, uint64_t written_to)
{
    if (sink->step && !sink->allocating && !sink->ending && !sink->error && written_to > sink->expected &&
        sink->allocated - written_to < sink->step / 2)
        allocate_begin(sink, sink->allocated + sink->step);
}

/* Writing ---------------------------------------------------------------------------------------------------------- */

/* 0; 1 when the io has no room just now. */
static int block_submit(struct sink *sink, struct sink_block *block)
{
    int error;

    block->op.kind = OP_WRITE;
    block->op.handle = sink->place->handle;
    block->op.buffer = IO_NO_BUFFER;
    error = io_submit(sink->place->io, &block->op);
    if (error == -EBUSY && sink->in_flight)
        return 1;
    if (error < 0) {
        sink_fail(sink, "write", -error, block->op.file_offset, NULL);
        return 1;
    }
    sink->in_flight++;
    return 0;
}

void sink_pump(struct sink *sink)
{
    uint64_t written_to = 0;

    if (sink->error)
        sink_give_up(sink);
    while (sink->first && space_is_there(sink, sink->first)) {
        uint64_t end = block_end(sink->first);

        if (block_submit(sink, sink->first))
            return;
        sink_pop(sink);
        written_to = end;
    }
    if (written_to)
        space_take_ahead(sink, written_to);
}

/* A short write: what it left is written again. With O_DIRECT the rest must begin at a multiple of the alignment, so a part
 * beyond the last one is written twice: 10,000 of 16,384 bytes at 4096: go on at 8192. */
static bool block_go_on(struct sink *sink, struct sink_block *block, uint64_t written)
{
    uint64_t usable = align_down(written, sink->place->align);

    sink->short_writes++;
    block->stuck = usable ? 0 : block->stuck + 1;
    if (block->stuck == STUCK_MAX) {
        sink_fail(sink, "write", EIO, block->op.file_offset, "the kernel writes less than a block, again and again");
        return false;
    }
    block->op.file_offset += MUTANT(STREAM_SHORT_WRITE_GOES_ON_ELSEWHERE) ? 0 : usable;
    block->op.memory = (uint8_t *)block->op.memory + usable;
    block->op.size -= usable;
    return true;
}

/* True: the block goes again. */
static bool block_check(struct sink *sink, struct sink_block *block, int64_t result)
{
    uint64_t size = block->op.size;

    sink->writes++;
    if (result < 0)
        sink_fail(sink, "write", (int)-result, block->op.file_offset, NULL);
    else if ((uint64_t)result > size)
        sink_fail(sink, "write", EIO, block->op.file_offset, "the kernel says that it wrote more than it was asked to");
    else if ((uint64_t)result < size && !sink->error && !MUTANT(STREAM_SHORT_WRITE_TAKEN_FOR_WHOLE))
        return block_go_on(sink, block, (uint64_t)result);
    return false;
}

/* Its room in the io is free again, so it is taken; what is refused all the same is an error. */
static void block_again(struct sink *sink, struct sink_block *block)
{
    if (block_submit(sink, block) == 0)
        return;
    if (!sink->error)
        sink_fail(sink, "write", EBUSY, block->op.file_offset, NULL);
    sink->written(sink->context, block);
}

void sink_complete(struct sink *sink, struct op *op, int64_t result)
{
    struct sink_block *block = (struct sink_block *)op;

    sink->in_flight--;
    if (op == &sink->allocate)
        allocated(sink, result);
    else if (block_check(sink, block, result))
        block_again(sink, block);
    else
        sink->written(sink->context, block);
}
