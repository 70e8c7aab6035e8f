"""The head of a safetensors file: eight bytes of length, then JSON that says where each tensor's bytes lie behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from tspool._errors import UnsupportedError
from tspool._leaves import NAMES, TORCH

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 64  # of the first tensor's bytes; the others follow by falling size of their elements
_LONGEST = 100_000_000  # what the readers of the format take


class Tensor(NamedTuple):
    """`shape` as torch has it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Placed(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    file_offset: int
    size: int


def name_of(dtype: torch.dtype) -> str | None:
    return TORCH.get(str(dtype).removeprefix("torch."))


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, NAMES[name])  # type: ignore[no-any-return]


def _size(dtype: torch.dtype, shape: Iterable[int]) -> int:
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    return size


def _shape_in_file(tensor: Tensor) -> list[int]:
    """The format counts the elements of FP4, torch their pairs."""
    if name_of(tensor.dtype) != "F4":
        return list(tensor.shape)
    if not tensor.shape:
        raise UnsupportedError(f'"{tensor.name}" is a 0-d float4_e2m1fn_x2: reshape it to (1,)', tensor=tensor.name)
    return [*tensor.shape[:-1], tensor.shape[-1] * 2]


def order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """So that each lies aligned to its element's size, without a hole."""
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))


def head(tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Of a file in which they follow one another in this order."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for tensor in tensors:
        dtype = name_of(tensor.dtype)
        if dtype is None:
            raise UnsupportedError(
                f'"{tensor.name}" has dtype {tensor.dtype}, which safetensors has not: convert it, or save '
                + ("torch.view_as_real() of it" if tensor.dtype.is_complex else ".view(torch.uint8)"),
                tensor=tensor.name,
            )
        end = at + _size(tensor.dtype, tensor.shape)
        table[tensor.name] = {"dtype": dtype, "shape": _shape_in_file(tensor), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


class Head(NamedTuple):
    metadata: dict[str, str]
    tensors: dict[str, Placed]


def read(path: str) -> Head:
    """ValueError when it is none; what it says of places is held against the file's length."""
    with open(path, "rb") as file:
        length = file.read(_LENGTH.size)
        size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else _LONGEST + 1
        if size > _LONGEST:
            raise ValueError(f"{path} is no safetensors file")
        table = json.loads(file.read(size))
        start, end = _LENGTH.size + size, file.seek(0, 2)
    metadata = table.pop("__metadata__", {})
    return Head(metadata, {name: _placed(path, name, entry, start, end) for name, entry in table.items()})


def offsets_in(path: str, head: Head, table: str, entry: str) -> dict[str, tuple[int, ...]]:
    """Where each tensor lies in the whole of which it is a shard: DCP says it for all tensors of a file, or for none."""
    if not head.metadata.get(table):
        return {name: (0,) * len(placed.shape) for name, placed in head.tensors.items()}
    told = json.loads(head.metadata[table])
    missing = [name for name in head.tensors if name not in told]
    if missing:
        raise ValueError(f'{path} says of its tensors where they lie in a whole, but not of "{missing[0]}": the file is damaged')
    return {name: tuple(told[name][entry]) for name in head.tensors}


def _placed(path: str, name: str, entry: Mapping[str, Any], start: int, end: int) -> Placed:
    dtype = dtype_of(entry["dtype"])
    shape = [int(extent) for extent in entry["shape"]]
    if entry["dtype"] == "F4":
        shape[-1] //= 2
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= end - start or last - first != _size(dtype, shape):
        raise ValueError(f'"{name}" lies at {first} to {last} behind the head of {path}, which cannot be: the file is damaged')
    return Placed(dtype, tuple(shape), start + first, last - first)
