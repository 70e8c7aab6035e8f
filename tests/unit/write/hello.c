/* What may come instead of a HELLO, and what a writer cannot begin with: it ends, says why where somebody listens, and
 * leaves no descriptor open. */
#include "../../support/fake_trainer.h"

#include <base/checked.h>
#include <base/failure.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <proc/proc.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <tspool/version.h>
#include <unistd.h>

static struct fake_trainer trainer; /* its channel only */
static struct message hello;
static int fds[4];
static unsigned before;

static unsigned descriptors_open(void)
{
    DIR *directory = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void setup(void)
{
    int ends[2];

    cr_assert_eq(channel_create(ends, NULL), 0);
    trainer.channel = ends[0];
    trainer.settings.host = (struct writer_host){ .channel = ends[1], .term = -1, .hello_timeout_ns = 20000000000 };
    for (unsigned i = 0; i < 4; i++)
        fds[i] = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    message_init(&hello, MESSAGE_HELLO, NULL);
    strcpy(hello.hello.version, TSPOOL_VERSION);
    hello.hello.arena_bytes = MIB(32);
    hello.hello.chunk_bytes = CHUNK_BYTES;
    hello.hello.item_bytes = 4096;
    hello.hello.depth = 4;
    hello.hello.hash_threads = hello.hello.world_size = 1;
    hello.hello.io = TSPOOL_IO_THREADS;
    before = descriptors_open();
}

TestSuite(hello, .init = setup, .timeout = 60);

/* The writer returns `returned`, and its READY carries `error`; the note is returned. */
static const char *refused_with(int returned, int error)
{
    static struct message ready;

    cr_assert_eq(writer_host_run(&trainer.settings.host), returned);
    cr_assert(fake_receive(&trainer, &ready), "nothing was said");
    cr_assert_eq(ready.kind, MESSAGE_READY);
    cr_assert_eq(ready.ready.error, error, "%s", ready.ready.note);
    cr_assert_str_eq(ready.ready.version, TSPOOL_VERSION);
    cr_assert_neq(ready.ready.note[0], '\0');
    cr_assert_eq(descriptors_open(), before, "something stayed open");
    return ready.ready.note;
}

Test(hello, silence_ends_the_writer)
{
    trainer.settings.host.hello_timeout_ns = 1000000;
    refused_with(-ETIMEDOUT, ETIMEDOUT);
}

Test(hello, trainer_that_is_gone_is_told_nothing)
{
    close(trainer.channel);
    cr_assert_eq(writer_host_run(&trainer.settings.host), -EPIPE);
}

Test(hello, trainer_that_says_no_more_is_answered)
{
    cr_assert_eq(shutdown(trainer.channel, SHUT_WR), 0);
    refused_with(-EPIPE, EPIPE);
}

Test(hello, sigterm_before_it_ends_the_writer)
{
    trainer.settings.host.term = eventfd(1, EFD_CLOEXEC);
    before++;
    refused_with(-ECANCELED, ECANCELED);
}

Test(hello, nonsense_is_refused)
{
    fake_send_raw(&trainer, "nonsense", 8);
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, longer_message_than_there_is_is_refused)
{
    static const char bytes[sizeof(struct message) + 100];

    fake_send_raw(&trainer, bytes, sizeof(bytes));
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, other_message_is_refused_and_its_files_closed)
{
    struct message message;

    message_init(&message, MESSAGE_PING, NULL);
    fake_send(&trainer, &message, fds, 3);
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, too_few_files_are_refused)
{
    fake_send(&trainer, &hello, fds, 1);
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, no_files_are_refused)
{
    fake_send(&trainer, &hello, NULL, 0);
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, other_version_is_refused_with_advice)
{
    strcpy(hello.hello.version, "0.0.1");
    fake_send(&trainer, &hello, fds, 2);
    cr_assert_not_null(strstr(refused_with(0, EPROTO), "install them together"));
}

Test(hello, other_wire_version_is_refused_with_advice)
{
    uint8_t bytes[sizeof(hello)];

    memcpy(bytes, &hello, sizeof(hello));
    bytes[4] += 1;
    fake_send_raw(&trainer, bytes, message_size(MESSAGE_HELLO));
    cr_assert_not_null(strstr(refused_with(-EPROTO, EPROTO), "install both"));
}

Test(hello, other_chunk_size_is_refused)
{
    hello.hello.chunk_bytes /= 2;
    fake_send(&trainer, &hello, fds, 2);
    refused_with(-EBADMSG, EBADMSG);
}

Test(hello, arena_that_is_no_arena_is_refused)
{
    fake_send(&trainer, &hello, fds, 2); /* directories */
    cr_assert_lt(writer_host_run(&trainer.settings.host), 0);
    cr_assert(fake_receive(&trainer, &hello));
    cr_assert_eq(hello.kind, MESSAGE_READY);
    cr_assert_gt(hello.ready.error, 0);
    cr_assert_neq(hello.ready.note[0], '\0');
    cr_assert_eq(descriptors_open(), before);
}

/* A kernel without io_uring, or without either. */
static int io_create_refused(void *context, bool uring, const struct io_settings *settings, struct io **io,
                             struct tspool_failure *failure)
{
    const bool *threads_work = context;

    if (uring || !*threads_work)
        return failure_set(failure, TSPOOL_STAGE_WRITER, uring ? ENOSYS : EAGAIN, FAILURE_NOWHERE, "it is refused here");
    return io_create_threads(settings, io, failure);
}

static void refuse_io(bool *threads_work, enum tspool_io wanted)
{
    trainer.settings.host.io_create = io_create_refused;
    trainer.settings.host.io_context = threads_work;
    hello.hello.io = wanted;
    fake_send(&trainer, &hello, fds, 2);
}

Test(hello, io_uring_that_was_asked_for_and_is_not_there_is_refused)
{
    refuse_io(&(bool){ true }, TSPOOL_IO_URING);
    cr_assert_not_null(strstr(refused_with(0, ENOSYS), "refused here"));
}

Test(hello, writer_without_any_io_says_so)
{
    refuse_io(&(bool){ false }, TSPOOL_IO_AUTO);
    cr_assert_not_null(strstr(refused_with(0, EAGAIN), "refused here"));
}

Test(hello, where_io_uring_is_not_there_threads_serve_and_ready_says_why)
{
    struct fake_settings settings = { .io = TSPOOL_IO_AUTO, .registered = true,
                                      .host = { .io_create = io_create_refused, .io_context = &(bool){ true } } };
    struct fake_trainer whole;

    fake_trainer_start(&whole, &settings);
    cr_assert_eq(whole.ready.error, 0);
    cr_assert_str_eq(whole.ready.backend, "threads");
    cr_assert_eq(whole.ready.registered, 0);
    cr_assert_not_null(strstr(whole.ready.note, "no io_uring: it is refused here"), "%s", whole.ready.note);
    fake_trainer_close(&whole, false);
    cr_assert_eq(whole.outcome, 0);
    fake_trainer_end(&whole);
}
