"""Each allocation fails once: the first of the trainer's process, the second, and so on, until one life passes untouched;
then those of the writer.

Whatever fails: no crash, no hang, a record or success, no descriptor or file left, the older checkpoint whole. And it was
one allocation: the next save works.
"""
import errno
import os
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from trainer import ALLOCATIONS, Trainer, assert_older_loads, assert_whole, handicapped, strays, visible

MORE_THAN_ENOUGH = 3000


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


def life(root, *settings, **options):
    """Open, save, save again, close; the records on the way."""
    records, stands = [], {"older": 1}
    with Trainer(root, *settings, **options) as trainer:
        before = trainer.ask("look")
        if before is None:
            return [{"event": "not started"}]
        records.append(open_twice(trainer))
        for name, step in (("first", 2), ("second", 3), ("third", 4)):
            end = trainer.save(name, step)
            assert end, f"died: {trainer.status()}"
            if end["event"] == "published":
                stands[name] = step
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
    assert_whole(root, stands)
    for name in list(stands)[1:]:
        for file in os.listdir(f"{root}/{name}"):
            os.unlink(f"{root}/{name}/{file}")
        os.rmdir(f"{root}/{name}")
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


def sweep(attempt):
    failed = []
    for number in range(1, MORE_THAN_ENOUGH):
        try:
            records, made = attempt(number)
        except AssertionError as error:
            raise AssertionError(f"allocation {number}: {error}") from error
        if made is not None and made < number:
            assert not records, records
            return number - 1, failed
        failed += records
    raise AssertionError("no end of allocations")


def test_in_the_trainer(older, folder):
    report = f"{folder}/allocations"

    def attempt(number):
        variables = {"LD_PRELOAD": ALLOCATIONS, "FAIL_ALLOCATION": str(number), "FAIL_REPORT": report}
        return life(older, variables=variables), count_of(report)

    count, failed = sweep(attempt)
    print(f"{count} allocations, {len(failed)} records")
    assert len(failed) > 20


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_in_the_writer(older, folder, io):
    report = f"{folder}/allocations"

    def attempt(number):
        with handicapped("--set", f"LD_PRELOAD={ALLOCATIONS}", "--set", f"FAIL_ALLOCATION={number}",
                         "--set", f"FAIL_REPORT={report}", once=True) as writer:
            records = life(older, f"io={io}", writer=writer)
        return records, count_of(report)

    count, failed = sweep(attempt)
    print(f"{count} allocations, {len(failed)} records")
    assert len(failed) > 20
    assert_older_loads(older)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
