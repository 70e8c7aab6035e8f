"""What the tests of the stock files share: states with everything in them, saving and loading alone, and reading a folder."""

import warnings

import torch
import torch.distributed.checkpoint as dcp

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
]  # fmt: skip
NOT_IN_SAFETENSORS = [torch.complex32, torch.complex128]
SHAPES = [(), (0,), (0, 3), (1,), (5,), (3, 4), (2, 3, 5)]

warnings.filterwarnings("ignore", "ComplexHalf")
PLANS_ALONE = "torch.distributed is disabled, unavailable or uninitialized"


def filled(shape, dtype, seed=0):
    """Bytes of every kind; a bool has two."""
    count = torch.Size(shape).numel() * dtype.itemsize
    content = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return content.to(torch.uint8).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor):
    tensor = tensor.detach().resolve_conj().clone(memory_format=torch.contiguous_format)
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def assert_same(actual, expected, name="state"):
    assert type(actual) is type(expected) or torch.is_tensor(expected), name
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key in expected:
            assert_same(actual[key], expected[key], f"{name}.{key}")
    elif isinstance(expected, list):
        assert_same(dict(enumerate(actual)), dict(enumerate(expected)), name)
    elif torch.is_tensor(expected):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        assert torch.equal(bits(actual), bits(expected)), name
    else:
        assert actual == expected, name


def every_dtype(dtypes):
    return {
        f"{dtype}".removeprefix("torch.") + f"-{number}": filled(shape, dtype, number)
        for dtype in dtypes
        for number, shape in enumerate(SHAPES)
    }


def blank(state):
    """To load into: other values, the same layout for readers."""
    if isinstance(state, dict):
        return {key: blank(value) for key, value in state.items()}
    if not torch.is_tensor(state):
        return None
    tensor = torch.empty(state.shape, dtype=state.dtype)
    tensor.untyped_storage().fill_(0)
    return tensor


def save(state, writer, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected an existing checkpoint")
        warnings.filterwarnings("ignore", PLANS_ALONE)
        return dcp.save(state, storage_writer=writer, no_dist=True, **options)


def load(like, reader, **options):
    state = blank(like)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PLANS_ALONE)
        dcp.load(state, storage_reader=reader, no_dist=True, **options)
    return state


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """Whatever changes in a folder changes this."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


class Failing(dcp.DefaultSavePlanner):
    """Gives one item's data not: what is wrong with it is only found out when it is written."""

    def __init__(self, name, error=None):
        super().__init__()
        self.name, self.error = name, error or RuntimeError("no data")

    def resolve_data(self, item):
        if item.index.fqn == self.name:
            raise self.error
        return super().resolve_data(item)
