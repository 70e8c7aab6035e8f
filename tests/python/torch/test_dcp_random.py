"""State dicts that nobody thought of, through DCP: what comes back is what DCP's own format gives back. And many saves in one
process cost no descriptors, no threads and no memory."""

import copy
import gc
import os
import shutil
import tempfile
import threading

import pytest

torch = pytest.importorskip("torch", reason="tspool.torch needs torch")
hypothesis = pytest.importorskip("hypothesis")

import torch.distributed.checkpoint as dcp  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys  # noqa: E402
from tspool.torch import LoadPlanner, SavePlanner, StorageReader, StorageWriter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e5m2, torch.complex64, torch.float64]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    tensor = values.to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["plain", "transposed", "expanded", "sliced"]))
    if layout == "transposed" and tensor.dim() == 2:
        return tensor.t()
    if layout == "expanded":
        return tensor.expand(2, *tensor.shape)
    if layout == "sliced" and tensor.dim() and tensor.dtype != torch.float8_e5m2:
        return torch.cat([tensor, tensor])[::2]
    return tensor


keys = st.text(st.characters(codec="utf-8", exclude_characters="\0."), min_size=1, max_size=6)
plain = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=5), st.none(), st.booleans())
values = st.recursive(
    st.one_of(tensors(), plain),
    lambda inner: st.one_of(st.dictionaries(keys, inner, max_size=4), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def bits(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def alike(left, right):
    if isinstance(left, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and (left.numel() == 0 or torch.equal(bits(left), bits(right)))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(alike, left, right))
    return type(left) is type(right) and left == right


def loaded(state, **options):
    found = copy.deepcopy(state)
    dcp.load(found, **options)
    return found


def outcome(load, *arguments, **options):
    """What is loaded, or what DCP says: some state dicts it cannot load."""
    try:
        return load(*arguments, **options)
    except dcp.CheckpointException as failed:
        return str(failed.failures[0][0])


@pytest.fixture(scope="module")
def folder():
    made = tempfile.mkdtemp()
    yield made
    shutil.rmtree(made)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=st.dictionaries(keys, values, min_size=1, max_size=5), ours=st.booleans())
def test_a_random_state_dict_comes_back_as_from_dcps_own_format(folder, state, ours):
    planners = (SavePlanner(), LoadPlanner()) if ours else (None, None)
    shutil.rmtree(os.path.join(folder, "stock"), ignore_errors=True)
    dcp.save(state, checkpoint_id=os.path.join(folder, "stock"))
    to = StorageWriter(os.path.join(folder, "ours"), arena_bytes=64 << 20)
    dcp.save(state, storage_writer=to, planner=planners[0])
    theirs = outcome(_load_state_dict_from_keys, checkpoint_id=os.path.join(folder, "stock"))
    assert alike(outcome(_load_state_dict_from_keys, storage_reader=StorageReader(to.path)), theirs)
    theirs = outcome(loaded, state, checkpoint_id=os.path.join(folder, "stock"))
    assert alike(outcome(loaded, state, storage_reader=StorageReader(to.path), planner=planners[1]), theirs)


def test_many_saves_and_failures_leave_no_descriptors_threads_or_memory(folder):
    to = StorageWriter(arena_bytes=64 << 20)
    state = {"model": {f"layer{number}": torch.randn(10_000) for number in range(20)}, "lr": 0.1}

    def held():
        gc.collect()
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[1])
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task")), pages

    for number in range(60):
        path = os.path.join(folder, f"many-{number % 3}")
        dcp.save(state, storage_writer=to, checkpoint_id=path)
        dcp.load(state, storage_reader=StorageReader(path))
        with pytest.raises(dcp.CheckpointException):
            dcp.save({"x": torch.empty(1, device="meta")}, storage_writer=to, checkpoint_id=os.path.join(folder, "bad"))
        if number == 10:
            before = held()
    after = held()
    assert after[:3] == before[:3] and after[3] - before[3] < 4 << 20 >> 12
