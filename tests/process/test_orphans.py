"""Trainers and writers as processes: a copy is killed after it staged, its writer, an orphan, finishes, and those who come
meanwhile wait for it, or clear up after it.

usage: test_orphans.py TSPOOL WRITER [NAME...]        (needs nothing but the standard library)
"""
import contextlib
import json
import os
import random
import select
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
    checkpoint(root, "old")
    process, writer = staged_copy(root)
    pidfd = os.pidfd_open(writer)
    kill(process)
    os.kill(writer, signal.SIGSTOP)   # afterwards: a stopped process group that loses its parent is continued
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


# Collecting -------------------------------------------------------------------------------------------------------------

def gc(root, *arguments):
    return tspool("gc", f"{root}/runs", *arguments)


@test
def gc_leaves_an_orphan_alone_and_sweeps_it_when_it_is_killed(root):
    checkpoint(root, "old")
    with orphan(root) as (writer, pidfd):
        done(gc(root, "--keep", "1"))
        assert len(hidden(root)) == 1, "the orphan was swept alive"
        os.kill(writer, signal.SIGKILL)
        await_exit(pidfd)
    assert done(tspool("latest", "--wait", "inf", f"{root}/runs")) == f"{root}/runs/old\n"
    assert "swept" in done(gc(root, "--keep", "1"))
    assert visible(root) == ["old"]


@test
def gc_finishes_what_another_one_began(root):
    """What a collection leaves when it is cut: a directory with a name of its own, whatever is in it."""
    for step in (1, 2):
        checkpoint(root, f"s{step}", step)
    gone = f"{root}/runs/.s1.{5:032x}.gone"
    os.rename(f"{root}/runs/s1", gone)
    os.unlink(f"{gone}/model.safetensors")
    empty = f"{root}/runs/.s0.{6:032x}.gone"
    os.mkdir(empty)
    run = tspool("latest", "--json", "--wait", "inf", f"{root}/runs")
    assert json.loads(done(run))["waited_s"] == 0 and run.stderr == "", "nobody waits for what is being deleted"
    dry = gc(root, "--keep", "1", "--dry-run")
    assert done(dry).count("would have swept") == 2 and len(hidden(root)) == 2
    done(gc(root, "--keep", "1"))
    assert visible(root) == ["s2"]


@test
def gc_counts_whole_checkpoints_only(root):
    for step in (1, 2, 3, 4):
        checkpoint(root, f"s{step}", step)
    os.truncate(f"{root}/runs/s4/model.safetensors", 100)
    run = gc(root, "--keep", "1")
    assert run.returncode == 0 and "s4: left as it is and not counted" in base.one_line(run.stderr), run
    assert visible(root) == ["s3", "s4"]
    done(tspool("verify", f"{root}/runs/s3"))


@test
def gc_never_touches_a_save_of_several_ranks_that_can_still_be_published(root):
    """Each rank's part record as it stands when the part is durable; their writers have ended."""
    checkpoint(root, "s1", 1)
    manifest = json.load(open(f"{root}/runs/s1/tspool.manifest.json"))
    manifest["world_size"] = 2
    path = f"{root}/runs/.s2.{7:032x}"
    os.mkdir(path)
    part = json.dumps(manifest)
    if "digest" in manifest:   # a manifest that protects itself is copied as it is, with the ranks that it tells of
        part = open(f"{root}/runs/s1/tspool.manifest.json").read()
    ranks = json.loads(part)["world_size"]
    for rank in range(ranks):
        open(f"{path}/tspool.part-{rank + 1:05}.json", "w").write(part)
    for name in (*os.listdir(path), "."):
        os.utime(f"{path}/{name}", (1e9, 1e9))
    run = gc(root, "--keep", "1")
    assert run.returncode == 0 and "can still be published" in base.one_line(run.stderr), run
    assert os.path.isdir(path)
    os.unlink(f"{path}/tspool.part-00001.json")
    os.utime(path, (1e9, 1e9))
    done(gc(root, "--keep", "1"))
    assert not os.path.exists(path), "one part is missing and nobody works there: it is dead"


def large(root, name, step, size):
    """A checkpoint whose one tensor is a hole in the source: quick to make, and large."""
    source = f"{root}/{name}.safetensors"
    header = json.dumps({"__metadata__": {"step": str(step)},
                         "t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(source, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    done(base.copy(source, f"{root}/runs/{name}"))
    os.unlink(source)


@test
def gc_does_not_cut_a_file_that_somebody_still_reads(root):
    large(root, "s1", 1, 300 << 20)   # larger than one slice
    checkpoint(root, "s2", 2)
    with open(f"{root}/runs/s1/model.safetensors", "rb") as reader:
        size = os.fstat(reader.fileno()).st_size
        done(gc(root, "--keep", "1"))
        assert visible(root) == ["s2"]
        assert os.fstat(reader.fileno()).st_size == size and os.fstat(reader.fileno()).st_nlink == 0


@test
def gc_frees_a_large_file_in_slices_while_no_save_runs(root):
    large(root, "s1", 1, 600 << 20)
    checkpoint(root, "s2", 2)
    process, _ = staged_copy(root)
    begun = time.monotonic()
    collector = subprocess.Popen([TSPOOL, "gc", f"{root}/runs", "--keep", "1"], stdout=subprocess.PIPE, text=True)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    left = [name for name in hidden(root) if name.endswith(".gone")]
    output, _ = collector.communicate(timeout=TIMEOUT)
    assert collector.returncode == 0 and "removed" in output, output
    assert time.monotonic() - begun > 1, "it did not wait for the save"
    assert visible(root) == ["s2", "slow"], (visible(root), left)


@test
def two_gcs_at_once_neither_fail_nor_remove_more(root):
    for step in range(1, 9):
        checkpoint(root, f"s{step}", step)
    for number in range(6):
        base.attempt(root, f"d{number}", number)
    runs = [subprocess.Popen([TSPOOL, "gc", f"{root}/runs", "--keep", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(4)]
    for run in runs:
        _, errors = run.communicate(timeout=TIMEOUT)
        assert run.returncode == 0 and errors == "", (run.returncode, errors)
    assert visible(root) == ["s7", "s8"], visible(root)
    done(tspool("verify", f"{root}/runs/s7", f"{root}/runs/s8"))


def whole_or_absent(root, names):
    for name in names:
        if os.path.exists(f"{root}/runs/{name}"):
            done(tspool("verify", "-q", f"{root}/runs/{name}"))


@test
def gc_killed_at_random_moments_leaves_nothing_half_and_the_next_one_finishes(root):
    chance, cut = random.Random(4), 0
    checkpoint(root, "s98", 98)
    checkpoint(root, "s99", 99)
    begun = time.monotonic()
    done(gc(root, "--keep", "2"))
    took = time.monotonic() - begun
    for number in range(30):
        checkpoint(root, f"s{number}", number)
        base.attempt(root, "dead", number)
        process = subprocess.Popen([TSPOOL, "gc", f"{root}/runs", "--keep", "2"], stdout=subprocess.DEVNULL)
        pidfd = os.pidfd_open(process.pid)
        select.select([pidfd], [], [], chance.uniform(0, took))   # its end, or the moment
        os.close(pidfd)
        process.kill()
        cut += process.wait() == -signal.SIGKILL
        whole_or_absent(root, (f"s{number}", "s98", "s99"))
        assert {"s98", "s99"} <= set(visible(root)), visible(root)
        done(gc(root, "--keep", "2"))
        assert visible(root) == ["s98", "s99"], (number, visible(root))
    assert cut >= 5, f"only {cut} of 30 were killed before they were through"


# ------------------------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    base.TESTS[:] = TESTS
    sys.exit(base.main())
