/* Declaring: whatever is wrong with a tensor must be refused before anything is planned or written, by its name. */
#include "fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t two_by_three[] = { 2, 3 };
static const float some_data[64];

static struct tspool_tensor good_tensor(void)
{
    struct tspool_tensor tensor = TSPOOL_TENSOR_INIT;

    tensor.name = "layer.weight";
    tensor.dtype = TSPOOL_F32;
    tensor.rank = 2;
    tensor.shape = two_by_three;
    tensor.data = some_data;
    return tensor;
}

/* Adding it fails with that errno, nothing is kept, the record names the tensor and says why. */
static void refuses(const struct tspool_tensor *tensor, int error, const char *words)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    cr_assert_eq(state_dict_add(dict, tensor, true, &failure), -error, "%s", failure.message);
    cr_assert_eq(state_dict_count(dict), 0);
    cr_assert_eq(failure.error, error);
    cr_assert_eq(failure.stage, TSPOOL_STAGE_DECLARE);
    cr_assert(strstr(failure.cause, words), "\"%s\" does not say \"%s\"", failure.message, words);
    if (tensor->name)
        cr_assert_eq(strncmp(failure.tensor, tensor->name, 20), 0);
    cr_assert_eq(state_dict_add(dict, tensor, true, NULL), -error, "without a record");
    state_dict_destroy(dict);
}

static void accepts(const struct tspool_tensor *tensor)
{
    struct tspool_failure failure = TSPOOL_FAILURE_INIT;
    struct state_dict *dict = state_dict_create();

    cr_assert_eq(state_dict_add(dict, tensor, true, &failure), 0, "%s", failure.message);
    state_dict_destroy(dict);
}

Test(state_dict, gives_back_what_was_declared_from_memory_of_its_own)
{
    struct state_dict *dict = state_dict_create();
    char name[] = "a";
    uint64_t shape[] = { 2, 3 }, global[] = { 8, 8 }, offsets[] = { 4, 5 }, version = 0;
    int64_t strides[] = { 1, 2 };
    struct tspool_tensor tensor = good_tensor(), view;

    tensor.name = name;
    tensor.shape = shape;
    tensor.strides = strides;
    tensor.global_shape = global;
    tensor.global_offsets = offsets;
    tensor.version = &version;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    memset(name, 'z', 1);
    memset(shape, 0, sizeof(shape));
    memset(strides, 0, sizeof(strides));
    memset(offsets, 0, sizeof(offsets));
    state_dict_tensor(dict, 0, &view);
    cr_assert_str_eq(view.name, "a");
    cr_assert(view.shape[0] == 2 && view.shape[1] == 3);
    cr_assert(view.strides[0] == 1 && view.strides[1] == 2);
    cr_assert(view.global_shape[0] == 8 && view.global_offsets[1] == 5);
    cr_assert(view.data == some_data && view.version == &version && view.size == sizeof(view));
    state_dict_destroy(dict);
}

Test(state_dict, views_stay_where_they_are_while_it_grows)
{
    struct state_dict *dict = state_dict_create();
    struct tspool_tensor first;
    char name[32];

    declare(dict, "first", TSPOOL_F32, some_data, SHAPE(4));
    state_dict_tensor(dict, 0, &first);
    for (int i = 0; i < 20000; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        declare(dict, name, TSPOOL_F32, some_data, SHAPE(4));
    }
    cr_assert_eq(state_dict_count(dict), 20001);
    cr_assert_str_eq(first.name, "first");
    cr_assert_eq(first.shape[0], 4);
    state_dict_destroy(dict);
}

Test(state_dict, strides_that_say_no_more_than_contiguous_are_dropped)
{
    struct state_dict *dict = state_dict_create();
    const uint64_t shape[] = { 2, 1, 3 };
    const int64_t strides[] = { 3, 77, 1 };
    struct tspool_tensor tensor = good_tensor(), view;

    tensor.rank = 3;
    tensor.shape = shape;
    tensor.strides = strides;
    cr_assert_eq(state_dict_add(dict, &tensor, true, NULL), 0);
    state_dict_tensor(dict, 0, &view);
    cr_assert_null(view.strides);
    state_dict_destroy(dict);
}

Test(state_dict, refuses_missing_long_reserved_and_garbled_names)
{
    struct tspool_tensor tensor = good_tensor();
    char longest[TSPOOL_TENSOR_NAME_MAX + 2];

    memset(longest, 'n', sizeof(longest));
    longest[TSPOOL_TENSOR_NAME_MAX] = '\0';
    tensor.name = longest;
    accepts(&tensor);
    longest[TSPOOL_TENSOR_NAME_MAX] = 'n';
    longest[TSPOOL_TENSOR_NAME_MAX + 1] = '\0';
    refuses(&tensor, ENAMETOOLONG, "4096");
    tensor.name = NULL;
    refuses(&tensor, EINVAL, "name");
    tensor.name = "";
    refuses(&tensor, EINVAL, "name");
    tensor.name = "__metadata__";
    refuses(&tensor, EINVAL, "reserves");
    tensor.name = "größe.层.重み";
    accepts(&tensor);
    tensor.name = "w\xff";
    refuses(&tensor, EINVAL, "UTF-8");
}

Test(state_dict, refuses_a_struct_that_was_not_initialised)
{
    struct tspool_tensor tensor = good_tensor();

    tensor.size = sizeof(tensor) + 64; /* a newer caller's */
    accepts(&tensor);
    tensor.size = 0;
    tensor.name = NULL;
    refuses(&tensor, EINVAL, "TSPOOL_TENSOR_INIT");
}

Test(state_dict, refuses_unknown_dtypes_and_ranks)
{
    struct tspool_tensor tensor = good_tensor();
    uint64_t ones[TSPOOL_RANK_MAX + 1];

    for (unsigned i = 0; i <= TSPOOL_RANK_MAX; i++)
        ones[i] = 1;
    tensor.dtype = TSPOOL_DTYPE_INVALID;
    refuses(&tensor, EINVAL, "dtype");
    tensor.dtype = TSPOOL_DTYPE_COUNT;
    refuses(&tensor, EINVAL, "dtype");
    tensor = good_tensor();
    tensor.shape = ones;
    tensor.rank = TSPOOL_RANK_MAX;
    accepts(&tensor);
    tensor.rank = TSPOOL_RANK_MAX + 1;
    refuses(&tensor, EINVAL, "rank");
    tensor.rank = 1;
    tensor.shape = NULL;
    refuses(&tensor, EINVAL, "shape");
}

Test(state_dict, refuses_shapes_that_overflow)
{
    const uint64_t elements[] = { (uint64_t)1 << 33, (uint64_t)1 << 33 }, bits[] = { 1, (uint64_t)1 << 60 };
    const uint64_t late_zero[] = { (uint64_t)1 << 40, (uint64_t)1 << 40, 0 };
    const uint64_t early_zero[] = { 0, (uint64_t)1 << 60, (uint64_t)1 << 60 };
    struct tspool_tensor tensor = good_tensor();

    tensor.shape = elements;
    refuses(&tensor, EOVERFLOW, "dimension 1");
    tensor.shape = bits;
    refuses(&tensor, EOVERFLOW, "32 bits");
    tensor.rank = 3;
    tensor.shape = late_zero;
    refuses(&tensor, EOVERFLOW, "dimension 1");
    tensor.shape = early_zero;
    accepts(&tensor);
}

Test(state_dict, refuses_negative_and_overflowing_strides)
{
    const int64_t negative[] = { 3, -1 }, far[] = { INT64_MAX, 1 }, past[] = { INT64_MAX / 8, 1 };
    struct tspool_tensor tensor = good_tensor();

    tensor.strides = negative;
    refuses(&tensor, EINVAL, "dimension 1 has the negative stride -1");
    tensor.strides = far;
    refuses(&tensor, EOVERFLOW, "strides");
    tensor.strides = past;
    tensor.data = (const void *)(UINTPTR_MAX - 4096);
    refuses(&tensor, EOVERFLOW, "strides");
    tensor.strides = NULL;
    tensor.data = (const void *)(UINTPTR_MAX - 8);
    refuses(&tensor, EOVERFLOW, "address space");
}

Test(state_dict, sub_byte_elements_fill_whole_bytes_and_are_contiguous)
{
    const uint64_t odd[] = { 1, 3 }, whole[] = { 2, 4 };
    const int64_t transposed[] = { 1, 2 }, contiguous[] = { 4, 1 };
    struct tspool_tensor tensor = good_tensor();

    tensor.dtype = TSPOOL_F4;
    tensor.shape = odd;
    refuses(&tensor, EINVAL, "whole bytes");
    tensor.dtype = TSPOOL_F6_E2M3;
    refuses(&tensor, EINVAL, "whole bytes");
    tensor.shape = whole;
    accepts(&tensor);
    tensor.strides = transposed;
    refuses(&tensor, EINVAL, "contiguous copy");
    tensor.strides = contiguous;
    accepts(&tensor);
}

Test(state_dict, a_shard_lies_inside_its_tensor)
{
    const uint64_t global[] = { 4, 3 }, inside[] = { 2, 0 }, outside[] = { 3, 0 }, wrapping[] = { UINT64_MAX, 0 };
    struct tspool_tensor tensor = good_tensor();

    tensor.global_shape = global;
    refuses(&tensor, EINVAL, "both");
    tensor.global_offsets = inside;
    accepts(&tensor);
    tensor.global_offsets = outside;
    refuses(&tensor, EINVAL, "dimension 0");
    tensor.global_offsets = wrapping;
    refuses(&tensor, EINVAL, "dimension 0");
    tensor.global_shape = NULL;
    refuses(&tensor, EINVAL, "both");
}

Test(state_dict, data_may_be_missing_only_where_nothing_is_read)
{
    const uint64_t empty[] = { 2, 0 };
    struct state_dict *dict = state_dict_create();
    struct tspool_tensor tensor = good_tensor();

    tensor.data = NULL;
    refuses(&tensor, EINVAL, "data is NULL");
    cr_assert_eq(state_dict_add(dict, &tensor, false, NULL), 0);
    tensor.shape = empty;
    accepts(&tensor);
    state_dict_destroy(dict);
}
