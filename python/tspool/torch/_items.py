"""How one item of a save becomes bytes in a stream, and what is told about it.

`stream` is what `tspool.open` gives. A tensor's bytes go from where they are; a copy is made only of one that does not fill its
storage and is not contiguous either.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint import _hf_utils as hf
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from tspool._errors import UnsupportedError
from tspool.torch import _archive, _bytes, _safetensors

SMALL_BYTES = 64 << 10  # handed over in one piece with its frame
_OBJECT_BYTES, _FRAME_BYTES = 1300, 1600


def bytes_of(item: WriteItem) -> int:
    """About: what an object takes is not known before, and a planner may make another dtype of a tensor."""
    if item.tensor_data is None:
        return _OBJECT_BYTES
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize + _FRAME_BYTES


def write_item(stream: Any, data: Any, item: WriteItem, name: str, form: _archive.Form) -> WriteResult:
    offset = stream.tell()
    if item.type == WriteItemType.BYTE_IO:
        stream.write(data.getbuffer())
    elif _bytes.is_plain(data):
        _write_plain(stream, data, form)
    else:
        torch.save(data, stream)
    length = stream.tell() - offset
    return WriteResult(item.index, length, _StorageInfo(name, offset, length))


def _write_plain(stream: Any, tensor: torch.Tensor, form: _archive.Form) -> None:
    tensor = _dense(tensor)  # held while its bytes are looked at
    layout, content = _laid(tensor)
    try:
        frame = _archive.frame(layout, form)
    except KeyError:  # a dtype that torch cannot name either: it says so itself
        torch.save(tensor, stream)
        return
    if len(content) <= SMALL_BYTES:
        stream.write(b"".join((frame.head, content, frame.tail(zlib.crc32(content) if form.checked else 0))))
        return
    stream.write(frame.head)
    stream.write(frame.tail(_write_summed(stream, content) if form.checked else _write_unsummed(stream, content)))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, or else all of its storage."""
    if tensor.is_contiguous() or tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize:
        return tensor
    return tensor.clone()  # keeps the order of the dimensions


def _laid(tensor: torch.Tensor) -> tuple[_archive.Layout, memoryview]:
    shape, size = tuple(tensor.shape), tensor.numel() * tensor.itemsize
    if tensor.is_contiguous():
        return _archive.Layout(tensor.dtype, shape, _bytes.contiguous_stride(shape), 0, size), _bytes.elements_of(tensor)
    return _archive.Layout(tensor.dtype, shape, tensor.stride(), int(tensor.storage_offset()), size), _bytes.storage_of(tensor)


def _write_summed(stream: Any, content: memoryview) -> int:
    """Piece by piece, so that what is summed is copied from the processor's cache."""
    checksum = 0
    for start in range(0, len(content), _bytes.CHUNK_BYTES):
        piece = content[start : start + _bytes.CHUNK_BYTES]
        checksum = zlib.crc32(piece, checksum)
        stream.write(piece)
    return checksum


def _write_unsummed(stream: Any, content: memoryview) -> int:
    stream.write(content)
    return 0


def tensor_of(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor):
        name = item.index.fqn
        raise UnsupportedError(f'"{name}" was planned as a tensor and is a {type(tensor).__name__}', tensor=name)
    what = _refused(tensor)
    if what:
        raise UnsupportedError(f'"{item.index.fqn}" {what}', tensor=item.index.fqn)
    return tensor.detach()


def _refused(tensor: torch.Tensor) -> str | None:
    """What DCP's readers could not load again, if it can be written at all."""
    if tensor.is_meta:
        return "is on the meta device and has no data: materialise it (to_empty() and load), or leave it out"
    if tensor.layout is not torch.strided:
        return f"has layout {tensor.layout}: save its indices() and values(), or to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}): save int_repr(), q_scale() and q_zero_point()"
    return None


# safetensors --------------------------------------------------------------------------------------------------------------------


def refuse_objects(items: Iterable[WriteItem]) -> None:
    for item in items:
        if item.type == WriteItemType.BYTE_IO:
            raise UnsupportedError(
                f'"{item.index.fqn}" is no tensor, and safetensors holds nothing else: leave it out, or use FileSystemWriter',
                tensor=item.index.fqn,
            )


def ordered(planner: SavePlanner, items: Sequence[WriteItem]) -> tuple[list[WriteItem], list[_safetensors.Tensor]]:
    """The items of a file as they will follow one another. A planner may have made another dtype of a tensor: it is asked."""
    refuse_objects(items)
    by_name = {item.index.fqn: item for item in items}
    if len(by_name) != len(items):
        raise _several_pieces([item.index.fqn for item in items])
    tensors = _safetensors.order(_described(planner, item) for item in items)
    return [by_name[tensor.name] for tensor in tensors], tensors


def _several_pieces(names: list[str]) -> UnsupportedError:
    name = next(name for name in names if names.count(name) > 1)
    return UnsupportedError(
        f'"{name}" has several pieces on this rank, and a safetensors file has room for one of a name: save one shard a rank',
        tensor=name,
    )


def _described(planner: SavePlanner, item: WriteItem) -> _safetensors.Tensor:
    tensor = tensor_of(planner, item)
    return _safetensors.Tensor(item.index.fqn, tensor.dtype, tuple(tensor.shape))


def head_of(items: Iterable[WriteItem], tensors: Sequence[_safetensors.Tensor]) -> bytes:
    offsets = {item.index.fqn: {hf.SAVED_OFFSETS_KEY: list(_offsets(item))} for item in items}
    return _safetensors.head(tensors, {
        hf.CUSTOM_METADATA_KEY: json.dumps(offsets), hf.DCP_VERSION_KEY: str(hf.HF_DCP_VERSION), hf.FORMAT_KEY: hf.FORMAT_VALUE,
    })  # fmt: skip


def _offsets(item: WriteItem) -> torch.Size:
    assert item.tensor_data is not None  # it is no object
    return item.tensor_data.chunk.offsets


def write_elements(stream: Any, tensor: torch.Tensor, told: _safetensors.Tensor, item: WriteItem, name: str) -> WriteResult:
    if (tensor.dtype, tuple(tensor.shape)) != (told.dtype, told.shape):
        raise UnsupportedError(f'"{told.name}" changed its dtype or shape while it was saved', tensor=told.name)
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    offset = stream.tell()
    stream.write(_bytes.elements_of(plain))
    length = stream.tell() - offset
    return WriteResult(item.index, length, _StorageInfo(name, offset, length))
