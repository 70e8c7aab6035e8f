"""What the tests of real faults stand on: root, a mount namespace of their own, and file systems that can be hurt.

test_commands.py, test_orphans.py and test_trainer_resume.py are programs of their own.
"""
import contextlib
import ctypes
import os
import shutil
import signal
import sys

import pytest

from filesystems import KINDS, Filesystem, namespace_enter, workplace

PR_SET_CHILD_SUBREAPER = 36   # writers that lose their trainer become children of ours
collect_ignore = ["test_commands.py", "test_orphans.py", "test_trainer_resume.py"]


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=int(os.environ.get("TSPOOL_KILLS", "0")),
                     help="random kills on each file system (0: as many as the suite has time for)")
    parser.addoption("--seed", type=int, default=int(os.environ.get("TSPOOL_SEED", "1")))


def pytest_configure(config):
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # a timeout of the suite's: fixtures clean up
    if os.geteuid() != 0:
        print("skipped: real faults are made by root only")
        sys.stdout.flush()
        os._exit(77)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        namespace_enter()
    except OSError as error:
        print(f"skipped: {error}")
        sys.stdout.flush()
        os._exit(77)


@pytest.fixture(scope="session")
def folder():
    with workplace() as path:
        yield path


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@contextlib.contextmanager
def _made(folder, kind, **options):
    made = Filesystem(folder, kind, **options)
    try:
        yield made
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def filesystem(folder, kind):
    """One of each kind for all tests of a file that do not hurt it for good; its root is emptied in between."""
    with _made(folder, kind) as made:
        yield made


@pytest.fixture
def root(filesystem):
    yield filesystem.root
    with contextlib.suppress(FileNotFoundError):
        filesystem.free_again()
    shutil.rmtree(filesystem.root)
    os.mkdir(filesystem.root)
    os.chmod(filesystem.root, 0o777)


@pytest.fixture
def make_filesystem(folder):
    """For tests that hurt theirs for good."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, **options: stack.enter_context(_made(folder, kind, **options))


@pytest.fixture
def plain_root(folder):
    """A directory in memory, where the file system does not matter."""
    path = f"{folder}/plain"
    os.mkdir(path)
    os.chmod(path, 0o777)
    yield path
    shutil.rmtree(path)
