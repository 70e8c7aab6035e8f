/* The index of Hugging Face folders: what we write, transformers reads; what others wrote, we read - and it names files. */
#include <criterion/criterion.h>
#include <errno.h>
#include <format/index.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_refused(const char *json, const char *reason_part)
{
    struct parsed_index index = { .entry_count = 99 };
    const char *reason = "";

    cr_assert_eq(index_parse(json, strlen(json), &index, &reason), -EBADMSG, "%s was accepted", json);
    cr_assert(strstr(reason, reason_part), "%s: refused because %s", json, reason);
    cr_assert_eq(index.entry_count, 99);
}

Test(index, is_laid_out_as_transformers_writes_it)
{
    const struct index_entry entries[] = { { "a", "model-00001-of-00002.safetensors" },
                                           { "b\"", "model-00002-of-00002.safetensors" } };
    char *json;
    size_t size;

    cr_assert_eq(index_build(entries, 2, 1234, &json, &size), 0);
    json = realloc(json, size + 1);
    json[size] = 0;
    cr_assert_str_eq(json, "{\n  \"metadata\": {\n    \"total_size\": 1234\n  },\n  \"weight_map\": {\n"
                           "    \"a\": \"model-00001-of-00002.safetensors\",\n"
                           "    \"b\\\"\": \"model-00002-of-00002.safetensors\"\n  }\n}\n");
    free(json);
}

Test(index, goes_there_and_back_sorted_by_tensor)
{
    const struct index_entry entries[] = { { "z", "f2" }, { "a", "f1" }, { "m\n\xc3\xa9", "f2" } };
    struct parsed_index index;
    const char *reason = "";
    char *json;
    size_t size;

    cr_assert_eq(index_build(entries, 3, 0, &json, &size), 0);
    cr_assert_eq(index_parse(json, size, &index, &reason), 0, "%s", reason);
    cr_assert_eq(index.entry_count, 3);
    cr_assert_eq(index.file_count, 2);
    cr_assert_str_eq(index.files[0], "f1");
    cr_assert_str_eq(index.files[1], "f2");
    cr_assert_str_eq(index.entries[0].tensor, "a");
    cr_assert_str_eq(index.entries[0].file, "f1");
    cr_assert_str_eq(index.entries[1].tensor, "m\n\xc3\xa9");
    cr_assert_str_eq(index.entries[2].tensor, "z");
    cr_assert_str_eq(index.entries[2].file, "f2");
    parsed_index_deinit(&index);
    free(json);
}

Test(index, takes_what_others_write)
{
    const char *fine[] = { "{\"weight_map\":{}}",
                           "{\"metadata\":{\"total_size\":1.5e10,\"x\":[]},\"weight_map\":{\"a\":\"f\"},\"more\":null}",
                           "\n{ \"weight_map\" : { } }\n" };
    struct parsed_index index;
    const char *reason = "";

    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        cr_assert_eq(index_parse(fine[i], strlen(fine[i]), &index, &reason), 0, "%s: %s", fine[i], reason);
        parsed_index_deinit(&index);
    }
}

Test(index, an_empty_one_goes_there_and_back)
{
    struct parsed_index index;
    const char *reason;
    char *json;
    size_t size;

    cr_assert_eq(index_build(NULL, 0, 0, &json, &size), 0);
    cr_assert_eq(index_parse(json, size, &index, &reason), 0);
    cr_assert_eq(index.entry_count, 0);
    cr_assert_eq(index.file_count, 0);
    parsed_index_deinit(&index);
    free(json);
}

Test(index, refuses_files_elsewhere_and_tensors_twice)
{
    assert_refused("{\"weight_map\":{\"a\":\"../f\"}}", "plain name");
    assert_refused("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "plain name");
    assert_refused("{\"weight_map\":{\"a\":\".f\"}}", "plain name");
    assert_refused("{\"weight_map\":{\"a\":\"\"}}", "plain name");
    assert_refused("{\"weight_map\":{\"a\":\"f\",\"b\":\"g\",\"a\":\"f\"}}", "twice");
    assert_refused("{\"weight_map\":{\"a\":\"f\",\"\\u0061\":\"f\"}}", "twice");
    assert_refused("{\"weight_map\":{},\"weight_map\":{}}", "twice");
    assert_refused("{\"weight_map\":{\"a\":1}}", "string");
    assert_refused("{\"metadata\":{}}", "missing");
    assert_refused("", "object");
    assert_refused("{\"weight_map\":{}} x", "after");
}

Test(index, every_truncation_is_refused)
{
    static const char json[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"a\":\"f\",\"b\\u00e9\":\"g\"}}";
    struct parsed_index index;
    const char *reason;

    for (size_t size = 0; size < strlen(json); size++) {
        char *cut = malloc(size ? size : 1);

        memcpy(cut, json, size);
        cr_assert_eq(index_parse(cut, size, &index, &reason), -EBADMSG, "%zu", size);
        free(cut);
    }
}
