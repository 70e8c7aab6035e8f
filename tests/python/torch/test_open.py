"""torch.save into tspool.torch.open, and torch.load of what it left."""

import io
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import tspool
import tspool.torch


def state_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    big = torch.randn(700, 1000, generator=generator)
    return {
        "model": OrderedDict(w=big, tied=big, view=big[3:7], b16=big.to(torch.bfloat16), empty=torch.empty(0, 3)),
        "scalar": torch.tensor(1.5),
        "f8": torch.arange(100).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(5, dtype=torch.complex64, generator=generator),
        "strided": big.t(),
        "step": 17,
        "plain": [1, "two", (3.0, None)],
    }


def assert_equal(found, wanted):
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        as_bytes = (torch.uint8, torch.bool)
        same = torch.equal(found, wanted) if wanted.dtype not in (torch.float8_e4m3fn, *as_bytes) else (
            found.view(torch.uint8) == wanted.view(torch.uint8)).all()  # fmt: skip
        assert same
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_equal(found[key], wanted[key])
    else:
        assert found == wanted


def test_it_is_the_same_function():
    assert tspool.torch.open is tspool.open


@pytest.mark.parametrize("options", [{}, {"io": "threads"}, {"buffered": True}, {"block_bytes": 65536}])
@pytest.mark.parametrize("load", [{}, {"mmap": True}, {"weights_only": False}])
def test_what_torch_saved_it_loads(tmp_path, options, load):
    path, wanted = tmp_path / "model.pt", state_of()
    with tspool.torch.open(path, "wb", **options) as file:
        torch.save(wanted, file)
    assert_equal(torch.load(path, **load), wanted)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_bytes_are_those_of_torchs_own_file(tmp_path):
    with open(tmp_path / "theirs.pt", "wb") as file:
        torch.save(state_of(), file)
    with tspool.torch.open(tmp_path / "ours.pt") as file:
        torch.save(state_of(), file)
    assert (tmp_path / "ours.pt").read_bytes() == (tmp_path / "theirs.pt").read_bytes()


def test_old_format_which_writes_to_descriptors_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="Bad file descriptor"), tspool.torch.open(tmp_path / "old.pt") as file:
        torch.save({"w": torch.ones(5)}, file, _use_new_zipfile_serialization=False)
    assert os.listdir(tmp_path) == []
    with tspool.torch.open(tmp_path / "old.pt") as file:  # without the descriptor it is a stream like others
        bare = SimpleNamespace(write=file.write, flush=file.flush)
        torch.save({"w": torch.ones(5)}, bare, _use_new_zipfile_serialization=False)
    assert torch.equal(torch.load(tmp_path / "old.pt")["w"], torch.ones(5))


@pytest.mark.parametrize("sync", [lambda stream: stream.fsync(), lambda stream: os.fsync(stream.fileno())])
def test_items_of_a_checkpoint_one_after_the_other_as_nvrx_writes_them(tmp_path, sync):
    """NVIDIA's resiliency extension: `with open_file(name, "wb") as stream`, one torch.save per item, its place by tell(), and a
    sync by the stream (multi-storage-client) or by its descriptor."""
    items, places = [torch.randn(n, 1000) for n in (3, 700, 1)], []
    with tspool.torch.open(tmp_path / "__0_0.distcp", "wb") as stream:
        for item in items:
            begin = stream.tell()
            torch.save(item, stream)
            places.append((begin, stream.tell() - begin))
        sync(stream)
    data = (tmp_path / "__0_0.distcp").read_bytes()
    for item, (begin, size) in zip(items, places, strict=True):
        assert torch.equal(torch.load(io.BytesIO(data[begin : begin + size])), item)


def test_skipped_data_is_a_hole_of_zeros(tmp_path):
    with tspool.torch.open(tmp_path / "skeleton.pt") as file, torch.serialization.skip_data():
        torch.save({"w": torch.ones(1000)}, file)
    assert torch.equal(torch.load(tmp_path / "skeleton.pt")["w"], torch.zeros(1000))


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not this one")


def test_save_that_fails_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"step": 1}, path)
    with pytest.raises(RuntimeError, match="not this one"), tspool.torch.open(path) as file:
        file.write(bytes(3 << 20))
        torch.save({"w": torch.ones(10), "bad": Unpicklable()}, file)
    assert torch.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["model.pt"]


TRAINER = """
import sys, torch, tspool.torch
state = {"w": torch.ones(1 << 20), "step": 2}
file = tspool.torch.open(sys.argv[1], "wb")
class Told:
    def __init__(self, file): self.file = file; self.bytes = 0
    def flush(self): pass
    def write(self, data):
        done = self.file.write(data)
        self.bytes += done
        if self.bytes > 2 << 20:
            print("half", flush=True)
            sys.stdin.read()
        return done
torch.save(state, Told(file))
"""


def test_trainer_that_is_killed_in_mid_save_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(state_of(1), path)
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout.readline().strip() == "half"
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate(timeout=60)
    assert_equal(torch.load(path), state_of(1))
    with tspool.torch.open(path) as file:
        torch.save(state_of(2), file)
    assert_equal(torch.load(path), state_of(2))
    assert os.listdir(tmp_path) == ["model.pt"]


def test_without_torch_the_package_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\ntry: import tspool.torch\nexcept ImportError as error: print(error)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install torch" in told.stdout, told.stderr
