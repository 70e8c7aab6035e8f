"""DCP's planners, quicker where there is nothing to decide: plain tensors, saved by one rank or read whole.

DCP asks of each value what protocols it has, and of each item whether another rank has it too: for a hundred thousand tensors
that takes longer than writing them. What these planners make is what DCP's make, in the same order; whatever is not plain, and
every plan of several ranks, is left to DCP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner, _validate_global_plan
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import _create_read_items, _create_write_items
from torch.distributed.tensor import DTensor

from tspool._tree import collector_paused

_CONTIGUOUS = torch.contiguous_format
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_OBJECTS = (int, float, str, bool, type(None), list, tuple, bytes)


def _zeros(dimensions: int, made: dict[int, torch.Size]) -> torch.Size:
    if dimensions not in made:
        made[dimensions] = torch.Size([0] * dimensions)
    return made[dimensions]


class SavePlanner(DefaultSavePlanner):
    """DefaultSavePlanner, with its options."""

    @collector_paused()
    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        super().set_up_planner(state_dict, storage_meta, is_coordinator)

    @collector_paused()
    def create_local_plan(self) -> SavePlan:
        if self._enable_plan_caching:
            return super().create_local_plan()
        items: list[WriteItem] = []
        zeros: dict[int, torch.Size] = {}
        for name, value in self.state_dict.items():
            if type(value) in _PLAIN:
                items.append(_tensor_item(name, value, zeros))
            elif type(value) in _OBJECTS:
                items.append(WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO))
            elif not isinstance(value, DTensor) or value.device_mesh.get_coordinate() is not None:
                items += _create_write_items(name, value)
        self.plan = SavePlan(items, planner_data=self.mappings if self.flatten_state_dict else None)
        return self.plan

    @collector_paused()
    def _create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if len(all_plans) > 1 or not all(map(_is_settled, all_plans[0].items)):
            return super()._create_global_plan(all_plans)
        (plan,) = all_plans
        metadata = Metadata({item.index.fqn: _metadata_of(item) for item in plan.items}, planner_data=plan.planner_data)
        errors = _validate_global_plan(all_plans, metadata)
        if errors or len(metadata.state_dict_metadata) != len(plan.items):
            return super()._create_global_plan(all_plans)  # which says what is wrong
        return all_plans, metadata


def _tensor_item(name: str, tensor: torch.Tensor, zeros: dict[int, torch.Size]) -> WriteItem:
    size = tensor.shape
    offsets = _zeros(len(size), zeros)
    chunk = ChunkStorageMetadata(offsets=offsets, sizes=size)
    properties = TensorProperties(tensor.dtype, tensor.layout, tensor.requires_grad, _CONTIGUOUS, tensor.is_pinned())
    data = TensorWriteData(chunk=chunk, properties=properties, size=size)
    return WriteItem(index=MetadataIndex(name, offsets, 0), type=WriteItemType.TENSOR, tensor_data=data)


def _is_settled(item: WriteItem) -> bool:
    """An object, or the one piece of its tensor with that hint at it."""
    return item.tensor_data is None or (item.type == WriteItemType.TENSOR and item.index.index == 0)


def _metadata_of(item: WriteItem) -> TensorStorageMetadata | BytesStorageMetadata:
    data = item.tensor_data
    return BytesStorageMetadata() if data is None else TensorStorageMetadata(data.properties, data.size, [data.chunk])


class LoadPlanner(DefaultLoadPlanner):
    """DefaultLoadPlanner, with its options."""

    @collector_paused()
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)

    @collector_paused()
    def create_local_plan(self) -> LoadPlan:
        known: dict[str, Any] = self.metadata.state_dict_metadata if self.metadata is not None else {}
        items: list[ReadItem] = []
        if not all(name in self.state_dict for name in known) or not self._plan(known, items):
            return super().create_local_plan()  # names of an older DCP, or something is wrong
        return LoadPlan(items)

    def _plan(self, known: dict[str, Any], items: list[ReadItem]) -> bool:
        zeros: dict[int, torch.Size] = {}
        for name, value in self.state_dict.items():
            saved = known.get(name)
            if saved is None:
                return False
            if type(value) in _PLAIN and _is_whole(saved, value):
                items.append(_read_item(name, value.shape, saved.chunks[0], zeros))
            elif isinstance(saved, TensorStorageMetadata) and getattr(value, "shape", None) != saved.size:
                return False
            elif not isinstance(value, DTensor) or value.device_mesh.get_coordinate() is not None:
                items += _create_read_items(name, saved, value)
        return True


def _is_whole(saved: Any, tensor: torch.Tensor) -> bool:
    """Saved as one piece, of that size."""
    return (
        isinstance(saved, TensorStorageMetadata)
        and len(saved.chunks) == 1
        and saved.size == tensor.shape
        and saved.chunks[0].sizes == saved.size
        and 0 not in saved.size
    )


def _read_item(name: str, size: torch.Size, chunk: ChunkStorageMetadata, zeros: dict[int, torch.Size]) -> ReadItem:
    offsets = _zeros(len(size), zeros)
    index = MetadataIndex(name, chunk.offsets, 0)
    return ReadItem(LoadItemType.TENSOR, index, offsets, index, offsets, size)
