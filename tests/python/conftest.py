"""Tests of the Python package as it was installed: from a wheel, into a virtual environment (tools/check python)."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest
import tspool

ARENA = 64 << 20

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would every trainer here


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def spool(root):
    with tspool.Spool(root, arena_bytes=ARENA) as opened:
        yield opened


@pytest.fixture
def there_and_back(spool, root):
    """Saves a state dict and loads it again; whole by its digests."""

    def trip(state, **options):
        consent = {"pickle": options.get("pickle", False)}
        spool.save("trip", state, replace=True, **options).result(60)
        tspool.verify(root / "trip")
        return tspool.load(root / "trip", **consent)

    return trip


@pytest.fixture
def appears():
    """Waits for a checkpoint that a writer finishes on its own: before it has made its directory nobody else can know of it."""

    def wait(path, seconds=60):
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not appear"
            select.select([], [], [], 0.01)
        return str(path)

    return wait


class Script:
    """A trainer's process of its own, for what is done to processes."""

    def __init__(self, text, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", text, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self, status=0):
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == status, out + err
        return out, err


@pytest.fixture
def script():
    started = []

    def start(text, *arguments):
        started.append(Script(text, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()
