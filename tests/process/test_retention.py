"""Retention beside a writer, on real file systems: what is kept stands and holds its bytes whoever dies in the middle, a save
that begins meanwhile is not harmed, and one that lacks the room gets it.

Many small files make the middle of a deletion a place that one can meet.
"""
import errno
import itertools
import os
import signal
import subprocess
import sys
import time

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from filesystems import MIB, needs
from trainer import PATIENCE_S, Trainer, assert_whole, send, strays, visible

KEEP = 2
SHAPE = {"tensors": 200, "size": 8000}
MANY = ("tensors=200", "bytes=8000", "shard=8000", f"keep={KEEP}")


def name_of(step):
    return f"step-{step:06}"


def gone(root):
    return [name for name in strays(root) if name.endswith(".gone")]


def until_deleting(root):
    """True when it is met in the middle; False when it was faster."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        names = os.listdir(root)
        if any(name.endswith(".gone") for name in names):
            return True
        if sum(not name.startswith(".") for name in names) <= KEEP:
            return False
    raise AssertionError(f"nothing is deleted: {sorted(names)}")


def save(trainer, step):
    end = trainer.save(name_of(step), step)
    assert end["event"] == "published", (end["message"], os.listdir(trainer.root))
    return end


def assert_kept(root, last, shape=SHAPE, keep=KEEP):
    kept = {name_of(step): step for step in range(last - keep + 1, last + 1)}
    assert set(kept) <= set(visible(root)), f"{sorted(kept)} are to stand: {os.listdir(root)}"
    assert_whole(root, kept, **shape)


def assert_only_kept(root, last, shape=SHAPE, keep=KEEP):
    assert_kept(root, last, shape, keep)
    assert len(visible(root)) == keep and strays(root) == [], os.listdir(root)


def test_only_the_newest_stay_of_saves_without_a_pause(filesystem, root):
    with Trainer(root, *MANY) as trainer:
        trainer.open()
        for step in range(1, 13):
            save(trainer, step)
        assert len(visible(root)) < 12, "it does not come to deleting"
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    assert_only_kept(root, 12)


def struck(root, number):
    """Writers that are struck when they are seen deleting: the last step, and how many were."""
    met, steps = 0, itertools.count(1)
    with Trainer(root, *MANY) as trainer:
        writer = trainer.open()
        for step in itertools.islice(steps, KEEP + 9):
            writer = save(trainer, step)["writer_pid"] or writer
            if step > KEEP and until_deleting(root):
                met += send(writer, number)
                assert {name_of(step), name_of(step - 1)} <= set(visible(root)), os.listdir(root)
                if met % 3 == 0:
                    assert_kept(root, step)
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    return step, met


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_writer_struck_in_the_middle_of_deleting(filesystem, root, number):
    """Whoever comes next ends what was begun. A kill may come just before the end of a save of ours: then it is written again."""
    last, met = struck(root, number)
    assert met >= 3, f"only {met} were met in the middle"
    assert_kept(root, last)
    with Trainer(root, *MANY) as trainer:
        trainer.open()
        save(trainer, last + 1)
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    assert_only_kept(root, last + 1)


def test_trainer_killed_in_the_middle_of_deleting(filesystem, root):
    """Its writer ends by itself, and leaves nothing under a name that is not whole."""
    with Trainer(root, *MANY) as trainer:
        trainer.open()
        for step in range(1, 9):
            save(trainer, step)
        until_deleting(root)
        send(trainer.pid, signal.SIGKILL)
        trainer.await_writers()
    assert_only_kept(root, 8)


def test_save_that_begins_while_it_deletes(filesystem, root):
    met = 0
    with Trainer(root, *MANY) as trainer:
        trainer.open()
        for step in range(1, 16):
            save(trainer, step)
            met += step > KEEP and until_deleting(root)
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    assert met >= 3, f"only {met} were met in the middle"
    assert_only_kept(root, 15)


def test_save_that_lacks_the_room_waits_for_what_goes(make_filesystem, kind):
    """There is room for three of them and a half: the next save begins before the oldest has gone."""
    made = make_filesystem(kind)
    large = {"tensors": 3, "size": int(made.free() / 3.5 / 3) // 4096 * 4096}
    with Trainer(made.root, "tensors=3", f"bytes={large['size']}", f"keep={KEEP}", f"arena={128 * MIB}") as trainer:
        trainer.open()
        for step in range(1, 9):
            save(trainer, step)
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    assert_only_kept(made.root, 8, large)


def test_what_cannot_be_removed_is_told_and_harms_nothing(make_filesystem):
    needs("chattr")
    made = make_filesystem("ext4")
    with Trainer(made.root, f"keep={KEEP}") as trainer:
        trainer.open()
        save(trainer, 1)
        held = next(f"{made.root}/{name_of(1)}/{name}" for name in os.listdir(f"{made.root}/{name_of(1)}")
                    if name.endswith(".safetensors"))
        subprocess.run(["chattr", "+i", held], check=True)
        deadline = time.monotonic() + PATIENCE_S
        for step in itertools.count(2):
            end = save(trainer, step)
            if end["keep_error"]:
                break
            assert time.monotonic() < deadline, end
        assert end["keep_error"] == errno.EPERM and name_of(1) in end["keep_left"], end
        assert_kept(made.root, step, {})
        stray, = gone(made.root)
        subprocess.run(["chattr", "-i", f"{made.root}/{stray}/{os.path.basename(held)}"], check=True)
        save(trainer, step + 1)
        assert trainer.close()["event"] == "closed"
        trainer.await_writers()
    assert_only_kept(made.root, step + 1, {})


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
