/* save/layout.c - see layout.h. */
#include <save/layout.h>

#include <arena/arena.h>
#include <base/array.h>
#include <base/failure.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct layout *layout_create(void)
{
    struct layout *layout = calloc(1, sizeof(*layout));

    if (!layout)
        return NULL;
    layout->references = 1;
    layout->sheet_fd = -1;
    layout->dict = state_dict_create();
    if (!layout->dict) {
        free(layout);
        return NULL;
    }
    return layout;
}

struct layout *layout_hold(struct layout *layout)
{
    __atomic_fetch_add(&layout->references, 1, __ATOMIC_RELAXED);
    return layout;
}

/* Acquire-release: whoever frees sees what every other holder did before it dropped. */
void layout_drop(struct layout *layout)
{
    if (!layout || __atomic_sub_fetch(&layout->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    plan_destroy(layout->plan);
    state_dict_destroy(layout->dict);
    if (layout->sheet_fd >= 0)
        close(layout->sheet_fd);
    free(layout->versioned);
    free(layout);
}

int layout_add(struct layout *layout, const struct tspool_tensor *tensor, bool data_required, struct tspool_failure *failure)
{
    size_t index = state_dict_count(layout->dict);
    int error;

    if (tensor->version && array_reserve((void **)&layout->versioned, &layout->versioned_capacity,
                                         layout->versioned_count + 1, sizeof(*layout->versioned)) < 0)
        return failure_set(failure, TSPOOL_STAGE_DECLARE, ENOMEM, FAILURE_AT(.tensor = tensor->name), NULL);
    error = state_dict_add(layout->dict, tensor, data_required, failure);
    if (error < 0)
        return error;
    if (tensor->version)
        layout->versioned[layout->versioned_count++] = (uint32_t)index;
    return 0;
}

int layout_plan(struct layout *layout, const struct plan_rules *rules, struct tspool_failure *failure)
{
    int error = plan_build(layout->dict, rules, &layout->plan, failure);

    if (error == 0)
        layout->rules = *rules;
    return error;
}

static bool counts_equal(uint32_t rank, const uint64_t *a, const uint64_t *b)
{
    return (!a && !b) || (a && b && memcmp(a, b, rank * sizeof(*a)) == 0);
}

static bool tensor_equal(const struct tspool_tensor *a, const struct tspool_tensor *b)
{
    return a->data == b->data && a->version == b->version && a->untied == b->untied && a->dtype == b->dtype && a->rank == b->rank
        && (a->rank == 0 || counts_equal(a->rank, a->shape, b->shape))
        && ((!a->strides && !b->strides)
            || (a->strides && b->strides && memcmp(a->strides, b->strides, a->rank * sizeof(*a->strides)) == 0))
        && counts_equal(a->rank, a->global_shape, b->global_shape)
        && counts_equal(a->rank, a->global_offsets, b->global_offsets) && strcmp(a->name, b->name) == 0;
}

bool layout_equal(const struct layout *a, const struct layout *b)
{
    size_t count = state_dict_count(a->dict);
    struct tspool_tensor first, second;

    if (count != state_dict_count(b->dict))
        return false;
    for (size_t i = 0; i < count; i++) {
        state_dict_tensor(a->dict, i, &first);
        state_dict_tensor(b->dict, i, &second);
        if (!tensor_equal(&first, &second))
            return false;
    }
    return true;
}

bool layout_has_rules(const struct layout *layout, const struct plan_rules *rules)
{
    return layout->plan && layout->rules.shard_bytes == rules->shard_bytes && layout->rules.header_bytes == rules->header_bytes
        && layout->rules.offset_align == rules->offset_align && layout->rules.rank == rules->rank
        && layout->rules.world_size == rules->world_size;
}

int layout_sheet(struct layout *layout, struct tspool_failure *failure)
{
    void *bytes = NULL;
    uint64_t size = 0;
    int error;

    if (layout->sheet_fd >= 0)
        return 0;
    error = plan_sheet(layout->plan, &bytes, &size);
    if (error < 0)
        return failure_set(failure, TSPOOL_STAGE_PLAN, -error, FAILURE_AT(.operation = "sheet"), NULL);
    error = sealed_create("tspool-sheet", bytes, size, &layout->sheet_fd, failure);
    free(bytes);
    if (error == 0)
        layout->sheet_bytes = size;
    return error;
}
