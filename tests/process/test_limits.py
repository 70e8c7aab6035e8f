"""Descriptors, memory, file sizes and system calls that a trainer or its writer may not have, each in turn.

Every one ends as a record with operation, errno and a cause to act on, or does no harm. None of them crashes, hangs, leaks a
descriptor or leaves a file.
"""
import contextlib
import errno
import os
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from trainer import (HANDICAP, Trainer, assert_older_loads, assert_record, assert_whole, handicapped, strays, visible)

MIB = 1 << 20
NOBODY = 65534
THREADS = errno.EAGAIN   # what pthread_create says, also when there is no memory for a stack
IO_URING_DISABLED = "/proc/sys/kernel/io_uring_disabled"


@pytest.fixture
def older(plain_root):
    with Trainer(plain_root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.close()
    return plain_root


def limited(*limits):
    return (HANDICAP, *(part for limit in limits for part in ("--limit", limit)))


def one_try(root, *settings, errors, writer=None, before=()):
    """A whole life: open, save, close. The record of what stopped it, or None when nothing did; {} when it was too little
    for the program itself to start."""
    with Trainer(root, *settings, writer=writer, before=before) as trainer:
        if trainer.ask("look") is None:
            return {}
        opened = trainer.ask("open")
        assert opened, f"the trainer died: {trainer.status()}"
        end = opened
        if opened["event"] == "open":
            end = trainer.save("tried", 2)
            assert end, f"the trainer died: {trainer.status()}"
            assert trainer.close()["returned"] == 0
        look = trainer.ask("look")
        assert (look["fds"], look["children"]) == (trainer.events[0]["fds"], 0), "descriptors or children are left"
        assert trainer.status() == 0
        trainer.await_writers()
    if end["event"] != "published":
        assert end["error"] in errors, end
        assert_record(end, end["error"])
        assert visible(root) == ["older"] and strays(root) == [], os.listdir(root)
        assert_older_loads(root)
        return end
    assert_whole(root, {"older": 1, "tried": 2})
    assert strays(root) == []
    return None


# Descriptors --------------------------------------------------------------------------------------------------------------

def sweep(attempt, values):
    """Raises a limit until nothing is refused any more; the records on the way there."""
    records = []
    for value in values:
        record = attempt(value)
        if record is None:
            return records
        records.append(record)
    raise AssertionError(f"still refused at the highest limit: {records[-1]}")


def test_trainer_with_each_number_of_descriptors(older):
    records = sweep(lambda most: one_try(older, errors=[errno.EMFILE], before=limited(f"nofile={most}")), range(3, 40))
    assert len([record for record in records if record]) > 4, records


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_writer_with_each_number_of_descriptors(older, io):
    def attempt(most):
        with handicapped("--limit", f"nofile={most}") as writer:
            return one_try(older, f"io={io}", errors=[errno.EMFILE], writer=writer)

    records = sweep(attempt, range(5, 60))
    assert len(records) > 4, records


def test_writer_without_descriptors_for_all_files(older):
    with handicapped("--limit", "nofile=40") as writer, Trainer(older, "tensors=100", "shard=4096", writer=writer) as trainer:
        trainer.open()
        end = trainer.save("many", 2)
        assert_record(end, "EMFILE", stage="prepare", operation="open", path=".safetensors.partial", cause="ulimit -n")
        assert visible(older) == ["older"] and strays(older) == []
        trainer.close()


@pytest.mark.parametrize("error, cause", [("ENFILE", "fs.file-max"), ("ENOMEM", "no memory"), ("ENOSPC", "full")])
def test_files_that_cannot_be_made(older, error, cause):
    with handicapped("--refuse", f"create={error}") as writer, Trainer(older, writer=writer) as trainer:
        refused = trainer.ask("open")
        assert_record(refused, error, stage="writer", cause=cause)
    assert visible(older) == ["older"] and strays(older) == []


@pytest.mark.parametrize("error", ["EMFILE", "ENFILE", "ENOMEM"])
@pytest.mark.parametrize("call", ["memfd_create", "eventfd2", "pidfd_open"])
def test_trainer_without_one_kind_of_descriptor(older, call, error):
    record = one_try(older, errors=[getattr(errno, error)], before=(HANDICAP, "--refuse", f"{call}={error}"))
    assert record and record["operation"] == call.rstrip("2"), record


# Processes ----------------------------------------------------------------------------------------------------------------

def test_trainer_with_each_number_of_processes(older):
    """Threads count as well. Root is exempt, so it is somebody else's trainer."""
    os.chmod(older, 0o777)
    records = sweep(lambda most: one_try(older, errors=[THREADS], before=(*limited(f"nproc={most}"), "--user", str(NOBODY))),
                    range(1, 60))
    assert len(records) > 4 and all("RLIMIT_NPROC" in record["cause"] for record in records), records


# Memory -------------------------------------------------------------------------------------------------------------------

def test_trainer_with_each_amount_of_address_space(older):
    sizes = [size * MIB for size in (*range(4, 100, 4), *range(100, 600, 10))]
    records = sweep(lambda most: one_try(older, errors=[errno.ENOMEM, THREADS], before=limited(f"as={most}")), sizes)
    assert len([record for record in records if record]) > 4, records


def test_writer_with_each_amount_of_address_space(older):
    """With too little even its program does not start: EPIPE then, and the loader says why on stderr."""
    def attempt(most):
        with handicapped("--limit", f"as={most}") as writer:
            return one_try(older, errors=[errno.ENOMEM, THREADS, errno.EPIPE], writer=writer)

    records = sweep(attempt, [size * MIB for size in (*range(4, 60, 4), *range(60, 1000, 20))])
    assert any(record["error"] == errno.ENOMEM for record in records), records


def test_arena_beyond_the_machine_is_refused_with_figures(older):
    with Trainer(older, f"arena={1 << 50}", "tensors=1") as trainer:
        opened = trainer.ask("open")
        if opened["event"] == "open":   # a cap is only a promise
            trainer.close()
        else:
            assert_record(opened, opened["error"], stage="reserve", cause="MiB")
    with Trainer(older, before=(HANDICAP, "--refuse", "memfd_create=ENOMEM")) as trainer:
        assert_record(trainer.ask("open"), "ENOMEM", stage="reserve", operation="memfd_create", cause="memory")


@pytest.mark.parametrize("io", ["auto", "threads"])
def test_64_KiB_of_locked_memory_are_enough(older, io):
    """What containers and old distributions give to those who are not root."""
    settings = [] if io == "auto" else [f"io={io}"]
    os.chmod(older, 0o777)
    before = (*limited("memlock=65536"), "--user", str(NOBODY))
    assert one_try(older, *settings, errors=[errno.ENOMEM], before=before) is None


# File sizes ---------------------------------------------------------------------------------------------------------------

def test_file_size_limit_of_the_writer(older):
    with handicapped("--limit", f"fsize={MIB}") as writer, Trainer(older, f"bytes={MIB}", writer=writer) as trainer:
        trainer.open()
        end = trainer.save("large", 2)
        assert_record(end, "EFBIG", stage="prepare", operation="allocate", path="model.safetensors.partial", cause="ulimit -f")
        assert visible(older) == ["older"] and strays(older) == []
        trainer.close()


def test_file_size_limit_of_the_trainer(older):
    """Its arena is a file, too; SIGXFSZ would kill it."""
    record = one_try(older, errors=[errno.EFBIG], before=limited(f"fsize={MIB}"))
    assert record and record["stage"] == "reserve" and "RLIMIT_FSIZE" in record["cause"], record


# System calls -------------------------------------------------------------------------------------------------------------

def test_io_uring_forbidden_by_seccomp(older):
    for error in ("EPERM", "ENOSYS", "ENOMEM"):
        with handicapped("--refuse", f"io_uring_setup={error}") as writer:
            assert_threads_take_over(older, f"auto-{error}", writer=writer)
            assert_uring_is_refused(older, writer=writer)


@contextlib.contextmanager
def io_uring_disabled(value):
    try:
        before = open(IO_URING_DISABLED).read()
    except FileNotFoundError:
        pytest.skip("this kernel has no kernel.io_uring_disabled")
    try:
        with open(IO_URING_DISABLED, "w") as file:
            file.write(str(value))
    except OSError as error:
        pytest.skip(f"kernel.io_uring_disabled cannot be set: {error}")
    try:
        yield
    finally:
        with open(IO_URING_DISABLED, "w") as file:
            file.write(before)


def test_io_uring_disabled_by_sysctl(older):
    with io_uring_disabled(2):
        assert_threads_take_over(older, "auto")
        refused = assert_uring_is_refused(older)
        assert "io_uring_disabled" in refused["cause"], refused
    with Trainer(older, "io=uring") as trainer:
        trainer.open()
        assert trainer.save("restored", 3)["event"] == "published"
        trainer.close()


def assert_threads_take_over(root, name, **options):
    with Trainer(root, **options) as trainer:
        trainer.open()
        assert trainer.save(name, 2)["event"] == "published"
        durable = trainer.events[-2]
        assert durable["backend"] == "threads" and "no io_uring" in durable["io_note"], durable
        trainer.close()
    assert_whole(root, {"older": 1, name: 2})


def assert_uring_is_refused(root, **options):
    with Trainer(root, "io=uring", **options) as trainer:
        refused = trainer.ask("open")
        assert_record(refused, refused["error"], stage="writer", cause="io_uring")
    return refused


@pytest.mark.parametrize("call, error, stage, operation", [
    ("mkdirat", "EROFS", "prepare", "mkdir"), ("flock", "ENOMEM", "prepare", "lock"),
    ("fallocate", "EDQUOT", "prepare", "allocate"), ("pwrite64", "EIO", "write", "write"),
    ("fsync", "EIO", "sync", "fsync"), ("ftruncate", "EIO", "seal", "truncate"),
])
def test_call_that_fails_is_named(make_filesystem, call, error, stage, operation):
    """Whatever the file system says, wherever it says it."""
    older = make_filesystem("ext4").root
    with Trainer(older) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.close()
    with handicapped("--refuse", f"{call}={error}") as writer, Trainer(older, "io=threads", writer=writer) as trainer:
        trainer.open()
        end = trainer.save("tried", 2)
        assert_record(end, error, stage=stage, operation=operation, path="tried")
        assert visible(older) == ["older"] and strays(older) == [], os.listdir(older)
        assert_older_loads(older)
        trainer.close()


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
