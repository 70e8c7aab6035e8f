"""Shards of several ranks into whole tensors: one output file after the other as a stream, at most one tensor in memory for each.

The shards are those of this save, by name. What stands in their heads is enough: where each lies in its tensor.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.checkpoint import _hf_utils as hf

import tspool
from tspool._errors import DamagedError
from tspool.torch import _bytes, _safetensors
from tspool.torch._crew import Crew
from tspool.torch._parts import make_folder


_METADATA = {hf.FORMAT_KEY: hf.FORMAT_VALUE, hf.DCP_VERSION_KEY: str(hf.HF_DCP_VERSION)}


class _Shard(NamedTuple):
    path: Path
    placed: _safetensors.Placed
    offsets: tuple[int, ...]


Shards = dict[str, list[_Shard]]


def _shards_in(path: Path) -> Shards:
    head = _safetensors.read(str(path))
    told = _safetensors.offsets_in(str(path), head, hf.CUSTOM_METADATA_KEY, hf.SAVED_OFFSETS_KEY)
    return {name: [_Shard(path, placed, told[name])] for name, placed in head.tensors.items()}


def _whole(name: str, shards: Sequence[_Shard]) -> _safetensors.Tensor:
    ends = [tuple(map(sum, zip(shard.offsets, shard.placed.shape))) for shard in shards]
    return _safetensors.Tensor(name, shards[0].placed.dtype, tuple(map(max, *ends)) if len(ends) > 1 else ends[0])


def _assembled(tensor: _safetensors.Tensor, shards: Sequence[_Shard]) -> torch.Tensor:
    """Pieces that lie in one run are read in place. What no shard covers would be anything: counted, and refused."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    covered = 0
    for shard in {shard.offsets: shard for shard in shards if shard.placed.size}.values():
        target = whole[tuple(slice(first, first + extent) for first, extent in zip(shard.offsets, shard.placed.shape))]
        piece = target if target.is_contiguous() else torch.empty(shard.placed.shape, dtype=tensor.dtype)
        _read_shard(shard, piece)
        if piece is not target:
            _as_bytes(target).copy_(_as_bytes(piece))
        covered += shard.placed.size
    if covered != whole.numel() * whole.itemsize:
        raise DamagedError(f'the shards of "{tensor.name}" do not make a whole of {list(tensor.shape)}', tensor=tensor.name)
    return whole


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Not every dtype can be copied; a stride of one in the last dimension is what both have."""
    return tensor.view(torch.uint8)


def _read_shard(shard: _Shard, piece: torch.Tensor) -> None:
    fd = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _bytes.read_into(fd, _bytes.writable(piece), shard.placed.file_offset)
    finally:
        os.close(fd)


def _write_file(folder: Path, shards: Shards, crew: Crew, file: tuple[str, list[str]]) -> int:
    name, tensor_names = file
    tensors = _safetensors.order(_whole(tensor, shards[tensor]) for tensor in tensor_names)
    size = 0
    with tspool.open(folder / name, "wb") as stream:
        stream.write(_safetensors.head(tensors, _METADATA))
        for tensor in tensors:
            crew.check()
            whole = _assembled(tensor, shards[tensor.name])
            stream.write(_bytes.elements_of(whole))
            size += whole.numel() * whole.itemsize
    return size


def consolidate(inputs: Sequence[Path], folder: Path, files: Mapping[str, str], thread_count: int) -> list[int]:
    """`files`: the output file of each tensor. Returns the bytes of the tensors in each."""
    shards: Shards = {}
    for path in inputs:
        for name, found in _shards_in(path).items():
            shards.setdefault(name, []).extend(found)
    by_file: dict[str, list[str]] = {}
    for name in shards:
        by_file.setdefault(files[name], []).append(name)
    make_folder(folder)
    crew = Crew()
    return crew.run(functools.partial(_write_file, folder, shards, crew), list(by_file.items()), thread_count)
