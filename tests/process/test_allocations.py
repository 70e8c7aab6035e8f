"""Each allocation fails once: the first of the trainer's process, the second, and so on, until one life passes untouched;
then those of the writer.

Whatever fails: no crash, no hang, a record or success, no descriptor or file left, the older checkpoint whole. And it was
one allocation: the next save works.
"""
import errno
import os
import shutil
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from trainer import ALLOCATIONS, Trainer, assert_whole, handicapped, strays, visible

MORE_THAN_ENOUGH = 3000
LIVES_BETWEEN_LOOKS = 20


@pytest.fixture
def older(plain_root):
    with Trainer(plain_root) as trainer:
        trainer.open()
        assert trainer.save("older", 1)["event"] == "published"
        trainer.close()
    return plain_root


def open_twice(trainer):
    """The first one may fail; its record."""
    opened = trainer.ask("open")
    assert opened, f"died: {trainer.status()}"
    if opened["event"] == "open":
        return None
    assert_says_memory(opened)
    trainer.open()
    return opened


def assert_says_memory(event):
    assert event["event"] in ("failed", "refused"), event
    assert event["error"] in (errno.ENOMEM, errno.EAGAIN), event
    assert event["stage"] != "none" and event["cause"], event


def life(root, number, stands, *settings, **options):
    """Open, save, save again, close; what was published goes into `stands`. The records on the way: one at most."""
    with Trainer(root, *settings, **options) as trainer:
        before = trainer.ask("look")
        if before is None:
            return [{"event": "not started"}]
        records = [open_twice(trainer)]
        for step in (2 * number, 2 * number + 1):
            end = trainer.save(f"step-{step}", step)
            assert end, f"died: {trainer.status()}"
            if end["event"] == "published":
                stands[f"step-{step}"] = step
            else:
                assert_says_memory(end)
                records.append(end)
        records = [record for record in records if record]
        assert len(records) <= 1, f"one allocation failed, and more than one of the trainer's wishes: {records}"
        closed = trainer.close()
        assert closed and closed["returned"] == 0, closed
        after = trainer.ask("look")
        assert (after["fds"], after["children"]) == (before["fds"], before["children"]), "descriptors or children are left"
        assert trainer.status() == 0
        trainer.await_writers()
    assert visible(root) == sorted(stands) and strays(root) == [], (os.listdir(root), records)
    return records


def count_of(report):
    """How many allocations were made; None when the program did not come to its end."""
    try:
        return int(open(report).read())
    except (FileNotFoundError, ValueError):
        return None
    finally:
        if os.path.exists(report):
            os.unlink(report)


def look(root, stands):
    """What was published meanwhile is whole, and makes room for more."""
    assert_whole(root, stands)
    for name in [name for name in stands if name != "older"]:
        shutil.rmtree(f"{root}/{name}")
        del stands[name]


def sweep(root, attempt):
    """attempt(number, stands) -> (records, how many allocations were made or None); the count, and the records of all."""
    failed, stands = [], {"older": 1}
    for number in range(1, MORE_THAN_ENOUGH):
        try:
            records, made = attempt(number, stands)
        except AssertionError as error:
            raise AssertionError(f"allocation {number}: {error}") from error
        failed += records
        if made is not None and made < number:
            assert not records, records
            look(root, stands)
            return number - 1, failed
        if number % LIVES_BETWEEN_LOOKS == 0:
            look(root, stands)
    raise AssertionError("no end of allocations")


def test_in_the_trainer(older, folder):
    report = f"{folder}/allocations"

    def attempt(number, stands):
        variables = {"LD_PRELOAD": ALLOCATIONS, "FAIL_ALLOCATION": str(number), "FAIL_REPORT": report}
        return life(older, number, stands, variables=variables), count_of(report)

    count, failed = sweep(older, attempt)
    print(f"{count} allocations, {len(failed)} records")
    assert len(failed) > 20


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_in_the_writer(older, folder, io):
    report = f"{folder}/allocations"

    def attempt(number, stands):
        with handicapped("--set", f"LD_PRELOAD={ALLOCATIONS}", "--set", f"FAIL_ALLOCATION={number}",
                         "--set", f"FAIL_REPORT={report}", once=True) as writer:
            records = life(older, number, stands, f"io={io}", writer=writer)
        return records, count_of(report)

    count, failed = sweep(older, attempt)
    print(f"{count} allocations, {len(failed)} records")
    assert len(failed) > 20


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
