"""Writer and trainer are killed, stopped and asked to end, at every event of a save and at random moments.

Whatever is struck: what was acknowledged stands and holds its bytes; what was not is whole or absent; what a writer leaves
it sweeps or gc does; nobody waits for ever.

    python3 test_kills.py --kills 5000 --seed 7        (with the environment that meson gives; see meson.build)
"""
import random
import re
import signal
import sys
import time

try:
    import pytest
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

from trainer import Trainer, assert_gc_leaves_nothing_stray, assert_whole, send, stop, strays, visible

EVENTS = ("planned", "staged", "written", "durable", "published")
KILLS_IN_SUITE = 80
LIVES_BETWEEN_LOOKS = 3
DEATHS_MAX = 5       # in a row, without a success in between: then saves fail
LONGEST_S = 0.02   # a save of this size takes less: kills fall before, into and after it


class Account:
    """What a root must hold: checkpoints that were acknowledged, and names whose end nobody told."""

    def __init__(self, root):
        self.root, self.acknowledged, self.open = root, {}, {}

    def note(self, events):
        for event in events:
            name = event.get("name")
            if not name:
                continue
            step = int(name[-6:])
            if event["event"] == "published":
                self.acknowledged[name] = step
                self.open.pop(name, None)
            elif event["event"] in ("failed", "refused"):
                self.open.pop(name, None)
            else:
                self.open[name] = step

    def settle(self, keep=5):
        """With no process left: everything acknowledged is whole, what stands besides is whole and was on its way."""
        standing = visible(self.root)
        for name in standing:
            assert name in self.acknowledged or name in self.open, f"{name} stands, and was said to have failed"
        missing = set(self.acknowledged) - set(standing)
        assert not missing, f"acknowledged and gone: {missing}"
        self.acknowledged.update({name: self.open[name] for name in standing if name in self.open})
        self.open = {}
        assert_whole(self.root, self.acknowledged)
        assert_gc_leaves_nothing_stray(self.root, keep)
        kept = sorted(self.acknowledged)[-keep:]
        assert visible(self.root) == kept
        self.acknowledged = {name: self.acknowledged[name] for name in kept}

    def next_step(self):
        return max((*self.acknowledged.values(), *self.open.values(), 0)) + 1


def name_of(step):
    return f"step-{step:06}"


def advance_to(trainer, event, step):
    """Has a save reach that event, with its staging held by us until then; the last event seen."""
    seen = trainer.ask(f"begin {name_of(step)} {step}")
    if event != "planned" and seen["event"] == "planned":
        trainer.tell("fill")
        seen = trainer.until("staged")
        if event != "staged" and seen["event"] == "staged":
            trainer.tell("finish 2")
            seen = trainer.until(event)
    return seen


def assert_reached(seen, event):
    """With one rank DURABLE and PUBLISHED are told in one breath: whoever looks after the second sees only that."""
    assert seen["event"] == event or (event, seen["event"]) == ("durable", "published"), seen


def finish(trainer, event):
    """The end of the save that `event` was seen of."""
    if event == "planned":
        trainer.tell("fill")
        if trainer.until("staged")["event"] != "staged":
            return trainer.events[-1]
    if event in ("planned", "staged"):
        trainer.tell("finish 2")
    return trainer.events[-1] if trainer.events[-1]["event"] == "published" else trainer.until()


SAID = {signal.SIGKILL: re.compile("killed by signal 9"), signal.SIGTERM: re.compile("SIGTERM|exited with status 0|is ending|ended before the save was staged")}


def assert_replayed(end, cause):
    """A save whose writer went is published all the same, and tells what happened on the way."""
    assert end["event"] == "published", end
    assert (end["attempts"] > 1) == bool(end["retry_cause"]), end
    assert end["attempts"] == 1 or cause.search(end["retry_cause"]), end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_writer_struck_at_every_event(root, number):
    account = Account(root)
    with Trainer(root) as trainer:
        writer = trainer.open()
        for event in EVENTS:
            step = account.next_step()
            seen = advance_to(trainer, event, step)
            assert_reached(seen, event)
            struck = seen["writer_pid"] or writer
            send(struck, number)
            end = finish(trainer, event)
            assert_replayed(end, SAID[number])
            assert end["attempts"] == 1 or number == signal.SIGKILL or event == "planned", "SIGTERM finishes what is staged"
            assert_replayed(trainer.save(name_of(step + 1), step + 1), SAID[number])   # it may have begun with the old one
            trainer.await_writer(struck)
            account.note(trainer.events)
        assert trainer.close()["returned"] == 0
        trainer.await_writers()
    assert strays(root) == []
    account.settle()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_trainer_struck_at_every_event(root, number):
    account = Account(root)
    for event in EVENTS:
        with Trainer(root) as trainer:
            trainer.open()
            step = account.next_step()
            seen = advance_to(trainer, event, step)
            assert_reached(seen, event)
            send(trainer.pid, number)
            trainer.rest()
            assert trainer.status() == -number
            trainer.await_writers()
            account.note(trainer.events)
        assert (name_of(step) in visible(root)) == (event != "planned"), f"{event}: staged is finished, unstaged is swept"
        assert strays(root) == [], f"{event}: {strays(root)}"
        account.settle()


def test_both_killed_at_every_event(root):
    account = Account(root)
    for turn, event in enumerate(EVENTS * 2):
        with Trainer(root) as trainer:
            writer = trainer.open()
            seen = advance_to(trainer, event, account.next_step())
            assert_reached(seen, event)
            for pid in (writer, trainer.pid) if turn % 2 else (trainer.pid, writer):
                send(pid, signal.SIGKILL)
            trainer.rest()
            trainer.status()
            trainer.await_writers()
            account.note(trainer.events)
        account.settle()


@pytest.mark.parametrize("who", ["writer", "trainer"])
def test_stopped_and_continued_at_every_event(root, who):
    """Longer than the heartbeat allows a silent writer, in the trainer's case: it must not judge by a clock that stood."""
    account = Account(root)
    with Trainer(root, *(["heartbeat_ms=200"] if who == "trainer" else [])) as trainer:
        writer = trainer.open()
        for event in EVENTS:
            step = account.next_step()
            seen = advance_to(trainer, event, step)
            assert_reached(seen, event)
            if stop(writer if who == "writer" else trainer.pid):
                time.sleep(0.3 if who == "trainer" else 0.02)
                send(writer if who == "writer" else trainer.pid, signal.SIGCONT)
            end = finish(trainer, event)
            assert end["event"] == "published" and end["attempts"] == 1, end
            account.note(trainer.events)
        assert trainer.close()["returned"] == 0
    assert strays(root) == []
    account.settle()


def test_stopped_writer_is_taken_for_hung(root):
    account, replays = Account(root), 0
    with Trainer(root, "heartbeat_ms=150") as trainer:
        writer = trainer.open()
        for event in ("planned", "staged", "written"):
            step = account.next_step()
            seen = advance_to(trainer, event, step)
            assert_reached(seen, event)
            stop(seen["writer_pid"] or writer)
            end = finish(trainer, event)
            assert_replayed(end, re.compile("silent for 150 ms"))
            replays += end["attempts"] > 1
            account.note(trainer.events)
        assert trainer.close()["returned"] == 0
        trainer.await_writers()
    assert replays >= 1, "none was in mid-save when it was stopped"
    assert strays(root) == []
    account.settle()


# Larger than the arena ----------------------------------------------------------------------------------------------------

LARGE = {"tensors": 8, "size": 6 << 20}
LARGER_THAN_THE_ARENA = [f"tensors={LARGE['tensors']}", f"bytes={LARGE['size']}", f"arena={32 << 20}", f"rate={24 << 20}"]


def test_writer_killed_before_a_state_larger_than_the_arena_is_staged(plain_root):
    """Chunks that were written are not in the arena any more: they are staged again from the tensors, which stand still."""
    with Trainer(plain_root, *LARGER_THAN_THE_ARENA) as trainer:
        writer = trainer.open()
        assert trainer.ask(f"save {name_of(1)} 1")["event"] == "asked"
        while not strays(plain_root):
            time.sleep(0.001)
        send(writer, signal.SIGKILL)
        end = trainer.until()
        assert_replayed(end, SAID[signal.SIGKILL])
        assert end["attempts"] == 2, end
        trainer.close()
    assert strays(plain_root) == []
    assert_whole(plain_root, {name_of(1): 1}, **LARGE)


def test_writer_killed_after_a_state_larger_than_the_arena_was_staged(plain_root):
    """The trainer has changed its tensors since: the save fails, and says with how much memory it would not have."""
    with Trainer(plain_root, *LARGER_THAN_THE_ARENA) as trainer:
        writer = trainer.open()
        trainer.tell(f"save {name_of(1)} 1")
        assert trainer.until("staged")["event"] == "staged"
        send(writer, signal.SIGKILL)
        end = trainer.until()
        assert end["event"] == "failed" and "killed by signal 9" in end["message"], end
        assert "arena_bytes of at least 67108864" in end["cause"], end
        assert visible(plain_root) == [] and strays(plain_root) == []
        assert trainer.save(name_of(2), 2)["event"] == "published"
        trainer.close()
    assert_whole(plain_root, {name_of(2): 2}, **LARGE)


# Random moments -----------------------------------------------------------------------------------------------------------

def strike(chance, trainer, writer):
    """What happens to whom; True when the trainer is dead of it."""
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
    victims = chance.choice((*[["writer"]] * 6, ["trainer"], ["writer", "trainer"], ["trainer", "writer"]))
    for victim in victims:
        pid = writer if victim == "writer" else trainer.pid
        if number == signal.SIGSTOP:
            if stop(pid):
                time.sleep(chance.uniform(0, 0.01))
                send(pid, signal.SIGCONT)
        else:
            send(pid, number)
    return "trainer" in victims and number != signal.SIGSTOP


def one_life(root, account, chance):
    """A trainer that saves on and on until it is struck dead, with its writer struck now and then: whatever its end was told
    of was replayed. The number of strikes."""
    strikes, dead = 0, False
    with Trainer(root, f"io={chance.choice(('uring', 'threads'))}") as trainer:
        writer = trainer.open()
        trainer.tell(f"run {account.next_step()} 1000000")
        while not dead:
            for _ in range(chance.randrange(1, 12)):
                writer = trainer.event().get("writer_pid") or writer
            time.sleep(chance.uniform(0, LONGEST_S))
            dead = strike(chance, trainer, writer)
            strikes += 1
        trainer.rest()
        trainer.status()
        trainer.await_writers()
        account.note(trainer.events)
    failed = [event for event in trainer.events if event["event"] in ("failed", "refused", "unknown")]
    assert all(event["attempts"] >= DEATHS_MAX for event in failed), failed
    return strikes


def test_struck_at_random_moments(root, kind, pytestconfig):
    kills = pytestconfig.getoption("--kills") or KILLS_IN_SUITE
    seed = pytestconfig.getoption("--seed")
    chance, account, done, lives = random.Random(f"{seed} {kind}"), Account(root), 0, 0
    while done < kills:
        try:
            done += one_life(root, account, chance)
            lives += 1
            if lives % LIVES_BETWEEN_LOOKS == 0 or done >= kills:
                account.settle()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {kind}, after {done} strikes: {error}") from error
    print(f"{kind}: {done} strikes, {lives} trainers, {account.next_step() - 1} saves")


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", __file__, *sys.argv[1:]]))
