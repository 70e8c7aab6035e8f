"""Stager: a state dict copied into shared memory that is kept from save to save.

Storages are copied, each once and only as far as tensors reach into it: views and tied tensors share memory afterwards as they
did before, and a small view does not drag all of its storage along. Wrappers (DTensor) are taken apart and put together around
the copies; what is no tensor is deep-copied.

What comes back is a dict that a checkpoint process of DCP's may be sent: its memory goes as one descriptor, not one per tensor.
"""

from __future__ import annotations

import copy
import errno
import io
import mmap
import os
import pickle
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import torch
from torch.distributed.checkpoint.staging import AsyncStager
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tspool import _tspool
from tspool._errors import SaveError
from tspool._fill import version_of
from tspool._guard import guards_of
from tspool._tree import collector_paused, name_of
from tspool.torch._memory import Generation, Pool

_ALIGN = 64  # of each extent: of a cache line, and a multiple of every element
_THREADS = 2
_ATOMS = frozenset({int, float, bool, complex, str, bytes, type(None)})

# Taking apart -------------------------------------------------------------------------------------------------------------------


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but a view of its storage."""
    kind = type(tensor)
    if kind is not torch.Tensor and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def _is_wrapper(tensor: torch.Tensor) -> bool:
    return type(tensor) is not torch.Tensor and bool(is_traceable_wrapper_subclass(tensor))


def _inner_names(tensor: Any) -> list[str]:
    names: list[str] = tensor.__tensor_flatten__()[0]
    return names


def _plain_tensors(value: Any, name: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that have storages, with their paths."""
    if isinstance(value, torch.Tensor):
        if _is_wrapper(value):
            for inner in _inner_names(value):
                yield from _plain_tensors(getattr(value, inner), name)
        elif _is_plain(value):
            yield name or "", value
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in _ATOMS:
                yield from _plain_tensors(item, name_of(name, key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            if type(item) not in _ATOMS:
                yield from _plain_tensors(item, name_of(name, number))


class _Extent:
    """The part of one storage that tensors reach into, in bytes from its start; and where its copy lies."""

    __slots__ = ("storage", "low", "high", "at", "copied")

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.low, self.high = 1 << 62, 0
        self.at = 0
        self.copied: torch.UntypedStorage | None = None

    def cover(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        low = int(tensor.storage_offset()) * size
        if tensor.is_contiguous():
            high = low + tensor.numel() * size
        else:
            reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
            high = low + (reach + 1) * size if tensor.numel() else low
        self.low = min(self.low, low // _ALIGN * _ALIGN)
        self.high = max(self.high, high)

    @property
    def bytes(self) -> int:
        return max(0, self.high - self.low)


class _Snapshot:
    """One stage: what is to be copied, and the state dict around the copies."""

    def __init__(self, state: Any) -> None:
        self._extents: dict[int, _Extent] = {}
        self._resolved: dict[int, torch.Tensor] = {}  # lazily conjugated or negated ones, as their memory would be
        self._tensors: list[tuple[str, torch.Tensor, int | None]] = []
        for name, tensor in _plain_tensors(state, None):
            self._tensors.append((name, tensor, version_of(tensor)))
            self._extent(self._memory_of(tensor)).cover(self._memory_of(tensor))
        self.size = 0
        for extent in self._extents.values():
            extent.at = self.size
            self.size += -(-extent.bytes // _ALIGN) * _ALIGN

    def _memory_of(self, tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.is_conj() or tensor.is_neg()):
            return tensor
        if id(tensor) not in self._resolved:
            self._resolved[id(tensor)] = tensor.detach().resolve_conj().resolve_neg()
        return self._resolved[id(tensor)]

    def _extent(self, tensor: torch.Tensor) -> _Extent:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        extent = self._extents.get(key)
        if extent is None:
            extent = self._extents[key] = _Extent(storage)
        return extent

    def lay(self, buffer: memoryview[Any]) -> None:
        """Gives every extent its memory."""
        for extent in self._extents.values():
            if extent.bytes == 0:
                extent.copied = torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
            else:
                there = torch.frombuffer(buffer, dtype=torch.uint8, count=extent.bytes, offset=extent.at)
                extent.copied = there.untyped_storage()

    def copy(self, streams: dict[torch.device, Any]) -> None:
        """The host's extents by threads, the devices' on their streams."""
        pieces = array("Q")
        for extent in self._extents.values():
            if extent.bytes == 0 or extent.copied is None:
                continue
            if extent.storage.device.type == "cpu":
                pieces.extend((extent.copied.data_ptr(), extent.storage.data_ptr() + extent.low, extent.bytes))
            else:
                _copy_from_device(extent, streams.get(extent.storage.device))
        _tspool.copy(pieces, _THREADS)
        for stream in streams.values():
            stream.synchronize()

    def devices(self) -> set[torch.device]:
        return {extent.storage.device for extent in self._extents.values() if extent.storage.device.type != "cpu"}

    def check(self) -> None:
        """Raises when a tensor was changed in place since the snapshot was begun."""
        for name, tensor, version in self._tensors:
            if version is not None and version_of(tensor) != version:
                raise SaveError(
                    f'"{name}" was changed before it was staged: wait for the staging future, or give the stager guard=optimizer',
                    errno=errno.EBUSY, stage="stage", operation="copy", tensor=name,
                    cause="its version counter rose while it was copied",
                )  # fmt: skip

    # Putting together -----------------------------------------------------------------------------------------------------------

    def rebuild(self, value: Any, memo: dict[int, Any]) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if id(value) in memo:
            return memo[id(value)]
        made = self._rebuilt(value, kind, memo)
        memo[id(value)] = made
        return made

    def _rebuilt(self, value: Any, kind: type, memo: dict[int, Any]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, memo)
        if kind is dict or kind is OrderedDict:
            return kind((key, self.rebuild(item, memo)) for key, item in value.items())
        if isinstance(value, dict):
            made = copy.copy(value)
            for key, item in value.items():
                made[key] = self.rebuild(item, memo)
            return made
        if kind is list or kind is tuple:
            return kind([self.rebuild(item, memo) for item in value])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return kind(*(self.rebuild(item, memo) for item in value))
        return copy.deepcopy(value, {})

    def _tensor(self, tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        if _is_wrapper(tensor):
            wrapper: Any = tensor
            names, context = wrapper.__tensor_flatten__()
            inner = {name: self.rebuild(getattr(tensor, name), memo) for name in names}
            made: torch.Tensor = wrapper.__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())
            return made.detach()
        if not _is_plain(tensor):
            return copy.deepcopy(tensor.detach())
        memory = self._memory_of(tensor)
        extent = self._extents[memory.untyped_storage()._cdata]
        offset = memory.storage_offset() - extent.low // memory.element_size() if extent.bytes else 0
        assert extent.copied is not None
        return torch.empty(0, dtype=memory.dtype).set_(extent.copied, offset, memory.shape, memory.stride())


def _copy_from_device(extent: _Extent, stream: Any) -> None:
    source = torch.empty(0, dtype=torch.uint8, device=extent.storage.device)
    source.set_(extent.storage, extent.low, (extent.bytes,), (1,))
    assert extent.copied is not None
    target = torch.empty(0, dtype=torch.uint8).set_(extent.copied, 0, (extent.bytes,), (1,))
    with torch.cuda.stream(stream):  # None: no other stream
        target.copy_(source, non_blocking=stream is not None)


# The dict, in this process and in another ---------------------------------------------------------------------------------------


class Staged(dict[str, Any]):
    """A staged state dict. Pickled for a process of one's own, its memory travels as one descriptor."""

    _generation: Generation

    def __reduce__(self) -> tuple[Any, ...]:
        body = io.BytesIO()
        _Pickler(body, self._generation).dump(dict(self))
        return _receive, (DupFd(self._generation.fd), self._generation.size, body.getvalue())


class _Pickler(ForkingPickler):
    """Names tensors of one generation by where they lie."""

    def __init__(self, file: Any, generation: Generation) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._low, self._high = generation.address, generation.address + generation.size

    def persistent_id(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or not value.is_cpu or not _is_plain(value):
            return None
        storage = value.untyped_storage()
        address = storage.data_ptr()
        if not self._low <= address < self._high:
            return None
        return address - self._low, storage.nbytes(), value.dtype, value.storage_offset(), tuple(value.shape), value.stride()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, buffer: memoryview[Any]) -> None:
        super().__init__(file)
        self._buffer = buffer
        self._storages: dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, place: Any) -> torch.Tensor:
        at, size, dtype, offset, shape, strides = place
        if at not in self._storages:
            self._storages[at] = torch.frombuffer(self._buffer, dtype=torch.uint8, count=size, offset=at).untyped_storage()
        return torch.empty(0, dtype=dtype).set_(self._storages[at], offset, shape, strides)


def _receive(descriptor: Any, size: int, body: bytes) -> dict[str, Any]:
    """In the other process: the memory mapped, the tensors laid over it."""
    fd = descriptor.detach()
    try:
        buffer = memoryview(mmap.mmap(fd, size))
    finally:
        os.close(fd)
    received: dict[str, Any] = _Unpickler(io.BytesIO(body), buffer).load()
    return received


# The stager ---------------------------------------------------------------------------------------------------------------------


class Stager(AsyncStager):
    """For `async_stager=` of `dcp.async_save`, ours or PyTorch's, thread or process; one for all saves of a trainer.

    With `use_async_staging`, `stage` returns a future and copies on a thread of its own: no tensor may change before that
    future is done. `guard`, an optimizer or a list of them, makes their next step wait for it; a tensor that changed all the
    same fails the staging by its name.
    """

    _synchronize_after_execute = False

    def __init__(self, *, use_async_staging: bool = False, guard: object = None) -> None:
        if guard is not None and not use_async_staging:
            raise ValueError("guard goes with use_async_staging: otherwise everything was copied when stage returns")
        self._pool = Pool()
        self._guards = [] if guard is None else guards_of(guard)
        self._worker = ThreadPoolExecutor(1, "tspool-stage") if use_async_staging else None
        self._last: Future[dict[str, Any]] | None = None

    def stage(self, state_dict: dict[str, Any]) -> Future[dict[str, Any]] | dict[str, Any]:
        with torch.no_grad(), collector_paused():
            snapshot = _Snapshot(state_dict)
            generation, buffer = self._pool.take(snapshot.size)
            snapshot.lay(buffer)
            staged = Staged(snapshot.rebuild(dict(state_dict), {}))  # what is no tensor is copied here and now: nothing guards it
        staged._generation = generation
        streams = _streams_of(snapshot.devices())
        if self._worker is None:
            snapshot.copy(streams)
            return staged
        last = self._last = self._worker.submit(_stage, snapshot, streams, staged)
        for guard in self._guards:
            guard.watch(lambda: wait([last]))
        return last

    def synchronize_staging(self) -> None:
        """Returns when the last `stage` is done."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """What uploads still read is kept until they are done with it."""
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self._pool.close()


def _stage(snapshot: _Snapshot, streams: dict[torch.device, Any], staged: Staged) -> dict[str, Any]:
    with torch.no_grad():
        snapshot.copy(streams)
    snapshot.check()
    return staged


def _streams_of(devices: set[torch.device]) -> dict[torch.device, Any]:
    """A side stream each, which begins where the caller's stream stands."""
    streams: dict[torch.device, Any] = {}
    for device in devices:
        if device.type == "cuda":
            streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            streams[device].wait_stream(torch.cuda.current_stream(device))
    return streams
