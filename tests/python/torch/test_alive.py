"""What is told of another process, and what can be seen of it."""

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="tspool.torch needs torch")

from tspool.torch import _alive  # noqa: E402


def test_a_process_that_lives_one_that_is_gone_and_one_that_nobody_has_waited_for():
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    machine, _, _ = _alive.identity().split(" ")
    told = f"{machine} {other.pid} {_alive._state_of(other.pid)[1]}"
    assert not _alive.is_dead(_alive.identity()) and not _alive.is_dead(told)
    other.kill()
    while _alive._state_of(other.pid)[0] != "Z":
        pass
    assert _alive.is_dead(told)
    other.communicate()
    assert _alive.is_dead(told)


def test_a_process_id_that_is_another_process_now_is_not_taken_for_it():
    machine, pid, started = _alive.identity().split(" ")
    assert _alive.is_dead(f"{machine} {pid} {int(started) - 1}")


def test_of_another_machine_nothing_is_known():
    _, pid, started = _alive.identity().split(" ")
    assert not _alive.is_dead(f"elsewhere/1 {pid} {int(started) - 1}") and not _alive.is_dead(f" {pid} {started}")


def test_neighbours_are_those_that_the_launcher_started_here(monkeypatch):
    monkeypatch.setattr(_alive.dist, "get_rank", lambda: 13)
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert _alive.neighbours(32) == list(range(8, 16)) and _alive.neighbours(14) == list(range(8, 14))
    monkeypatch.delenv("LOCAL_RANK")
    assert _alive.neighbours(4) == [0, 1, 2, 3] and _alive.neighbours(1000) == []
