"""Trainers and writers as processes: a copy is killed after it staged, its writer, an orphan, finishes, and those who come
meanwhile wait for it, or clear up after it.

usage: test_orphans.py TSPOOL WRITER [NAME...]        (needs nothing but the standard library)
"""
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import test_commands as base
from test_commands import TIMEOUT, TSPOOL, WRITER, checkpoint, done, tspool, visible

TESTS = []
SIZE, RATE = 12_000_000, "6M"   # two seconds: what happens meanwhile happens in the middle


def test(function):
    TESTS.append(function)
    return function


def until(what, ready):
    """Looks again and again until ready() says something; its word."""
    deadline = time.monotonic() + TIMEOUT
    while not (word := ready()):
        assert time.monotonic() < deadline, f"never {what}"
        os.sched_yield()
    return word


def hidden(root, runs="runs"):
    return sorted(name for name in os.listdir(f"{root}/{runs}") if name.startswith("."))


def record(root):
    """The text of the one part record there is, or None while there is none."""
    for name in hidden(root):
        with contextlib.suppress(OSError):
            return open(f"{root}/runs/{name}/tspool.part-00001").read().split("\0")[0] or None


def staged_copy(root):
    """A living copy that staged everything, whose writer is in the middle of it: the process and its writer."""
    process, writer = base.started(root, "--rate", RATE, size=SIZE)
    staged = json.loads(process.stdout.readline())
    assert staged["event"] == "staged", staged
    until("does the record say whose it is", lambda: record(root))
    return process, writer


def kill(process):
    """Its writer holds stderr open: only the process itself is waited for."""
    process.kill()
    process.wait(timeout=TIMEOUT)


@contextlib.contextmanager
def orphan(root):
    """A writer whose trainer was killed after it staged."""
    process, writer = staged_copy(root)
    pidfd = os.pidfd_open(writer)
    kill(process)
    assert "slow" not in visible(root), "published already: the kill came too late to show anything"
    try:
        yield writer, pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def await_exit(pidfd):
    base.await_exit(os.dup(pidfd))


# Latest -----------------------------------------------------------------------------------------------------------------

@test
def latest_waits_for_an_orphan_and_says_so(root):
    checkpoint(root, "old")
    with orphan(root):
        run = tspool("latest", f"{root}/runs")
        assert done(run) == f"{root}/runs/slow\n", run
        assert base.one_line(run.stderr).startswith(f"tspool latest: {root}/runs: waiting up to 10 s for the writer of 'slow'")
    assert visible(root) == ["old", "slow"]
    done(tspool("verify", f"{root}/runs/slow"))


@test
def latest_tells_what_it_waited_for_in_json(root):
    checkpoint(root, "old")
    with orphan(root):
        line = json.loads(done(tspool("latest", "--json", "--wait", "60", f"{root}/runs")))
    assert line["path"] == f"{root}/runs/slow" and line["waited_s"] > 0
    assert (line["orphans_seen"], line["orphans_finished"], line["orphans_left"]) == (1, 1, 0), line


@test
def latest_does_not_wait_for_a_living_copy(root):
    checkpoint(root, "old")
    process, writer = staged_copy(root)
    run = tspool("latest", "--json", "--wait", "inf", f"{root}/runs")
    line = json.loads(done(run))
    assert line["path"] == f"{root}/runs/old" and line["waited_s"] == 0 and line["orphans_seen"] == 0, line
    assert run.stderr == ""
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and visible(root) == ["old", "slow"]


@test
def latest_gives_up_on_an_orphan_that_hangs_and_names_it(root):
    """Stopped, the writer cannot have marked its record: the reader looks the trainer up by itself."""
    checkpoint(root, "old")
    process, writer = staged_copy(root)
    pidfd = os.pidfd_open(writer)
    os.kill(writer, signal.SIGSTOP)
    kill(process)
    run = tspool("latest", "--wait", "0.2", f"{root}/runs")
    assert done(run) == f"{root}/runs/old\n" and "waiting up to 0.2 s" in run.stderr and "still being written" in run.stderr, run
    assert "slow" in run.stderr.splitlines()[1]
    run = tspool("latest", "--wait", "0", f"{root}/runs")
    assert done(run) == f"{root}/runs/old\n" and run.stderr == "", run
    os.kill(writer, signal.SIGCONT)
    assert done(tspool("latest", f"{root}/runs")) == f"{root}/runs/slow\n"
    await_exit(pidfd)
    os.close(pidfd)


@test
def latest_refuses_a_wait_that_is_no_time(root):
    for wait in ("-1", "soon", "", "nan", "1s"):
        run = tspool("latest", "--wait", wait, f"{root}/runs")
        assert run.returncode == 2 and "--wait" in run.stderr, run


@test
def writer_marks_its_record_when_the_trainer_is_dead(root):
    with orphan(root):
        name = until("an attempt", lambda: hidden(root))[0]
        path = f"{root}/runs/{name}/tspool.part-00001"
        assert until("marked", lambda: os.stat(path).st_size == 512)
        text = open(path).read(256)
        assert text.startswith("tspool-part 1 writer ") and text.endswith("\n"), text


# Writers ----------------------------------------------------------------------------------------------------------------

@test
def a_second_copy_waits_for_the_orphan_and_finds_the_name_taken(root):
    with orphan(root) as (_, pidfd):
        run = base.copy(f"{root}/slow.safetensors", f"{root}/runs/slow")
        assert run.returncode == 1 and "slow" in base.one_line(run.stderr), run
        await_exit(pidfd)
    assert visible(root) == ["slow"]
    done(tspool("verify", f"{root}/runs/slow"))


@test
def sigterm_lets_an_orphan_finish_what_is_staged(root):
    with orphan(root) as (writer, pidfd):
        os.kill(writer, signal.SIGTERM)
        await_exit(pidfd)
    assert visible(root) == ["slow"]
    done(tspool("verify", f"{root}/runs/slow"))


@test
def sigterm_lets_a_living_copys_writer_finish_what_is_staged(root):
    process, writer = staged_copy(root)
    os.kill(writer, signal.SIGTERM)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0 and visible(root) == ["slow"]
    done(tspool("verify", f"{root}/runs/slow"))


# ------------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    base.TESTS[:] = TESTS
    sys.exit(base.main())
