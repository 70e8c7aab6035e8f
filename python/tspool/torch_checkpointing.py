"""tspool as the storage of meta-pytorch's torch_checkpointing: every file past the page cache, whole and durable or not there.

    from tspool.torch_checkpointing import TspoolStorageConfig

    CheckpointManager.Config(storage_config=TspoolStorageConfig(), ...)

See docs/PYTHON.md, "torch_checkpointing".
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

from tspool import _files
from tspool._spool import Io

try:
    from torch_checkpointing.storage.base_storage import Storage, StorageConfig  # type: ignore[import-not-found,unused-ignore]
except ImportError as error:
    raise ImportError(
        "tspool.torch_checkpointing needs torch_checkpointing: "
        "pip install git+https://github.com/meta-pytorch/torch_checkpointing",
        name="torch_checkpointing",
    ) from error

__all__ = ["TspoolStorage", "TspoolStorageConfig", "mmap_fill"]


@dataclass
class TspoolStorageConfig(StorageConfig):  # type: ignore[misc,unused-ignore]
    """How files are written and read. It travels to the checkpoint process; the storage is made there."""

    io: Io = "auto"
    buffered: bool = False
    """writes never past the page cache"""
    block_bytes: int = 0
    depth: int = 0
    """of the writes in flight, per stream; 0: 1 MiB, 16"""
    direct_reads: bool = True
    """whole files are read past the page cache where the caller does not say"""
    read_threads: int = 4
    """that read one whole file"""

    def create_storage(self) -> TspoolStorage:
        return TspoolStorage(self)


class TspoolStorage(_files.Files, Storage):  # type: ignore[misc,unused-ignore]
    """A `Storage` over the engine's streams. What it wrote, made, renamed and deleted is on the disk when it returns."""

    def __init__(self, config: TspoolStorageConfig) -> None:
        super().__init__(
            io=config.io,
            buffered=config.buffered,
            block_bytes=config.block_bytes,
            depth=config.depth,
            direct_reads=config.direct_reads,
            read_threads=config.read_threads,
        )


def mmap_fill(size: int, path: Any, workers: int, chunk_bytes: int) -> mmap.mmap:
    """For `CheckpointReader(mmap_fill_factory=lambda storage: mmap_fill)`: the file in memory of its own, read past the page
    cache by `workers` threads."""
    filled = mmap.mmap(-1, size)
    try:
        with memoryview(filled) as into:
            got = _files.fill(path, into, workers, chunk_bytes, True)
        if got != size:
            raise OSError(f"{os.fspath(path)} ends after {got} of {size} bytes")
    except BaseException:
        filled.close()
        raise
    return filled
