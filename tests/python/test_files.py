"""The storage that torch_checkpointing gets from us, held against what it documents of storages; without it being installed."""

import errno
import io
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from tspool import _files

MIB = 1 << 20
AS_ASKED = SimpleNamespace(pre_read_full_file=False, direct_io=False)
AS_ASKED_DIRECT = SimpleNamespace(pre_read_full_file=False, direct_io=True)
BEFORE_DIRECT = SimpleNamespace(pre_read_full_file=True, direct_io=True)
EVERY_WAY = [None, AS_ASKED, AS_ASKED_DIRECT, BEFORE_DIRECT]

# Abstract methods and their parameters as of torch_checkpointing 0.1.0 (e57668f), storage/base_storage.py.
PROTOCOL = {
    "stream_read": ["path", "read_args"],
    "stream_write": ["path"],
    "read": ["path", "read_args"],
    "write": ["path", "data"],
    "delete": ["path"],
    "mkdir": ["path", "recursive"],
    "rmdir": ["path"],
    "rename": ["src_path", "dst_path", "is_directory", "is_cross_link", "background_cleanup"],
    "ls": ["path"],
    "exists": ["path"],
    "getsize": ["path"],
    "glob": ["pattern"],
    "isdir": ["path"],
    "remap_path": ["path"],
}


@pytest.fixture
def files():
    return _files.Files()


def numbered(size):
    return np.arange(-(-size // 8), dtype=np.uint64).tobytes()[:size]


@pytest.fixture
def synced(monkeypatch):
    """Directories that were synced, in order."""
    paths = []
    real = _files.sync_directory
    monkeypatch.setattr(_files, "sync_directory", lambda path: (real(path), paths.append(os.fspath(path)))[0])
    return paths


@pytest.mark.parametrize("method", PROTOCOL)
def test_every_method_has_the_documented_parameters(method):
    import inspect

    assert list(inspect.signature(getattr(_files.Files, method)).parameters)[1:] == PROTOCOL[method]


# Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", EVERY_WAY)
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * MIB + 5, 20 * MIB + 4096])
def test_whole_file_is_read_in_every_way(files, tmp_path, size, args):
    data = numbered(size)
    (tmp_path / "f").write_bytes(data)
    assert files.read(tmp_path / "f", args) == data
    with files.stream_read(tmp_path / "f", args) as stream:
        assert isinstance(stream, io.RawIOBase) and stream.readable() and stream.seekable() and not stream.writable()
        assert stream.seek(0, os.SEEK_END) == size
        assert stream.read(5) == b""
        assert stream.seek(0) == 0
        assert stream.readall() == data
    with pytest.raises(ValueError):
        stream.read(1)


@pytest.mark.parametrize("args", EVERY_WAY)
def test_any_range_lands_where_it_should(files, tmp_path, args):
    data = numbered(3 * MIB + 777)
    (tmp_path / "f").write_bytes(data)
    random = np.random.default_rng(1)
    with files.stream_read(tmp_path / "f", args) as stream:
        for _ in range(300):
            begin = int(random.integers(0, len(data) + 2000))
            size = int(random.integers(0, random.choice([10, 5000, 2 * MIB])))
            into, skip = bytearray(size + 9), int(random.integers(0, 9))
            assert stream.seek(begin) == begin
            got = stream.readinto(memoryview(into)[skip : skip + size])
            assert into[skip : skip + got] == data[begin : begin + size]
            assert got == max(0, min(size, len(data) - begin)) and stream.tell() == begin + got


@pytest.mark.parametrize("args", EVERY_WAY)
def test_elements_of_any_type_and_aligned_memory_are_filled(files, tmp_path, args):
    import mmap

    wanted = np.arange(MIB, dtype=np.float32)
    (tmp_path / "f").write_bytes(wanted.tobytes())
    found = np.zeros_like(wanted)
    with files.stream_read(tmp_path / "f", args) as stream, mmap.mmap(-1, 4 * MIB) as aligned:
        assert stream.readinto(found) == 4 * MIB
        stream.seek(4096)
        assert stream.readinto(aligned) == 4 * MIB - 4096
        assert aligned[: 4 * MIB - 4096] == wanted.tobytes()[4096:]
    assert (found == wanted).all()


def test_several_streams_of_one_file_at_once(files, tmp_path):
    data = numbered(16 * MIB + 3)
    (tmp_path / "f").write_bytes(data)
    into = memoryview(bytearray(len(data)))

    def part(begin):
        with files.stream_read(tmp_path / "f", AS_ASKED_DIRECT) as stream:
            assert stream.seek(begin) == begin
            return stream.readinto(into[begin : begin + MIB])

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(part, range(0, len(data), MIB))) == len(data)
    assert into == data


@pytest.mark.parametrize("args", EVERY_WAY)
def test_reading_what_is_not_there(files, tmp_path, args):
    with pytest.raises(FileNotFoundError):
        files.stream_read(tmp_path / "nothing", args)


@pytest.mark.parametrize("offset", [-1, -5])
def test_seek_before_the_beginning_is_refused(files, tmp_path, offset):
    (tmp_path / "f").write_bytes(b"abc")
    with files.stream_read(tmp_path / "f") as stream:
        for refused in ((offset, os.SEEK_SET), (offset, os.SEEK_CUR), (offset - 3, os.SEEK_END), (0, 7)):
            with pytest.raises(ValueError):
                stream.seek(*refused)
        assert stream.seek(-3, os.SEEK_END) == 0 and stream.read() == b"abc"


def test_file_system_that_opens_direct_and_refuses_to_read_so_is_read_without(files, tmp_path, monkeypatch):
    data = numbered(12 * MIB + 1)
    (tmp_path / "f").write_bytes(data)
    real, direct = os.preadv, set()
    opened = _files._open_read

    def open_read(path, wanted):
        descriptor, is_direct = opened(path, wanted)
        direct.discard(descriptor)
        if is_direct:
            direct.add(descriptor)
        return descriptor, is_direct

    def refusing(descriptor, buffers, offset):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "refused")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(_files, "_open_read", open_read)
    monkeypatch.setattr(_files.os, "preadv", refusing)
    for args in EVERY_WAY:
        assert files.read(tmp_path / "f", args) == data
    assert direct


# Writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"bytes", bytearray(b"x" * 5000), memoryview(b"view"), np.arange(MIB, dtype=np.int32)])
def test_write_takes_any_buffer(files, tmp_path, data):
    files.write(tmp_path / "f", data)
    assert (tmp_path / "f").read_bytes() == bytes(data)
    assert files.getsize(tmp_path / "f") == memoryview(data).nbytes


def test_stream_is_readable_after_the_block_and_not_listed_before(files, tmp_path):
    with files.stream_write(tmp_path / "f") as stream:
        pickle.dump({"a": 1}, stream)
        assert files.ls(tmp_path) == [] and not files.exists(tmp_path / "f")
        assert len(os.listdir(tmp_path)) == 1
    assert pickle.loads(files.read(tmp_path / "f")) == {"a": 1}
    assert files.ls(tmp_path) == ["f"]


def test_exception_in_the_block_looks_like_nothing_happened(files, tmp_path):
    files.write(tmp_path / "f", b"old")
    with pytest.raises(ZeroDivisionError), files.stream_write(tmp_path / "f") as stream:
        stream.write(b"new")
        1 / 0  # noqa: B018
    assert files.read(tmp_path / "f") == b"old" and os.listdir(tmp_path) == ["f"]


def test_missing_parent_is_a_runtime_error(files, tmp_path):
    for refused in (lambda: files.write(tmp_path / "no" / "f", b""), lambda: files.stream_write(tmp_path / "no" / "f")):
        with pytest.raises(RuntimeError, match="create it"):
            refused()


# Names ------------------------------------------------------------------------------------------------------------


def test_mkdir_from_several_threads_is_idempotent_and_durable(files, tmp_path, synced):
    path = tmp_path / "a" / "b" / "c"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: files.mkdir(path), range(32)))
    assert files.isdir(path)
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)


def test_mkdir_not_recursive(files, tmp_path, synced):
    files.mkdir(tmp_path / "a", recursive=False)
    assert synced == [str(tmp_path)]
    with pytest.raises(FileExistsError):
        files.mkdir(tmp_path / "a", recursive=False)
    with pytest.raises(FileNotFoundError):
        files.mkdir(tmp_path / "b" / "c", recursive=False)


def test_rename_is_the_commit_and_durable(files, tmp_path, synced):
    files.mkdir(tmp_path / "root" / "tmp" / "rank_0")
    files.write(tmp_path / "root" / "tmp" / "rank_0" / "f", b"x")
    del synced[:]
    files.rename(tmp_path / "root" / "tmp", tmp_path / "root" / "final", is_directory=True)
    assert synced == [str(tmp_path / "root")]
    assert files.ls(tmp_path / "root") == ["final"]
    assert files.read(tmp_path / "root" / "final" / "rank_0" / "f") == b"x"
    files.rename(tmp_path / "root" / "final" / "rank_0" / "f", tmp_path / "g")
    assert synced[1:] == [str(tmp_path), str(tmp_path / "root" / "final" / "rank_0")]


def test_rename_onto_a_file_replaces_it_and_onto_a_checkpoint_does_not(files, tmp_path):
    files.write(tmp_path / "a", b"a")
    files.write(tmp_path / "b", b"b")
    files.rename(tmp_path / "a", tmp_path / "b")
    assert files.read(tmp_path / "b") == b"a"
    for name in ("tmp", "final"):
        files.mkdir(tmp_path / name)
        files.write(tmp_path / name / "f", name.encode())
    with pytest.raises(OSError):
        files.rename(tmp_path / "tmp", tmp_path / "final", is_directory=True)
    assert files.read(tmp_path / "final" / "f") == b"final" and files.read(tmp_path / "tmp" / "f") == b"tmp"


@pytest.fixture
def elsewhere(monkeypatch):
    """Renames between directories named `near` and `far` are refused, as across file systems."""
    real = os.rename

    def refusing(source, destination):
        if ("near" in os.fspath(source)) != ("near" in os.fspath(destination)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, destination)

    monkeypatch.setattr(_files.os, "rename", refusing)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("stands", [False, True])
def test_rename_across_file_systems_copies_and_then_removes(files, tmp_path, elsewhere, background, stands):
    files.mkdir(tmp_path / "near" / "ckpt" / "sub")
    files.write(tmp_path / "near" / "ckpt" / "sub" / "f", numbered(3 * MIB + 1))
    files.mkdir(tmp_path / "far" / "ckpt" if stands else tmp_path / "far")
    if stands:
        files.write(tmp_path / "far" / "ckpt" / "theirs", b"t")
    source, destination = tmp_path / "near" / "ckpt", tmp_path / "far" / "ckpt"
    files.rename(source, destination, is_directory=True, is_cross_link=True, background_cleanup=background)
    for thread in threading.enumerate():
        if thread.name == "tspool-cleanup":
            thread.join()
    assert os.listdir(tmp_path / "near") == [] and os.listdir(tmp_path / "far") == ["ckpt"]
    assert files.read(tmp_path / "far" / "ckpt" / "sub" / "f") == numbered(3 * MIB + 1)
    assert sorted(files.ls(tmp_path / "far" / "ckpt")) == (["sub", "theirs"] if stands else ["sub"])
    files.write(tmp_path / "near" / "g", b"g")
    files.rename(tmp_path / "near" / "g", tmp_path / "far" / "g")
    assert files.read(tmp_path / "far" / "g") == b"g" and os.listdir(tmp_path / "near") == []


def test_copy_that_fails_leaves_source_and_name_as_they_were(files, tmp_path, elsewhere, monkeypatch):
    files.mkdir(tmp_path / "near" / "ckpt")
    files.mkdir(tmp_path / "far")
    for name in "abc":
        files.write(tmp_path / "near" / "ckpt" / name, b"x")

    def full(source, destination):
        if source.endswith("c"):
            raise OSError(errno.ENOSPC, "full")
        return destination

    monkeypatch.setattr(_files, "_copy_file", full)
    with pytest.raises(OSError):
        files.rename(tmp_path / "near" / "ckpt", tmp_path / "far" / "ckpt", is_directory=True)
    assert os.listdir(tmp_path / "far") == [] and sorted(files.ls(tmp_path / "near" / "ckpt")) == ["a", "b", "c"]


def test_delete_and_rmdir_are_durable(files, tmp_path, synced):
    files.mkdir(tmp_path / "d" / "e")
    files.write(tmp_path / "d" / "e" / "f", b"x")
    del synced[:]
    files.delete(tmp_path / "d" / "e" / "f")
    files.rmdir(tmp_path / "d")
    assert synced == [str(tmp_path / "d" / "e"), str(tmp_path)]
    assert not files.exists(tmp_path / "d")
    with pytest.raises(FileNotFoundError):
        files.delete(tmp_path / "d")
    with pytest.raises(FileNotFoundError):
        files.rmdir(tmp_path / "d")


def test_lookups(files, tmp_path):
    for name in ("checkpoint_1", "checkpoint_2", "other"):
        files.mkdir(tmp_path / name)
    assert sorted(files.glob(f"{tmp_path}/checkpoint_*")) == [f"{tmp_path}/checkpoint_1", f"{tmp_path}/checkpoint_2"]
    assert files.glob(f"{tmp_path}/nothing/*") == []
    assert files.isdir(tmp_path / "other") and not files.isdir(tmp_path / "nothing")
    assert files.remap_path(tmp_path) == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.getsize(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        files.ls(tmp_path / "nothing")


# torch and the framework ------------------------------------------------------------------------------------------


def test_torch_saves_and_loads_through_it(files, tmp_path):
    import torch

    wanted = {"w": torch.randn(600, 1000), "step": 3}
    files.mkdir(tmp_path / "tmp")
    with files.stream_write(tmp_path / "tmp" / "model.pt") as stream:
        torch.save(wanted, stream)
    files.rename(tmp_path / "tmp", tmp_path / "final", is_directory=True)
    for args in EVERY_WAY:
        with files.stream_read(tmp_path / "final" / "model.pt", args) as stream:
            found = torch.load(stream)
        assert torch.equal(found["w"], wanted["w"]) and found["step"] == 3


def test_without_the_framework_the_module_says_what_to_install():
    code = """
import sys
sys.modules["torch_checkpointing"] = None
try:
    import tspool.torch_checkpointing
except ImportError as error:
    print(error.name, error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout.startswith("torch_checkpointing ") and "pip install" in told.stdout, told.stderr


# The least of the framework that the module needs: its two abstract classes.
FRAMEWORK = """
import abc, dataclasses, sys, types
class Storage(abc.ABC): pass
for name in %r:
    setattr(Storage, name, abc.abstractmethod(lambda self: None))
Storage.__abstractmethods__ = frozenset(%r)
@dataclasses.dataclass
class StorageConfig(abc.ABC):
    @abc.abstractmethod
    def create_storage(self): pass
base = types.ModuleType("torch_checkpointing.storage.base_storage")
base.Storage, base.StorageConfig = Storage, StorageConfig
for name in ("torch_checkpointing", "torch_checkpointing.storage"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[base.__name__] = base
""" % (list(PROTOCOL), list(PROTOCOL))


def test_config_travels_and_makes_a_storage_of_the_frameworks_kind(tmp_path):
    code = FRAMEWORK + """
import pickle
from pathlib import Path
from tspool.torch_checkpointing import TspoolStorage, TspoolStorageConfig, mmap_fill
config = pickle.loads(pickle.dumps(TspoolStorageConfig(io="threads", depth=4)))
assert config == TspoolStorageConfig(io="threads", depth=4)
storage = config.create_storage()
assert isinstance(storage, Storage) and isinstance(storage, TspoolStorage)
path = Path(sys.argv[1]) / "f"
with storage.stream_write(path) as stream:
    stream.write(bytes(range(256)) * 40000)
filled = mmap_fill(storage.getsize(path), path, 4, 1 << 20)
assert filled[:] == bytes(range(256)) * 40000
try:
    mmap_fill(storage.getsize(path) + 1, path, 4, 1 << 20)
except OSError as error:
    print("told:", error)
"""
    told = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert told.stdout.startswith("told:"), told.stderr


def test_its_own_storage_tests_pass_over_ours(tmp_path):
    """Those of its repository that exercise a storage, in processes that get ours where they name its local one."""
    pytest.importorskip("torch_checkpointing", reason="torch_checkpointing is not installed (it is not on PyPI)")
    pytest.importorskip("expecttest", reason="torch_checkpointing's tests need expecttest")
    import torch_checkpointing

    tests = os.path.join(os.path.dirname(os.path.dirname(torch_checkpointing.__file__)), "tests")
    if not os.path.exists(f"{tests}/test_local_filesystem.py"):
        pytest.skip("torch_checkpointing is installed without its tests: use a checkout of its repository")
    here = os.path.join(os.path.dirname(__file__), "torch", "over_tspool")
    names = ("local_filesystem", "checkpoint_writer", "checkpoint_reader", "safetensors_serialization", "default_resharder")
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "over_tspool", f"--basetemp={tmp_path}/tmp",
         *(f"{tests}/test_{name}.py" for name in names)],
        cwd=os.path.dirname(tests), env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.path.dirname(tests)])},
        capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-4000:]
    made = int(told.stdout.split("storages made over tspool: ")[1].split()[0])
    assert made > 20


