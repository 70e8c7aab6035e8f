"""FileSystemWriter and FileSystemReader: the files of torch's classes of these names, written as streams and read in place.

A writer takes part in one save after the other. Its data files go into the checkpoint's folder under names that the folder's
committed checkpoint does not list, and are on disk before `finish`; `.metadata` comes last and by a rename, so that at any moment
the folder holds the old checkpoint or the new one, whole. What the old one had is removed after that. Nothing else in the folder
is touched. Where something is asked for that needs torch's own code (stream extensions, tensor subclasses, another file system),
that code is called.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import pickle
import queue
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint import filesystem as stock
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

import tspool
from tspool._errors import DamagedError
from tspool.torch import _archive, _items
from tspool.torch._crew import Crew
from tspool.torch._parts import Parts, listed, make_folder, remove, unfinished
from tspool.torch._reading import Bytes, Piece, read

Job = tuple[Path, str, list[WriteItem]]
Loaded = tuple[torch.Tensor, WriteItem]


def refuse_url(path: str | os.PathLike[str]) -> None:
    if "://" in str(path):
        raise ValueError(f"{path} is a URL, and this class reads and writes files: use torch's FsspecWriter and FsspecReader")


def is_path(checkpoint_id: str | os.PathLike[str]) -> bool:
    """pathlib makes one slash of two: what was a URL still begins as none of our paths would."""
    first = Path(checkpoint_id).parts[:1]
    return "://" not in str(checkpoint_id) and not (first and first[0].endswith(":"))


class FileSystemWriter(stock.FileSystemWriter):
    """torch's FileSystemWriter, written as streams: same constructor, same files, readable by torch's FileSystemReader."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        single_file_per_rank: bool = True,
        sync_files: bool = True,
        thread_count: int = 1,
        per_thread_copy_ahead: int = 10_000_000,
        cache_staged_state_dict: bool = False,
        overwrite: bool = True,
        _extensions: Sequence[StreamTransformExtension] | None = None,
        serialization_format: SerializationFormat = SerializationFormat.TORCH_SAVE,
    ) -> None:
        refuse_url(path)
        super().__init__(
            path, single_file_per_rank, sync_files, thread_count, per_thread_copy_ahead, cache_staged_state_dict, overwrite,
            _extensions, serialization_format,
        )  # fmt: skip
        if not sync_files:
            warnings.warn("sync_files=False has no effect: what is written goes to the disk at once", stacklevel=2)
        if _extensions and serialization_format is SerializationFormat.SAFETENSORS:
            warnings.warn("_extensions have no effect on safetensors, here as in torch's class", stacklevel=2)
        self._parts: Parts | None = None
        self._settling: weakref.finalize[[], FileSystemWriter] | None = None

    # one save after the other ---------------------------------------------------------------------------------------------------

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id:
            refuse_url(checkpoint_id)
        self._settle()
        super().reset(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._settle()
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def _settle(self) -> None:
        """The save before this one has ended, well or not."""
        if self._settling is not None:
            self._settling()
        self._parts = self._settling = None

    def _begun(self) -> Parts:
        if self._parts is None or not self._parts.is_ours():
            self._parts = self._parts_of_save()
            self._settling = weakref.finalize(self, self._parts.settle)  # at the interpreter's end, too
        return self._parts

    def _parts_of_save(self) -> Parts:
        return Parts(self._metadata_to_write())

    def _metadata_to_write(self) -> Path:
        return Path(self._get_metadata_path(None if self.use_collectives else self.rank))

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or one in another process, has written nothing."""
        return {**self.__dict__, "_parts": None, "_settling": None}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return is_path(checkpoint_id) and bool(super().validate_checkpoint_id(checkpoint_id))

    def _is_local(self) -> bool:
        return type(self.fs) is stock.FileSystem

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """torch's class copies all but scalar DTensors, which would change under the save."""
        return {key: _with_scalars_copied(value) for key, value in super().stage(state_dict).items()}

    # plan -----------------------------------------------------------------------------------------------------------------------

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        if self._is_safetensors():
            _items.refuse_objects(plan.items)
        if self._is_local():
            make_folder(Path(self.path))
        return super().prepare_local_plan(plan)

    def _is_safetensors(self) -> bool:
        return self.serialization_format is SerializationFormat.SAFETENSORS

    # data -----------------------------------------------------------------------------------------------------------------------

    def _write_data(self, planner: SavePlanner, file_queue: queue.Queue[Job]) -> Future[list[WriteResult]]:
        if not self._is_local():
            return super()._write_data(planner, file_queue)
        jobs = [job for job in _drained(file_queue) if job[2]]
        placed = self._placed([(Path(path), name) for path, name, _ in jobs])
        parts, crew = self._begun(), Crew()

        def write(number: int) -> list[WriteResult]:
            path, name = placed[number]
            results = self._write_file(planner, path, name, jobs[number][2], crew)
            parts.add(path)
            return results

        try:
            results = crew.run(write, range(len(jobs)), self.thread_count)
        except BaseException:
            parts.drop()
            raise
        future: Future[list[WriteResult]] = Future()
        future.set_result([result for of_file in results for result in of_file])
        return future

    def _placed(self, files: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
        """Where they are written and what their names will be: no file that the committed checkpoint lists."""
        taken = listed(Path(self._get_metadata_path(None))), listed(Path(self._get_metadata_path(self.rank or 0)))
        free = [_free_name(path, [names for names in taken if names is not None], None in taken) for path, _ in files]
        return [(path.with_name(name), name) for (path, _), name in zip(files, free)]

    def _write_file(self, planner: SavePlanner, path: Path, name: str, items: list[WriteItem], crew: Crew) -> list[WriteResult]:
        write = self._write_safetensors if self._is_safetensors() else self._write_items
        results = []
        with tspool.open(path, "wb", expected_bytes=sum(map(_items.bytes_of, items))) as stream:
            for result in write(planner, stream, name, items):
                results.append(result)
                crew.check()
        return results

    def _write_items(self, planner: SavePlanner, stream: Any, name: str, items: list[WriteItem]) -> Iterator[WriteResult]:
        """Objects first, as torch does."""
        plain = functools.partial(_items.write_item, form=_archive.form())
        write = self._write_transformed if self.transforms.extensions else plain
        for item in items:
            if item.type == WriteItemType.BYTE_IO:
                yield write(stream, planner.resolve_data(item), item, name)
        tensors = [item for item in items if item.type != WriteItemType.BYTE_IO]
        for tensor, item in self._loaded(planner, tensors, [stock._item_size(item) for item in tensors]):
            yield write(stream, tensor, item, name)

    def _write_transformed(self, stream: Any, data: Any, item: WriteItem, name: str) -> WriteResult:
        if isinstance(data, torch.Tensor) and data.untyped_storage().nbytes() != data.nbytes:
            data = data.clone()  # torch.save would write the whole storage
        return stock._write_item(self.transforms, stream, data, item, name, self.serialization_format)

    def _write_safetensors(self, planner: SavePlanner, stream: Any, name: str, items: list[WriteItem]) -> Iterator[WriteResult]:
        items, tensors = _items.ordered(planner, items)
        stream.write(_items.head_of(items, tensors))
        for (tensor, item), told in zip(self._loaded(planner, items, range(len(items))), tensors):
            yield _items.write_elements(stream, tensor, told, item, name)

    def _loaded(self, planner: SavePlanner, items: list[WriteItem], ranks: Sequence[int]) -> Iterator[Loaded]:
        """On the CPU. Where torch's class would copy from a device ahead of writing: by its loader, in the order of `ranks`."""
        if not (self.thread_count == 1 and self.per_thread_copy_ahead > 0 and _has_device()):
            for item in items:
                yield _items.tensor_of(planner, item).cpu(), item
            return
        resolve = functools.partial(_items.tensor_of, planner)
        loader = stock._OverlappingCpuLoader(resolve, inflight_threshhold=self.per_thread_copy_ahead)
        for item, rank in zip(items, ranks):
            loader.add(rank, item)
        for tensor, loaded in loader.values():
            yield tensor, cast(WriteItem, loaded)

    # commit ---------------------------------------------------------------------------------------------------------------------

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if not self._is_local():
            return super().finish(metadata, results)
        metadata.version = stock.CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for of_rank in results for result in of_rank}
        metadata.storage_meta = self.storage_meta()
        path, folder = self._metadata_to_write(), Path(self.path)
        before = listed(path) or set()
        with tspool.open(path, "wb") as stream:
            stream.write(pickle.dumps(metadata))
        self._begun().keep()
        superseded = before - {info.relative_path for info in metadata.storage_data.values()}
        remove(folder / name for name in superseded if Path(name).name == name)
        remove(unfinished(folder, None if self.use_collectives else self.rank))


# helpers ------------------------------------------------------------------------------------------------------------------------


def _drained(file_queue: queue.Queue[Job]) -> Iterator[Job]:
    while not file_queue.empty():
        yield file_queue.get_nowait()


def _free_name(path: Path, taken: list[set[str]], unknown: bool) -> str:
    name, number = path.name, 0
    while any(name in names for names in taken) or (unknown and path.with_name(name).exists()):
        number += 1
        name = f"{path.stem}.{number}{path.suffix}"
    return name


def _with_scalars_copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_scalars_copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_scalars_copied(each) for each in value]
    return copy.deepcopy(value) if isinstance(value, DTensor) and value.dim() == 0 else value


def _has_device() -> bool:
    other = getattr(torch, torch._C._get_privateuse1_backend_name(), None)
    return torch.cuda.is_available() or bool(other and other.is_available())


class FileSystemReader(stock.FileSystemReader):
    """torch's FileSystemReader, reading in place: same constructor, same results, of files that either class wrote."""

    def __init__(self, path: str | os.PathLike[str], _extension_registry: ExtensionRegistry | None = None) -> None:
        refuse_url(path)
        super().__init__(path, _extension_registry)
        self.thread_count = min(4, os.cpu_count() or 1)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id:
            refuse_url(checkpoint_id)
        super().reset(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return is_path(checkpoint_id) and bool(super().validate_checkpoint_id(checkpoint_id))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            return super().read_metadata(*args, **kwargs)
        except OSError:
            raise
        except Exception as error:  # a pickle can raise anything
            path = str(self._get_metadata_path(kwargs.get("rank")))
            raise DamagedError(f"{path} cannot be read: {error}", path=path, operation="read", cause=str(error)) from error

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        transformed = [item for item in plan.items if self._needs_torch(self.storage_data[item.storage_index])]
        if transformed:
            super().read_data(dataclasses.replace(plan, items=transformed), planner)
        pieces: dict[MetadataIndex, Piece] = {}
        for item in plan.items:
            info = self.storage_data[item.storage_index]
            if not self._needs_torch(info):
                pieces.setdefault(item.storage_index, self._piece(item, info)).items.append(item)
        read(pieces.values(), planner, self.thread_count)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _needs_torch(self, info: stock._StorageInfo) -> bool:
        """Written through a stream extension, or not on the local file system."""
        return bool(info.transform_descriptors) or type(self.fs) is not stock.FileSystem

    def _piece(self, item: ReadItem, info: stock._StorageInfo) -> Piece:
        path = os.path.join(self.path, info.relative_path)

        def find(content: Bytes) -> _archive.Found | None:
            found = _archive.find(lambda offset, size: content.at(info.offset + offset, size), info.length)
            return found and found._replace(data_offset=info.offset + found.data_offset)

        return Piece(item.storage_index.fqn, path, info.offset, info.length, find, [])
