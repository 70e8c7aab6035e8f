"""State dicts of any make, through torch's files in both directions; and nothing that piles up over many saves."""

import gc
import os
import threading
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings, strategies
from stock_help import DTYPES, NOT_IN_SAFETENSORS, assert_same, blank, filled, load, save
from tspool.torch import FileSystemReader, FileSystemWriter, HuggingFaceStorageReader, HuggingFaceStorageWriter

dtypes = strategies.sampled_from(DTYPES + NOT_IN_SAFETENSORS)
shapes = strategies.lists(strategies.integers(0, 9), max_size=4).map(tuple)


@strategies.composite
def tensors(draw):
    """Whole, or a view of one: any order of dimensions, steps, and parts."""
    tensor = filled(draw(shapes), draw(dtypes), draw(strategies.integers(0, 99)))
    if tensor.dim() and draw(strategies.booleans()):
        tensor = tensor.permute(draw(strategies.permutations(range(tensor.dim()))))
    if tensor.dim() and draw(strategies.booleans()):
        tensor = tensor[:: draw(strategies.integers(1, 3))][draw(strategies.integers(0, 2)) :]
    return torch.nn.Parameter(tensor) if tensor.is_floating_point() and tensor.itemsize > 1 and draw(strategies.booleans()) else tensor


names = strategies.text(strategies.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=9)
objects = strategies.one_of(strategies.integers(), strategies.text(max_size=5), strategies.tuples(strategies.booleans()))
leaves = strategies.one_of(tensors(), tensors(), objects)
states = strategies.dictionaries(names, strategies.recursive(leaves, lambda inner: strategies.dictionaries(names, inner, min_size=1, max_size=3),
                                                             max_leaves=6), min_size=1, max_size=5)  # fmt: skip
WAYS = [(FileSystemWriter, dcp.FileSystemReader), (FileSystemWriter, FileSystemReader), (dcp.FileSystemWriter, FileSystemReader)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(state=states, way=strategies.sampled_from(WAYS), thread_count=strategies.integers(1, 3))
def test_any_state_dict(tmp_path_factory, state, way, thread_count):
    folder = tmp_path_factory.mktemp("any")
    writer, reader = way
    save(state, writer(folder, thread_count=thread_count))
    assert_same(load(state, reader(folder)), state)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(state=strategies.dictionaries(names, tensors().filter(lambda tensor: tensor.dtype in DTYPES), min_size=1, max_size=5),
       options=strategies.sampled_from([(False, False), (True, False), (True, True)]))  # fmt: skip
def test_any_weights(tmp_path_factory, state, options):
    folder = str(tmp_path_factory.mktemp("weights"))
    save(state, HuggingFaceStorageWriter(folder, None, 1, *options))
    assert_same(load(state, HuggingFaceStorageReader(folder)), state)


def held():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task"))


def test_nothing_piles_up_over_many_saves_and_loads(tmp_path):
    state = {"a": torch.randn(100), "b": {"c": torch.arange(5), "d": "text"}}
    writer, reader = FileSystemWriter(tmp_path, thread_count=2), FileSystemReader(tmp_path)
    before = None
    for number in range(60):
        save(state, writer)
        load(state, reader)
        if number == 5:
            before = held()
    assert held() == before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or a torch without CUDA")
@pytest.mark.parametrize("thread_count", [1, 3])
def test_tensors_on_cuda(tmp_path, thread_count):
    """One thread copies ahead by torch's own loader, several copy each their own."""
    state = {"large": torch.randn(4 << 20), "small": torch.arange(9), "turned": torch.randn(30, 40).t(), "view": torch.arange(100)[7:9]}
    on_cuda = {name: tensor.cuda() for name, tensor in state.items()}
    save(on_cuda, FileSystemWriter(tmp_path / "fs", thread_count=thread_count))
    save(on_cuda, HuggingFaceStorageWriter(str(tmp_path / "hf"), thread_count=thread_count))
    assert_same(load(state, dcp.FileSystemReader(tmp_path / "fs")), state)
    assert_same(load(state, dcp.HuggingFaceStorageReader(str(tmp_path / "hf"))), state)
    target = {name: torch.zeros_like(tensor) for name, tensor in on_cuda.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(target, storage_reader=FileSystemReader(tmp_path / "fs"), no_dist=True)
    assert_same({name: tensor.cpu() for name, tensor in target.items()}, blank(state) | state)
