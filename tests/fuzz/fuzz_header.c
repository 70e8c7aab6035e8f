/* Any bytes as a safetensors file: parsing never crashes or over-reads; what it accepts keeps the promises of
 * parsed_header; and a header built from it says the same again. */
#include <assert.h>
#include <format/safetensors.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void assert_whole(const struct parsed_header *header, uint64_t data_bytes)
{
    uint64_t covered = 0;

    for (size_t i = 0; i < header->count; i++) {
        assert(header->tensors[i].begin == covered && header->tensors[i].end >= covered);
        assert(header->tensors[i].rank <= TSPOOL_RANK_MAX && tspool_dtype_bits(header->tensors[i].dtype));
        covered = header->tensors[i].end;
    }
    assert(covered == data_bytes && header->data_bytes == data_bytes);
}

static void assert_same(const struct parsed_header *a, const struct parsed_header *b)
{
    assert(a->count == b->count);
    for (size_t i = 0; i < a->count; i++) {
        const struct parsed_tensor *x = &a->tensors[i], *y = &b->tensors[i];

        assert(!strcmp(x->name, y->name) && x->dtype == y->dtype && x->rank == y->rank && x->begin == y->begin &&
               x->end == y->end);
        assert(!x->rank || !memcmp(x->shape, y->shape, x->rank * sizeof *x->shape));
        if (x->global_offsets && x->rank)
            assert(!memcmp(x->global_offsets, y->global_offsets, x->rank * sizeof *x->global_offsets));
    }
}

static void rebuild(const struct parsed_header *header)
{
    struct header_entry *entries = calloc(header->count + 1, sizeof *entries);
    struct parsed_header again;
    const char *reason;
    size_t size, position, bound = HEADER_FRAME_BOUND + SAFETENSORS_DATA_ALIGN;
    int sharded = 0;
    void *bytes;

    for (size_t i = 0; i < header->count; i++) {
        const struct parsed_tensor *t = &header->tensors[i];

        entries[i] = (struct header_entry){ t->name, t->dtype, t->rank, t->shape, t->begin, t->end, t->global_offsets };
        sharded |= t->global_offsets != NULL;
    }
    for (size_t i = 0; i < header->count; i++)
        bound += header_entry_bound(&entries[i], sharded);
    for (size_t i = 0; i < header->metadata_count; i++)
        bound += header_pair_bound(&header->metadata[i]);
    assert(!header_build(entries, header->count, sharded, header->metadata, header->metadata_count, SAFETENSORS_DATA_ALIGN,
                         &bytes, &size));
    assert(size <= bound);
    assert(!header_parse((char *)bytes + 8, size - 8, header->data_bytes, &again, &reason, &position));
    assert_same(header, &again);
    parsed_header_deinit(&again);
    free(bytes);
    free(entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct parsed_header header;
    uint8_t prefix[8] = { 0 };
    uint64_t json_size, data_bytes;
    const char *reason = NULL;
    size_t position = 0;

    memcpy(prefix, data, size < 8 ? size : 8);
    if (header_length_check(prefix, size, &json_size, &reason)) {
        assert(reason);
        return 0;
    }
    data_bytes = size - 8 - json_size;
    if (header_parse((const char *)data + 8, json_size, data_bytes, &header, &reason, &position)) {
        assert(reason && position <= json_size);
        return 0;
    }
    assert_whole(&header, data_bytes);
    rebuild(&header);
    parsed_header_deinit(&header);
    return 0;
}
