"""A trainer at the end of a pipe (tests/support/victim.c), and what must hold of its checkpoints whatever happened to it."""
import array
import contextlib
import errno
import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import time

TSPOOL, WRITER, VICTIM, HANDICAP, ALLOCATIONS = (os.environ.get(name, "") for name in (
    "TSPOOL", "TSPOOL_WRITER", "VICTIM", "HANDICAP", "ALLOCATIONS"))
PATIENCE_S = 30   # nothing here takes a second; what takes longer than this hangs
ENDS = ("published", "failed", "unknown", "refused")
LEVELS = {"staged": 1, "written": 2, "durable": 3, "published": 4}
TENSORS, BYTES = 3, 100008


class Hangs(AssertionError):
    pass


class Trainer:
    """The process. Used in a with statement: whatever happens in it, nothing of it lives on."""

    def __init__(self, root, *settings, writer=None, before=(), variables=None):
        self.root = str(root)
        self.shape = {"tensors": TENSORS, "bytes": BYTES}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key in self.shape:
                self.shape[key] = int(value)
        self.process = subprocess.Popen([*before, VICTIM, writer or WRITER, self.root, *settings], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **(variables or {})})
        self.pid = self.process.pid
        self.read, self.events, self.writers = b"", [], {}

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        for pid, handle in self.writers.items():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
                if not is_over(handle, 10):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

    def tell(self, command):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{command}\n".encode())
            self.process.stdin.flush()

    def event(self, patience_s=PATIENCE_S):
        """The next one; None when the process has ended."""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self.read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise Hangs(f"no answer within {patience_s} s after {self.events[-3:]}")
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                return None
            self.read += piece
        line, _, self.read = self.read.partition(b"\n")
        event = json.loads(line)
        self.events.append(event)
        if event.get("writer_pid"):
            self._know(event["writer_pid"])
        return event

    def _know(self, pid):
        if pid not in self.writers:
            with contextlib.suppress(ProcessLookupError):
                self.writers[pid] = os.pidfd_open(pid)

    def ask(self, command, patience_s=PATIENCE_S):
        self.tell(command)
        return self.event(patience_s)

    def until(self, *names):
        """Reads on until an event of such a name, or the end of the save or of the process."""
        while True:
            event = self.event()
            if event is None or event["event"] in names or event["event"] in ENDS:
                return event

    def open(self):
        event = self.ask("open")
        assert event and event["event"] == "open", event
        return event["writer_pid"]

    def save(self, name, step):
        """One save; its last event."""
        self.tell(f"save {name} {step}")
        return self.until()

    def close(self, milliseconds=20000):
        return self.ask(f"close {milliseconds}")

    def status(self):
        """How the process ended after its commands did: 0, or the signal that it died of, negative."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Hangs("the trainer does not end") from None

    def await_writer(self, pid):
        if pid in self.writers and not is_over(self.writers[pid], PATIENCE_S):
            raise Hangs(f"writer {pid} does not end: {stack_of(pid)}")

    def await_writers(self):
        """Those that it told of, and one that it started and did not live to tell of: an orphan is a child of ours."""
        for pid in self.writers:
            self.await_writer(pid)
        for pid in orphans():
            handle = os.pidfd_open(pid)
            over = is_over(handle, PATIENCE_S)
            os.close(handle)
            if not over:
                raise Hangs(f"writer {pid} does not end: {stack_of(pid)}")
            os.waitpid(pid, 0)

    def rest(self):
        """What it said before it was killed."""
        while self.event():
            pass


def orphans():
    """Writers, dead or alive, whose trainer is gone; what a trainer forked is not one."""
    found = []
    for task in os.listdir("/proc/self/task"):
        for pid in map(int, open(f"/proc/self/task/{task}/children").read().split()):
            if open(f"/proc/{pid}/comm").read().startswith("tspool-"):
                found.append(pid)
    return found


def is_over(handle, patience_s):
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(patience_s * 1000))


def stack_of(pid):
    try:
        return open(f"/proc/{pid}/stack").read() + open(f"/proc/{pid}/status").read()
    except OSError as error:
        return str(error)


def send(pid, number):
    """False when it is gone."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def stop(pid):
    """SIGSTOP, and it has stopped when this returns. False when it is gone."""
    if not send(pid, signal.SIGSTOP):
        return False
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "T":
            return True
        if state in "ZX":
            return False
    raise Hangs(f"{pid} does not stop")


@contextlib.contextmanager
def handicapped(*options, once=False, folder=None):
    """The path of a writer that starts with a handicap: only the first one, with `once`."""
    with tempfile.TemporaryDirectory(prefix="tspool-writer-", dir=folder) as place:
        os.chmod(place, 0o755)
        mark, script = f"{place}/once", f"{place}/tspool-writer"
        if once:
            open(mark, "w").close()
            options = ("--once", mark, *options)
        with open(script, "w") as file:
            file.write(f"#!/bin/sh\nexec {' '.join((HANDICAP, *options, WRITER))}\n")
        os.chmod(script, 0o755)
        yield script


# What must hold -----------------------------------------------------------------------------------------------------------

def expected_bytes(step, tensor, size):
    first = step * 1000003 + tensor * 8191
    words = array.array("Q", range(first, first + size // 8))
    return words.tobytes()


def stored(path):
    """{tensor: bytes}, read without any code of ours."""
    tensors = {}
    for name in os.listdir(path):
        if not name.endswith(".safetensors"):
            continue
        raw = open(f"{path}/{name}", "rb").read()
        length, = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8:8 + length])
        header.pop("__metadata__", None)
        for tensor, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[tensor] = raw[8 + length + begin:8 + length + end]
    return tensors


def tspool(*arguments):
    return subprocess.run([TSPOOL, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S)


def visible(root):
    return sorted(name for name in os.listdir(root) if not name.startswith("."))


def strays(root):
    return sorted(name for name in os.listdir(root) if name.startswith("."))


def assert_whole(root, steps, tensors=TENSORS, size=BYTES):
    """Each of {name: step} stands, verifies, and holds what was saved at that step."""
    if steps:
        verified = tspool("verify", "-q", *(f"{root}/{name}" for name in steps))
        assert verified.returncode == 0, verified.stderr
    for name, step in steps.items():
        wanted = {f"t{tensor}": expected_bytes(step, tensor, size) for tensor in range(tensors)}
        assert stored(f"{root}/{name}") == wanted, f"{name} does not hold the state of step {step}"


def assert_older_loads(root, name="older", step=1, **shape):
    assert_whole(root, {name: step}, **shape)


def strays_age(root):
    """gc takes what was touched a moment ago for alive: here it is known to be dead."""
    for stray in strays(root):
        path = f"{root}/{stray}"
        for name in os.listdir(path) if os.path.isdir(path) else ():
            os.utime(f"{path}/{name}", (1e9, 1e9))
        os.utime(path, (1e9, 1e9))


def assert_gc_leaves_nothing_stray(root, keep=1000):
    """A killed writer's locks are given back when the kernel has ended its I/O, at times after the process is gone: until then gc
    rightly leaves its directory alone."""
    deadline = time.monotonic() + 20
    while True:
        strays_age(root)
        swept = tspool("gc", root, "--keep", keep)
        assert swept.returncode == 0, swept.stderr
        if not strays(root):
            return
        assert time.monotonic() < deadline, strays(root)


def assert_record(event, error, stage=None, operation=None, path=None, cause=None):
    """A failure that a person can act on: what was done, to what, why, and what may help."""
    assert event["event"] in ("failed", "refused", "unknown"), event
    assert event["error"] == (error if isinstance(error, int) else getattr(errno, error)), event
    assert errno.errorcode[event["error"]] in event["message"] and event["cause"], event
    assert stage is None or event["stage"] in ([stage] if isinstance(stage, str) else stage), event
    assert operation is None or event["operation"] in ([operation] if isinstance(operation, str) else operation), event
    assert path is None or path in event["path"], event
    assert cause is None or cause in event["cause"], event
