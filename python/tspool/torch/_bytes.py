"""The bytes of torch tensors as memoryviews, and tensors over bytes. Nothing is copied here; whoever asks holds the tensor."""

from __future__ import annotations

import ctypes
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

import torch

CHUNK_BYTES = 1 << 20  # summed and copied while it is in the processor's cache
_READ, _WRITE = 0x100, 0x200

_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.restype = ctypes.py_object
_view_of.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)


def _view(address: int, size: int, mode: int) -> memoryview:
    return _view_of(address, size, mode) if size else memoryview(b"")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its memory says it all: no subclass, no lazy conjugate, on the CPU."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested)
    )


def elements_of(tensor: torch.Tensor, mode: int = _READ) -> memoryview:
    """The elements of a contiguous tensor, whatever else its storage holds."""
    return _view(tensor.data_ptr(), tensor.numel() * tensor.itemsize, mode)


def writable(tensor: torch.Tensor) -> memoryview:
    return elements_of(tensor, _WRITE)


def storage_of(tensor: torch.Tensor) -> memoryview:
    storage = tensor.untyped_storage()
    return _view(storage.data_ptr(), storage.nbytes(), _READ)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """As torch has it: an extent of zero counts as one."""
    stride, step = [], 1
    for extent in reversed(shape):
        stride.append(step)
        step *= max(extent, 1)
    return tuple(reversed(stride))


def run_of(shape: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> tuple[int, int] | None:
    """(first, count) of the elements of a box in a contiguous tensor when they lie one after the other, else None."""
    count = math.prod(lengths)
    whole = len(shape)
    while whole and lengths[whole - 1] == shape[whole - 1]:
        whole -= 1
    if count and any(length != 1 for length in lengths[: max(whole - 1, 0)]):
        return None
    return sum(offset * step for offset, step in zip(offsets, contiguous_stride(shape))), count


def checksum_of(view: Any) -> int:
    checksum = 0
    for start in range(0, len(view), CHUNK_BYTES):
        checksum = zlib.crc32(view[start : start + CHUNK_BYTES], checksum)
    return checksum


def read_into(fd: int, view: memoryview, file_offset: int, summed: bool = False) -> int:
    """Fills the view from the file and returns the checksum of what came, 0 unless asked for. EOFError when the file ends."""
    done = checksum = 0
    while done < len(view):
        got = os.preadv(fd, [view[done : done + CHUNK_BYTES]], file_offset + done)
        if not got:
            raise EOFError(f"the file ends at {file_offset + done}, {len(view) - done} bytes too early")
        if summed:
            checksum = zlib.crc32(view[done : done + got], checksum)
        done += got
    return checksum
