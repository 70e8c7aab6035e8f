"""install: programs that name DCP's classes, or call dcp.async_save, get ours. They keep DCP's bytes on disk, so whatever reads
their checkpoints now goes on doing so.

The names are rebound in the modules that look them up when they are used. What a program imported by `from` before stays as it
was: install first.
"""

from __future__ import annotations

import importlib
from concurrent.futures import Future
from types import ModuleType, TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.checkpoint.storage import StorageWriter

from tspool.torch._async import Id, StateDict, _Options, begin_async, default_executor
from tspool.torch._filesystem import FileSystemReader, FileSystemWriter
from tspool.torch._huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter


def _async_save(
    state_dict: StateDict,
    *,
    checkpoint_id: Id | None = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
    async_stager: AsyncStager | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Future[Metadata] | AsyncSaveResponse:
    """tspool.torch.async_save, but without a `storage_writer` DCP chooses one, by the names that were rebound."""
    options = _Options(planner, process_group, no_dist, use_collectives)
    return begin_async(state_dict, checkpoint_id, storage_writer, async_stager, options)


_WRITER_AND_READER = {"FileSystemWriter": FileSystemWriter, "FileSystemReader": FileSystemReader}
_NAMES: dict[str, dict[str, Any]] = {
    "torch.distributed.checkpoint": {
        **_WRITER_AND_READER,
        "HuggingFaceStorageWriter": HuggingFaceStorageWriter,
        "HuggingFaceStorageReader": HuggingFaceStorageReader,
        "async_save": _async_save,
    },
    "torch.distributed.checkpoint._storage_utils": _WRITER_AND_READER,
    "torch.distributed.checkpoint.format_utils": _WRITER_AND_READER,
    "torch.distributed.checkpoint.state_dict_saver": {
        "async_save": _async_save,
        # DCP's own async_save, where it was imported by name before, makes one of these for each save
        "_ThreadBasedAsyncCheckpointExecutor": default_executor,
        "_ProcessBasedAsyncCheckpointExecutor": default_executor,
    },
}
_before: list[tuple[ModuleType, str, Any]] = []  # what stood there; empty: not installed


class _Installed:
    """So that `with tspool.torch.install():` is for a while."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        uninstall()


def install() -> _Installed:
    """Rebinds the names. Twice is once."""
    if _before:
        return _Installed()
    try:  # DCP imports it late, and its classes would then derive from ours
        importlib.import_module("torch.distributed.checkpoint._fsspec_filesystem")
    except ImportError:
        pass  # without fsspec there are none
    for path, names in _NAMES.items():
        module = importlib.import_module(path)
        for name, ours in names.items():
            _before.append((module, name, getattr(module, name)))
            setattr(module, name, ours)
    return _Installed()


def uninstall() -> None:
    """Puts back what stood there; a name that somebody else has rebound since stays his."""
    while _before:
        module, name, before = _before.pop()
        if getattr(module, name) is _NAMES[module.__name__][name]:
            setattr(module, name, before)
