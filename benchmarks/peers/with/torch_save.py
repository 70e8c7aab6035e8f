"""torch.save: one zip archive, written by one thread through the page cache."""
from __future__ import annotations

import pathlib

from peer import Peer, State


class TorchSave(Peer):
    name = "torch.save"
    modules = ("torch",)
    distribution = "torch"

    def save(self, path: pathlib.Path) -> None:
        import torch
        torch.save(self.state, path)

    def load(self, path: pathlib.Path) -> State:
        import torch
        return dict(torch.load(path, weights_only=True))


class TorchSaveNoCrc(TorchSave):
    name = "torch.save, no crc"

    def open(self) -> None:
        import torch
        torch.serialization.set_crc32_options(False)


class TorchLoadMapped(TorchSave):
    """Saves as torch.save does; its load is the difference."""
    name = "torch.load mmap"

    def load(self, path: pathlib.Path) -> State:
        import torch
        return dict(torch.load(path, mmap=True, weights_only=True))


PEERS = [TorchSave, TorchSaveNoCrc, TorchLoadMapped]
