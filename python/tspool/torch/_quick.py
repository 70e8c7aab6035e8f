"""The short way for one process and plain tensors, which most saves and loads are: without DCP's planner, whose objects take some
hundred microseconds for each tensor. Names, metadata and what stands in the files are the same.

What is out of the ordinary (DTensors and other wrappers, a tensor in several chunks, a name that is missing) is not for here:
both calls then say None or False before anything has happened, and DCP's own way is taken.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.stateful import Stateful

from tspool._checkpoint import Checkpoint
from tspool._leaves import NAMES, leaf_of
from tspool._save import Save
from tspool._tree import collector_paused
from tspool.torch import _structure

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_ATOMS = frozenset({int, float, bool, str, bytes, type(None)})
_DTYPES = {dtype: getattr(torch, name) for dtype, name in NAMES.items() if hasattr(torch, name) and dtype != "F4"}


# Taking apart, by the rules of DCP's flatten_state_dict -------------------------------------------------------------------------


class Place(NamedTuple):
    """A value of the state dict."""

    name: str
    path: _structure.Path
    value: Any
    container: Any
    key: Any


def _is_terminal(value: Any) -> bool:
    """A list that holds neither tensors nor dicts is a value."""
    if type(value) in _ATOMS or not isinstance(value, (list, Mapping)):
        return True
    if isinstance(value, Mapping):
        return False
    return all(type(item) in _ATOMS or (not isinstance(item, torch.Tensor) and _is_terminal(item)) for item in value)


def _places(container: Any, path: _structure.Path, prefix: str) -> Iterator[Place]:
    is_list = isinstance(container, list)
    for key, value in enumerate(container) if is_list else container.items():
        step = key if is_list else str(key)
        name = f"{prefix}{step}"
        if type(value) in _PLAIN or _is_terminal(value):
            yield Place(name, (*path, step), value, container, key)
        else:
            yield from _places(value, (*path, step), name + ".")


def _flat(state: Mapping[str, Any]) -> list[Place] | None:
    places = list(_places(state, (), ""))
    if len({place.name for place in places}) < len(places):
        return None
    if any(isinstance(place.value, torch.Tensor) and type(place.value) not in _PLAIN for place in places):
        return None
    return places


def stateful(state: Mapping[str, Any]) -> dict[str, Any]:
    """What each value that has a state of its own says of it."""
    return {key: value.state_dict() if _is_stateful(value) else value for key, value in state.items()}


def _is_stateful(value: Any) -> bool:
    return type(value) not in _PLAIN and type(value) is not dict and isinstance(value, Stateful)


# Saving -------------------------------------------------------------------------------------------------------------------------


class Quick:
    """A state dict as one process saves it."""

    def __init__(self, places: list[Place]) -> None:
        self._places = places

    def declare(self, save: Save, rank: int, untied: bool) -> None:
        for place in self._places:
            if isinstance(place.value, torch.Tensor):
                leaf = leaf_of(place.value, place.name, save.may_stay)
                assert leaf is not None
                save._add(place.name, place.value, leaf, None, None, untied)
            else:
                data = io.BytesIO()
                torch.save(place.value, data)
                save.add_object(place.name, _structure.KIND, data.getbuffer())
        paths = {place.name: place.path for place in self._places}
        save.add_object(_structure.name_of(rank), "json", _structure.encode(paths, paths, {}))

    def metadata(self, storage_data: object) -> Metadata:
        """As DCP's planner makes it."""
        kinds: dict[Any, TensorProperties] = {}
        origins: dict[int, torch.Size] = {}
        values: dict[str, Any] = {}
        storage: dict[MetadataIndex, object] = {}
        for name, _, value, _, _ in self._places:
            if not isinstance(value, torch.Tensor):
                values[name] = BytesStorageMetadata()
                storage[MetadataIndex(name)] = storage_data
                continue
            kind, size = (value.dtype, value.requires_grad), value.shape
            if kind not in kinds:
                kinds[kind] = TensorProperties.create_from_tensor(value)
            if (origin := origins.get(len(size))) is None:
                origin = origins[len(size)] = torch.Size([0] * len(size))
            values[name] = TensorStorageMetadata(kinds[kind], size, [ChunkStorageMetadata(origin, size)])
            storage[MetadataIndex(name, origin)] = storage_data
        paths = {place.name: place.path for place in self._places}
        return Metadata(values, planner_data=paths, storage_data=storage, version=CURRENT_DCP_VERSION)


def quick_of(state: Mapping[str, Any]) -> Quick | None:
    places = _flat(state)
    return None if places is None else Quick(places)


# Loading ------------------------------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """Everything that is to be done, once it is known that all of it can be done."""

    requests: list[Any]
    copies: list[tuple[torch.Tensor, torch.Tensor]]  # (target, what was read)
    objects: list[tuple[Place, str]]


def _takes_bytes(target: torch.Tensor, dtype: torch.dtype) -> bool:
    return target.dtype is dtype and target.is_cpu and target.is_contiguous() and not target.is_conj() and not target.is_neg()


def _read_of(places: list[Place], checkpoint: Checkpoint) -> _Read | None:
    entries: dict[str, Any] = {}
    for number, (name, dtype, shape, whole, *_) in enumerate(checkpoint._handle.entries()):
        if whole is not None or name in entries:
            return None
        entries[name] = (number, _DTYPES.get(dtype), shape)
    objects = {name for name, kind, _ in checkpoint._handle.objects() if kind == _structure.KIND}
    read = _Read([], [], [])
    for place in places:
        if not isinstance(place.value, torch.Tensor):
            if place.name not in objects:
                return None
            read.objects.append((place, place.name))
            continue
        number, dtype, shape = entries.get(place.name, (0, None, None))
        target = place.value.detach()
        if dtype is None or target.shape != shape or target.is_meta:
            return None
        if not _takes_bytes(target, dtype):
            read.copies.append((target, torch.empty(shape, dtype=dtype)))
            target = read.copies[-1][1]
        if target.nbytes:
            read.requests.append((number, None, None, target.data_ptr(), target.nbytes))
    return read


def quick_load(state: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Loads, or says that it is not for here."""
    with collector_paused():
        inner = stateful({key: state[key] for key in sorted(state)})
        places = _flat(inner)
        read = None if places is None else _read_of(places, checkpoint)
        if read is None:
            return False
        read.requests.sort()  # as they lie in the files
        checkpoint._handle.read(read.requests)
        for target, source in read.copies:
            target.copy_(source)
        for place, stored in read.objects:
            place.container[place.key] = torch.load(io.BytesIO(checkpoint._handle.object_read(stored)), weights_only=False)
    for key, value in inner.items():
        if _is_stateful(state[key]):
            state[key].load_state_dict(value)
        else:
            state[key] = value
    return True
