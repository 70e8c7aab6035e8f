"""The storage reader that DCP's load is given: metadata from the manifest and the headers, data straight into the tensors that
take them, by as few reads as the plan allows.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader as _StorageReader

from tspool import _tspool
from tspool._checkpoint import Checkpoint
from tspool._errors import LoadError, MismatchError
from tspool._leaves import NAMES
from tspool._spool import Io
from tspool._tree import collector_paused
from tspool.torch import _structure
from tspool.torch._quick import quick_load

_SCRATCH_BYTES = 512 << 20  # of temporaries before they are placed
_DTYPES = {dtype: getattr(torch, name) for dtype, name in NAMES.items() if hasattr(torch, name)}

_Numbers = tuple[int, ...]


class Chunk(NamedTuple):
    """A saved piece of a tensor, as torch counts it."""

    entry: int
    sizes: _Numbers
    dtype: torch.dtype
    is_packed: bool
    """two elements in a byte, of which torch counts the bytes and the file the elements"""


class _Contents:
    """What DCP wants to know of an open checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tensors: dict[str, TensorStorageMetadata] = {}
        self.bytes: dict[str, BytesStorageMetadata] = {}
        self.storage: dict[MetadataIndex, Chunk | str] = {}
        self.paths: dict[str, _structure.Path] = {}
        self.of_rank: dict[int, dict[MetadataIndex, Chunk | str]] = {}
        with collector_paused():
            for number, entry in enumerate(checkpoint._handle.entries()):
                self._add_tensor(number, entry)
            self._add_objects()

    def _add_tensor(self, number: int, entry: _tspool._Entry) -> None:
        name, dtype_name, sizes, whole, offsets, _, file, *_ = entry
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise LoadError(f"{name!r} is {dtype_name}, which this torch has not", tensor=name, path=self.checkpoint.path)
        is_packed = dtype_name == "F4"
        at = offsets or (0,) * len(sizes)
        if is_packed:
            sizes, at, whole = _halved(sizes), _halved(at), whole and _halved(whole)
        chunk = Chunk(number, sizes, dtype, is_packed)
        index = MetadataIndex(name, at)
        if index in self.storage:  # a replica
            self.of_rank.setdefault(_rank_of(file), {})[index] = chunk
            return
        self.storage[index] = chunk
        box = ChunkStorageMetadata(index.offset, torch.Size(sizes))  # type: ignore[arg-type]
        known = self.tensors.get(name)
        if known is not None:
            known.chunks.append(box)
            if whole is None:
                known.size = torch.Size(max(have, begin + size) for have, begin, size in zip(known.size, at, sizes))
            return
        size = torch.Size(whole) if whole is not None else torch.Size(map(sum, zip(at, sizes)))
        self.tensors[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, [box])

    def _add_objects(self) -> None:
        objects = self.checkpoint._handle.objects()
        names: dict[str, str] = {name: name for name, kind, _ in objects if kind == _structure.KIND}
        stored = set(names)
        for name, kind, _ in objects:
            if kind != "json" or not name.startswith(_structure.PREFIX):
                continue
            structure = _structure.decode(self.checkpoint._handle.object_read(name))
            self.paths.update(structure.paths or {})
            own = self.of_rank.setdefault(_structure.rank_of(name), {})
            for plain, special in structure.objects.items():
                if special not in stored:
                    raise LoadError(f"{name!r} tells of {special!r}, which is not stored", path=self.checkpoint.path)
                own[MetadataIndex(plain)] = special
                names.pop(special, None)
                names.setdefault(plain, special)
        for plain, special in names.items():
            self.bytes[plain] = BytesStorageMetadata()
            self.storage[MetadataIndex(plain)] = special

    def metadata(self, load_id: str | None) -> Metadata:
        names = (*self.tensors, *self.bytes)
        return Metadata(
            state_dict_metadata={**self.tensors, **self.bytes},
            planner_data={name: self.paths.get(name, (name,)) for name in names},
            storage_data=self.storage,
            storage_meta=StorageMeta(
                checkpoint_id=self.checkpoint.path, save_id=self.checkpoint.info.save_id or None, load_id=load_id
            ),
        )


def _halved(numbers: _Numbers) -> _Numbers:
    return (*numbers[:-1], numbers[-1] // 2)


def _doubled(numbers: _Numbers) -> _Numbers:
    return (*numbers[:-1], 2 * numbers[-1])


def _rank_of(file: str) -> int:
    """shard-00003-model-...: rank 2."""
    number = file[6:11] if file.startswith("shard-") else ""
    return int(number) - 1 if number.isdecimal() else 0


class StorageReader(_StorageReader):
    """Loads tspool's checkpoints, and folders and files of safetensors, into the tensors of a state dict, on any number of ranks.

    verify: against digests, wherever they were recorded. `checkpoint_id` of dcp.load takes the place of `path`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, verify: bool = True, io: Io = "auto") -> None:
        super().__init__()
        self.path = None if path is None else os.fsdecode(path)
        self.verify = verify
        self.io: Io = io
        self._open: Checkpoint | None = None
        self._contents: _Contents | None = None
        self._storage: dict[MetadataIndex, Chunk | str] = {}
        self._load_id: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_contents": None, "_storage": {}}

    # As DCP calls it ------------------------------------------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.close()
        if checkpoint_id is not None:
            self.path = os.fsdecode(checkpoint_id)
        self._load_id = os.urandom(16).hex()

    def read_metadata(self) -> Metadata:
        self.close()
        if self.path is None:
            raise ValueError("no path was given: StorageReader(path), or checkpoint_id= of dcp.load")
        self._open = Checkpoint(self.path, verify=self.verify, io=self.io)
        try:
            self._contents = _Contents(self._open)
            return self._contents.metadata(self._load_id)
        except BaseException:
            self.close()
            raise

    def load_quick(self, state: dict[str, Any], checkpoint_id: str | os.PathLike[str] | None = None) -> bool:
        """All of a load by one process, without a plan. False, and nothing has happened: it takes one."""
        if checkpoint_id is not None:
            self.reset(checkpoint_id)
        if self.path is None:
            return False
        with Checkpoint(self.path, verify=self.verify, io=self.io) as checkpoint:
            return quick_load(state, checkpoint)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._storage = metadata.storage_data
        own = self._contents.of_rank.get(kwargs.get("rank", 0)) if self._contents is not None else None
        if own:  # without collectives each rank saved its own value: it gets that again
            self._storage = {**self._storage, **own}

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> torch.futures.Future[None]:
        if self._open is None:
            raise LoadError("read_metadata comes before read_data", errno=errno.EINVAL)
        try:
            with collector_paused():
                _Reading(self._open, self._storage, planner).run(plan.items)
        finally:
            self.close()
        future: torch.futures.Future[None] = torch.futures.Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return "://" not in os.fsdecode(checkpoint_id) and os.path.exists(checkpoint_id)

    @property
    def checkpoint_id(self) -> str | None:
        return self.path

    def close(self) -> None:
        """Closes its files; what was read stays."""
        if self._open is not None:
            self._open.close()
        self._open = None
        self._contents = None


class _Placed(NamedTuple):
    """A target, and what it is to be copied from (None: it is read straight into)."""

    item: ReadItem
    target: torch.Tensor
    source: torch.Tensor | None


class _Reading:
    """One load of one rank: items into requests, requests into one call of the C library, targets committed."""

    def __init__(self, checkpoint: Checkpoint, storage: dict[MetadataIndex, Chunk | str], planner: LoadPlanner) -> None:
        self.checkpoint = checkpoint
        self.storage = storage
        self.planner = planner
        self.requests: list[_tspool._Request] = []
        self.placed: list[_Placed] = []
        self.scratch_bytes = 0

    def run(self, items: Iterable[ReadItem]) -> None:
        pieces: dict[int, list[tuple[ReadItem, Chunk]]] = {}
        for item in items:
            stored = self._stored(item)
            if isinstance(stored, Chunk):
                pieces.setdefault(stored.entry, []).append((item, stored))
            else:
                self.planner.load_bytes(item, io.BytesIO(self.checkpoint._handle.object_read(stored)))
        for entry in sorted(pieces):
            self._add(pieces[entry])
            if self.scratch_bytes >= _SCRATCH_BYTES:
                self._flush()
        self._flush()

    def _stored(self, item: ReadItem) -> Chunk | str:
        stored = self.storage.get(item.storage_index)
        if stored is None or isinstance(stored, str) != (item.type == LoadItemType.BYTE_IO):
            index = item.storage_index
            raise LoadError(
                f"the plan wants {index.fqn!r} at {index.offset}, which {self.checkpoint.path!r} has not", tensor=index.fqn,
                path=self.checkpoint.path,
            )  # fmt: skip
        return stored

    def _add(self, pieces: list[tuple[ReadItem, Chunk]]) -> None:
        chunk = pieces[0][1]
        if len(pieces) > 1 and not all(_is_rows(item, chunk) for item, _ in pieces):
            self._add_shared(pieces, chunk)  # boxes that lie across each other in the file: it is read once
            return
        for item, _ in pieces:
            target = self._target(item)
            source = None if _takes_bytes(target, chunk) else self._scratch(item.lengths, chunk)
            self._request(chunk, item.storage_offsets, item.lengths, target if source is None else source)
            self.placed.append(_Placed(item, target, source))

    def _add_shared(self, pieces: list[tuple[ReadItem, Chunk]], chunk: Chunk) -> None:
        whole = self._scratch(chunk.sizes, chunk)
        self._request(chunk, (0,) * len(chunk.sizes), chunk.sizes, whole)
        for item, _ in pieces:
            box = tuple(slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths))
            self.placed.append(_Placed(item, self._target(item), whole[box]))

    def _target(self, item: ReadItem) -> torch.Tensor:
        target = self.planner.resolve_tensor(item).detach()
        if target.shape != item.lengths:
            name = item.storage_index.fqn
            raise MismatchError(
                f"{name!r}: the plan reads {list(item.lengths)} and the planner gave {list(target.shape)} for it", tensor=name,
                path=self.checkpoint.path,
            )  # fmt: skip
        return target

    def _scratch(self, sizes: Iterable[int], chunk: Chunk) -> torch.Tensor:
        made = torch.empty(tuple(sizes), dtype=chunk.dtype)
        self.scratch_bytes += made.nbytes
        return made

    def _request(self, chunk: Chunk, offsets: Iterable[int], lengths: Iterable[int], into: torch.Tensor) -> None:
        if into.nbytes == 0:
            return
        start, extent = tuple(offsets), tuple(lengths)
        if extent == chunk.sizes:
            self.requests.append((chunk.entry, None, None, into.data_ptr(), into.nbytes))
        elif chunk.is_packed:
            self.requests.append((chunk.entry, _doubled(start), _doubled(extent), into.data_ptr(), into.nbytes))
        else:
            self.requests.append((chunk.entry, start, extent, into.data_ptr(), into.nbytes))

    def _flush(self) -> None:
        self.checkpoint._handle.read(self.requests)
        for item, target, source in self.placed:
            if source is not None:
                target.copy_(source)
            self.planner.commit_tensor(item, target)
        self.requests, self.placed, self.scratch_bytes = [], [], 0


def _takes_bytes(target: torch.Tensor, chunk: Chunk) -> bool:
    """Whether the file's bytes may be read straight into it."""
    return (
        target.is_cpu and target.dtype == chunk.dtype and target.is_contiguous() and not target.is_conj() and not target.is_neg()
    )


def _is_rows(item: ReadItem, chunk: Chunk) -> bool:
    """Whether the box is one run of bytes in the file."""
    return tuple(item.lengths[1:]) == chunk.sizes[1:]
