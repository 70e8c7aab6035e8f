"""The commands as people use them: real runs in a directory of their own, by their output and exit status.

usage: test_commands.py TSPOOL WRITER [NAME...]        (needs nothing but the standard library)
"""
import fcntl
import hashlib
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

TSPOOL, WRITER = sys.argv[1:3]
ONLY = sys.argv[3:]
TIMEOUT = 60
TESTS = []

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would every command here


def test(function):
    TESTS.append(function)
    return function


def tspool(*arguments, **options):
    return subprocess.run([TSPOOL, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, **options)


def copy(*arguments, **options):
    return tspool("copy", "--writer", WRITER, *arguments, **options)


def done(run):
    assert run.returncode == 0, (run.args, run.returncode, run.stdout, run.stderr)
    return run.stdout


def lines_of(run):
    return [json.loads(line) for line in done(run).splitlines()]


def one_line(text):
    assert text.endswith("\n") and text.count("\n") == 1, repr(text)
    return text


SIZES = {"F32": 4, "U8": 1, "BF16": 2, "I64": 8}


def tensor(name, dtype, shape, seed=0):
    """(name, dtype, shape, bytes) with contents of its own, different for each name and seed."""
    count = SIZES[dtype]
    for extent in shape:
        count *= extent
    data = hashlib.shake_128(f"{name} {seed}".encode()).digest(count) if count else b""
    return name, dtype, shape, data


def safetensors(path, tensors, metadata=None):
    """A plain file as others write it: no padding, data starts wherever the header ends."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for *_, data in tensors:
            file.write(data)
    return path


def stored(path):
    """{name: (dtype, shape, bytes)} of one safetensors file, read without any of our code."""
    raw = open(path, "rb").read()
    length, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    data = raw[8 + length:]
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items() if name != "__metadata__"}


SMALL = [tensor("w", "F32", [64, 33]), tensor("b", "BF16", [7]), tensor("step", "I64", []), tensor("none", "U8", [0, 3])]


def checkpoint(root, name, step=None, tensors=SMALL, *options):
    source = safetensors(f"{root}/{name}.safetensors", tensors, {"step": str(step)} if step is not None else None)
    done(copy(*options, source, f"{root}/runs/{name}"))
    os.unlink(source)
    return f"{root}/runs/{name}"


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def visible(root):
    return sorted(os.listdir(f"{root}/runs"))


# Usage ------------------------------------------------------------------------------------------------------------------

@test
def help_goes_to_stdout_and_wrong_usage_to_stderr_with_2(root):
    assert "copy" in done(tspool("--help")) and "tspool 0." in done(tspool("--version"))
    for command in ("copy", "ls", "verify", "diff", "latest", "publish", "gc", "doctor"):
        text = done(tspool(command, "--help"))
        assert text.startswith(f"usage: tspool {command}"), text
        assert max(map(len, text.splitlines())) <= 120
        wrong = tspool(command, "--no-such-option")
        assert wrong.returncode == 2 and not wrong.stdout and "--no-such-option" in wrong.stderr
    for wrong in (tspool(), tspool("frobnicate"), tspool("copy", "only-one"), tspool("ls"), tspool("diff", "one"),
                  tspool("gc", root), tspool("gc", root, "--keep", "0"), tspool("gc", root, "--keep", "x"),
                  tspool("copy", "--io", "magic", "a", "b"),
                  *(tspool("copy", "--arena", size, "a", "b") for size in ("", "5 ", " 5", " -5", "-5", "5X", "5Mi", "16777216T"))):
        assert wrong.returncode == 2 and wrong.stderr and not wrong.stdout, wrong


@test
def an_error_is_one_line_that_names_the_thing_and_1(root):
    for run in (tspool("ls", f"{root}/absent"), tspool("latest", f"{root}/absent"), tspool("verify", f"{root}/absent"),
                tspool("diff", f"{root}/absent", f"{root}/absent"), tspool("gc", f"{root}/absent", "--keep", 1),
                copy(f"{root}/absent", f"{root}/runs/x")):
        assert run.returncode == 1, run
        assert "absent" in one_line(run.stderr) and run.stderr.startswith(f"tspool {run.args[1]}: "), run.stderr
    assert tspool("doctor", f"{root}/absent").returncode == 1


@test
def output_that_cannot_be_written_is_a_failure(root):
    checkpoint(root, "one")
    with open("/dev/full", "w") as full:
        run = subprocess.run([TSPOOL, "ls", f"{root}/runs/one"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert run.returncode == 1 and "No space" in run.stderr


# Copy -------------------------------------------------------------------------------------------------------------------

@test
def copy_makes_a_checkpoint_that_any_reader_opens(root):
    for io in (["--io", "uring"], ["--io", "threads"], ["--buffered"]):
        path = checkpoint(root, "x" + io[-1].strip("-"), 5, SMALL, *io)
        assert stored(f"{path}/model.safetensors") == {name: (dtype, shape, data) for name, dtype, shape, data in SMALL}
        assert not [name for name in os.listdir(path) if "partial" in name or "part-" in name]
    assert not [name for name in visible(root) if name.startswith(".")]


@test
def copy_takes_several_files_together(root):
    a = safetensors(f"{root}/a.safetensors", SMALL[:2], {"step": "3"})
    b = safetensors(f"{root}/b.safetensors", SMALL[2:])
    done(copy(a, b, f"{root}/runs/both"))
    assert set(stored(f"{root}/runs/both/model.safetensors")) == {"w", "b", "step", "none"}
    again = copy(a, a, f"{root}/runs/twice")
    assert again.returncode == 1 and "w" in again.stderr and visible(root) == ["both"]
    mixed = copy(a, f"{root}/runs/both", f"{root}/runs/mixed")
    assert mixed.returncode == 1 and visible(root) == ["both"]


@test
def copy_carries_a_checkpoint_over_whole(root):
    """Larger than the arena, over leaf and chunk borders; with metadata, and a tie as save_model writes it."""
    large = [tensor("big", "U8", [45_000_001]), tensor("odd", "U8", [30_000_003]), tensor("w", "F32", [40, 1000])]
    source = safetensors(f"{root}/large.safetensors", large, {"step": "8", "head": "w", "note": "a \"b\" \n c"})
    done(copy("--arena", "64M", source, f"{root}/runs/first"))
    done(copy("--arena", "32M", f"{root}/runs/first", f"{root}/runs/second"))
    assert stored(f"{root}/runs/second/model.safetensors") == {name: (dtype, shape, data) for name, dtype, shape, data in large}
    listed = lines_of(tspool("ls", "--json", f"{root}/runs/second"))
    assert {"type": "metadata", "key": "note", "value": "a \"b\" \n c"} in listed
    assert [line["tied_to"] for line in listed if line.get("name") == "head"] == ["w"]
    assert tspool("diff", "--exit-code", source, f"{root}/runs/second").returncode == 0
    assert tspool("diff", "--exit-code", f"{root}/runs/first", f"{root}/runs/second").returncode == 0


@test
def copy_refuses_a_name_that_stands_unless_told_to_replace(root):
    checkpoint(root, "one", 1)
    other = safetensors(f"{root}/other.safetensors", [tensor("w", "F32", [5], seed=2)])
    refused = copy(other, f"{root}/runs/one")
    assert refused.returncode == 1 and "one" in one_line(refused.stderr)
    assert len(stored(f"{root}/runs/one/model.safetensors")) == 4
    open(f"{root}/runs/one/tokenizer.json", "w").write("{}")
    done(copy("--replace", other, f"{root}/runs/one"))
    assert set(stored(f"{root}/runs/one/model.safetensors")) == {"w"}
    assert open(f"{root}/runs/one/tokenizer.json").read() == "{}", "files of others survive"
    assert visible(root) == ["one"]


@test
def copy_refuses_bad_destinations_and_damaged_sources(root):
    source = safetensors(f"{root}/s.safetensors", SMALL)
    for destination in (f"{root}/runs/.hidden", f"{root}/nowhere/x", f"{root}/runs/" + "n" * 181, f"{root}/runs/a\tb"):
        run = copy(source, destination)
        assert run.returncode == 1 and one_line(run.stderr), (destination, run)
    done(copy(source, f"{root}/runs/good"))
    flip(f"{root}/runs/good/model.safetensors", 4100)
    run = copy(f"{root}/runs/good", f"{root}/runs/bad")
    assert run.returncode == 1 and "good/model.safetensors" in one_line(run.stderr) and "4096" in run.stderr, run.stderr
    assert visible(root) == ["good"], "nothing of the failed copy is left"


@test
def copy_tells_its_events_in_order_with_the_writers_pid(root):
    source = safetensors(f"{root}/s.safetensors", SMALL)
    events = lines_of(copy("--json", source, f"{root}/runs/e"))
    assert [event["event"] for event in events] == ["planned", "staged", "written", "durable", "published"]
    assert events[0]["writer_pid"] > 0 and events[0]["tensors"] == 4
    assert events[-1]["path"] == f"{root}/runs/e" and events[-1]["backend"] in ("uring", "threads")
    failed = copy("--json", source, f"{root}/runs/e")
    last = json.loads(failed.stdout.splitlines()[-1])
    assert failed.returncode == 1 and last["event"] == "failed" and last["errno"] == 17 and last["message"]


def started(root, *arguments, size=200_000_000):
    """A copy that is certain to be in the middle when this returns: capped to half a second per percent."""
    source = f"{root}/slow.safetensors"
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(source, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    process = subprocess.Popen([TSPOOL, "copy", "--json", "--arena", "64M", "--rate", "4M", "--writer", WRITER,
                                *arguments, source, f"{root}/runs/slow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    planned = json.loads(process.stdout.readline())
    assert planned["event"] == "planned", planned
    return process, planned["writer_pid"]


@test
def interrupting_a_copy_leaves_nothing_and_ends_with_130(root):
    for number in (signal.SIGINT, signal.SIGTERM):
        process, _ = started(root)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 130, (process.returncode, errors)
        assert "interrupted" in one_line(errors)
        assert os.listdir(f"{root}/runs") == [], os.listdir(f"{root}/runs")


@test
def a_copy_whose_writer_is_killed_fails_and_the_next_one_succeeds(root):
    process, writer = started(root)
    deadline = time.monotonic() + TIMEOUT
    while not os.listdir(f"{root}/runs"):  # a save that was not begun would go to the next writer
        assert time.monotonic() < deadline
    os.kill(writer, signal.SIGKILL)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and one_line(errors), (process.returncode, errors)
    assert json.loads(output.splitlines()[-1])["event"] == "failed"
    assert "slow" not in os.listdir(f"{root}/runs")
    done(copy(f"{root}/slow.safetensors", f"{root}/runs/slow"))
    done(tspool("verify", f"{root}/runs/slow"))


def await_exit(pidfd):
    """Of a process that is not our child."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(TIMEOUT * 1000), "the writer does not end"
    os.close(pidfd)


@test
def a_copy_killed_after_it_was_staged_is_published_by_its_writer(root):
    process, writer = started(root, "--rate", "20M", size=20_000_000)
    staged = json.loads(process.stdout.readline())
    assert staged["event"] == "staged", staged
    pidfd = os.pidfd_open(writer)
    process.kill()
    process.wait(timeout=TIMEOUT)
    assert os.listdir(f"{root}/runs") != ["slow"], "published already: the kill came too late to show anything"
    await_exit(pidfd)
    assert os.listdir(f"{root}/runs") == ["slow"], os.listdir(f"{root}/runs")
    done(tspool("verify", f"{root}/runs/slow"))


@test
def a_copy_killed_before_it_was_staged_is_swept_by_its_writer(root):
    process, writer = started(root)
    pidfd = os.pidfd_open(writer)
    process.kill()
    process.wait(timeout=TIMEOUT)
    await_exit(pidfd)
    assert os.listdir(f"{root}/runs") == [], os.listdir(f"{root}/runs")


# Looking ----------------------------------------------------------------------------------------------------------------

@test
def ls_aligns_its_columns_and_tells_the_same_as_json(root):
    path = checkpoint(root, "one", 7)
    rows = done(tspool("ls", path)).splitlines()
    start = rows[0].index("FILE")
    assert rows[0].split() == ["NAME", "DTYPE", "SHAPE", "SIZE", "FILE"]
    assert all(row[start:].startswith("model.safetensors") for row in rows[1:5])
    assert [row for row in rows if row.startswith("w ")][0].split() == ["w", "F32", "64x33", "8.25", "KiB", "model.safetensors"]
    assert "metadata  step = 7" in rows and "4 tensors" in rows[-1]
    listed = lines_of(tspool("ls", "--json", path))
    by_name = {line["name"]: line for line in listed if line["type"] == "tensor"}
    assert by_name["w"]["shape"] == [64, 33] and by_name["w"]["bytes"] == 8448 and len(by_name["w"]["digest"]) == 32
    assert by_name["step"]["shape"] == [] and by_name["none"]["bytes"] == 0
    assert listed[0]["type"] == "checkpoint" and listed[0]["kind"] == "tspool"


@test
def ls_keeps_hostile_names_off_the_terminal(root):
    path = safetensors(f"{root}/evil.safetensors", [tensor("a\x1b[2Jb\nc", "U8", [1])])
    assert "\x1b" not in done(tspool("ls", path)) and "a?[2Jb?c" in done(tspool("ls", path))
    assert lines_of(tspool("ls", "--json", path))[1]["name"] == "a\x1b[2Jb\nc"


@test
def verify_names_tensor_file_and_range(root):
    large = [tensor("big", "U8", [9_000_000]), tensor("w", "F32", [40])]
    path, other = checkpoint(root, "one", 1, large), checkpoint(root, "two", 2)
    assert "whole" in done(tspool("verify", path, other))
    begin = next(line["file_offset"] for line in lines_of(tspool("ls", "--json", path)) if line.get("name") == "big")
    flip(f"{path}/model.safetensors", begin + 5_000_000)
    open(f"{path}/tokenizer.json", "w").write("{}")
    run = tspool("verify", path, other)
    assert run.returncode == 1 and "big" in run.stderr and "model.safetensors" in run.stderr, run
    assert f"bytes {begin + 4194304} to {begin + 8388608}" in run.stderr, run.stderr
    assert "tokenizer.json: not part" in run.stdout and f"{other}: whole" in run.stdout
    found = [json.loads(line) for line in tspool("verify", "--json", path).stdout.splitlines()]
    assert [line["kind"] for line in found if line["event"] == "finding"] == ["tensor", "foreign"]
    assert found[-1]["verdict"] == "damaged" and found[-1]["damaged"] == 1
    os.unlink(f"{path}/tspool.digests")
    os.unlink(f"{path}/model.safetensors")
    run = tspool("verify", "-q", path)
    assert run.returncode == 1 and run.stderr.count(": missing\n") == 2, run.stderr


@test
def verify_of_what_has_no_digests_says_so(root):
    run = tspool("verify", safetensors(f"{root}/s.safetensors", SMALL))
    assert run.returncode == 1 and "digests" in one_line(run.stderr)
    raw = open(f"{root}/s.safetensors", "rb").read()
    open(f"{root}/cut.safetensors", "wb").write(raw[:-1])
    run = tspool("verify", f"{root}/cut.safetensors")
    assert run.returncode == 1 and "cut.safetensors" in run.stderr


@test
def diff_tells_added_removed_and_changed(root):
    same = tensor("same", "F32", [9])
    a = checkpoint(root, "a", 1, [same, tensor("gone", "U8", [3]), tensor("other", "U8", [4]), tensor("shape", "U8", [4])])
    b = checkpoint(root, "b", 2, [same, tensor("new", "U8", [3]), tensor("other", "U8", [4], 1), tensor("shape", "U8", [2, 2])])
    rows = done(tspool("diff", a, b)).splitlines()
    assert sorted(" ".join(row.split()[:3]) for row in rows[:-1]) == \
        ["+ tensor new", "- tensor gone", "~ metadata step", "~ tensor other", "~ tensor shape"], rows
    assert rows[-1] == "1 added, 1 removed, 3 changed, 1 tensors the same"
    assert tspool("diff", "--exit-code", "-q", a, b).returncode == 1
    assert tspool("diff", "--exit-code", a, a).returncode == 0
    plain = f"{b}/model.safetensors"
    assert lines_of(tspool("diff", "--json", plain, b))[-1]["same_tensors"] == 4, "without digests the bytes are compared"


# Latest and gc ----------------------------------------------------------------------------------------------------------

@test
def latest_prints_the_path_to_resume_from(root):
    for name, step in (("step-9", 9), ("step-10", 10), ("step-2", 2)):
        checkpoint(root, name, step)
    assert done(tspool("latest", f"{root}/runs")) == f"{root}/runs/step-10\n"
    assert lines_of(tspool("latest", "--json", f"{root}/runs"))[0]["step"] == "10"
    os.mkdir(f"{root}/empty")
    assert tspool("latest", f"{root}/empty").returncode == 1


def attempt(root, name, number, held=False, record=True):
    """A hidden directory as a save leaves it when its writer dies; with `held` one whose writer lives."""
    path = f"{root}/runs/.{name}.{number:032x}"
    os.mkdir(path)
    open(f"{path}/model.safetensors.partial", "wb").write(b"x" * 5000)
    lock = None
    if record:
        lock = open(f"{path}/tspool.part-00001", "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    for file in os.listdir(path):
        os.utime(f"{path}/{file}", (1e9, 1e9))
    os.utime(path, (1e9, 1e9))
    if not held and lock:
        lock.close()
    return path, lock


@test
def gc_keeps_the_newest_and_sweeps_the_dead_only(root):
    for step in (1, 2, 3):
        checkpoint(root, f"s{step}", step)
    dead, _ = attempt(root, "s4", 1)
    alive, lock = attempt(root, "s5", 2, held=True)
    bare, _ = attempt(root, "s6", 3, record=False)
    young = f"{root}/runs/.s7.{4:032x}"
    os.mkdir(young)
    foreign = f"{root}/runs/.s8.{5:032x}"
    os.mkdir(foreign)
    open(f"{foreign}/notes.txt", "w").write("mine")
    os.utime(foreign, (1e9, 1e9))
    os.mkdir(f"{root}/runs/.git")
    os.mkdir(f"{root}/runs/logs")
    before = visible(root)
    dry = tspool("gc", f"{root}/runs", "--keep", 2, "--dry-run")
    assert dry.returncode == 0 and "s1" in dry.stdout and visible(root) == before
    threading.Timer(0.5, lock.close).start()   # gc waits for a pause in the saving before it deletes
    run = tspool("gc", f"{root}/runs", "--keep", 2)
    assert run.returncode == 0 and "notes.txt" in run.stderr, run
    assert not os.path.exists(dead) and not os.path.exists(bare) and os.path.exists(alive), "dead ones go, the live one stays"
    assert set(visible(root)) == {os.path.basename(path) for path in (alive, young, foreign)} | {".git", "logs", "s2", "s3"}
    done(tspool("verify", f"{root}/runs/s2", f"{root}/runs/s3"))


@test
def gc_sweeps_the_file_of_a_writer_that_died_at_its_start(root):
    """It probes the root with a file whose name has an attempt's form; gc took that for a directory, and failed for ever."""
    checkpoint(root, "a", 1)
    old, young, others = (f"{root}/runs/.{name}.{digit * 32}" for name, digit in (("tspool.probe", "0"), ("tspool.probe", "1"), ("x", "2")))
    for path in (old, young, others):
        open(path, "w").write("probe")
    os.utime(old, (0, 0))
    os.utime(others, (0, 0))
    assert "would have swept" in done(tspool("gc", f"{root}/runs", "--keep", 1, "--dry-run")) and os.path.exists(old)
    done(tspool("gc", f"{root}/runs", "--keep", 1))
    assert not os.path.exists(old) and os.path.exists(young), "a young one may be a living writer's"
    assert os.path.exists(others), "what is not ours stays"


@test
def gc_leaves_a_checkpoint_that_holds_files_of_others(root):
    for step in (1, 2, 3):
        checkpoint(root, f"s{step}", step)
    open(f"{root}/runs/s1/tokenizer.json", "w").write("{}")
    events = tspool("gc", "--json", f"{root}/runs", "--keep", 1)
    assert visible(root) == ["s1", "s3"] and events.returncode == 0
    assert {(event["event"], event["name"]) for event in map(json.loads, events.stdout.splitlines())} == \
        {("kept", "s3"), ("left", "s1"), ("removed", "s2")}
    done(tspool("verify", f"{root}/runs/s1"))


@test
def gc_keeps_everything_when_there_is_no_more_than_that(root):
    checkpoint(root, "s1", 1)
    assert done(tspool("gc", f"{root}/runs", "--keep", 5)) == "" and visible(root) == ["s1"]


# Doctor and terminals ---------------------------------------------------------------------------------------------------

@test
def doctor_says_what_it_found_and_what_follows(root):
    rows = done(tspool("doctor", root))
    for subject in ("io_uring", "O_DIRECT", "memlock", "huge pages", "memory", "space", "writer"):
        assert subject in rows, rows
    for line in lines_of(tspool("doctor", "--json", root)):
        assert line["verdict"] in ("ok", "note") and line["found"] and line["therefore"]
    assert os.listdir(root) == ["runs"], "it leaves no file behind"


def on_terminal(*command):
    """Runs with stderr on a terminal; what it showed there."""
    control, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        ready, _, _ = select.select([control], [], [], TIMEOUT)
        try:
            more = os.read(control, 65536) if ready else b""
        except OSError:   # the other end is closed
            break
        if not more:
            break
        shown += more
    os.close(control)
    assert process.wait(TIMEOUT) == 0
    return shown.decode()


@test
def progress_shows_on_a_terminal_and_nowhere_else(root):
    large = [tensor("big", "U8", [60_000_000])]
    path = checkpoint(root, "one", 1, large)
    shown = on_terminal(TSPOOL, "verify", path)
    assert "%" in shown and shown.endswith("\r\x1b[K"), repr(shown)
    assert tspool("verify", path).stderr == ""
    assert on_terminal(TSPOOL, "verify", "--json", path) == ""


# ------------------------------------------------------------------------------------------------------------------------

def main():
    passed = failed = 0
    for function in TESTS:
        if ONLY and function.__name__ not in ONLY:
            continue
        root = tempfile.mkdtemp(prefix="tspool-commands-", dir=os.environ.get("TSPOOL_TEST_DIR"))
        os.mkdir(f"{root}/runs")
        begun = time.monotonic()
        try:
            function(root)
            passed += 1
            print(f"ok   {function.__name__} ({time.monotonic() - begun:.2f} s)")
        except Exception as error:  # noqa: BLE001 - a test may fail in any way
            failed += 1
            print(f"FAIL {function.__name__}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
