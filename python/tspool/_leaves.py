"""Tensors of every make: where their elements lie, and how to make more of them. Nothing is copied here that need not be.

torch and numpy are looked for among the modules that are loaded already; loading a torch tensor imports torch if it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tspool import _tspool
from tspool._errors import LoadError, UnsupportedError

# The dtypes of safetensors, by the names that torch, ml_dtypes and the buffer protocol have for them.
TORCH = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TORCH.items()}
ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz")
FORMATS = {
    "BOOL": "?", "U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "U64": "Q", "I64": "q", "F16": "e",
    "F32": "f", "F64": "d",
}  # fmt: skip
_BY_FORMAT = {format: dtype for dtype, format in FORMATS.items()} | {"c": "U8", "Zf": "C64"}
_SIGNED, _UNSIGNED = {4: "I32", 8: "I64"}, {4: "U32", 8: "U64"}  # "l" and "L" are as wide as the machine says
_DLPACK = {
    (0, 8): "I8", (0, 16): "I16", (0, 32): "I32", (0, 64): "I64", (1, 8): "U8", (1, 16): "U16", (1, 32): "U32", (1, 64): "U64",
    (2, 16): "F16", (2, 32): "F32", (2, 64): "F64", (4, 16): "BF16", (5, 64): "C64", (6, 8): "BOOL", (10, 8): "F8_E4M3",
    (11, 8): "F8_E4M3FNUZ", (12, 8): "F8_E5M2", (13, 8): "F8_E5M2FNUZ", (14, 8): "F8_E8M0",
}  # fmt: skip


class Leaf(NamedTuple):
    """A tensor as the C library takes it. `owner` keeps its memory where it is. Off the host, only a Filler can copy it."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    address: int
    owner: object
    is_host: bool = True


class Tensor:
    """A tensor where there is neither torch nor numpy for it: `data` are its bytes, contiguous, last dimension fastest."""

    __slots__ = ("dtype", "shape", "data")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | bytearray | memoryview) -> None:
        if not _tspool.dtype_bits(dtype):
            raise ValueError(f"{dtype!r} is no dtype of safetensors: {', '.join(NAMES)}")
        self.dtype = dtype
        self.shape = tuple(shape)
        self.data = memoryview(data).cast("B")
        if self.data.nbytes != size_of(dtype, self.shape):
            raise ValueError(f"{dtype} {list(self.shape)} takes {size_of(dtype, self.shape)} bytes, not {self.data.nbytes}")

    def view(self) -> memoryview[Any]:
        """The elements as a memoryview of that dtype and shape; BF16, C64, FP8 and FP4 have no format for it."""
        if self.dtype not in FORMATS:
            raise TypeError(f"memoryview has no format for {self.dtype}: decode .data")
        cast: Callable[..., memoryview[Any]] = self.data.cast
        return cast(FORMATS[self.dtype], self.shape) if self.data.nbytes else cast(FORMATS[self.dtype])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)

    def __repr__(self) -> str:
        return f"tspool.Tensor({self.dtype}, {list(self.shape)})"


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    elements = 1
    for extent in shape:
        elements *= extent
    return elements * _tspool.dtype_bits(dtype) // 8


def _module(name: str) -> Any:
    return sys.modules.get(name)


def _refuse(name: str, what: str, remedy: str) -> UnsupportedError:
    return UnsupportedError(f'"{name}" {what}: {remedy}', stage="declare", operation="add", tensor=name, cause=remedy)


# torch --------------------------------------------------------------------------------------------------------------------------

_torch_dtypes: dict[Any, str] = {}  # torch.float32 -> "F32"; filled when torch is first seen


def _torch_names(torch: Any) -> dict[Any, str]:
    if not _torch_dtypes:
        _torch_dtypes.update({getattr(torch, name): dtype for name, dtype in TORCH.items() if hasattr(torch, name)})
    return _torch_dtypes


def _torch_refuse(torch: Any, tensor: Any, name: str) -> UnsupportedError:
    if tensor.is_quantized:
        return _refuse(name, f"is quantized ({tensor.dtype})", "save int_repr(), q_scale() and q_zero_point()")
    if tensor.is_nested:
        return _refuse(name, "is a nested tensor", "save its values() and offsets(), or its unbind()")
    if tensor.layout is not torch.strided:
        return _refuse(name, f"has layout {tensor.layout}", "save its indices() and values(), or to_dense()")
    if tensor.dtype is torch.complex128:
        return _refuse(name, "is complex128, which safetensors has not", "save torch.view_as_real() of it")
    return _refuse(name, f"has dtype {tensor.dtype}, which safetensors has not", "convert it, or save .view(torch.uint8)")


def _torch_wrapper_refuse(torch: Any, tensor: Any, name: str) -> None:
    kind = type(tensor)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise _refuse(
            name, f"is a {kind.__name__}, a wrapper without memory of its own", "save what it wraps, such as to_local()"
        )


def _check_device(tensor: Any, name: str) -> None:
    device = tensor.device.type
    if device == "meta":
        raise _refuse(name, "is on the meta device and has no data", "materialise it (to_empty() and load), or leave it out")
    if device != "cuda":
        raise _refuse(name, f"is on the device {tensor.device}, which is not supported", "move it first: .cpu()")


def _torch_leaf(torch: Any, tensor: Any, name: str, may_stay: bool = False) -> Leaf:
    if type(tensor) is not torch.Tensor:
        _torch_wrapper_refuse(torch, tensor, name)
    dtype = (_torch_dtypes or _torch_names(torch)).get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided or tensor.is_nested:
        raise _torch_refuse(torch, tensor, name)
    if not tensor.is_cpu:
        _check_device(tensor, name)
        if may_stay and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg() and dtype != "F4":
            return Leaf("torch", dtype, tuple(tensor.shape), None, tensor.data_ptr(), tensor.untyped_storage(), False)
        tensor = tensor.detach().cpu()
    if tensor.is_conj() or tensor.is_neg():  # lazily so: the memory holds something else
        tensor = tensor.detach().resolve_conj().resolve_neg()
    shape, strides = tuple(tensor.shape), tensor.stride()
    if dtype == "F4":
        tensor, shape, strides = _pairs(torch, tensor, name)
    try:
        return Leaf("torch", dtype, shape, strides, tensor.data_ptr(), tensor.untyped_storage())
    except (RuntimeError, NotImplementedError) as error:
        raise _refuse(name, f"gives no address ({str(error).splitlines()[0]})", "save a plain tensor") from error


def _pairs(torch: Any, tensor: Any, name: str) -> tuple[Any, tuple[int, ...], None]:
    """torch counts the bytes of FP4, safetensors the elements."""
    if tensor.dim() == 0:
        raise _refuse(name, "is a 0-d float4_e2m1fn_x2, two elements without a dimension", "reshape it to (1,)")
    if not tensor.is_contiguous():
        tensor = tensor.view(torch.uint8).contiguous()
    return tensor, (*tensor.shape[:-1], tensor.shape[-1] * 2), None


# numpy and whatever else shows its memory ---------------------------------------------------------------------------------------


def _element_dtype(memory: _tspool.Memory) -> str | None:
    code, size = memory.element
    if isinstance(code, int):
        return _DLPACK.get((code, size))
    format = code[1:] if code[:1] in ("@", "=", "<") else code
    if format in ("l", "n"):
        return _SIGNED.get(size)
    if format in ("L", "N"):
        return _UNSIGNED.get(size)
    return _BY_FORMAT.get(format)


def _memory_leaf(kind: str, memory: _tspool.Memory, dtype: str) -> Leaf:
    strides = memory.strides
    return Leaf(kind, dtype, memory.shape, strides if isinstance(strides, tuple) else None, memory.address, memory)


def _is_awkward(memory: _tspool.Memory) -> bool:
    strides = memory.strides
    return strides is False or (isinstance(strides, tuple) and any(stride < 0 for stride in strides))


def _numpy_refuse(array: Any, name: str) -> UnsupportedError:
    if array.dtype.kind in "<>" or not array.dtype.isnative:
        return _refuse(name, f"has the other byte order ({array.dtype})", "convert it: .astype(array.dtype.newbyteorder('='))")
    if array.dtype.kind in "mM":
        return _refuse(name, f"has dtype {array.dtype}, which safetensors has not", 'save .view("int64")')
    if array.dtype.kind == "c":
        return _refuse(name, f"is {array.dtype}, which safetensors has not", 'save .view("float64")')
    return _refuse(name, f"has dtype {array.dtype}, which safetensors has not", "convert it, or save .tolist()")


def _numpy_leaf(numpy: Any, array: Any, name: str, kind: str) -> Leaf:
    if type(array) is not numpy.ndarray and type(array) is not numpy.memmap:
        raise _refuse(name, f"is a {type(array).__name__}, more than its memory", "save numpy.asarray() of its parts")
    dtype = TORCH[array.dtype.name] if array.dtype.name in ML_DTYPES else None
    if dtype:
        array = array.view(f"u{array.dtype.itemsize}")
    elif array.dtype.hasobject or array.dtype.kind in "mMSUV" or not array.dtype.isnative:
        raise _numpy_refuse(array, name)
    memory = _tspool.Memory(array)
    if _is_awkward(memory):  # runs backwards: the library wants it in order
        memory = _tspool.Memory(numpy.ascontiguousarray(array))
    dtype = dtype or _element_dtype(memory)
    if dtype is None:
        raise _numpy_refuse(array, name)
    return _memory_leaf(kind, memory, dtype)


def _buffer_leaf(value: Any, name: str) -> Leaf | None:
    try:
        memory = _tspool.Memory(value)
    except (TypeError, BufferError):
        return None
    dtype = _element_dtype(memory)
    if dtype is None or _is_awkward(memory):
        raise _refuse(name, f"is a buffer of format {memory.element[0]!r}, which safetensors has not", "convert it")
    return _memory_leaf("memoryview", memory, dtype)


def _dlpack_leaf(value: Any, name: str) -> Leaf:
    try:
        memory = _tspool.Memory(value.__dlpack__())
    except Exception as error:
        raise _refuse(name, f"gives no memory by DLPack ({error})", "move it to the host, or convert it to numpy") from error
    dtype = _element_dtype(memory)
    if dtype is None:
        raise _refuse(name, f"has a dtype that safetensors has not (DLPack {memory.element})", "convert it")
    return _memory_leaf("dlpack", memory, dtype)


def leaf_of(value: Any, name: str, may_stay: bool = False) -> Leaf | None:
    """How the tensor lies in memory; None when it is no tensor of any make. With `may_stay` a tensor on a device stays there,
    otherwise it is copied to the host."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch_leaf(torch, value, name, may_stay)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return None if value.dtype.hasobject else _numpy_leaf(numpy, value, name, "numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return _numpy_leaf(numpy, numpy.asarray(value), name, "numpy_scalar")
    if isinstance(value, Tensor):
        return Leaf("tensor", value.dtype, value.shape, None, _tspool.Memory(value.data).address, value.data)
    if hasattr(type(value), "__dlpack__"):
        return _dlpack_leaf(value, name)
    return _buffer_leaf(value, name)


def packed(value: Any, name: str) -> Leaf:
    """A contiguous copy of a tensor on the host."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
    elif numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        value = numpy.ascontiguousarray(value)
    else:
        value = memoryview(value).tobytes()
    leaf = leaf_of(value, name)
    assert leaf is not None
    return leaf


# Making them --------------------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """A fresh tensor: `address` is where its bytes go, contiguous; `finish` gives the value once they are there."""

    value: Any
    address: int
    finish: Callable[[], Any]


def _importable(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        return None


def _torch_make(dtype: str, shape: tuple[int, ...]) -> Made | None:
    torch = _importable("torch")
    if torch is None or not hasattr(torch, NAMES.get(dtype, "-")):
        return None
    if dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    tensor = torch.empty(shape, dtype=getattr(torch, NAMES[dtype]))
    return Made(tensor, tensor.data_ptr(), lambda: tensor)


def _numpy_dtype(numpy: Any, dtype: str) -> Any:
    if dtype in FORMATS or dtype == "C64":
        return numpy.dtype(NAMES[dtype])
    ml_dtypes = _importable("ml_dtypes")
    return numpy.dtype(getattr(ml_dtypes, NAMES[dtype])) if ml_dtypes and NAMES.get(dtype) in ML_DTYPES else None


def _numpy_make(dtype: str, shape: tuple[int, ...], scalar: bool) -> Made | None:
    numpy = _importable("numpy")
    element = None if numpy is None else _numpy_dtype(numpy, dtype)
    if element is None:
        return None
    array = numpy.empty(shape, element)
    return Made(array, array.ctypes.data, (lambda: array[()]) if scalar else (lambda: array))


def _plain_make(dtype: str, shape: tuple[int, ...], as_view: bool) -> Made:
    data = bytearray(size_of(dtype, shape))
    tensor = Tensor(dtype, shape, data)
    has_view = as_view and dtype in FORMATS and (len(data) > 0 or len(shape) == 1)
    value = tensor.view() if has_view else tensor
    return Made(value, _tspool.Memory(data).address, lambda: value)


def _candidates(kind: str) -> tuple[str, ...]:
    """What to make of a tensor that was saved as `kind`: itself, else the next best that is installed."""
    if kind == "any":  # nothing was recorded: torch if it is in use, else numpy if it is there
        return ("torch", "numpy", "tensor") if _module("torch") else ("numpy", "torch", "tensor")
    return {
        "torch": ("torch", "numpy", "tensor"),
        "numpy": ("numpy", "torch", "tensor"),
        "numpy_scalar": ("numpy_scalar", "torch", "tensor"),
        "dlpack": ("numpy", "torch", "tensor"),
        "memoryview": ("memoryview",),
    }.get(kind, ("tensor",))


def make(kind: str, dtype: str, shape: tuple[int, ...]) -> Made:
    """Room for a tensor that was saved as `kind`."""
    for candidate in _candidates(kind):
        made: Made | None = None
        if candidate == "torch":
            made = _torch_make(dtype, shape)
        elif candidate.startswith("numpy"):
            made = _numpy_make(dtype, shape, candidate == "numpy_scalar")
        else:
            made = _plain_make(dtype, shape, candidate == "memoryview")
        if made is not None:
            return made
    raise LoadError(f"nothing here can hold a tensor of dtype {dtype}")


def view_of(base: Any, at: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """The view of a contiguous tensor that begins at its element `at`; None for what has no views."""
    torch, numpy = _module("torch"), _module("numpy")
    if torch is not None and isinstance(base, torch.Tensor):
        return base.as_strided(shape, strides, at)
    if numpy is not None and isinstance(base, numpy.ndarray):
        steps = tuple(stride * base.itemsize for stride in strides)
        return numpy.lib.stride_tricks.as_strided(base.reshape(-1)[at:], shape, steps)
    return None


# Filling those that exist -------------------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """Where loaded bytes go: `address` when they can be read straight there, else `place` takes them from a fresh tensor."""

    dtype: str
    shape: tuple[int, ...]
    address: int | None
    owner: object
    place: Callable[[Any], None]


def _overlaps_itself(leaf: Leaf) -> bool:
    return leaf.strides is not None and any(step == 0 and extent > 1 for step, extent in zip(leaf.strides, leaf.shape))


def is_contiguous(leaf: Leaf) -> bool:
    expected = 1
    if leaf.strides is None or 0 in leaf.shape:
        return True
    for extent, stride in zip(reversed(leaf.shape), reversed(leaf.strides)):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _torch_target(torch: Any, tensor: Any, name: str) -> Target:
    if tensor.is_cpu and not tensor.is_conj() and not tensor.is_neg():
        leaf = _torch_leaf(torch, tensor, name)
        if is_contiguous(leaf):
            return Target(leaf.dtype, leaf.shape, leaf.address, leaf.owner, lambda value: None)
        if _overlaps_itself(leaf):
            raise _refuse(name, "is expanded: several of its elements are one", "give a contiguous tensor")
    _torch_wrapper_refuse(torch, tensor, name)
    dtype = _torch_names(torch).get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        raise (
            _torch_refuse(torch, tensor, name) if not tensor.is_meta else _refuse(name, "is on the meta device", "materialise it")
        )
    shape = tuple(tensor.shape) if dtype != "F4" else (*tensor.shape[:-1], tensor.shape[-1] * 2)

    def place(value: Any) -> None:
        with torch.no_grad():
            tensor.detach().copy_(value)

    return Target(dtype, shape, None, tensor, place)


def target_of(value: Any, name: str) -> Target | None:
    """Where to load to; None when `value` is no tensor. Raises when it is one that nothing can be loaded into."""
    torch, numpy = _module("torch"), _module("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch_target(torch, value, name)
    if isinstance(value, (bytes, str, int, float, bytearray)) or value is None:
        return None
    if numpy is not None and isinstance(value, numpy.generic):
        return None
    leaf = leaf_of(value, name)
    if leaf is None:
        return None
    if leaf.kind == "numpy" and not value.flags.writeable:
        raise _refuse(name, "is read-only", "give an array that may be written")
    if leaf.kind == "numpy" and (not is_contiguous(leaf) or not value.flags.c_contiguous):
        if _overlaps_itself(leaf):
            raise _refuse(name, "is broadcast: several of its elements are one", "give a contiguous array")
        return Target(leaf.dtype, leaf.shape, None, leaf.owner, lambda loaded: numpy.copyto(value, loaded))
    memory = leaf.owner
    if leaf.kind in ("memoryview", "tensor"):
        try:
            memory = _tspool.Memory(value.data if leaf.kind == "tensor" else value, True)
        except (BufferError, TypeError) as error:
            raise _refuse(name, "is read-only", "give memory that may be written") from error
    if leaf.kind == "dlpack" or not is_contiguous(leaf):
        raise _refuse(name, "cannot be loaded into", "give a contiguous tensor, array or buffer")
    return Target(leaf.dtype, leaf.shape, leaf.address, memory, lambda loaded: None)
