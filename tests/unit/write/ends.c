/* How saves end other than well: given up, bad input, no space, errors of each step, deaths. Each leaves the root as it was
 * and says why.
 */
#include "shapes.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARD "model.safetensors.partial"

static const struct fake_settings plain = { .io = TSPOOL_IO_THREADS };

/* One trainer, one save of a state of several chunks. */
struct scene {
    struct tap tap;
    struct fake_trainer trainer;
    struct fake_state state;
    struct fake_save save;
};

static void scene_start(struct scene *scene, struct fake_settings settings, bool large)
{
    if (large)
        settings.arena_bytes = MIB(80);
    settings.host.io_create = tap_io_create;
    settings.host.io_context = &scene->tap;
    fake_state_init(&scene->state, 21, large ? LARGE_FILES : SMALL_FILES, large ? 2 : 1);
    fake_trainer_start(&scene->trainer, &settings);
    cr_assert_eq(scene->trainer.ready.error, 0, "%s", scene->trainer.ready.note);
    fake_begin(&scene->trainer, &scene->save, &scene->state, "step", false);
}

static void scene_end(struct scene *scene)
{
    fake_trainer_end(&scene->trainer);
    fake_state_deinit(&scene->state);
    tap_deinit(&scene->tap);
}

static void expect_nothing_stray(struct scene *scene)
{
    fake_trainer_close(&scene->trainer, false);
    cr_expect_eq(scene->trainer.outcome, 0);
    fake_expect_names(&scene->trainer, "", NO_NAMES);
    scene_end(scene);
}

/* Giving up ---------------------------------------------------------------------------------------------------------- */

Test(write, abandon_right_after_begin_leaves_nothing)
{
    struct scene scene = { 0 };

    scene_start(&scene, plain, false);
    fake_abandon(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_ABANDONED);
    expect_nothing_stray(&scene);
}

Test(write, abandon_when_prepared_leaves_nothing)
{
    struct scene scene = { 0 };

    scene_start(&scene, plain, false);
    fake_await(&scene.trainer, &scene.save, MESSAGE_PREPARED);
    fake_abandon(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_ABANDONED);
    expect_nothing_stray(&scene);
}

Test(write, abandon_half_written_leaves_nothing)
{
    struct scene scene = { 0 };

    scene_start(&scene, plain, true);
    fake_stage(&scene.trainer, &scene.save, 0, 0);
    fake_stage(&scene.trainer, &scene.save, 3, 1);
    fake_await(&scene.trainer, &scene.save, MESSAGE_RELEASED);
    fake_abandon(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_ABANDONED);
    expect_nothing_stray(&scene);
}

/* Whichever comes first: both ends are whole. */
Test(write, abandon_while_committing_ends_either_way)
{
    struct scene scene = { 0 };
    enum message_kind end;

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    fake_await(&scene.trainer, &scene.save, MESSAGE_WRITTEN);
    fake_abandon(&scene.trainer, &scene.save);
    end = fake_await_end(&scene.trainer, &scene.save);
    cr_expect(end == MESSAGE_ABANDONED || end == MESSAGE_PUBLISHED);
    fake_trainer_close(&scene.trainer, false);
    if (end == MESSAGE_PUBLISHED)
        fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", end == MESSAGE_PUBLISHED ? NAMES("step") : NO_NAMES);
    scene_end(&scene);
}

Test(write, close_finishes_what_is_staged_and_sweeps_the_rest)
{
    struct scene scene = { 0 };
    struct fake_save half;

    scene_start(&scene, plain, true);
    for (uint32_t i = 0; i < LARGE_CHUNKS; i++)
        fake_stage(&scene.trainer, &scene.save, i, i);
    fake_begin(&scene.trainer, &half, &scene.state, "half", false);
    fake_trainer_close(&scene.trainer, false);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
}

Test(write, sigterm_finishes_what_is_staged_and_sweeps_the_rest)
{
    struct fake_settings settings = plain;
    struct scene scene = { 0 };
    struct fake_save half;
    struct message message;
    unsigned published = 0, failed = 0;

    settings.host.term = eventfd(0, EFD_CLOEXEC); /* as readable as a signalfd */
    scene_start(&scene, settings, false);
    fake_stage_all(&scene.trainer, &scene.save);
    fake_begin(&scene.trainer, &half, &scene.state, "half", false);
    eventfd_write(settings.host.term, 1);
    while (fake_receive(&scene.trainer, &message)) {
        published += message.kind == MESSAGE_PUBLISHED;
        failed += message.kind == MESSAGE_FAILED && message.failure.error == ECANCELED;
    }
    cr_expect_eq(published, 1);
    cr_expect_eq(failed, 1);
    fake_trainer_join(&scene.trainer);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
    close(settings.host.term);
}

/* Deaths ------------------------------------------------------------------------------------------------------------- */

static const struct fake_settings mortal = { .io = TSPOOL_IO_THREADS, .mortal = true };

/* All of it is queued when the death shows, and nothing of it was looked at: the channel is read out before it is decided. */
Test(write, dead_trainers_last_messages_are_read_before_it_is_decided)
{
    struct scene scene = { 0 };

    tap_gate_init(&scene.tap);
    scene_start(&scene, mortal, true);
    fake_await(&scene.trainer, &scene.save, MESSAGE_PREPARED);
    pthread_mutex_lock(&scene.tap.gate);
    for (uint32_t i = 0; i < LARGE_CHUNKS; i++)
        fake_stage(&scene.trainer, &scene.save, i, i);
    fake_trainer_kill(&scene.trainer);
    pthread_mutex_unlock(&scene.tap.gate);
    fake_trainer_join(&scene.trainer);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
}

/* The test keeps the socket open, as a forked child of a trainer would: only the pidfd tells of the death. */
Test(write, dead_trainer_whose_save_is_staged_is_published)
{
    struct scene scene = { 0 };

    scene_start(&scene, mortal, true);
    for (uint32_t i = 0; i < LARGE_CHUNKS; i++)
        fake_stage(&scene.trainer, &scene.save, i, i);
    fake_trainer_kill(&scene.trainer);
    fake_trainer_join(&scene.trainer);
    cr_expect_eq(scene.trainer.outcome, 0);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
}

Test(write, dead_trainer_whose_save_is_not_staged_is_swept)
{
    struct scene scene = { 0 };

    scene_start(&scene, mortal, true);
    for (uint32_t i = 0; i < LARGE_CHUNKS - 1; i++)
        fake_stage(&scene.trainer, &scene.save, i, i);
    fake_trainer_kill(&scene.trainer);
    fake_trainer_join(&scene.trainer);
    cr_expect_eq(scene.trainer.outcome, 0);
    fake_expect_names(&scene.trainer, "", NO_NAMES);
    scene_end(&scene);
}

/* Whatever it asked for but to talk: nothing may follow from the end of the stream. */
static unsigned deeds_of(struct tap *tap)
{
    unsigned deeds = 0;

    pthread_mutex_lock(&tap->gate);
    for (unsigned kind = 0; kind < sizeof(tap->counts) / sizeof(*tap->counts); kind++)
        deeds += kind == OP_RECV || kind == OP_SEND ? 0 : tap->counts[kind];
    pthread_mutex_unlock(&tap->gate);
    return deeds;
}

/* The end of the stream says nothing while the process lives: nothing is marked, closed or removed before the death. A writer
 * that takes it for one does the first of these at once; what follows may take its time. */
Test(write, end_of_stream_is_not_death)
{
    struct scene scene = { 0 };
    unsigned deeds;

    tap_gate_init(&scene.tap);
    scene_start(&scene, mortal, false);
    fake_await(&scene.trainer, &scene.save, MESSAGE_PREPARED);
    deeds = deeds_of(&scene.tap);
    fake_trainer_hang_up(&scene.trainer);
    tap_await_end_of_stream(&scene.tap);
    cr_expect_eq(deeds_of(&scene.tap), deeds, "it acted before its trainer died");
    fake_trainer_kill(&scene.trainer);
    fake_trainer_join(&scene.trainer);
    fake_expect_names(&scene.trainer, "", NO_NAMES);
    scene_end(&scene);
}

Test(write, without_a_pidfd_the_end_of_the_stream_is_the_end)
{
    struct scene scene = { 0 };

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    fake_trainer_hang_up(&scene.trainer);
    fake_trainer_join(&scene.trainer);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    scene_end(&scene);
}

/* Bad input ------------------------------------------------------------------------------------------------------------ */

Test(write, bad_message_ends_the_connection_and_keeps_what_is_staged)
{
    struct scene scene = { 0 };
    struct fake_save half;

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    fake_begin(&scene.trainer, &half, &scene.state, "half", false);
    fake_send_raw(&scene.trainer, "nonsense", 8);
    fake_trainer_join(&scene.trainer);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
}

static void state_spoil(struct scene *scene, void (*spoil)(struct fake_state *))
{
    struct fake_settings settings = plain;

    fake_state_init(&scene->state, 22, SMALL_FILES, 1);
    spoil(&scene->state);
    settings.host = (struct writer_host){ .io_create = tap_io_create, .io_context = &scene->tap };
    fake_trainer_start(&scene->trainer, &settings);
    fake_begin(&scene->trainer, &scene->save, &scene->state, "step", false);
    fake_stage_all(&scene->trainer, &scene->save);
    cr_expect_eq(fake_await_end(&scene->trainer, &scene->save), MESSAGE_FAILED);
    cr_expect_eq(scene->save.failure.error, EBADMSG);
    cr_expect_neq(scene->save.failure.cause[0], '\0');
    expect_nothing_stray(scene);
}

static void sheet_spoil(struct fake_state *state) { ((struct sheet_front *)state->sheet)->leaf_count++; }

static void name_spoil(struct fake_state *state)
{
    struct sheet_file *file = (struct sheet_file *)(state->sheet + sizeof(struct sheet_front));

    memcpy(file->name, "../x", 5);
}

static void appendix_spoil(struct fake_state *state) { ((struct appendix_front *)state->appendix)->digests_size--; }
static void patch_spoil(struct fake_state *state) { ((struct appendix_front *)state->appendix)->digests_patch = 1u << 20; }
static void self_patch_spoil(struct fake_state *state) { ((struct appendix_front *)state->appendix)->self_patch = 1u << 20; }

Test(write, bad_sheet_fails_the_save)
{
    state_spoil(&(struct scene){ 0 }, sheet_spoil);
    state_spoil(&(struct scene){ 0 }, name_spoil);
}

Test(write, bad_appendix_fails_the_save)
{
    state_spoil(&(struct scene){ 0 }, appendix_spoil);
    state_spoil(&(struct scene){ 0 }, patch_spoil);
    state_spoil(&(struct scene){ 0 }, self_patch_spoil);
}

static void staged_badly(uint32_t chunk, uint32_t slot)
{
    struct scene scene = { 0 };
    struct message message;

    scene_start(&scene, plain, true);
    fake_stage(&scene.trainer, &scene.save, 0, 0);
    message_init(&message, MESSAGE_STAGED, &scene.save.attempt);
    message.staged.chunk = chunk;
    message.staged.slot = slot;
    fake_send(&scene.trainer, &message, NULL, 0);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.save.failure.error, EBADMSG);
    expect_nothing_stray(&scene);
}

Test(write, chunk_or_slot_that_does_not_exist_fails_the_save)
{
    staged_badly(LARGE_CHUNKS, 1);
    staged_badly(1, 5);
}

Test(write, chunk_staged_twice_fails_the_save) { staged_badly(0, 1); }

/* No space -------------------------------------------------------------------------------------------------------------- */

Test(write, full_file_system_is_refused_with_figures_before_the_first_byte)
{
    char directory[] = "/tmp/tspool-small-XXXXXX";
    struct fake_settings settings = plain;
    struct scene scene = { 0 };

    cr_assert_not_null(mkdtemp(directory));
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tspool-test", directory, "tmpfs", 0, "size=8m") < 0) {
        rmdir(directory);
        cr_skip("cannot mount a small tmpfs: %s", strerror(errno));
    }
    settings.root = directory;
    scene_start(&scene, settings, true);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.save.failure.error, ENOSPC);
    cr_expect(strstr(scene.save.failure.cause, "needs 53.0") && strstr(scene.save.failure.cause, "8.00 MiB free"), "%s",
              scene.save.failure.cause);
    cr_expect_eq(scene.tap.counts[OP_MKDIR], 0);
    expect_nothing_stray(&scene);
    umount2(directory, MNT_DETACH);
    rmdir(directory);
}

/* Errors of each step ---------------------------------------------------------------------------------------------------- */

struct fault {
    enum op_kind kind;
    const char *name;
    unsigned skip;
    int error;
    const char *operation, *path; /* as the record names them */
    enum tspool_stage stage;
};

static void fails(struct fault fault)
{
    struct scene scene = { .tap = { .rule = { fault.kind, fault.name, 0, fault.skip, fault.error, 0, 1 } } };

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_assert_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED, "%s %s", fault.operation, fault.path);
    cr_expect_eq(scene.save.failure.error, fault.error);
    cr_expect_eq(scene.save.failure.stage, fault.stage);
    cr_expect_str_eq(scene.save.failure.operation, fault.operation);
    cr_expect(strstr(scene.save.failure.path, fault.path), "\"%s\" does not name %s", scene.save.failure.path, fault.path);
    cr_expect_neq(scene.save.failure.cause[0], '\0');
    expect_nothing_stray(&scene);
}

Test(write, errors_of_preparing_fail_the_save_and_leave_nothing)
{
    fails((struct fault){ OP_MKDIR, NULL, 0, EACCES, "mkdir", ".step.", TSPOOL_STAGE_PREPARE });
    fails((struct fault){ OP_MKDIR, NULL, 0, EEXIST, "mkdir", ".step.", TSPOOL_STAGE_PREPARE });
    fails((struct fault){ OP_OPEN, "tspool.part-", 0, EMFILE, "open", "/tspool.part-00001", TSPOOL_STAGE_PREPARE });
    fails((struct fault){ OP_LOCK, NULL, 0, EWOULDBLOCK, "lock", "/tspool.part-00001", TSPOOL_STAGE_PREPARE });
    fails((struct fault){ OP_OPEN, SHARD, 0, EMFILE, "open", "/" SHARD, TSPOOL_STAGE_PREPARE });
    fails((struct fault){ OP_ALLOCATE, NULL, 0, EDQUOT, "allocate", "/model.safetensors.partial", TSPOOL_STAGE_PREPARE });
}

Test(write, errors_of_writing_fail_the_save_and_leave_nothing)
{
    fails((struct fault){ OP_WRITE, NULL, 1, EIO, "write", "/model.safetensors.partial", TSPOOL_STAGE_WRITE });
    fails((struct fault){ OP_WRITE, NULL, 2, ENOSPC, "write", "/objects-00001.bin.partial", TSPOOL_STAGE_SEAL });
    fails((struct fault){ OP_WRITE, NULL, 4, EFBIG, "write", "/tspool.manifest.json.partial", TSPOOL_STAGE_SEAL });
    fails((struct fault){ OP_TRUNCATE, NULL, 0, EROFS, "truncate", "/model.safetensors.partial", TSPOOL_STAGE_SEAL });
}

/* ECANCELED means to the trainer that this writer is about to end. */
Test(write, operation_that_was_cancelled_is_not_taken_for_the_writers_end)
{
    struct scene scene = { .tap = { .rule = { OP_WRITE, NULL, 0, 1, ECANCELED, 0, 1 } } };

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_assert_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.save.failure.error, EIO);
    expect_nothing_stray(&scene);
}

Test(write, errors_of_committing_fail_the_save_and_leave_nothing)
{
    fails((struct fault){ OP_FSYNC, NULL, 1, EIO, "fsync", ".partial", TSPOOL_STAGE_SYNC });
    fails((struct fault){ OP_RENAME, SHARD, 0, EIO, "rename", "/" SHARD, TSPOOL_STAGE_SYNC });
    fails((struct fault){ OP_UNLINK, "tspool.part-", 0, EIO, "unlink", "/tspool.part-00001", TSPOOL_STAGE_SYNC });
    fails((struct fault){ OP_FSYNC, NULL, 4, EIO, "fsync", ".step.", TSPOOL_STAGE_SYNC });
    fails((struct fault){ OP_RENAME, ".step.", 0, EACCES, "rename", ".step.", TSPOOL_STAGE_PUBLISH });
    fails((struct fault){ OP_RENAME, ".step.", 0, EEXIST, "publish", "step", TSPOOL_STAGE_PUBLISH });
}

/* Whichever of EEXIST and ENOTEMPTY the file system says. */
Test(write, name_that_was_taken_meanwhile_is_refused_as_such)
{
    struct scene scene = { .tap = { .rule = { OP_RENAME, ".step.", 0, 0, ENOTEMPTY, 0, 1 } } };

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_assert_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.save.failure.error, EEXIST);
    cr_expect(strstr(scene.save.failure.cause, "another save published"), "%s", scene.save.failure.cause);
    expect_nothing_stray(&scene);
}

/* The part record's text and the directory's lock help others to wait for the right ones: a disk that has no room for the
 * one, or a file system without the other, fails no save. */
Test(write, what_only_helps_others_fails_no_save)
{
    const struct tap_rule rules[] = { { .kind = OP_WRITE, .error = ENOSPC }, { .kind = OP_LOCK, .skip = 1, .error = EBADF } };

    for (unsigned i = 0; i < 2; i++) {
        struct scene scene = { .tap = { .rule = rules[i] } };

        scene_start(&scene, plain, false);
        fake_stage_all(&scene.trainer, &scene.save);
        cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_PUBLISHED);
        fake_trainer_close(&scene.trainer, false);
        fake_expect_published(&scene.trainer, &scene.state, "step");
        scene_end(&scene);
    }
}

/* An fsync that failed is not tried again: as many are asked for as without the error, up to the one that failed. */
Test(write, failed_fsync_is_never_repeated)
{
    struct scene scene = { .tap = { .rule = { .kind = OP_FSYNC, .error = EIO } } };

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.tap.counts[OP_FSYNC], 4);
    expect_nothing_stray(&scene);
}

static void is_unknown(struct tap_rule rule, bool stands)
{
    struct scene scene = { .tap = { .rule = rule } };
    struct stat status;
    char hidden[HIDDEN_NAME_MAX + 1];

    scene_start(&scene, plain, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_UNKNOWN);
    cr_expect_eq(scene.save.failure.stage, TSPOOL_STAGE_PUBLISH);
    fake_trainer_close(&scene.trainer, false);
    hidden_name_make("step", scene.save.attempt.save_id, hidden);
    cr_expect_eq(fstatat(scene.trainer.root_fd, stands ? "step" : hidden, &status, 0), 0, "nothing may be removed");
    fake_expect_published(&scene.trainer, &scene.state, stands ? "step" : hidden);
    scene_end(&scene);
}

Test(write, error_after_the_rename_began_is_unknown_and_removes_nothing)
{
    is_unknown((struct tap_rule){ .kind = OP_RENAME, .name = ".step.", .error = EIO }, false);
    is_unknown((struct tap_rule){ .kind = OP_FSYNC, .skip = 5, .error = EIO }, true);
}

Test(write, root_that_cannot_be_written_is_said_in_ready)
{
    struct tap tap = { .rule = { .kind = OP_OPEN, .name = ".tspool.probe.", .error = EROFS } };
    struct fake_settings settings = { .io = TSPOOL_IO_THREADS, .host = { .io_create = tap_io_create, .io_context = &tap } };
    struct fake_trainer trainer;

    fake_trainer_start(&trainer, &settings);
    cr_expect_eq(trainer.ready.error, EROFS);
    cr_expect(strstr(trainer.ready.note, "read-only"), "%s", trainer.ready.note);
    fake_trainer_join(&trainer);
    fake_expect_names(&trainer, "", NO_NAMES);
    fake_trainer_end(&trainer);
    tap_deinit(&tap);
}

Test(write, where_direct_io_is_refused_the_save_is_buffered)
{
    struct scene scene = { .tap = { .rule = { .kind = OP_OPEN, .flags = OPEN_DIRECT, .error = EINVAL } } };

    scene_start(&scene, plain, false);
    cr_expect_eq(scene.trainer.ready.direct, 0);
    cr_expect(strstr(scene.trainer.ready.note, "O_DIRECT is refused"), "%s", scene.trainer.ready.note);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_PUBLISHED);
    fake_trainer_close(&scene.trainer, false);
    fake_expect_published(&scene.trainer, &scene.state, "step");
    fake_expect_names(&scene.trainer, "", NAMES("step"));
    scene_end(&scene);
}

/* One byte a second: the first item is written at once, the second would be in two hours. */
Test(write, save_past_its_deadline_fails)
{
    struct fake_settings slow = plain;
    struct scene scene = { 0 };

    slow.bytes_per_second = 1;
    slow.item_bytes = 8192;
    slow.deadline_ns = 20000000;
    scene_start(&scene, slow, false);
    fake_stage_all(&scene.trainer, &scene.save);
    cr_expect_eq(fake_await_end(&scene.trainer, &scene.save), MESSAGE_FAILED);
    cr_expect_eq(scene.save.failure.error, ETIMEDOUT);
    cr_expect(strstr(scene.save.failure.cause, "0.020 s"), "%s", scene.save.failure.cause);
    expect_nothing_stray(&scene);
}
