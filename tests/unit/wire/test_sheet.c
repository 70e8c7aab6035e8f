/* Sheets: the writer opens, preallocates and indexes by what stands in them. Each test breaks one promise of a good one. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <wire/sheet.h>

/* Two files: 20 MiB with two tensors (chunks 0, 1), 4096 bytes with none (chunk 2). */
struct good_sheet {
    struct sheet_front front;
    struct sheet_file files[2];
    struct sheet_tensor tensors[2];
};

static struct good_sheet good_sheet(void)
{
    const uint64_t mib = 1 << 20;

    return (struct good_sheet){
        .front = { SHEET_MAGIC, SHEET_VERSION, 2, 3, 2, 4 + 1 },
        .files = { { "model-00001-of-00002.safetensors", 20 * mib, 0, 2, 0, 2 },
                   { "model-00002-of-00002.safetensors", 4096, 2, 0, 2, 1 } },
        .tensors = { { 4096, 16 * mib }, { 4096 + 16 * mib, 100 } },
    };
}

static int view_sheet(const struct good_sheet *sheet, const char **reason)
{
    struct sheet view = { 0 };
    int rc = sheet_view(sheet, sizeof(*sheet), &view, reason);

    cr_assert_eq(view.front != NULL, rc == 0, "outputs change only on success");
    return rc;
}

#define SHEET_REFUSES(change) do { \
        struct good_sheet s = good_sheet(); \
        const char *why = NULL; \
        cr_assert_eq(view_sheet(&s, &why), 0); \
        change; \
        cr_assert_eq(view_sheet(&s, &why), -EBADMSG, "accepted " #change); \
        cr_assert(why && why[0]); \
    } while (0)

Test(sheet, a_good_one_is_viewed_in_place)
{
    struct good_sheet sheet = good_sheet();
    struct sheet view;
    const char *reason;

    cr_assert_eq(sheet_bytes(2, 2), sizeof(sheet));
    cr_assert_eq(sheet_view(&sheet, sizeof(sheet), &view, &reason), 0);
    cr_assert_eq(view.files, sheet.files);
    cr_assert_eq(view.tensors, sheet.tensors);
}

Test(sheet, counts_must_agree_with_the_size)
{
    struct good_sheet sheet = good_sheet();
    struct sheet view;
    const char *reason;

    for (uint64_t size = 0; size < sizeof(sheet); size++)
        cr_assert_eq(sheet_view(&sheet, size, &view, &reason), -EBADMSG);
    SHEET_REFUSES(s.front.file_count = 0);
    SHEET_REFUSES(s.front.file_count = UINT32_MAX);
    SHEET_REFUSES(s.front.tensor_count = 3);
    SHEET_REFUSES(s.front.tensor_count = UINT64_MAX / 16 + 2);
    SHEET_REFUSES(s.front.magic = APPENDIX_MAGIC);
    SHEET_REFUSES(s.front.version = 2);
    cr_assert_eq(sheet_bytes(1, UINT64_MAX / 16), 0);
}

Test(sheet, counts_must_agree_with_what_they_count)
{
    SHEET_REFUSES(s.front.chunk_count = 4);
    SHEET_REFUSES(s.front.leaf_count = 4);
    SHEET_REFUSES(s.files[1].chunk_first = 1);
    SHEET_REFUSES(s.files[0].chunk_count = 1);
    SHEET_REFUSES(s.files[0].tensor_count = 1);
    SHEET_REFUSES(s.files[0].tensor_count = 3);
    SHEET_REFUSES(s.files[1].tensor_first = 1);
    SHEET_REFUSES(s.files[1].tensor_count = UINT64_MAX);
}

Test(sheet, file_names_must_be_safe_and_ascend)
{
    SHEET_REFUSES(strcpy(s.files[0].name, "../model"));
    SHEET_REFUSES(strcpy(s.files[0].name, ".model"));
    SHEET_REFUSES(s.files[0].name[0] = '\0');
    SHEET_REFUSES(memset(s.files[1].name, 'x', sizeof(s.files[1].name)));
    SHEET_REFUSES(strcpy(s.files[1].name, s.files[0].name));
    SHEET_REFUSES(strcpy(s.files[0].name, "z.safetensors"));
}

Test(sheet, file_sizes_must_be_possible)
{
    SHEET_REFUSES(s.files[1].size = 0);
    SHEET_REFUSES(s.files[1].size = UINT64_MAX);
    SHEET_REFUSES(s.files[1].size = (uint64_t)INT64_MAX - 1);
    SHEET_REFUSES(s.files[1].size = CHUNK_BYTES + 1);
}

Test(sheet, tensors_must_lie_in_their_file_in_order_and_apart)
{
    SHEET_REFUSES(s.tensors[1].size = 4 << 20);
    SHEET_REFUSES(s.tensors[1].size = UINT64_MAX);
    SHEET_REFUSES(s.tensors[1].file_offset = UINT64_MAX);
    SHEET_REFUSES(s.tensors[1].file_offset -= 1);
    SHEET_REFUSES(s.tensors[1].file_offset = 0);
    SHEET_REFUSES(s.tensors[0].file_offset = 8192);
}

Test(sheet, an_unaligned_one_is_refused_rather_than_read)
{
    struct good_sheet sheet = good_sheet();
    uint64_t bytes[sizeof(sheet) / 8 + 1];
    struct sheet view;
    const char *reason;

    memcpy((uint8_t *)bytes + 4, &sheet, sizeof(sheet));
    cr_assert_eq(sheet_view((uint8_t *)bytes + 4, sizeof(sheet), &view, &reason), -EBADMSG);
}

/* Appendix -------------------------------------------------------------------------------------------------------- */

enum { APPENDIX_SIZE = 4096 * 3 };

static struct appendix_front good_appendix(void)
{
    return (struct appendix_front){
        APPENDIX_MAGIC, SHEET_VERSION, 2, 0, 100, 132, 64, "tspool.digests",
        { { TEXT_OBJECTS, "objects-00001.bin", 4096, 10 }, { TEXT_MANIFEST, "tspool.manifest.json", 8192, 164 } },
    };
}

static int view_appendix(const struct appendix_front *front, uint64_t size)
{
    static uint64_t bytes[APPENDIX_SIZE / 8];
    struct appendix view = { 0 };
    const char *reason = NULL;
    int rc;

    memcpy(bytes, front, sizeof(*front));
    rc = appendix_view(bytes, size, &view, &reason);
    cr_assert_eq(view.front != NULL, rc == 0, "outputs change only on success");
    cr_assert_eq(reason != NULL, rc < 0);
    return rc;
}

#define APPENDIX_REFUSES(change) do { \
        struct appendix_front a = good_appendix(); \
        cr_assert_eq(view_appendix(&a, APPENDIX_SIZE), 0); \
        change; \
        cr_assert_eq(view_appendix(&a, APPENDIX_SIZE), -EBADMSG, "accepted " #change); \
    } while (0)

Test(appendix, texts_must_be_known_and_the_manifest_the_last)
{
    APPENDIX_REFUSES(a.text_count = 0);
    APPENDIX_REFUSES(a.text_count = 1);
    APPENDIX_REFUSES(a.text_count = APPENDIX_TEXTS_MAX + 1);
    APPENDIX_REFUSES(a.texts[0].kind = 0);
    APPENDIX_REFUSES(a.texts[0].kind = TEXT_MANIFEST);
    APPENDIX_REFUSES(a.texts[1].kind = TEXT_INDEX);
    APPENDIX_REFUSES(a.magic++);
    APPENDIX_REFUSES(a.version++);
    APPENDIX_REFUSES(a.reserved = 1);
}

Test(appendix, names_must_be_safe_and_distinct)
{
    APPENDIX_REFUSES(strcpy(a.texts[0].name, "a/b"));
    APPENDIX_REFUSES(strcpy(a.texts[0].name, a.texts[1].name));
    APPENDIX_REFUSES(strcpy(a.texts[0].name, a.digests_name));
    APPENDIX_REFUSES(memset(a.texts[1].name, 'x', sizeof(a.texts[1].name)));
    APPENDIX_REFUSES(a.digests_name[0] = '\0');
    APPENDIX_REFUSES(a.digests_size = 0);
    APPENDIX_REFUSES(a.digests_size = UINT64_MAX);
}

Test(appendix, texts_must_lie_inside_aligned_and_apart)
{
    struct appendix_front front = good_appendix();

    APPENDIX_REFUSES(a.texts[0].offset = 0);
    APPENDIX_REFUSES(a.texts[0].offset = 4104);
    APPENDIX_REFUSES(a.texts[0].size = 4097);
    APPENDIX_REFUSES(a.texts[1].offset = 4096);
    APPENDIX_REFUSES(a.texts[1].offset = APPENDIX_SIZE);
    APPENDIX_REFUSES(a.texts[1].offset = (uint64_t)-4096);
    APPENDIX_REFUSES(a.texts[1].size = UINT64_MAX);
    for (uint64_t size = 0; size < 8192 + 164; size += 4)
        cr_assert_eq(view_appendix(&front, size), -EBADMSG);
    cr_assert_eq(view_appendix(&front, 8192 + 164), 0);
}

/* The manifest's own digest covers the digests file's digest: it must come after it. */
Test(appendix, the_patches_must_lie_inside_the_manifest_one_after_the_other)
{
    APPENDIX_REFUSES(a.digests_patch = 101);
    APPENDIX_REFUSES(a.digests_patch = UINT64_MAX);
    APPENDIX_REFUSES(a.self_patch = 133);
    APPENDIX_REFUSES(a.self_patch = 131);
    APPENDIX_REFUSES(a.self_patch = UINT64_MAX);
    APPENDIX_REFUSES((a.digests_patch = 0, a.self_patch = 31));
    APPENDIX_REFUSES(a.texts[1].size = 163);
    APPENDIX_REFUSES((a.texts[1].size = 31, a.digests_patch = 0, a.self_patch = 0));
}
