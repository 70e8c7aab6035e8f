"""HuggingFaceStorageWriter and HuggingFaceStorageReader: safetensors folders as torch's classes of these names have them.

Here a file's name is its meaning: readers take every `*.safetensors` that they find. So data are written under hidden names, on
disk, and the coordinator gives them their names in `finish`, when every rank has written; the index comes last, and what an older
save left under names that this one has not is removed. Until then the folder holds what it held. Several renames are not one: a
crash between them leaves files of both saves, each whole.

What torch's class spoils is refused before anything is written: objects, dtypes and names that the format or the mapping has not,
and two ranks that would write one file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import _hf_utils as hf
from torch.distributed.checkpoint import filesystem as stock_filesystem
from torch.distributed.checkpoint import hf_storage as stock
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties, TensorStorageMetadata,
)  # fmt: skip
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

import tspool
from tspool._errors import DamagedError, SaveError, UnsupportedError
from tspool.torch import _safetensors
from tspool.torch._archive import Found, Layout
from tspool.torch._bytes import contiguous_stride
from tspool.torch._consolidate import consolidate
from tspool.torch._filesystem import FileSystemReader, FileSystemWriter, is_path, refuse_url
from tspool.torch._parts import Parts, listed_by_index, remove, sync_folder, unfinished
from tspool.torch._reading import Piece, read

_SHARD = re.compile(r"shard-\d{5,}-model-\d{5,}-of-\d{5,}\.safetensors")


def _staged(path: Path) -> Path:
    """No reader takes it for data. The same in every save, so that what a killed one left is written over."""
    return path.with_name(f".{path.name}.staged")


class HuggingFaceStorageWriter(stock.HuggingFaceStorageWriter, FileSystemWriter):
    """torch's HuggingFaceStorageWriter, written as streams: same constructor, same files."""

    def __init__(
        self,
        path: str,
        fqn_to_index_mapping: dict[str, int] | None = None,
        thread_count: int = 1,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
    ) -> None:
        if enable_consolidation and not save_distributed:
            warnings.warn("without save_distributed=True files are whole, and enable_consolidation has nothing to do", stacklevel=2)
            enable_consolidation = False  # torch's class puts the files into another folder, and leaves it at that
        super().__init__(
            path, fqn_to_index_mapping, thread_count, save_distributed, enable_consolidation, thread_count_consolidation
        )

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """The consolidated files go where the shards go, also when the save names another folder than the constructor."""
        super().reset(checkpoint_id)
        if checkpoint_id and self.enable_consolidation:
            self.consolidated_output_path = str(self.path)
            self.path = self.fs.concat_path(self.path, hf.SHARDED_DIR_NAME)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if self.enable_consolidation and not self.use_collectives and self.rank is not None:
            raise ValueError("enable_consolidation needs use_collectives=True: no rank knows when the others have written")

    def _parts_of_save(self) -> Parts:
        return Parts(None)

    # plan -----------------------------------------------------------------------------------------------------------------------

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._refuse_unmapped(plan.items)
        return super().prepare_local_plan(plan)

    def _refuse_unmapped(self, items: Iterable[WriteItem]) -> None:
        if self.fqn_to_index_mapping is None:
            return
        missing = sorted({item.index.fqn for item in items} - self.fqn_to_index_mapping.keys())
        if missing:
            raise UnsupportedError(
                f"fqn_to_index_mapping has no file for {', '.join(missing[:5])}{' and others' * (len(missing) > 5)}: "
                "add them, or leave them out of the state dict", tensor=missing[0],
            )  # fmt: skip

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        new_plans = super().prepare_global_plan(plans)
        if not self.save_distributed:
            self._refuse_collision(new_plans)
        if self.save_distributed and not self.use_collectives and self.rank is not None:
            (plan,) = new_plans  # each rank plans alone, and torch's class calls each shard the first
            return [dataclasses.replace(plan, storage_data={**plan.storage_data, "shard_index": self.rank + 1})]
        return new_plans

    def _refuse_collision(self, plans: list[SavePlan]) -> None:
        if not self.use_collectives and self.rank and plans[0].items:
            raise UnsupportedError(f"rank {self.rank} would write the files of rank 0: save_distributed=True gives each its own")
        writers: dict[int, int] = {}
        for rank, plan in enumerate(plans):
            for index in self._split_by_storage_plan(self.fqn_to_index_mapping, plan.items) if plan.items else ():
                if writers.setdefault(index, rank) != rank:
                    both = f"ranks {writers[index]} and {rank} would both write file {index}"
                    raise UnsupportedError(f"{both}: save_distributed=True gives each its own")

    def _split_by_storage_plan(self, storage_plan: dict[str, int] | None, items: list[WriteItem]) -> dict[int, list[WriteItem]]:
        self._refuse_unmapped(items)
        return super()._split_by_storage_plan(storage_plan, items)

    # data and commit ------------------------------------------------------------------------------------------------------------

    def _placed(self, files: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
        return [(_staged(path), name) for path, name in files]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if not self._is_local():
            return super().finish(metadata, results)
        written = [result for of_rank in results for result in of_rank]
        names = {result.storage_data.relative_path for result in written}
        folder, alone = Path(self.path), not self.use_collectives and self.rank is not None
        old = set() if alone else older_files(folder) - names  # a rank alone knows nothing of the others' new files
        self._give_names(names)
        self._begun().keep()
        if not alone:
            remove(unfinished(folder, None))
        if not self.save_distributed:
            if written or not alone:
                self._write_index(written)
        elif old & listed_by_index(folder / hf._metadata_fn):
            remove([folder / hf._metadata_fn])
        remove(folder / name for name in old)
        if self.save_distributed and self.enable_consolidation:
            self._consolidate(metadata, names)

    def _write_index(self, written: list[WriteResult]) -> None:
        weight_map = {result.index.fqn: result.storage_data.relative_path for result in written}
        write_index(Path(self.path), weight_map, sum(result.storage_data.length for result in written))

    def _give_names(self, names: Iterable[str]) -> None:
        folder = Path(self.path)
        for name in sorted(names):
            try:
                _staged(folder / name).rename(folder / name)
            except FileNotFoundError as error:
                raise SaveError(
                    f"{_staged(folder / name)} is not here, where the coordinator is: every rank must write to one file system",
                    path=str(folder / name), operation="rename",
                ) from error  # fmt: skip
        sync_folder(folder)

    def _consolidate(self, metadata: Metadata, names: Iterable[str]) -> None:
        mapping = self.fqn_to_index_mapping or dict.fromkeys(metadata.state_dict_metadata, 1)
        folder = Path(str(self.consolidated_output_path))
        largest = max(mapping.values())
        files = {name: hf._gen_file_name(index, largest) for name, index in mapping.items()}
        old = older_files(folder) - set(files.values())
        sizes = consolidate([Path(self.path) / name for name in sorted(names)], folder, files, self.thread_count_consolidation)
        write_index(folder, files, sum(sizes))
        remove(folder / name for name in old)


def write_index(folder: Path, weight_map: dict[str, str], total_size: int) -> None:
    text = json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=2)
    with tspool.open(folder / hf._metadata_fn, "wb") as stream:
        stream.write(text.encode())


def older_files(folder: Path) -> set[str]:
    """Of DCP's saves: shards by their names, and what an index lists if its head says that DCP wrote it."""
    shards = {path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name)} if folder.is_dir() else set()
    return shards | {name for name in listed_by_index(folder / hf._metadata_fn) if _is_dcp(folder / name)}


def _is_dcp(path: Path) -> bool:
    try:
        return hf.DCP_VERSION_KEY in _safetensors.read(str(path)).metadata
    except (OSError, ValueError, KeyError, TypeError):
        return False


class HuggingFaceStorageReader(stock.HuggingFaceStorageReader, FileSystemReader):
    """torch's HuggingFaceStorageReader, reading in place: same constructor, same results."""

    def __init__(self, path: str, thread_count: int = 1) -> None:
        super().__init__(path, thread_count)
        self.thread_count = max(thread_count, min(4, os.cpu_count() or 1))
        self._heads: dict[str, _safetensors.Head] = {}

    def read_metadata(self) -> Metadata:
        """Of every file that is there, as torch's class has it."""
        self._heads = {}
        tensors: dict[str, TensorStorageMetadata] = {}
        storage_data: dict[MetadataIndex, hf._HFStorageInfo] = {}
        for path in self.fs.ls(self.path):
            if path.endswith(hf.SUFFIX):
                self._add_file(path, tensors, storage_data)
        return Metadata({**tensors}, storage_data=storage_data, storage_meta=StorageMeta(load_id=self.load_id))

    def _add_file(self, path: str, tensors: dict[str, TensorStorageMetadata], storage_data: dict[MetadataIndex, Any]) -> None:
        head = self._head(path)
        told = _safetensors.offsets_in(path, head, hf.CUSTOM_METADATA_KEY, hf.SAVED_OFFSETS_KEY)
        for name, placed in head.tensors.items():
            offsets = torch.Size(told[name])
            shape = torch.Size(placed.shape)
            reach = [offset + extent for offset, extent in zip(offsets, shape)]
            known = tensors.setdefault(name, TensorStorageMetadata(TensorProperties(dtype=placed.dtype), torch.Size(reach), []))
            known.chunks.append(ChunkStorageMetadata(offsets, shape))
            known.size = torch.Size(map(max, known.size, reach))
            storage_data[MetadataIndex(name, offsets)] = hf._HFStorageInfo(path, shape, placed.dtype)

    def _head(self, path: str) -> _safetensors.Head:
        if path not in self._heads:
            try:
                self._heads[path] = _safetensors.read(path)
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedError(f"{path} cannot be read: {error}", path=path, operation="read", cause=str(error)) from error
        return self._heads[path]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        pieces: dict[MetadataIndex, Piece] = {}
        for item in plan.items:
            pieces.setdefault(item.storage_index, self._piece_of(item)).items.append(item)
        read(pieces.values(), planner, self.thread_count)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _piece_of(self, item: ReadItem) -> Piece:
        name, path = item.storage_index.fqn, self.storage_data[item.storage_index].relative_path
        placed = self._head(path).tensors[name]
        layout = Layout(placed.dtype, placed.shape, contiguous_stride(placed.shape), 0, placed.size)
        found = Found(layout, placed.file_offset, None)
        return Piece(name, path, placed.file_offset, placed.size, lambda _: found, [])
