"""tspool beneath torch.distributed.checkpoint: its own format, torch's files written by its engine, and its async_save."""
from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

from peer import LeftOut, Peer, State, empty_like


class Writer(Peer):
    modules = ("tspool", "torch")
    distribution = "tspool"
    syncs_files = syncs_folders = True
    syncs = "files and directories"
    publishes = "directory renamed"
    writer = reader = ""

    def open(self) -> None:
        if importlib.util.find_spec("tspool.torch") is None:
            raise LeftOut("this tspool has no tspool.torch")
        import tspool.torch
        for name in (self.writer, self.reader):
            if not hasattr(tspool.torch, name):
                raise LeftOut(f"this tspool.torch has no {name}")

    def made(self, name: str, path: pathlib.Path) -> Any:
        import tspool.torch
        return getattr(tspool.torch, name)(str(path))

    def save(self, path: pathlib.Path) -> None:
        import torch.distributed.checkpoint as dcp
        dcp.save(self.state, storage_writer=self.made(self.writer, path), no_dist=True)

    def load(self, path: pathlib.Path) -> State:
        import torch.distributed.checkpoint as dcp
        state = empty_like(self.state)
        dcp.load(state, storage_reader=self.made(self.reader, path), no_dist=True)
        return state


class OwnFormat(Writer):
    name = "tspool StorageWriter (dcp.save)"
    writer, reader = "StorageWriter", "StorageReader"


class Distcp(Writer):
    name = "tspool FileSystemWriter (dcp.save)"
    writer, reader = "FileSystemWriter", "FileSystemReader"
    syncs, publishes = "files and directories", ".metadata renamed"


class HuggingFace(Writer):
    name = "tspool HuggingFaceStorageWriter"
    writer, reader = "HuggingFaceStorageWriter", "HuggingFaceStorageReader"
    publishes = "each file renamed"


class AsyncSave(Writer):
    name = "tspool async_save"
    writer, reader = "async_save", "StorageReader"
    is_async = True

    def save(self, path: pathlib.Path) -> None:
        import tspool.torch
        self.pending: Any = tspool.torch.async_save(self.state, checkpoint_id=str(path), no_dist=True)

    def wait(self) -> None:
        self.pending.result()


PEERS = [OwnFormat, AsyncSave, Distcp, HuggingFace]
