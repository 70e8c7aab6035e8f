"""What applications do to the processes around them: reap every child, ignore SIGCHLD, fork and keep every descriptor open.

None of it may hide a death, invent one, or keep a writer or a save waiting for ever.
"""
import os
import signal
import sys

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from trainer import Trainer, assert_whole, send, strays, visible

HABITS = {"reaps": ["reap=1"], "ignores": ["ignore=1"], "both": ["reap=1", "ignore=1"]}


@pytest.fixture(params=HABITS)
def habit(request):
    return HABITS[request.param]


def test_saves_and_closes_as_ever(plain_root, habit):
    with Trainer(plain_root, *habit) as trainer:
        before = trainer.ask("look")
        for step in range(1, 6):
            trainer.open()
            assert trainer.save(f"step-{step}", step)["event"] == "published"
            assert trainer.close()["returned"] == 0
        assert trainer.ask("look")["fds"] == before["fds"]
        assert trainer.status() == 0
        trainer.await_writers()
    assert_whole(plain_root, {f"step-{step}": step for step in range(1, 6)})


@pytest.mark.parametrize("moment", ["idle", "planned", "staged"])
def test_killed_writer_is_noticed_and_replaced(plain_root, habit, moment):
    with Trainer(plain_root, *habit) as trainer:
        writer = trainer.open()
        if moment == "idle":
            send(writer, signal.SIGKILL)
            trainer.save("first", 1)
        else:
            trainer.ask("begin first 1")
            if moment == "staged":
                trainer.ask("fill")
            send(writer, signal.SIGKILL)
            if moment == "planned" and trainer.ask("fill")["event"] == "staged" or moment == "staged":
                trainer.tell("finish 2")
                trainer.until()
        end = trainer.events[-1]
        assert end["event"] == "published", end
        assert end["attempts"] == 1 or f"(pid {writer})" in end["retry_cause"], end
        second = trainer.save("second", 2)
        assert second["event"] == "published", second
        assert trainer.close()["returned"] == 0
    assert visible(plain_root) == ["first", "second"] and strays(plain_root) == []
    assert_whole(plain_root, {"first": 1, "second": 2})


@pytest.mark.parametrize("moment", ["idle", "planned", "staged"])
def test_trainer_that_dies_is_noticed_although_its_child_lives(plain_root, moment):
    """A data loader keeps the trainer's end of the channel open: there is no end of stream. The pidfd tells."""
    with Trainer(plain_root) as trainer:
        trainer.open()
        if moment != "idle":
            trainer.ask("begin saved 1")
        if moment == "staged":
            trainer.ask("fill")
        child = trainer.ask("fork")["pid"]
        try:
            send(trainer.pid, signal.SIGKILL)
            trainer.process.wait()
            trainer.await_writers()
            assert os.path.exists(f"/proc/{child}"), "the child was to outlive it all"
        finally:
            send(child, signal.SIGKILL)
    assert visible(plain_root) == (["saved"] if moment == "staged" else [])
    assert strays(plain_root) == []
    assert_whole(plain_root, {"saved": 1} if moment == "staged" else {})


def test_writer_that_dies_is_noticed_although_a_child_of_the_trainer_lives(plain_root):
    with Trainer(plain_root) as trainer:
        writer = trainer.open()
        child = trainer.ask("fork")["pid"]
        try:
            trainer.ask("begin first 1")
            send(writer, signal.SIGKILL)
            if trainer.ask("fill")["event"] == "staged":
                trainer.tell("finish 2")
                trainer.until()
            assert trainer.events[-1]["event"] == "published", trainer.events[-1]
            assert trainer.save("second", 2)["event"] == "published"
            assert trainer.close()["returned"] == 0
        finally:
            send(child, signal.SIGKILL)
        trainer.await_writers()
    assert strays(plain_root) == []
    assert_whole(plain_root, {"first": 1, "second": 2})


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
