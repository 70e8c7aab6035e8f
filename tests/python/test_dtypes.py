"""Every dtype that torch, numpy or Python's buffers share with safetensors comes back bit for bit, and stock readers open it."""

import array

import numpy
import pytest
import safetensors
import tspool
import torch

TORCH = [
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2",
]  # fmt: skip
NUMPY = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
SHAPES = [(), (1,), (7,), (3, 5), (0, 4), (2, 0, 3), (2, 3, 4)]


def random_torch(dtype, shape):
    kind = getattr(torch, dtype)
    if dtype == "float4_e2m1fn_x2":
        return torch.randint(0, 256, shape, dtype=torch.uint8).view(kind)
    bytes_ = torch.randint(0, 2 if dtype == "bool" else 256, (*shape, kind.itemsize), dtype=torch.uint8)
    return bytes_.view(kind).reshape(shape)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)


@pytest.mark.parametrize("dtype", TORCH)
def test_torch_tensors_of_every_shape_come_back_bit_for_bit(there_and_back, dtype):
    shapes = [shape for shape in SHAPES if shape or dtype != "float4_e2m1fn_x2"]
    state = {f"t{number}": random_torch(dtype, shape) for number, shape in enumerate(shapes)}
    loaded = there_and_back(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(bits(loaded[name]), bits(tensor))


@pytest.mark.parametrize("dtype", NUMPY)
def test_numpy_arrays_come_back_as_arrays(there_and_back, dtype):
    rng = numpy.random.default_rng(5)
    state = {f"a{number}": (rng.random(shape) * 100).astype(dtype) for number, shape in enumerate(SHAPES)}
    state["scalar"] = state["a2"][3]
    loaded = there_and_back(state)
    for name, array_ in state.items():
        assert type(loaded[name]) is type(array_) and loaded[name].dtype == array_.dtype and loaded[name].shape == array_.shape
        assert loaded[name].tobytes() == array_.tobytes()


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_buffers_of_python_come_back_as_memoryviews(there_and_back, code):
    values = array.array(code, range(10))
    loaded = there_and_back({"array": values, "view": memoryview(values)[2:5], "none": array.array(code)})
    assert loaded["array"].tolist() == values.tolist()
    assert loaded["view"].tolist() == values.tolist()[2:5]
    assert loaded["none"].tolist() == []


def test_a_tensor_of_bytes_needs_neither_torch_nor_numpy(there_and_back):
    tensor = tspool.Tensor("BF16", (2, 3), bytes(range(12)))
    loaded = there_and_back({"tensor": tensor})["tensor"]
    assert type(loaded) is tspool.Tensor and loaded == tensor
    with pytest.raises(ValueError, match="takes 4 bytes, not 3"):
        tspool.Tensor("F32", (), b"abc")


class Exporter:
    """A tensor of a library that nobody here knows, which has DLPack."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "complex64", "float16"])
def test_dlpack_gives_the_memory_of_tensors_of_other_libraries(spool, root, dtype):
    tensor = random_torch(dtype, (4, 6))[:, 1:4]
    spool.save("trip", {"foreign": Exporter(tensor)}).result(60)
    with tspool.Checkpoint(root / "trip") as checkpoint:
        assert torch.equal(bits(checkpoint.read("foreign", kind="torch")), bits(tensor))


@pytest.mark.parametrize("layout", ["transposed", "step", "column", "expanded", "permuted", "flipped"])
def test_tensors_that_are_not_contiguous_are_stored_in_order(there_and_back, layout):
    base = torch.arange(4 * 6 * 5, dtype=torch.float32).reshape(4, 6, 5)
    tensor = {
        "transposed": base.transpose(0, 2), "step": base[::2, 1::3], "column": base[:, :, 2],
        "expanded": base[:1].expand(3, 6, 5),
        "permuted": base.permute(1, 2, 0), "flipped": base,
    }[layout]  # fmt: skip
    array_ = base.numpy()[::-1, :, ::-2] if layout == "flipped" else tensor.numpy()
    loaded = there_and_back({"torch": tensor, "numpy": array_})
    assert torch.equal(loaded["torch"], tensor)
    assert numpy.array_equal(loaded["numpy"], array_)


def test_a_lazy_conjugate_is_stored_as_what_it_means(there_and_back):
    tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    loaded = there_and_back({"conj": tensor.conj(), "negative": tensor.conj().imag})
    assert torch.equal(loaded["conj"], tensor.conj().resolve_conj())
    assert torch.equal(loaded["negative"], torch.tensor([-2.0, 4.0]))


def test_stock_safetensors_opens_what_was_saved(spool, root):
    state = {
        name: random_torch(name, (3, 4))
        for name in TORCH
        if name not in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2")
    }
    spool.save("stock", state).result(60)
    with safetensors.safe_open(root / "stock" / "model.safetensors", "pt") as opened:
        assert set(opened.keys()) == set(state)
        for name, tensor in state.items():
            assert torch.equal(bits(opened.get_tensor(name)), bits(tensor))


def test_what_stock_safetensors_wrote_is_loaded_flat(tmp_path):
    import safetensors.torch

    state = {"a.weight": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    loaded = tspool.load(tmp_path / "theirs.safetensors")
    assert list(loaded) == sorted(state) or set(loaded) == set(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
