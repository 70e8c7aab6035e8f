/* A save from BEGIN to PUBLISHED, on both backends: what is in the files is what was staged, and nothing else is there. */
#include "shapes.h"

#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct fake_settings both[] = { { .io = TSPOOL_IO_URING }, { .io = TSPOOL_IO_THREADS },
                                       { .io = TSPOOL_IO_URING, .buffered = true } };

#define EACH_BACKEND(name) \
    ParameterizedTestParameters(write, name) { return cr_make_param_array(struct fake_settings, both, 3); } \
    ParameterizedTest(struct fake_settings *settings, write, name)

EACH_BACKEND(small_save_is_published_byte_for_byte)
{
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    fake_state_init(&state, 1, SMALL_FILES, 1);
    fake_trainer_start(&trainer, settings);
    cr_assert_eq(trainer.ready.error, 0, "%s", trainer.ready.note);
    fake_begin(&trainer, &save, &state, "step-1", false);
    fake_stage_all(&trainer, &save);
    cr_expect_eq(fake_await_end(&trainer, &save), MESSAGE_PUBLISHED);
    cr_expect(save.counts[MESSAGE_PREPARED] == 1 && save.counts[MESSAGE_WRITTEN] == 1 && save.counts[MESSAGE_DURABLE] == 1);
    cr_expect_eq(save.released_count, 1);
    cr_expect_eq(save.progress.bytes, 20000);
    fake_trainer_close(&trainer, false);
    cr_expect_eq(trainer.outcome, 0);
    fake_expect_published(&trainer, &state, "step-1");
    fake_expect_names(&trainer, "", NAMES("step-1"));
    fake_expect_names(&trainer, "step-1", SMALL_NAMES);
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

/* Leaves go on from chunk to chunk while the chunks come in the worst order. */
EACH_BACKEND(chunks_staged_backwards_are_published_byte_for_byte)
{
    struct fake_settings wide = *settings;
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    wide.arena_bytes = MIB(96);
    fake_state_init(&state, 2, LARGE_FILES, 2);
    cr_assert_eq(state.chunk_count, LARGE_CHUNKS);
    fake_trainer_start(&trainer, &wide);
    fake_begin(&trainer, &save, &state, "step-2", false);
    for (uint32_t i = LARGE_CHUNKS; i-- > 0;)
        fake_stage(&trainer, &save, i, LARGE_CHUNKS - i);
    cr_expect_eq(fake_await_end(&trainer, &save), MESSAGE_PUBLISHED);
    cr_expect_eq(save.released_count, LARGE_CHUNKS);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step-2");
    fake_expect_names(&trainer, "", NAMES("step-2"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

/* Two slots for five chunks: each is overwritten as soon as it is given back, so one given back too early spoils the file. */
EACH_BACKEND(slots_are_given_back_when_the_arena_is_smaller_than_the_state)
{
    struct fake_settings narrow = *settings;
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;
    uint32_t next = 2;

    narrow.arena_bytes = MIB(32);
    fake_state_init(&state, 3, LARGE_FILES, 2);
    fake_trainer_start(&trainer, &narrow);
    fake_begin(&trainer, &save, &state, "step-3", false);
    fake_stage(&trainer, &save, 0, 0);
    fake_stage(&trainer, &save, 1, 1);
    while (next < LARGE_CHUNKS) {
        unsigned before = save.released_count;

        fake_await(&trainer, &save, MESSAGE_RELEASED);
        cr_assert_eq(save.released_count, before + 1);
        for (uint32_t i = 0; i < next; i++)
            if (save.released[i] && save.slots[i] != UINT32_MAX) {
                uint32_t slot = save.slots[i];

                save.slots[i] = UINT32_MAX;
                fake_stage(&trainer, &save, next++, slot);
                break;
            }
    }
    cr_expect_eq(fake_await_end(&trainer, &save), MESSAGE_PUBLISHED);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step-3");
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

Test(write, stages_before_prepared_are_taken)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save first, second;

    fake_state_init(&state, 4, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    fake_begin(&trainer, &first, &state, "a", false);
    fake_stage(&trainer, &first, 0, 0);
    cr_expect_eq(fake_await_end(&trainer, &first), MESSAGE_PUBLISHED);
    fake_begin(&trainer, &second, &state, "b", false); /* the writer serves on after a save */
    fake_stage(&trainer, &second, 0, 1);
    cr_expect_eq(fake_await_end(&trainer, &second), MESSAGE_PUBLISHED);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "b");
    fake_expect_names(&trainer, "", NAMES("a", "b"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

Test(write, ready_says_what_really_runs)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .registered = true };
    struct fake_trainer trainer;

    fake_trainer_start(&trainer, &settings);
    cr_expect_eq(trainer.ready.error, 0);
    cr_expect_str_eq(trainer.ready.backend, "threads");
    cr_expect_eq(trainer.ready.registered, 0);
    cr_expect(strstr(trainer.ready.note, "registered"), "%s", trainer.ready.note);
    cr_expect_neq(trainer.ready.filesystem[0], '\0');
    cr_expect_eq(trainer.ready.direct, trainer.ready.offset_align != 0);
    fake_trainer_close(&trainer, false);
    fake_expect_names(&trainer, "", NO_NAMES); /* the probe is gone */
    fake_trainer_end(&trainer);
}

Test(write, library_of_another_version_is_refused)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .version = "9.9.9" };
    struct fake_trainer trainer;

    fake_trainer_start(&trainer, &settings);
    cr_expect_eq(trainer.ready.error, EPROTO);
    cr_expect(strstr(trainer.ready.note, "version"), "%s", trainer.ready.note);
    fake_trainer_join(&trainer);
    fake_trainer_end(&trainer);
}

/* The trainer copies while it stands still: on few CPUs nothing else may take them before the last chunk is staged. */
Test(write, asked_to_hash_late_it_hashes_nothing_before_the_last_chunk)
{
    struct tap tap = { .rule = { .kind = OP_NONE } };
    struct fake_settings settings = { .arena_bytes = MIB(96), .io = TSPOOL_IO_THREADS, .hash_late = true,
                                      .host = { .io_create = tap_io_create, .io_context = &tap } };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;
    struct message message;

    fake_state_init(&state, 6, LARGE_FILES, 2);
    fake_trainer_start(&trainer, &settings);
    fake_begin(&trainer, &save, &state, "step", false);
    fake_await(&trainer, &save, MESSAGE_PREPARED);
    for (uint32_t i = 1; i < LARGE_CHUNKS; i++)
        fake_stage(&trainer, &save, i, i);
    message_init(&message, MESSAGE_PING, NULL);
    fake_send(&trainer, &message, NULL, 0);
    cr_assert(fake_receive(&trainer, &message));
    cr_expect_eq(message.kind, MESSAGE_PONG, "the chunks before it were taken, and none was released");
    cr_expect_eq(tap.counts[OP_COMPUTE], 1, "the sheet was read, nothing was hashed");
    fake_stage(&trainer, &save, 0, 0);
    cr_expect_eq(fake_await_end(&trainer, &save), MESSAGE_PUBLISHED);
    cr_expect_eq(save.released_count, LARGE_CHUNKS);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step");
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
    tap_deinit(&tap);
}

Test(write, ping_is_answered_while_a_save_waits)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;
    struct message message;

    fake_state_init(&state, 5, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    fake_begin(&trainer, &save, &state, "a", false);
    fake_await(&trainer, &save, MESSAGE_PREPARED);
    message_init(&message, MESSAGE_PING, NULL);
    message.ping.sequence = 42;
    fake_send(&trainer, &message, NULL, 0);
    cr_assert(fake_receive(&trainer, &message));
    cr_expect_eq(message.kind, MESSAGE_PONG);
    cr_expect_eq(message.pong.sequence, 42);
    cr_expect_str_eq(message.pong.oldest_op, "", "nothing is in flight, not %s", message.pong.oldest_op);
    fake_trainer_close(&trainer, true);
    fake_expect_names(&trainer, "", NO_NAMES);
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

static int last_of(const struct tap *tap, const char *text)
{
    int at, last = -1;

    for (at = tap_find(tap, text, 0); at >= 0; at = tap_find(tap, text, (unsigned)at + 1))
        last = at;
    return last;
}

/* Replacing ------------------------------------------------------------------------------------------------------------ */

static void publish(struct fake_trainer *trainer, struct fake_save *save, const struct fake_state *state, bool replace)
{
    fake_begin(trainer, save, state, "step", replace);
    fake_stage_all(trainer, save);
    cr_assert_eq(fake_await_end(trainer, save), MESSAGE_PUBLISHED, "%s %s", save->failure.operation, save->failure.cause);
}

Test(write, taken_name_is_refused_and_untouched)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS };
    struct fake_trainer trainer;
    struct fake_state old, new;
    struct fake_save save;

    fake_state_init(&old, 6, SMALL_FILES, 1);
    fake_state_init(&new, 7, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    publish(&trainer, &save, &old, false);
    fake_begin(&trainer, &save, &new, "step", false);
    cr_expect_eq(fake_await_end(&trainer, &save), MESSAGE_FAILED);
    cr_expect_eq(save.failure.error, EEXIST);
    cr_expect_str_eq(save.failure.path, "step");
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &old, "step");
    fake_expect_names(&trainer, "", NAMES("step"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&old);
    fake_state_deinit(&new);
}

Test(write, empty_directory_of_that_name_is_taken)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    fake_state_init(&state, 8, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    cr_assert_eq(mkdirat(trainer.root_fd, "step", 0777), 0);
    publish(&trainer, &save, &state, false);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step");
    fake_expect_names(&trainer, "", NAMES("step"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

/* A tokenizer, a folder and a stale shard of another layout lie in the old checkpoint: the first two stay, the shard goes. */
static void replaces_and_keeps(struct fake_settings *settings)
{
    static const char *const kept[] = { "model.safetensors", "notes", "objects-00001.bin", "tokenizer.json", "tspool.digests",
                                        "tspool.manifest.json", NULL };
    struct fake_trainer trainer;
    struct fake_state old, new;
    struct fake_save save;

    fake_state_init(&old, 9, SMALL_FILES, 1);
    fake_state_init(&new, 10, SMALL_FILES, 1);
    fake_trainer_start(&trainer, settings);
    publish(&trainer, &save, &old, false);
    fake_put_file(&trainer, "step/tokenizer.json", "{}");
    fake_put_file(&trainer, "step/model-00002-of-00002.safetensors", "stale");
    cr_assert_eq(mkdirat(trainer.root_fd, "step/notes", 0777), 0);
    fake_put_file(&trainer, "step/notes/a", "a");
    publish(&trainer, &save, &new, true);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &new, "step");
    fake_expect_names(&trainer, "step", kept);
    cr_expect(fake_file_is(&trainer, "step/tokenizer.json", "{}"));
    cr_expect(fake_file_is(&trainer, "step/notes/a", "a"));
    fake_expect_names(&trainer, "", NAMES("step"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&old);
    fake_state_deinit(&new);
}

Test(write, replacing_keeps_what_others_put_there)
{
    replaces_and_keeps(&(struct fake_settings){ .io = TSPOOL_IO_URING });
}

static void replaces_through_tap(struct tap *tap)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .host = { .io_create = tap_io_create, .io_context = tap } };
    int into_place;

    replaces_and_keeps(&settings);
    into_place = last_of(tap, "rename .step.");
    cr_expect_gt(tap_find(tap, "link tokenizer.json", 0), 0);
    cr_expect_lt(tap_find(tap, "link tokenizer.json", 0), into_place, "kept before the old one leaves the name");
    cr_expect_eq(last_of(tap, "fsync"), into_place + 1, "the root is synced");
    cr_expect_gt(tap_find(tap, "unlink tokenizer.json", 0), into_place + 1, "before anything of the old one is removed");
    tap_deinit(tap);
}

Test(write, files_of_others_never_leave_the_name)
{
    replaces_through_tap(&(struct tap){ .rule = { .kind = OP_NONE } });
}

Test(write, replacing_works_where_exchange_is_refused)
{
    replaces_through_tap(&(struct tap){ .rule = { .kind = OP_RENAME, .flags = RENAME_OP_EXCHANGE, .error = EINVAL } });
}

Test(write, replacing_nothing_is_a_plain_save)
{
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    fake_state_init(&state, 11, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    publish(&trainer, &save, &state, true);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step");
    fake_expect_names(&trainer, "", NAMES("step"));
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
}

/* The commit's order ------------------------------------------------------------------------------------------------------ */

Test(write, commit_keeps_its_order)
{
    struct tap tap = { .rule = { .kind = OP_NONE } };
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .host = { .io_create = tap_io_create, .io_context = &tap } };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;
    int first_sync, first_uncover, into_place, directory_sync;

    fake_state_init(&state, 12, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    publish(&trainer, &save, &state, false);
    fake_trainer_close(&trainer, false);
    first_sync = tap_find(&tap, "fsync", 0);
    first_uncover = tap_find(&tap, "rename ", 0);
    into_place = tap_find(&tap, "rename .step.", 0);
    cr_expect_eq(tap.counts[OP_FSYNC], 4 + 1 + 1, "files, directory, root");
    cr_expect_lt(last_of(&tap, "write"), first_sync);
    cr_expect_lt(last_of(&tap, "truncate"), first_sync);
    directory_sync = tap_find(&tap, "fsync", (unsigned)first_uncover);
    cr_expect_eq(first_uncover - first_sync, 4, "four files are synced before a suffix is dropped");
    cr_expect_lt(tap_find(&tap, "unlink tspool.part-", 0), directory_sync);
    cr_expect_lt(last_of(&tap, "rename model"), directory_sync);
    cr_expect_eq(into_place, directory_sync + 1, "the directory is synced just before it is renamed");
    cr_expect_eq(last_of(&tap, "fsync"), into_place + 1, "and the root just after");
    cr_expect_gt(tap_find(&tap, "send", (unsigned)into_place), last_of(&tap, "fsync"), "reported after the root was synced");
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
    tap_deinit(&tap);
}

/* 4 MiB at 64 MiB/s, items of 64 KiB: the burst is 640 KiB, so the writer must have waited for its cap several times. */
Test(write, bandwidth_cap_holds_writes_back)
{
    struct tap tap = { .rule = { .kind = OP_NONE } };
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .bytes_per_second = MIB(16), .item_bytes = 65536, .depth = 4,
                                      .host = { .io_create = tap_io_create, .io_context = &tap } };
    struct fake_file file = { "model.safetensors", MIB(4), { MIB(4) - 4096 }, 1 };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    fake_state_init(&state, 13, &file, 1);
    fake_trainer_start(&trainer, &settings);
    publish(&trainer, &save, &state, false);
    fake_trainer_close(&trainer, false);
    cr_expect_eq(tap.counts[OP_WRITE], 64 + 3 + 1, "64 items, objects, digests, manifest, part record");
    cr_expect_leq(tap.writes_in_flight_most, 4);
    cr_expect_gt(tap.waits_with_deadline, 8, "%u waits for the cap", tap.waits_with_deadline);
    fake_expect_published(&trainer, &state, "step");
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
    tap_deinit(&tap);
}

/* A short write that ends between two multiples of the alignment: the rest begins at the lower one. */
static void survives_short_write(size_t size, bool buffered)
{
    struct tap tap = { .rule = { .kind = OP_WRITE, .skip = 1, .short_size = size } }; /* the part record passes */
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .buffered = buffered,
                                      .host = { .io_create = tap_io_create, .io_context = &tap } };
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;

    fake_state_init(&state, 14, SMALL_FILES, 1);
    fake_trainer_start(&trainer, &settings);
    publish(&trainer, &save, &state, false);
    cr_expect_eq(save.progress.short_writes, 1);
    cr_expect_eq(save.progress.bytes, 20000);
    cr_expect_eq(save.progress.writes, 1 + 1 + 3);
    fake_trainer_close(&trainer, false);
    fake_expect_published(&trainer, &state, "step");
    fake_trainer_end(&trainer);
    fake_state_deinit(&state);
    tap_deinit(&tap);
}

Test(write, short_write_is_advanced) { survives_short_write(8192, false); }
Test(write, short_write_between_bytes_is_advanced_when_buffered) { survives_short_write(8193, true); }
