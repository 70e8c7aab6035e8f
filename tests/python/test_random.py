"""State dicts that nobody thought of: random nests of random tensors and values, saved and loaded, fresh and into."""

import math
import string

import numpy
import pytest
import tspool
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
]
shapes = st.lists(st.integers(0, 5), max_size=4)


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    tensor = torch.randint(0, 2, shape, generator=seed).to(dtype)
    for _ in range(draw(st.integers(0, 2))):
        if tensor.dim() > 1:
            tensor = tensor.transpose(*draw(st.lists(st.integers(0, tensor.dim() - 1), min_size=2, max_size=2)))
        if tensor.dim() and tensor.shape[0] > 1:
            tensor = tensor[draw(st.integers(0, tensor.shape[0] - 1)) :: draw(st.integers(1, 3))]
    return tensor


@st.composite
def arrays(draw):
    kind = draw(st.sampled_from(["f4", "f8", "i2", "u8", "?", "c8", "f2"]))
    array = numpy.arange(math.prod(shape := draw(shapes))).astype(kind).reshape(shape)
    return array.T if draw(st.booleans()) else array[::-1] if array.ndim else array


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.binary(max_size=8)
keys = st.text(string.ascii_letters + string.digits + '$_ é☃/\\"', max_size=6)  # no dot: two paths with one name are refused


def containers(children):
    return (
        st.dictionaries(keys, children, max_size=4)
        | st.dictionaries(st.integers(-3, 1000), children, max_size=3)
        | st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
    )


named = keys.filter(lambda key: key not in ("", "__metadata__"))
states = st.dictionaries(named, st.recursive(tensors() | arrays() | plain, containers, max_leaves=12), max_size=5)


def same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for left, right in zip(ours, theirs):
            same(left, right)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.contiguous().view(-1).tolist() == theirs.contiguous().view(-1).tolist()
    elif isinstance(ours, numpy.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


def emptied(value):
    """The same nest with nothing in its tensors, and other values."""
    if isinstance(value, dict):
        return {key: emptied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(emptied(item) for item in value)
    if isinstance(value, torch.Tensor):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, numpy.ndarray):
        return numpy.zeros_like(value)
    return value


@pytest.fixture(scope="module")
def open_spool(tmp_path_factory):
    root = tmp_path_factory.mktemp("random")
    with tspool.Spool(root, arena_bytes=64 << 20) as spool:
        yield spool


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(state=states)
def test_whatever_is_saved_is_loaded(open_spool, state):
    open_spool.save("random", state, replace=True).result(60)
    path = f"{open_spool.root}/random"
    same(tspool.load(path), state)
    into = emptied(state)
    same(tspool.load(path, into=into), state)
