/* read/request.c - the public read: what the caller asks for is checked in full before the first byte is read. */
#include <base/failure.h>
#include <errno.h>
#include <read/reader.h>
#include <stddef.h>

static int request_refuse(const struct run *run, size_t number, const char *tensor, const char *cause,
                          struct tspool_failure *failure)
{
    return failure_set(failure, TSPOOL_STAGE_READ, EINVAL,
                       FAILURE_AT(.operation = "read", .tensor = tensor, .path = run->checkpoint->path),
                       "Request %zu: %s", number, cause);
}

static int request_check(const struct run *run, size_t number, struct tspool_failure *failure)
{
    const struct tspool_read_request *request = run_request(run, number);
    struct slice slice;
    const char *name;
    int error;

    if (request->size != run->stride)
        return request_refuse(run, number, NULL, "its size member differs from the first request's.", failure);
    if (request->tensor >= run->checkpoint->entry_count)
        return request_refuse(run, number, NULL, "there is no tensor of that number.", failure);
    name = run->checkpoint->entries[request->tensor].name;
    error = request_slice(run, number, &slice, failure);
    if (error < 0)
        return error;
    if (request->bytes != slice.bytes)
        return failure_set(failure, TSPOOL_STAGE_READ, EINVAL,
                           FAILURE_AT(.operation = "read", .tensor = name, .path = run->checkpoint->path),
                           "Request %zu: it takes %llu bytes, but there is room for %llu.", number,
                           (unsigned long long)slice.bytes, (unsigned long long)request->bytes);
    if (!request->data && slice.bytes)
        return request_refuse(run, number, name, "data is NULL.", failure);
    return 0;
}

int tspool_checkpoint_read(struct tspool_checkpoint *checkpoint, const struct tspool_read_request *requests, size_t count,
                           tspool_on_piece on_piece, void *context, struct tspool_failure *failure)
{
    struct run run = { .checkpoint = checkpoint, .requests = requests, .count = count, .verified = !checkpoint->unverified,
                       .on_piece = on_piece, .context = context };
    int error = 0;

    if (count == 0)
        return 0;
    run.stride = requests->size;
    if (run.stride < offsetof(struct tspool_read_request, first_byte) || run.stride % sizeof(void *))
        return request_refuse(&run, 0, NULL, "its size member is not set (TSPOOL_READ_REQUEST_INIT).", failure);
    for (size_t i = 0; i < count && error == 0; i++)
        error = request_check(&run, i, failure);
    if (error == 0)
        error = lane_enter(&checkpoint->lane, failure);
    if (error < 0)
        return error;
    error = reader_run(&run, failure);
    lane_leave(&checkpoint->lane);
    return error;
}
